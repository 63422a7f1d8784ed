"""README and docs/: their links lead somewhere, and the site is built of them."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    *(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))),
    *sorted((ROOT / "experiments" / "results").rglob("*.md")),
]


def targets(page):
    """The links and pictures of a page that stay within the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [one for one in found if not re.match(r"https?:", one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for target in targets(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        assert not anchor or f"# {anchor}" in _headings(there), target


def _headings(page):
    """The headings of a page as anchors, behind #."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w -]", "", line.lower()) for line in lines]
    return {f"# {line.replace(' ', '-')}" for line in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_that_a_page_names_are_there(page):
    for path in re.findall(r"\bconfigs/\w+\.py", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_page_is_reached_from_the_readme():
    linked = set(targets(ROOT / "README.md"))
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - linked == {"docs/api.md", "docs/index.md"}


def test_readme_has_at_most_250_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-c", "docs", "-d", str(tmp_path / "read"), ".", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "docs" / "api.html").read_text()
    assert 'id="svda_jax.load"' in page
    assert "softmax(q_hat diag(sigma) k_hat^T / sqrt(K))" in page

"""Which results are older than their code."""

import subprocess

import pytest

from experiments import stale
from experiments.faults.programs import ROOT


def test_comments_and_docstrings_are_no_change():
    before = "def double(x):\n    return 2 * x\n"
    after = 'def double(x):\n    """Twice x."""\n    # Quick.\n    return 2 * x\n'
    assert stale.code(before) == stale.code(after)
    assert stale.code(before) != stale.code(before.replace("2", "3"))


def test_every_file_that_decides_a_page_is_there():
    paths = {path for sources in stale.SOURCES.values() for path in sources}
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_page_of_numbers_has_its_sources():
    listed = subprocess.run(
        ["git", "ls-files", stale.RESULTS], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no repository of git")
    files = listed.stdout.splitlines()
    names = [path.removeprefix(f"{stale.RESULTS}/") for path in files]
    pages = [stale.pages(files, pattern) for pattern in stale.SOURCES]
    known = {path for page in pages for paths in page.values() for path in paths}
    numbers = {name for name in names if stale.is_numbers(name)}
    assert numbers == {path.removeprefix(f"{stale.RESULTS}/") for path in known}


def test_a_page_that_its_code_left_behind_is_said(monkeypatch, capsys):
    def git(*args):
        if args[0] == "ls-files":
            return "experiments/results/faults.md\n"
        if args[0] == "log":
            return "abc1234 2026-01-02"
        path = args[1].removeprefix("abc1234:")
        text = (ROOT / path).read_text()
        return "" if path == "svda_jax/train/loop.py" else text

    monkeypatch.setattr(stale, "_git", git)
    stale.main()
    assert capsys.readouterr().out.splitlines() == [
        "faults.md  abc1234 of 2026-01-02  stale: svda_jax/train/loop.py",
        "",
        "1 of these pages are older than code that decides them.",
    ]

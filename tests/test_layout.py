"""The rooms of the library: which imports which, how many and how large they are."""

import ast
import graphlib
import pathlib

import pytest

import svda_jax

ROOT = pathlib.Path(svda_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the ground up: each room knows itself and those before it.
ROOMS = (
    *(
        "devices",
        "models",
        "nnx",
        "linen",
        "commands",
        "data",
        "options",
        "config",
        "run",
    ),
    *("look", "train", "prune", "atlas", "main"),
)


def name(path):
    """svda_jax.run.history of svda_jax/run/history.py."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name(path) for path in FILES}


def imports(path, within_functions=True):
    """The modules of ours that a file imports."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if within_functions else tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in NAMES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module.split(".")[0] == "svda_jax"}


def rank(module):
    """The place of a module's room in `ROOMS`; the package itself is below all."""
    if module == "svda_jax":
        return -1
    room = module.split(".")[1]
    return ROOMS.index("main" if room == "__main__" else room)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_import_leads_upward(path):
    if name(path) == "svda_jax":
        return  # `svda_jax.load` and the version are there for users alone
    for module in imports(path):
        assert rank(module) <= rank(name(path)), module


def test_no_imports_lead_in_a_circle():
    graph = {name(path): imports(path) for path in FILES if path.parent != ROOT}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_models_know_of_ours_the_error_alone():
    for path in (ROOT / "models").rglob("*.py"):
        others = {m for m in imports(path) if not m.startswith("svda_jax.models")}
        assert others <= {"svda_jax"}, path
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "svda_jax":
                assert {alias.name for alias in node.names} <= {"UserError"}, path


def test_the_root_has_fourteen_entries_at_most():
    entries = [p.name for p in ROOT.iterdir() if not p.name.startswith("__")]
    assert len(entries) <= 14, entries


@pytest.mark.parametrize("folder", ["svda_jax", "configs", "experiments", "tests"])
def test_no_file_has_more_than_350_lines(folder):
    for path in (ROOT.parent / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_says_in_its_first_line_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), path

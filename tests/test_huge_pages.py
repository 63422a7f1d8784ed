"""The program starts itself again with huge pages, where that helps and once."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import os, sys
from svda_jax.huge_pages import use_huge_pages
print("start", flush=True)
use_huge_pages()
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


def run(program, *argv, **environment):
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("GLIBC_TUNABLES", "JAX_PLATFORMS")
    }
    return subprocess.run(
        [sys.executable, "-c", program, *argv],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


@pytest.mark.parametrize("platforms", [{}, {"JAX_PLATFORMS": "cpu"}])
def test_it_starts_once_more_with_the_same_arguments(platforms):
    assert run(PROGRAM, "a b", "--c=d", **platforms) == [
        "start",
        "start",
        "['a b', '--c=d'] glibc.malloc.hugetlb=1",
    ]


def test_other_tunables_stay():
    last = run(PROGRAM, GLIBC_TUNABLES="glibc.malloc.arena_max=2")[-1]
    assert last == "[] glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


def test_the_users_own_setting_stays():
    said = run(PROGRAM, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert said == ["start", "[] glibc.malloc.hugetlb=0"]


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_nothing_happens_where_an_accelerator_is_asked_for(platforms):
    assert run(PROGRAM, JAX_PLATFORMS=platforms) == ["start", "[] None"]


@pytest.mark.parametrize("package", ["libtpu", "jax_plugins"])
def test_nothing_happens_where_an_accelerator_is_installed(tmp_path, package):
    (tmp_path / package).mkdir()
    assert run(PROGRAM, PYTHONPATH=str(tmp_path)) == ["start", "[] None"]


def test_a_flag_of_the_command_line_keeps_it_off():
    program = (
        "import os, runpy\n"
        "os.execv = lambda *args: print('starts again') or os._exit(0)\n"
        "runpy.run_module('svda_jax.main', run_name='__main__')"
    )
    assert "Trains a Vision Transformer." in run(program, "--nohuge_pages", "--help")
    assert "Trains a Vision Transformer." not in run(program, "--help")

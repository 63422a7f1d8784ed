"""The program starts itself again to keep its memory, where that helps and once."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=8589934592"
)
ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import os, sys
from svda_jax.devices.memory import keep_memory
print("start", flush=True)
keep_memory()
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
        "['a b', '--c=d'] " + SETTINGS,
    ]


def test_other_tunables_stay():
    last = run(PROGRAM, GLIBC_TUNABLES="glibc.malloc.arena_max=2")[-1]
    assert last == "[] glibc.malloc.arena_max=2:" + SETTINGS


def test_the_users_own_setting_stays():
    settings = SETTINGS.replace("hugetlb=1", "hugetlb=0")
    assert run(PROGRAM, GLIBC_TUNABLES=settings) == ["start", f"[] {settings}"]
    last = run(PROGRAM, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")[-1]
    assert sorted(last[3:].split(":")) == sorted(settings.split(":"))


def test_a_process_of_another_does_not_start_again():
    program = PROGRAM.replace("keep_memory()", "keep_memory(restart=False)")
    assert run(program) == ["start", "[] None"]


def test_memory_of_a_large_computation_stays():
    """Page faults of a warm computation whose temporaries take 64 MB."""
    program = """
import resource, statistics
from svda_jax.devices.memory import keep_memory
keep_memory()
import jax, jax.numpy as jnp

def count_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def multiply(x):
    return jax.lax.fori_loop(0, 3, lambda i, y: x * y + i, jnp.ones(2**24)).sum()

compute, x, faults = jax.jit(multiply), jnp.ones(()), []
for _ in range(24):
    before = count_faults()
    jax.block_until_ready(compute(x))
    faults.append(count_faults() - before)
print(statistics.median(faults[8:]))  # the heap has come to its size
"""
    without = program.replace("\nkeep_memory()", "")
    small_pages = "glibc.malloc.hugetlb=0"  # so that each counts
    kept, given_back = (
        float(run(one, GLIBC_TUNABLES=small_pages)[-1]) for one in (program, without)
    )
    assert 10 * kept < given_back


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_nothing_happens_where_an_accelerator_is_asked_for(platforms):
    assert run(PROGRAM, JAX_PLATFORMS=platforms) == ["start", "[] None"]


@pytest.mark.parametrize("package", ["libtpu", "jax_plugins"])
def test_nothing_happens_where_an_accelerator_is_installed(tmp_path, package):
    (tmp_path / package).mkdir()
    assert run(PROGRAM, PYTHONPATH=str(tmp_path)) == ["start", "[] None"]

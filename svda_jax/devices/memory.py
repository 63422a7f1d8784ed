"""Memory that stays, for a program that computes on the processor."""

import importlib.metadata
import importlib.util
import os
import sys

# Settings of the GNU C library: huge pages for the heap; blocks of any size from the
# heap, not mapped one by one; nothing given back below this size.
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 2**32,
    "glibc.malloc.trim_threshold": 2**33,
}


def keep_memory(*, restart=True):
    """Starts this program again, in its place, with a heap that keeps its memory.

    XLA on CPU asks for all the temporaries of a step in one block and gives it back
    after the step. The C library maps a large block anew each time, and the kernel
    zeroes it page by page: up to a third of a step. Kept instead, in huge pages, it
    costs nothing. The C library reads such settings when a program starts, so it is
    started again, which takes some 30 ms; and only the main thread's heap can grow to
    that size, so JAX is told to compute in the thread that calls it.

    Nothing happens where it does not help: on other systems than Linux, or where JAX
    could use an accelerator. What GLIBC_TUNABLES already sets stays. C libraries other
    than glibc 2.35 and newer ignore the settings, as a kernel without transparent huge
    pages does the first.

    Args:
      restart: False in a process that another has started, which has the settings of
        that one or goes without.
    """
    if sys.platform != "linux" or may_use_accelerator():
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    missing = [f"{k}={v}" for k, v in _TUNABLES.items() if k not in tunables]
    if missing and not restart:
        return
    if missing:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, *missing]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    import jax  # takes its time, which the first start need not wait for

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def may_use_accelerator():
    """Whether JAX has anything but the processor to run on, without importing it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms != "cpu"
    return bool(
        importlib.util.find_spec("jax_plugins")
        or importlib.util.find_spec("libtpu")
        or importlib.metadata.entry_points(group="jax_plugins")
    )

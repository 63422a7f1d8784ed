"""Huge pages for the memory of a program that computes on the processor."""

import importlib.metadata
import importlib.util
import os
import sys

_TUNABLE = "glibc.malloc.hugetlb"


def use_huge_pages():
    """Starts this program again, in its place, with huge pages for its heap.

    XLA on CPU gives the temporaries of a step back to the kernel and asks for them anew
    in the next, page by page: on two cores a quarter to a third of a FashionMNIST step.
    With huge pages that is next to nothing. The C library reads the setting when a
    program starts, so it is started again, which takes some 30 ms.

    Nothing happens where it does not help: on other systems than Linux, where JAX could
    use an accelerator, or where GLIBC_TUNABLES has the setting. C libraries other than
    glibc 2.35 and newer ignore it, as does a kernel without transparent huge pages.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or _TUNABLE in tunables or _may_use_accelerator():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _may_use_accelerator():
    """Whether JAX has anything but the processor to run on, without importing it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms != "cpu"
    return bool(
        importlib.util.find_spec("jax_plugins")
        or importlib.util.find_spec("libtpu")
        or importlib.metadata.entry_points(group="jax_plugins")
    )

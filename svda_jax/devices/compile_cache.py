"""What was compiled once is read the next time."""

import os
import pathlib

import jax


def cache_folder():
    """The folder in the user's caches that is ours; it need not be there."""
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches, "svda_jax")


def use_compile_cache():
    """Keeps compiled programs in the user's cache folder, ~/.cache/svda_jax.

    XDG_CACHE_HOME stands for ~/.cache where it is set. A folder that JAX was given, as
    by JAX_COMPILATION_CACHE_DIR, stays.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    path = cache_folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"compiled programs are not kept: {path}: {error.strerror}")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

"""How long the kernels of attention take on a TPU, by their compiler's schedule.

They are compiled alone, in a process of its own: where the compiler writes schedules
down it takes five times as long for everything.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp

from experiments.benchmarks.compilers import describe_devices, place
from svda_jax.devices import parallel
from svda_jax.models.indicators import compute_indicators
from svda_jax.models.ops import choose
from svda_jax.models.ops.tpu_kernels import count_stacked


def count_cycles(config, batch_size, machine):
    """Cycles of a call of each kernel of a model's attention, by the kernel's name.

    Bundles of instructions, one a cycle, of a pass through a kernel's code, times its
    passes. Waiting for memory is not in them.

    Args:
      config: a `ViTConfig`.
      batch_size: images on a device.
      machine: of `MACHINES`; GPUs, whose kernels are a library's, have none.
    """
    if machine == "h100":
        return {}
    tokens, heads = config.grid**2 + (config.pool == "cls"), config.num_heads
    sizes = (batch_size, tokens, heads, config.width // heads)
    bundles = _ask(machine, *map(str, sizes), config.dtype, config.attention)
    passes = batch_size // count_stacked(batch_size, tokens, config.dtype)
    return {name: passes * count for name, count in bundles.items()}


@functools.cache
def _ask(*args):
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        subprocess.run(
            [sys.executable, "-m", "experiments.benchmarks.kernels", *args],
            check=True,
            env={**os.environ, "LIBTPU_INIT_ARGS": options},
        )
        return _read_bundles(pathlib.Path(folder))


def _read_bundles(folder):
    bundles = {}
    for path in folder.glob("*schedule-analysis_final_bundles.txt"):
        if name := re.search(r"attend_[a-z]+", path.name):
            count = re.search(r"total scheduled bundles: +(\d+)", path.read_text())
            bundles[name[0]] = int(count[1])
    return bundles


def main(machine, batch, tokens, heads, width, dtype, attention):
    """Compiles the kernels."""
    device = describe_devices(machine)[0]
    mesh = parallel.create_mesh([device])
    ops, unit = choose(device), attention == "svda"
    shape = tuple(map(int, (batch, tokens, heads, width)))
    operands = [jax.ShapeDtypeStruct(shape, dtype)] * 3
    operands.append(jax.ShapeDtypeStruct(shape[2:], jnp.float32))
    noise = jax.ShapeDtypeStruct((2, *shape[1:]), jnp.float32)

    attend = functools.partial(ops.attend, unit=unit)

    def differentiate(*operands):
        def total(*operands):
            return jnp.sum(attend(*operands), dtype=jnp.float32)

        return jax.grad(total, argnums=(0, 1, 2, 3))(*operands)

    def observe(*operands):
        return ops.observe(compute_indicators, *operands, unit=unit)

    for function, args in (
        (attend, operands),
        (differentiate, operands),
        (observe, [*operands, noise]),
    ):
        jax.jit(function).lower(*place(args, parallel.replicated(mesh))).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])

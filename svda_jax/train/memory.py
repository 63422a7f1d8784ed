"""What a training step holds of each device's memory, known before it runs."""

import os
import re

import jax
import jax.numpy as jnp

from svda_jax import UserError
from svda_jax.devices import parallel

GIB = 2**30


def compile_step(step, state, key, *, config, mesh):
    """Compiles a training step ahead of its first call, which finds it compiled.

    Args:
      step: from `create_training`.
      state: shapes and dtypes of its state.
      key: PRNG key.
      config: as from `svda_jax.config.defaults`.
      mesh: from `parallel.create_mesh`.

    Returns:
      A line that says what each device will hold and has; None where the compiler or
      the device does not know.

    Raises:
      UserError: the step needs more memory than a device has.
    """
    arguments = abstract_arguments(state, config, mesh)
    try:
        needed = held_bytes(step.lower(*arguments, key).compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"([\d.]+)G\b", str(error))  # a TPU's compiler says both
        needed, available = sizes[:2] if len(sizes) > 1 else ("more", "fewer")
        raise UserError(_refusal(needed, available, config, mesh)) from None
    available = available_bytes(mesh.local_devices[0])
    if not needed or not available:
        return None
    needed, rest = f"{needed / GIB:.2f}", available - needed
    available = f"{available / GIB:.2f}"
    if rest < 0:
        raise UserError(_refusal(needed, available, config, mesh))
    return f"memory   a training step takes {needed} of each device's {available} GiB"


def abstract_arguments(state, config, mesh):
    """Shapes, dtypes and shardings of a training step's state and batch."""
    side, num_images = config.dataset.image_size, config.batch_size
    shape = (num_images, side, side, config.dataset.channels)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct((num_images,), jnp.int32),
    }
    return tuple(
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            tree,
            shardings,
        )
        for tree, shardings in (
            (state, parallel.shard(state, mesh, fsdp=config.fsdp)),
            (batch, jax.tree.map(lambda _: parallel.split(mesh), batch)),
        )
    )


def held_bytes(compiled):
    """What a device holds while it runs a program, in bytes; None: not known.

    Arguments, results that are in no argument's place, temporaries, and code.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def available_bytes(device):
    """What a program can use of a device, in bytes; None: not known.

    Devices that are the processor share the machine's memory.
    """
    if device.platform == "cpu":
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def _refusal(needed, available, config, mesh):
    model, remedies = config.model, []
    if config.batch_size > mesh.size * config.accumulate_steps:
        remedies += ["a smaller batch_size", "a larger accumulate_steps"]
    if model.remat != "nothing_saveable":
        remedies.append("model.remat=nothing_saveable")
    if model.dtype != "bfloat16":
        remedies.append("model.dtype=bfloat16")
    if mesh.size > 1 and not config.fsdp:
        remedies.append("fsdp=True")
    remedies.append("a smaller model or smaller images")
    return (
        f"a training step needs {needed} GiB of each device, which has {available} "
        f"GiB; less is needed with {', '.join(remedies)}"
    )

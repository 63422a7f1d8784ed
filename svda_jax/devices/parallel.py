"""One map over all devices, from one CPU to a pod.

`pmap` is what `jax.pmap` has become, `jit` of `shard_map`, without its leading device
axis: arrays are global, the state replicated, a batch split along its first axis.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from svda_jax import UserError

AXIS = "batch"


def create_mesh(devices=None):
    """A one-axis mesh, "batch", over the given devices, by default all there are."""
    return Mesh(find_devices() if devices is None else devices, (AXIS,))


def find_devices(find=jax.devices):
    """The devices that `jax.devices` or `jax.local_devices` finds.

    Raises:
      UserError: there is none of the platform that the user asks for, or 64-bit types
        are on, in which nothing here computes.
    """
    if jax.config.jax_enable_x64:
        raise UserError("JAX_ENABLE_X64=1: this computes in float32; unset it")
    try:
        return find()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that one is left
        reason = " ".join(str(error).split()) or "there is none of that platform"
        platforms = jax.config.jax_platforms
        raise UserError(f"no device, JAX_PLATFORMS={platforms}: {reason}") from None


def replicated(mesh):
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree, mesh):
    """Puts arrays, the same in every process, whole on every device."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            replicated(mesh), np.asarray(x)
        ),
        tree,
    )


def split(mesh):
    """The sharding of what is split over the devices along its first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def pmap(function, mesh, *, split_argnums=(), donate_argnums=()):
    """Compiles a function to run on every device of the mesh at once.

    Inside, collectives such as `jax.lax.pmean(x, "batch")` go over all devices.

    Args:
      function: of positional arguments, each a pytree of arrays.
      mesh: from `create_mesh`.
      split_argnums: arguments of which each device sees its share of the first axis;
        it sees the others whole.
      donate_argnums: arguments whose buffers the result may reuse.

    Returns:
      The compiled function. Its result must be the same on every device.
    """

    def mapped(*args):
        in_specs = tuple(
            PartitionSpec(AXIS) if i in split_argnums else PartitionSpec()
            for i in range(len(args))
        )
        # Gradients are averaged by an explicit pmean, as under pmap; with check_vma JAX
        # would sum them over the devices by itself as well.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=PartitionSpec(),
            check_vma=False,
        )(*args)

    return jax.jit(mapped, donate_argnums=donate_argnums)

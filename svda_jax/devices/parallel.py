"""One map over all devices, from one CPU to a pod.

`pmap` is what `jax.pmap` has become, `jit` of `shard_map`, without its leading device
axis: arrays are global, the state replicated, a batch split along its first axis.
Where the state is split too (`fsdp`), a part of the step alone is such a map.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from svda_jax import UserError

AXIS = "batch"

# Arrays of fewer numbers are never split: gathering them costs more than they take.
MIN_SPLIT_SIZE = 2**12


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


def local_device():
    """This process's first device, for what is done on one alone."""
    return find_devices(jax.local_devices)[0]


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


def shard(tree, mesh, *, fsdp):
    """The sharding of each array of a training state.

    Args:
      tree: arrays, or their shapes.
      mesh: from `create_mesh`.
      fsdp: whether arrays of `MIN_SPLIT_SIZE` numbers and more are split over the
        devices, along their largest axis that the number of devices divides. Others,
        and without fsdp all, are whole on every device.

    Returns:
      A `NamedSharding` for each.
    """

    def place(leaf):
        sizes = [size * (size % mesh.size == 0) for size in leaf.shape]
        if not fsdp or leaf.size < MIN_SPLIT_SIZE or not max(sizes):
            return replicated(mesh)
        axis = sizes.index(max(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(place, tree)


def whole(tree, mesh):
    """Arrays of the mesh, split or not, whole on every device."""
    return jax.device_put(tree, replicated(mesh))


def place(tree, shardings):
    """Puts arrays, the same in every process, where their shardings, or one, say."""
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(
            x.shape, sharding, np.asarray(x).__getitem__
        ),
        tree,
        jax.tree.broadcast(shardings, tree),
    )


def gather(parts, shardings):
    """Inside `map_parts`, whole arrays; the gradient of a part is a sum over devices.

    XLA has all-gather for it and reduce-scatter for its gradient.
    """

    def gather_one(part, sharding):
        axis = _split_axis(sharding)
        if axis is None:
            return part
        return jax.lax.all_gather(part, AXIS, axis=axis, tiled=True)

    return jax.tree.map(gather_one, parts, shardings)


def average(grads, shardings):
    """Inside `map_parts`, the mean over devices of gradients of parts; see `gather`."""

    def average_one(grad, sharding):
        if _split_axis(sharding) is None:
            return jax.lax.pmean(grad, AXIS)
        return grad / sharding.mesh.size

    return jax.tree.map(average_one, grads, shardings)


def _split_axis(sharding):
    return sharding.spec.index(AXIS) if AXIS in sharding.spec else None


def map_parts(function, shardings):
    """A map for use inside `jit`, in which each device sees its part of some arrays.

    Args:
      function: of arrays with these shardings, a number, a batch and a key to a pair:
        arrays with these shardings, and what is the same on every device.
      shardings: from `shard`.

    Returns:
      The function of global arrays.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    parts = jax.tree.map(lambda sharding: sharding.spec, shardings)
    same, batch = PartitionSpec(), PartitionSpec(AXIS)
    return _shard_map(function, mesh, (parts, same, batch, same), (parts, same))


def _shard_map(function, mesh, in_specs, out_specs):
    # Gradients are averaged by an explicit pmean, as under pmap; with check_vma JAX
    # would sum them over the devices by itself as well.
    specs = {"in_specs": in_specs, "out_specs": out_specs}
    return jax.shard_map(function, mesh=mesh, **specs, check_vma=False)


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
        return _shard_map(function, mesh, in_specs, PartitionSpec())(*args)

    return jax.jit(mapped, donate_argnums=donate_argnums)

"""Checkpoints of the training state, by Orbax."""

import pathlib

import jax
import orbax.checkpoint as ocp

from svda_jax import UserError


class Checkpoints:
    """The checkpoints in a folder; a context manager, so that no save is lost.

    Args:
      path: the folder. It is made with the first save.
      max_to_keep: newest checkpoints kept.
    """

    def __init__(self, path, *, max_to_keep=2):
        self.path = pathlib.Path(path).absolute()
        self._manager = None
        self._max_to_keep = max_to_keep
        if self.path.exists():
            self._open()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self._manager:
            self._manager.close()  # waits for the save that is under way

    def latest_step(self):
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step() if self._manager else None

    def save(self, step, state):
        """Saves a dict of pytrees in the background; its buffers may be reused."""
        if not self._manager:
            self._open()
        self._manager.save(step, args=ocp.args.PyTreeSave(state))

    def restore(self, step, target, sharding):
        """Reads a checkpoint, or some of the entries of the dict that was saved.

        Args:
          step: of the checkpoint.
          target: the dict, with `jax.ShapeDtypeStruct` for arrays.
          sharding: of every array.

        Returns:
          Like target, with arrays.

        Raises:
          UserError: the checkpoint is of another model; it names the first leaf that
            differs, with shapes and dtypes.
        """
        self._check(step, target)
        restore_args = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            target,
        )
        args = ocp.args.PyTreeRestore(
            item=target, restore_args=restore_args, partial_restore=True
        )
        return self._manager.restore(step, args=args)

    def _open(self):
        self._manager = ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(max_to_keep=self._max_to_keep),
            item_handlers=ocp.PyTreeCheckpointHandler(),
        )

    def _check(self, step, target):
        found = _describe(self._manager.item_metadata(step))
        found = {name: leaf for name, leaf in found.items() if name[0] in target}
        wanted = _describe(target)
        # Parameters first: what else differs, differs because of them.
        names = sorted(
            found.keys() | wanted.keys(), key=lambda n: (n[0] != "params", n)
        )
        for name in names:
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.path / str(step)} is a checkpoint of another model: "
                    f"{'/'.join(name)} is {found.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} here; give another --workdir"
                )


def _describe(tree):
    """The leaves of a pytree by path, each as dtype and shape: float32[64, 10]."""
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

"""Checkpoints of the training state, by Orbax, each leaf with its checksum."""

import contextlib
import gc
import io
import logging as python_logging
import pathlib
import re
import sys
import time
import warnings
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from svda_jax import UserError
from svda_jax.devices import parallel, processes


class Checkpoints:
    """The checkpoints in a folder; a context manager, so that no save is lost.

    A checkpoint is an Orbax one of the state and, beside it, a manifest: dtype, shape
    and crc32 of every leaf. Orbax alone reads a flipped byte as if nothing were wrong,
    and casts another dtype.

    Args:
      path: the folder. It is made with the first save.
      keep_last: newest checkpoints kept.
      keep_every_steps: those of each multiple are kept too; 0 is none.
      together: whether all processes write it; False: the first alone, all of it, since
        the others do not see its disk.
    """

    def __init__(self, path, *, keep_last=2, keep_every_steps=0, together=True):
        self.path = pathlib.Path(path).absolute()
        # TensorStore would take a backslash for a slash, and write elsewhere.
        if re.search("[\\\\\ud800-\udfff]", str(self.path)):
            path = ascii(str(self.path))
            raise UserError(f"{path}: a path with \\ or not in UTF-8 cannot be used")
        self._manager = None
        self._together = together
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every_steps or None,
            create=False,  # which Orbax cannot for a process alone
            **({} if together else {"multiprocessing_options": alone}),
        )
        if self.path.exists():
            self._open()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc_info):
        if not self._manager:
            return
        try:
            self._manager.close()  # waits for the save that is under way
        except Exception as error:  # whatever the file system raised meanwhile
            if kind is None:
                raise self._failed(error) from None
            print(self._failed(error), file=sys.stderr)

    def steps(self):
        """Steps of the checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True) if self._manager else []

    def save(self, step, state):
        """Saves a dict of pytrees in the background; its buffers may be reused.

        Raises:
          UserError: this save, or the one before, cannot be written. Checkpoints that
            were complete before stay.
        """
        manifest = _manifest(state)
        if not self._together and jax.process_count() > 1:
            state = jax.tree.map(processes.fetch, state)
            if not processes.is_primary():
                return
        try:
            if not self._manager:
                self.path.mkdir(parents=True, exist_ok=True)
                self._open()
            self._manager.wait_until_finished()
            if not self.path.exists():  # which Orbax would make again
                raise FileNotFoundError("the folder is gone")
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    manifest=ocp.args.JsonSave(manifest),
                ),
            )
        except Exception as error:  # whatever the file system raises
            raise self._failed(error) from None

    def restore_newest(self, target, sharding, *, set_aside=True):
        """Reads the newest checkpoint that is whole, or some entries of it.

        One that is damaged is said and passed over.

        Args:
          target: the dict that was saved, with `jax.ShapeDtypeStruct` for arrays; or a
            part of its entries.
          sharding: of every array, or a dict like target with that of each.
          set_aside: whether to rename those that are damaged to <step>.damaged, so that
            their steps can be saved again, once one that is whole has been read.

        Returns:
          Its step and the dict like target, with arrays; 0 and None if there is none.

        Raises:
          UserError: the checkpoint is of another model (it names the first leaf that
            differs, with shapes and dtypes), or all there are are damaged.
        """
        damaged = []
        for step in self.steps():
            state, damage = _attempt(self._restore, step, target, sharding)
            if not damage:
                for other in damaged if set_aside else ():
                    self._set_aside(other)
                return step, state
            path = self.path / str(step)
            if not path.exists():  # the run, which goes on, has newer ones
                self._open()
                return self.restore_newest(target, sharding, set_aside=set_aside)
            print(f"checkpoint {path} is damaged: {damage}")
            damaged.append(step)
        damaged = damaged or sorted(self.path.glob("*.damaged*"))
        if damaged:
            raise UserError(
                f"every checkpoint in {self.path} is damaged; "
                "to begin anew remove that folder or give another --workdir"
            )
        return 0, None

    def verify(self, step):
        """Reads a checkpoint to the end; returns None, or what is damaged."""
        return _attempt(self.read, step)[1]

    def read(self, step):
        """All arrays of a checkpoint, verified: nested dicts and lists, on one device.

        Raises:
          Exception: of any kind; it is damaged.
        """
        device = jax.sharding.SingleDeviceSharding(parallel.local_device())
        restore_args = jax.tree.map(
            lambda _: ocp.ArrayRestoreArgs(sharding=device),
            self._manager.item_metadata(step).state,
        )
        args = ocp.args.PyTreeRestore(restore_args=restore_args)
        state = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
        _check_leaves(self._read_manifest(step), _manifest(state)["leaves"])
        return state

    def size(self, step):
        """Bytes on disk."""
        files = (self.path / str(step)).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def _open(self, attempts=20):
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "manifest": ocp.JsonCheckpointHandler(),
        }
        try:
            self._manager = ocp.CheckpointManager(
                self.path, options=self._options, item_handlers=handlers
            )
        except (FileNotFoundError, NotADirectoryError):
            # The run, which goes on, took one away while they were listed.
            if not attempts:
                raise
            self._open(attempts - 1)

    def _failed(self, error):
        return UserError(
            f"cannot write a checkpoint to {self.path}: {_brief(error)}; what was "
            f"saved before stays, up to step {max(self._complete(), default=0)}"
        )

    def _complete(self):
        """Steps that are on disk, as far as the folder can be read."""
        try:
            return [int(p.name) for p in self.path.iterdir() if p.name.isdigit()]
        except OSError:
            return []

    def _read_manifest(self, step):
        args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        manifest = self._manager.restore(step, args=args).manifest
        if manifest["crc32"] != _crc32_of_json(manifest["leaves"]):
            raise ValueError("the manifest is damaged")
        return manifest["leaves"]

    def _restore(self, step, target, sharding):
        manifest = self._read_manifest(step)
        self._check_model(step, manifest, target)
        # Every process reads all, even where its devices have parts of it: so all find
        # the same damage.
        restore_args = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype),
            target,
        )
        args = ocp.args.PyTreeRestore(
            item=target, restore_args=restore_args, partial_restore=True
        )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=args)
        ).state
        found = _manifest(restored)["leaves"]
        _check_leaves({name: manifest[name] for name in found}, found)
        return parallel.place(restored, sharding)

    def _check_model(self, step, manifest, target):
        found = {
            name: f"{dtype}{shape}"
            for name, (dtype, shape, _) in manifest.items()
            if name.split("/")[0] in target
        }
        wanted = {
            name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(target)
        }
        # Parameters first: what else differs, differs because of them.
        names = sorted(
            found.keys() | wanted.keys(), key=lambda n: (not n.startswith("params"), n)
        )
        for name in names:
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.path / str(step)} is a checkpoint of another model: "
                    f"{name} is {found.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} here; give another --workdir"
                )

    def _set_aside(self, step):
        path = self.path / str(step)
        aside = path.with_name(f"{step}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{step}.damaged{number}")
        processes.synchronize("read")
        if processes.is_primary():
            try:
                path.rename(aside)
            except OSError as error:
                raise self._failed(error) from None
            print(f"{path} is now {aside.name}")
        processes.synchronize("set aside")
        self._manager.reload()


def quiet_orbax():
    """Keeps off the screen what Orbax prints about errors that it raises as well.

    For a program, not for a library: it is for the whole process.
    """
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def unraisablehook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":  # of other writes
            hook(unraisable)

    sys.unraisablehook = unraisablehook


def _attempt(read, *args):
    """What a function that reads a checkpoint returns, or why it cannot, in a line.

    Orbax goes on reading other leaves when one cannot be read. What then fails, and
    what is left of it when it is deleted, prints tracebacks: they are kept off the
    screen.
    """
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(*args), None
        except UserError:
            raise
        except Exception as error:  # whatever the damaged byte leads to
            reason = _brief(error)
        python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
        time.sleep(0.1)
        gc.collect()
    return None, reason


def _manifest(state):
    """Dtype, shape and crc32 of every leaf, by name, and a crc32 of that."""
    leaves = {
        name: [
            str(leaf.dtype),
            list(leaf.shape),
            zlib.crc32(np.ascontiguousarray(processes.fetch(leaf))),
        ]
        for name, leaf in _named(state)
    }
    return {"leaves": leaves, "crc32": _crc32_of_json(leaves)}


def _brief(error):
    """An exception of a library in a line: Orbax's run to pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 100 else f"{text[:97]}..."


def _check_leaves(wanted, found):
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is not what was saved")


def _crc32_of_json(leaves):
    return zlib.crc32(repr(sorted(leaves.items())).encode())


def _named(tree):
    """The leaves of a pytree with their paths, such as params/head/bias."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(jax.tree_util.keystr((k,), simple=True) for k in path), leaf

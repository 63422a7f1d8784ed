"""Vision Transformers with SVDA attention, trained and looked into, in JAX.

The rooms, each of which imports those below it alone:

main      the command line                    config   read and checked
atlas     what directions are for             options  every option
prune     scores shortened, or made SVDA      data     splits, decoding, augmentation
train     loop, steps, optimizer              nnx      SVDA in a model of one's own
look      maps, figures, report               linen    the same, for Flax Linen
run       what a run's folder holds           models   attention, ViT, indicators
                                              devices  map over devices, memory
"""

import pathlib
import re

__version__ = "0.1.0"


class UserError(ValueError):
    """A mistake of the user's, in one line that the command line prints and exits."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))


class UsageError(UserError):
    """A command line that cannot be read: exit code 2."""


# Where a run or a data set may lie beside local folders: scheme, and what it needs.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}


def local_path(path):
    """A folder or file that the user names, with ~ for the home folder.

    Raises:
      UserError: it is empty, as of a shell's variable that is not set, an address such
        as gs://bucket/folder, or nobody's home folder.
    """
    if not str(path):
        raise UserError("a path is empty; the folder one is in is .")
    if scheme := re.match(r"[A-Za-z][\w+.-]*:/+", str(path)):
        raise UserError(f"{path}: {scheme[0]} is not supported here; give a local path")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home folder") from None


def place(path):
    """Where a run or a data set lies: a local folder, or an address in a bucket.

    Returns:
      A `pathlib.Path`, or an `epath.Path` for scheme://bucket/folder of `SCHEMES`,
      which has the same methods for names.

    Raises:
      UserError: it is an address of another kind, or nobody's home folder.
    """
    scheme = re.match(r"([A-Za-z][\w+.-]*):/", str(path))
    if not scheme:
        return local_path(path)
    known = " or ".join(f"{name}://BUCKET/FOLDER" for name in SCHEMES)
    if scheme[1] not in SCHEMES:
        raise UserError(f"{path}: {scheme[1]}:// is not supported; {known} is")
    parts = str(path).rstrip("/").removeprefix(f"{scheme[1]}://").split("/")
    if scheme[1] + ":" in parts or len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise UserError(f"{path} must be {known}")
    from etils import epath  # a tenth of a second, for addresses alone

    return epath.Path("/".join([f"{scheme[1]}:/", *parts]))


def is_address(path):
    """Whether `place` found that in a bucket."""
    return "://" in str(path)


def load(workdir):
    """The `Run` in a folder: its config, its model, its history.

    Raises:
      UserError: there is no run in workdir, or it has no checkpoint yet.
    """
    from svda_jax.run import runs  # seconds, for those who ask

    return runs.load(workdir)

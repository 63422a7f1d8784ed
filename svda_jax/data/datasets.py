"""What a data set is here: a TFDS data set of images with labels.

Data sets are read through TFDS's random-access data sources, which need no TensorFlow,
and decoded by us (`images`). Those that fit lie on the device (`in_memory`), the others
stream (`streaming`); both have one interface.
"""

import contextlib
import difflib
import fcntl
import functools
import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import requests
import tensorflow_datasets as tfds

import svda_jax
from svda_jax import UserError
from svda_jax.data.bucket import fetch_data
from svda_jax.data.cifar import Cifar
from svda_jax.data.digits import Digits
from svda_jax.data.fashion_mnist import FashionMnist
from svda_jax.data.food101 import Food101
from svda_jax.data.imagenet import ImageNet
from svda_jax.data.in_memory import InMemory, decode_split
from svda_jax.data.splits import open_split

# Our own builders, by data set. They prepare without TensorFlow.
BUILDERS = {
    "digits": Digits,
    "fashion_mnist": FashionMnist,
    **{name: functools.partial(Cifar, name=name) for name in ("cifar10", "cifar100")},
    "food101": Food101,
    "imagenet2012": ImageNet,
}


def load(config, kind, *, batch_size, mesh, obtain=True):
    """The split that a run trains on, or the one that it evaluates.

    Args:
      config: the `dataset` section of a config.
      kind: "train" or "eval".
      batch_size: of all devices together; a multiple of their number.
      mesh: from `parallel.create_mesh`.
      obtain: whether to prepare a data set that is not on disk: "digits" from
        scikit-learn, others by download.

    Returns:
      An `InMemory` or a `Streaming`.

    Raises:
      UserError: the data set is unknown, or missing and cannot be had, has no such
        split, or its images and classes are not what the config says.
    """
    builder = open_builder(config.name, config.data_dir, obtain=obtain)
    split = open_split(builder, config, kind)
    if config.streaming:
        from svda_jax.data.streaming import Streaming  # Grain takes a second

        return Streaming(split, config, batch_size=batch_size, mesh=mesh)
    return InMemory(decode_split(split, config), batch_size=batch_size, mesh=mesh)


def open_builder(name, data_dir="", *, obtain=True):
    """A TFDS builder whose data is on disk.

    Args:
      name: of the data set, as TFDS knows it or a key of `BUILDERS`.
      data_dir: the folder that TFDS keeps data sets in; "" is TFDS's default.
      obtain: whether to prepare a data set that is not on disk.

    Raises:
      UserError: the data set is unknown, or missing and cannot be had.
    """
    data_dir = fetch_data(data_dir, name)
    builder = create_builder(name, data_dir)
    if builder.is_prepared():
        return builder
    missing = f"data set {name} is not in {builder.data_dir}"
    if not obtain:
        raise UserError(missing)
    check_obtainable(builder)
    print(f"{missing}: preparing it", flush=True)
    if name in BUILDERS:
        prepare_builder(builder)
    else:
        _prepare_apart(name, data_dir)
    return create_builder(name, data_dir)  # what another process may have written


def create_builder(name, data_dir=""):
    """A TFDS builder, whether its data is on disk or not.

    Raises:
      UserError: there is no data set of that name.
    """
    create = BUILDERS.get(name) or functools.partial(tfds.builder, name)
    try:
        return create(data_dir=data_dir or None, file_format="array_record")
    except OSError as error:
        where = data_dir or tfds.core.constants.DATA_DIR
        raise UserError(f"cannot read {where}: {error.strerror}") from None
    except (ValueError, AssertionError, ImportError):  # no such name, version, variant
        known = [*BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        plain = re.sub(r"\W+|_", "", name.lower())
        same = [known_one for known_one in known if known_one.replace("_", "") == plain]
        nearest = same or difflib.get_close_matches(name, known, 1) or ["digits"]
        raise UserError(
            f"dataset.name={name} is neither a TFDS data set nor one of "
            f"{list(BUILDERS)}, nor is there one of that name in "
            f"{data_dir or tfds.core.constants.DATA_DIR}; did you mean {nearest[0]}? A "
            "folder of images becomes a data set with python -m svda_jax prepare NAME "
            "--from DIR"
        ) from None


def prepare_builder(builder):
    """Writes a data set to disk, in a format with random access, once.

    Processes that come meanwhile wait. What a killed one left is removed.

    Returns:
      Whether it was written; False: it was there already.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = pathlib.Path(builder.data_dir)
    if builder.name == "digits" or not sys.stderr.isatty():  # seconds; nobody looks
        tfds.disable_progress_bar()
    try:
        if builder.is_prepared():
            return False
        with _lock(pathlib.Path(builder.data_dir_root) / f".{builder.name}.lock"):
            if builder.is_prepared():
                return False
            for left in folder.parent.glob("incomplete.*"):
                shutil.rmtree(left, ignore_errors=True)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # of no use
                    builder.download_and_prepare(file_format="array_record")
            finally:
                with contextlib.suppress(OSError):  # it stays where it is not empty
                    folder.parent.rmdir()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}{where}; "
            "dataset.data_dir (or --data_dir) names another folder"
        ) from None
    return True


@contextlib.contextmanager
def _lock(path):
    """Holds a file's lock, which goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process holds {path}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def check_obtainable(builder):
    """Says at once why a data set that is not on disk cannot be prepared, if so.

    Raises:
      UserError: it needs TensorFlow, files got by hand, or a network.
    """
    name, ours = builder.name, builder.name in BUILDERS
    missing = f"data set {name} is not in {builder.data_dir}"
    by_import = f"python -m svda_jax prepare {name} --from DIR imports its files"
    if name == "digits":
        return
    if ours and not builder.URL:
        raise UserError(
            f"{missing} and is downloaded by hand, from {builder.info.homepage}; "
            f"{by_import}"
        )
    if not ours and not importlib.util.find_spec("tensorflow"):
        raise UserError(f"{missing}, and preparing it needs: pip install tensorflow")
    if not ours and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        folder = pathlib.Path(builder.data_dir).parents[1] / "downloads" / "manual"
        if not folder.is_dir() or not any(folder.iterdir()):
            instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            raise UserError(
                f"{missing}, and its files must be put into {folder} by hand: "
                f"{instructions}"
            )
        return
    url = builder.URL if ours else next(iter(builder.url_infos or ()), "")
    if not _is_reachable(url or "https://storage.googleapis.com"):
        remedy = by_import if ours else "run this once with a network"
        raise UserError(f"{missing} and there is no network to get it; {remedy}")


def _prepare_apart(name, data_dir):
    """Prepares in a process of its own: TensorFlow, and no accelerator for it."""
    command = [sys.executable, "-m", "svda_jax", "prepare", name]
    root = str(pathlib.Path(svda_jax.__file__).parents[1])
    hidden = {
        "CUDA_VISIBLE_DEVICES": "",
        "ROCR_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, *(["--data_dir", data_dir] if data_dir else [])],
        env={**os.environ, **hidden, "PYTHONPATH": path},
    )
    if done.returncode:
        raise UserError(f"preparing {name} failed; what it said stands above")


def _is_reachable(url):
    """Whether a server answers there, whatever it answers."""
    try:
        requests.head(url, timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True

"""What a data set is here: a TFDS data set of images with labels.

Data sets are read through TFDS's random-access data sources, which need no TensorFlow.
"""

import contextlib
import importlib.util
import io
import os
from typing import NamedTuple

import numpy as np
import requests
import tensorflow_datasets as tfds

from svda_jax import UserError
from svda_jax.datasets.digits import Digits
from svda_jax.datasets.idx import FashionMnist

# Our own builders, by data set. They prepare without TensorFlow.
BUILDERS = {"digits": Digits, "fashion_mnist": FashionMnist}

_CHUNK = 1000  # examples decoded at a time


class Examples(NamedTuple):
    """A whole split in memory.

    Attributes:
      images: `[n, image_size, image_size, channels]` uint8.
      labels: `[n]` int32.
      class_names: what each label stands for.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def load(config):
    """The training and the evaluation split of a data set.

    It is prepared first where it is not: "digits" from scikit-learn, others by
    download.

    Args:
      config: the `dataset` section of a config.

    Returns:
      (training `Examples`, evaluation `Examples`).

    Raises:
      UserError: the data set is unknown, or missing and cannot be had, has no such
        split, or its images and labels are not what the config says.
    """
    builder = open_builder(config.name, config.data_dir)
    return (
        read_split(builder, config, "train_split"),
        read_split(builder, config, "eval_split"),
    )


def open_builder(name, data_dir=""):
    """A TFDS builder whose data is on disk; it is prepared first where it is not.

    Args:
      name: of the data set, as TFDS knows it or a key of `BUILDERS`.
      data_dir: the folder that TFDS keeps data sets in; "" is TFDS's default.

    Raises:
      UserError: the data set is unknown, or missing and cannot be had.
    """
    builder = _create_builder(name, data_dir or None)
    if not builder.is_prepared():
        _obtain(builder)
    return builder


def find_builder(name, data_dir=""):
    """As `open_builder`, but a data set that is not on disk is a `UserError`."""
    builder = _create_builder(name, data_dir or None)
    if not builder.is_prepared():
        raise UserError(f"data set {name} is not in {builder.data_dir}")
    return builder


def _create_builder(name, data_dir):
    try:
        if name in BUILDERS:
            return BUILDERS[name](data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"dataset.name={name} is neither a TFDS data set nor one of "
            f"{list(BUILDERS)}"
        ) from None


def _obtain(builder):
    """Downloads what is needed and prepares, or says at once why it cannot."""
    missing = f"data set {builder.name} is not in {builder.data_dir}"
    if builder.name not in BUILDERS and not importlib.util.find_spec("tensorflow"):
        raise UserError(f"{missing}, and preparing it needs: pip install tensorflow")
    if builder.name != "digits":
        url = getattr(builder, "URL", None) or next(iter(builder.url_infos or ()), "")
        if not _is_reachable(url or "https://storage.googleapis.com"):
            remedy = (
                "import its files with "
                "python -m svda_jax.datasets.prepare fashion_mnist --from DIR"
                if builder.name == "fashion_mnist"
                else "run this once with a network"
            )
            raise UserError(f"{missing} and there is no network to get it; {remedy}")
    print(f"{missing}: preparing it")
    prepare_builder(builder)


def prepare_builder(builder):
    """Writes a data set to disk, in a format with random access."""
    if builder.name == "digits" or getattr(builder, "source", None):
        tfds.disable_progress_bar()  # a matter of seconds
    with contextlib.redirect_stdout(io.StringIO()):  # what it prints is no use here
        builder.download_and_prepare(file_format="array_record")


def _is_reachable(url):
    """Whether a server answers there, whatever it answers."""
    try:
        requests.head(url, timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True


def read_split(builder, config, key):
    """One split of a prepared data set as `Examples`.

    Args:
      builder: from `open_builder`.
      config: the `dataset` section of a config.
      key: "train_split" or "eval_split".

    Raises:
      UserError: there is no such split, or it is not what the config says.
    """
    split = config[key]
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:
        raise UserError(
            f"{builder.data_dir} is stored without random access; run tfds "
            f"convert_format --out_file_format=array_record --dataset_dir="
            f"{builder.data_dir} --out_path={os.path.dirname(builder.data_dir)}"
        ) from None
    except (ValueError, KeyError):
        raise UserError(
            f"dataset.{key}={split} is no split of {builder.name}, which has "
            f"{list(builder.info.splits)}"
        ) from None
    num_images = len(source)
    shape = (config.image_size, config.image_size, config.channels)
    images = np.empty((num_images, *shape), np.uint8)
    labels = np.empty(num_images, np.int32)
    for start in range(0, num_images, _CHUNK):
        indices = range(start, min(start + _CHUNK, num_images))
        for i, example in zip(indices, source.__getitems__(indices), strict=True):
            if example["image"].shape != shape:
                raise UserError(
                    f"{builder.name} has an image of shape {example['image'].shape}; "
                    f"dataset.image_size and dataset.channels say {shape}"
                )
            images[i] = example["image"]
            labels[i] = example["label"]
    if labels.max() >= config.num_classes:
        raise UserError(
            f"{builder.name} has label {labels.max()}; dataset.num_classes="
            f"{config.num_classes} must be larger"
        )
    return Examples(images, labels, tuple(builder.info.features["label"].names))

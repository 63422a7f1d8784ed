"""Puts a data set on disk: from files that are there, or by download.

    python -m svda_jax prepare fashion_mnist --from DIR
    python -m svda_jax prepare my_flowers --from DIR
    python -m svda_jax prepare cifar10

DIR holds the four IDX files of FashionMNIST, gzipped or not; for every other name,
train/ and val/ with a folder of images for each class, or train.X1/, ... and val.X/, or
the class folders alone. Without --from the data set is one of TFDS, which needs
TensorFlow for it.
"""

import argparse
import os
import re
import sys

import tensorflow_datasets as tfds
from absl import logging

from svda_jax import UserError
from svda_jax.data.datasets import create_builder, prepare_builder
from svda_jax.data.fashion_mnist import FashionMnist
from svda_jax.data.image_folder import ImageFolder


def import_files(name, source, data_dir=None, *, skip_corrupt=False):
    """Imports a folder as a data set; returns its builder.

    Args:
      name: "fashion_mnist", for a folder of IDX files, or what a folder of images shall
        be called.
      source: the folder.
      data_dir: the folder that TFDS keeps data sets in; None is TFDS's default.
      skip_corrupt: leaves images that cannot be decoded out.

    Raises:
      UserError: the name, the folder or a file is not what it should be, or the data
        set is there already. No part of a data set is left then.
    """
    if not os.path.isdir(source):
        raise UserError(f"{source} is not a folder")
    options = {"source": source, "data_dir": data_dir, "file_format": "array_record"}
    if name == "fashion_mnist":
        builder = FashionMnist(**options)
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name}: a name has lower-case letters, digits, underscores")
    elif name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{name} is a data set of TFDS; choose another name")
    else:
        builder = ImageFolder(name=name, skip_corrupt=skip_corrupt, **options)
    if builder.is_prepared():
        raise UserError(
            f"{builder.data_dir} is there already; remove it to import anew"
        )
    if name == "fashion_mnist":
        builder.read_folder()  # a damaged file must not leave half a data set behind
    _prepare(builder)
    return builder


def _prepare(builder):
    try:
        prepare_builder(builder)
    except OSError as error:
        raise UserError(f"cannot write {builder.data_dir}: {error.strerror}") from None


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="of the data set")
    parser.add_argument("--from", dest="source", metavar="DIR")
    parser.add_argument("--data_dir", help="where TFDS keeps data sets")
    parser.add_argument("--skip_corrupt", action="store_true")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    try:
        if args.source:
            builder = import_files(
                args.name, args.source, args.data_dir, skip_corrupt=args.skip_corrupt
            )
        else:
            builder = create_builder(args.name, args.data_dir)
            _prepare(builder)
    except UserError as error:
        sys.exit(f"error: {error}")
    for line in getattr(builder, "skipped", ()):
        print(f"left out {line}")
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    num_classes = builder.info.features["label"].num_classes
    counts = ", ".join(f"{count:,} in {name}" for name, count in splits.items())
    print(f"{builder.data_dir} is ready: {num_classes} classes, {counts}")
    if args.source:
        print(f"train on it with\n  {_train_line(builder, args.data_dir)}")


def _train_line(builder, data_dir):
    """The command that trains on an imported data set."""
    options = {}
    config = "fashion_mnist"
    if builder.name != "fashion_mnist":
        config = "imagenet100"
        splits = list(builder.info.splits)
        held_out = len(splits) == 1
        options = {
            "name": builder.name,
            "num_classes": builder.info.features["label"].num_classes,
            **({"holdout": 0.1} if held_out else {"eval_split": splits[-1]}),
        }
    if data_dir:
        options["data_dir"] = data_dir
    line = [f"python -m svda_jax.main --config=configs/{config}.py"]
    return " ".join(line + [f"--config.dataset.{k}={v}" for k, v in options.items()])


if __name__ == "__main__":
    main()

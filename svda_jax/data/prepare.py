"""Puts a data set on disk: from files that are there, or by download.

    python -m svda_jax prepare fashion_mnist --from DIR
    python -m svda_jax prepare my_flowers --from DIR
    python -m svda_jax prepare cifar10 --from cifar-10-python.tar.gz
    python -m svda_jax prepare cifar10

DIR holds the four IDX files of FashionMNIST, gzipped or not; CIFAR-10 and CIFAR-100 are
taken from an archive as published, "python" or "binary", what it unpacks to, or a
folder with either; for every other name DIR has train/ and val/ with a folder of images
for each class, or train.X1/, ... and val.X/, or the class folders alone. What cannot be
taken is counted and named at the end; --strict refuses it. Without --from the data set
is downloaded, for which all but FashionMNIST, CIFAR and the digits need TensorFlow.
"""

import os
import re
import shlex
import sys

import tensorflow_datasets as tfds
from absl import logging

from svda_jax import UserError, command_line, local_path
from svda_jax.data.cifar import VERSIONS as CIFAR
from svda_jax.data.cifar import Cifar
from svda_jax.data.datasets import create_builder, prepare_builder
from svda_jax.data.fashion_mnist import FashionMnist
from svda_jax.data.image_folder import ImageFolder, describe_left_out
from svda_jax.data.splits import features_of


def import_files(name, source, data_dir=None, *, strict=False):
    """Imports files as a data set; returns its builder.

    Args:
      name: "fashion_mnist", for a folder of IDX files, "cifar10" or "cifar100", for
        their files, or what a folder of images shall be called.
      source: the folder, or an archive of CIFAR's.
      data_dir: the folder that TFDS keeps data sets in; None is TFDS's default.
      strict: refuses a folder with anything that is not taken.

    Raises:
      UserError: the name, the folder or a file is not what it should be, or the data
        set is there already. No part of a data set is left then.
    """
    if not os.path.exists(source):
        raise UserError(f"there is no {source}")
    options = {"source": source, "data_dir": data_dir, "file_format": "array_record"}
    if name == "fashion_mnist":
        builder = FashionMnist(**options)
    elif name in CIFAR:
        builder = Cifar(name=name, **options)
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name}: a name has lower-case letters, digits, underscores")
    elif name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{name} is a data set of TFDS; choose another name")
    else:
        builder = ImageFolder(name=name, strict=strict, **options)
    if not builder.is_prepared():  # a damaged file must not leave half a data set
        if name == "fashion_mnist":
            builder.read_folder()
        elif name in CIFAR:
            builder.read(source)
    if not prepare_builder(builder):
        raise UserError(
            f"{builder.data_dir} is there already; remove it to import anew"
        )
    return builder


def main(argv=None):
    """Runs the command line."""
    parser = command_line("prepare", __doc__)
    parser.add_argument("name", help="of the data set")
    parser.add_argument("--from", dest="source", metavar="DIR_OR_ARCHIVE")
    parser.add_argument("--data_dir", help="where TFDS keeps data sets")
    parser.add_argument("--strict", action="store_true", help="leave nothing out")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    try:
        for name in ("source", "data_dir"):
            if path := getattr(args, name):
                setattr(args, name, str(local_path(path)))
        if args.source:
            builder = import_files(
                args.name, args.source, args.data_dir, strict=args.strict
            )
        else:
            prepare_builder(create_builder(args.name, args.data_dir))
            builder = create_builder(args.name, args.data_dir)
    except UserError as error:
        sys.exit(f"error: {error}")
    for line in describe_left_out(getattr(builder, "left_out", {})):
        print(line)
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    num_classes = getattr(features_of(builder).get("label"), "num_classes", "no")
    counts = ", ".join(f"{count:,} in {name}" for name, count in splits.items())
    print(f"{builder.data_dir} is ready: {num_classes} classes, {counts}")
    if args.source:
        print(f"train on it with\n  {_train_line(builder, args.data_dir)}")


def _train_line(builder, data_dir):
    """The command that trains on an imported data set."""
    own = builder.name not in ("fashion_mnist", "imagenet100", *CIFAR)
    config = f"folder.py:{builder.name}" if own else f"{builder.name}.py"
    options = {"data_dir": os.path.abspath(data_dir)} if data_dir else {}
    if builder.name == "imagenet100":
        splits = builder.info.splits
        options["num_classes"] = builder.info.features["label"].num_classes
        if "validation" not in splits:
            options |= {"eval_split": "test"} if "test" in splits else {"holdout": 0.1}
    line = ["python", "-m", "svda_jax", "train", f"--config=configs/{config}"]
    return shlex.join(
        line + [f"--config.dataset.{key}={value}" for key, value in options.items()]
    )


if __name__ == "__main__":
    main()

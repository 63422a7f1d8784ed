"""Puts a data set on disk: from files that are there, or by download."""

import os
import re
import shlex
import sys

import tensorflow_datasets as tfds
from absl import logging

from svda_jax import UserError, local_path
from svda_jax.commands import parse
from svda_jax.data.cifar import VERSIONS as CIFAR
from svda_jax.data.datasets import (
    BUILDERS,
    check_obtainable,
    create_builder,
    prepare_builder,
)
from svda_jax.data.image_folder import ImageFolder, describe_left_out
from svda_jax.data.imagenet import ImageNet, has_archives
from svda_jax.data.splits import features_of


def import_files(name, source, data_dir=None, *, strict=False, class_list=""):
    """Imports files as a data set; returns its builder.

    Args:
      name: "fashion_mnist", for a folder of IDX files, "cifar10", "cifar100", "food101"
        or "imagenet2012", for their files, or what a folder of images or some classes
        of ImageNet shall be called.
      source: the folder, or an archive.
      data_dir: the folder that TFDS keeps data sets in; None is TFDS's default.
      strict: refuses files with anything that is not taken.
      class_list: file with the WordNet ids of classes of ImageNet, one a line.

    Raises:
      UserError: the name, the folder or a file is not what it should be, or the data
        set is there already. No part of a data set is left then.
    """
    if not os.path.exists(source):
        raise UserError(f"there is no {source}")
    options = {"source": source, "data_dir": data_dir, "file_format": "array_record"}
    if class_list and name in BUILDERS:
        raise UserError(f"{name} has all its classes; choose another name for some")
    if name in ("fashion_mnist", *CIFAR):
        builder = BUILDERS[name](**options)  # which leaves nothing out
    elif name in ("food101", "imagenet2012"):
        builder = BUILDERS[name](strict=strict, **options)
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name}: a name has lower-case letters, digits, underscores")
    elif name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{name} is a data set of TFDS; choose another name")
    elif class_list:
        builder = ImageNet(name=name, class_list=class_list, strict=strict, **options)
    elif has_archives(source):
        raise UserError(
            f"{source} has ImageNet's archives: --class_list FILE says which classes "
            f"{name} has; the name of all is imagenet2012"
        )
    else:
        builder = ImageFolder(name=name, strict=strict, **options)
    if not prepare_builder(builder):
        raise UserError(
            f"{builder.data_dir} is there already; remove it to import anew"
        )
    return builder


def main(argv=None):
    """Runs the command line."""
    args = parse("prepare", argv)
    logging.set_verbosity(logging.ERROR)
    try:
        for name in ("source", "data_dir", "class_list"):
            if (path := getattr(args, name)) is not None:
                setattr(args, name, str(local_path(path)))
        if args.source:
            builder = import_files(**vars(args))
        elif args.class_list:
            raise UserError("--class_list goes with --from DIR")
        else:
            builder = create_builder(args.name, args.data_dir)
            if not builder.is_prepared():
                check_obtainable(builder)
                prepare_builder(builder)
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
    options = {"data_dir": os.path.abspath(data_dir)} if data_dir else {}
    if isinstance(builder, ImageNet) or builder.name == "imagenet100":
        config, splits = "imagenet100.py", builder.info.splits
        if builder.name != "imagenet100":
            options["name"] = builder.name
        options["num_classes"] = builder.info.features["label"].num_classes
        if "validation" not in splits:
            options |= {"eval_split": "test"} if "test" in splits else {"holdout": 0.1}
    else:
        ours = builder.name in BUILDERS
        config = f"{builder.name}.py" if ours else f"folder.py:{builder.name}"
    line = ["python", "-m", "svda_jax", "train", f"--config=configs/{config}"]
    return shlex.join(
        line + [f"--config.dataset.{key}={value}" for key, value in options.items()]
    )


if __name__ == "__main__":
    main()

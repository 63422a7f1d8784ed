"""Imports local files as a TFDS data set.

    python -m svda_jax.datasets.prepare fashion_mnist --from DIR

DIR holds the four IDX files of FashionMNIST, gzipped or not.
"""

import argparse
import os
import sys

from svda_jax import UserError
from svda_jax.datasets import prepare_builder
from svda_jax.datasets.idx import FashionMnist


def import_fashion_mnist(source, data_dir=None):
    """Imports FashionMNIST from a folder of IDX files; returns where it now lies.

    Args:
      source: folder with the four files.
      data_dir: the folder that TFDS keeps data sets in; None is TFDS's default.

    Raises:
      UserError: the folder or a file is not what it should be, or the data set is there
        already. Nothing is written then.
    """
    if not os.path.isdir(source):
        raise UserError(f"{source} is not a folder")
    builder = FashionMnist(source=source, data_dir=data_dir, file_format="array_record")
    if builder.is_prepared():
        raise UserError(
            f"{builder.data_dir} is there already; remove it to import anew"
        )
    builder.read_folder()  # a damaged file must not leave half a data set behind
    try:
        prepare_builder(builder)
    except OSError as error:
        raise UserError(f"cannot write {builder.data_dir}: {error.strerror}") from None
    return str(builder.data_dir)


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax.datasets.prepare",
        description="Imports local files as a TFDS data set.",
    )
    parser.add_argument("dataset", choices=["fashion_mnist"])
    parser.add_argument("--from", dest="source", required=True, metavar="DIR")
    parser.add_argument("--data_dir", help="where TFDS keeps data sets")
    args = parser.parse_args(argv)
    try:
        path = import_fashion_mnist(args.source, args.data_dir)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{path} is ready; train on it with")
    option = f" --config.dataset.data_dir={args.data_dir}" if args.data_dir else ""
    print(f"  python -m svda_jax.main --config=configs/fashion_mnist.py{option}")


if __name__ == "__main__":
    main()

"""CIFAR-10 and CIFAR-100 from their published files, in TFDS format.

Either version, "python" or "binary", packed or unpacked, without TensorFlow.
"""

import hashlib
import itertools
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax import UserError
from svda_jax.data.archives import members, read
from svda_jax.data.download import source_files
from svda_jax.data.pickles import read_pickle

_PIXELS = 3 * 32 * 32


class Version(NamedTuple):
    """One of the published versions.

    Attributes:
      archive: its name.
      md5: of the archive.
      folder: in it.
      files: names by split.
      names: the file with the names of a label's classes, by label.
      keys: of the labels of images and of these names, by label; without pickles empty.
    """

    archive: str
    md5: str
    folder: str
    files: dict[str, list[str]]
    names: dict[str, str]
    keys: dict[str, tuple[bytes, bytes]]


# Source: https://www.cs.toronto.edu/~kriz/cifar.html
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
VERSIONS = {
    "cifar10": [
        Version(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
            {"train": _BATCHES, "test": ["test_batch"]},
            {"label": "batches.meta"},
            {"label": (b"labels", b"label_names")},
        ),
        Version(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            {"train": [f"{b}.bin" for b in _BATCHES], "test": ["test_batch.bin"]},
            {"label": "batches.meta.txt"},
            {},
        ),
    ],
    "cifar100": [
        Version(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
            {"train": ["train"], "test": ["test"]},
            {"coarse_label": "meta", "label": "meta"},
            {
                "coarse_label": (b"coarse_labels", b"coarse_label_names"),
                "label": (b"fine_labels", b"fine_label_names"),
            },
        ),
        Version(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            {"train": ["train.bin"], "test": ["test.bin"]},
            {
                "coarse_label": "coarse_label_names.txt",
                "label": "fine_label_names.txt",
            },
            {},
        ),
    ],
}
CLASSES = {"cifar10": {"label": 10}, "cifar100": {"label": 100, "coarse_label": 20}}
# Images of each class, by split.
PER_CLASS = {
    "cifar10": {"train": 5_000, "test": 1_000},
    "cifar100": {"train": 500, "test": 100},
}


class Cifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """CIFAR-10 or CIFAR-100 as TFDS has it: same name, version, splits, features.

    `tfds.builder(name)` opens what it wrote.

    Args:
      name: "cifar10" or "cifar100".
      source: an archive as published, what it unpacks to, or a folder with either; None
        downloads the binary version.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    VERSION = tfds.core.Version("3.0.2")
    URL = "https://www.cs.toronto.edu/~kriz/"

    def __init__(self, *, name, source=None, **kwargs):
        self.name, self.source = name, source
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Colour photographs, 32 x 32.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    **{
                        label: tfds.features.ClassLabel(num_classes=count)
                        for label, count in CLASSES[self.name].items()
                    },
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def read(self, source):
        """Reads and checks all files.

        Returns:
          By label the names of its classes; by split uint8 images `[n, 32, 32, 3]` and,
          by label, int64 `[n]`.

        Raises:
          UserError: a file is missing or is not what it should be.
        """
        version, files = _open(self.name, pathlib.Path(source))
        classes = CLASSES[self.name]
        names = {
            label: _read_names(*files[file], version, label, classes[label])
            for label, file in version.names.items()
        }
        splits = {}
        for split, batches in version.files.items():
            per_class = PER_CLASS[self.name][split]
            size = classes["label"] * per_class // len(batches)
            parts = [_read_batch(*files[b], version, size) for b in batches]
            images, labels = map(np.concatenate, zip(*parts, strict=True))
            labels = dict(zip(version.names, labels.T, strict=True))
            for label, values in labels.items():
                if not 0 <= values.min() <= values.max() < classes[label]:
                    wrong = values.min() if values.min() < 0 else values.max()
                    raise UserError(
                        f"{source}: {label} {wrong} in {split}, expected 0 to "
                        f"{classes[label] - 1}"
                    )
            counts = np.bincount(labels["label"], minlength=classes["label"])
            if counts.min() < counts.max():
                raise UserError(
                    f"{source}: {split} has {counts.min()} to {counts.max()} images of "
                    f"a class, expected {per_class} of each"
                )
            splits[split] = images, labels
        return names, splits

    def _split_generators(self, dl_manager):
        urls = [self.URL + VERSIONS[self.name][1].archive]
        with source_files(self, urls, dl_manager) as source:
            names, splits = self.read(source)
        for label, words in names.items():
            self.info.features[label].names = words
        return {
            split: self._generate_examples(split, *examples)
            for split, examples in splits.items()
        }

    def _generate_examples(self, split, images, labels):
        for i, image in enumerate(images):
            example = {label: int(values[i]) for label, values in labels.items()}
            example |= {"id": f"{split}_{i:05d}", "image": Image.fromarray(image)}
            yield i, example


def _open(name, source):
    """The version that is there, and the place and bytes of each file by its name."""
    if source.is_file():
        return _open_archive(name, source)
    for version in VERSIONS[name]:
        needed = {*itertools.chain(*version.files.values()), *version.names.values()}
        for folder in (source, source / version.folder):
            if any((folder / file).is_file() for file in needed):
                return version, {file: _read(folder / file) for file in needed}
    for version in VERSIONS[name]:
        if (source / version.archive).is_file():
            return _open_archive(name, source / version.archive)
    archives = " or ".join(version.archive for version in VERSIONS[name])
    raise UserError(f"{source} is not {archives}, nor a folder with it or its files")


def _read(path):
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _open_archive(name, path):
    known = {one.md5: one for versions in VERSIONS.values() for one in versions}
    try:
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if known.get(md5) not in VERSIONS[name]:
        archives = " or ".join(version.archive for version in VERSIONS[name])
        found = known[md5].archive if md5 in known else f"a file of MD5 {md5}"
        raise UserError(
            f"{path} is {found}, not {archives} as published; it is truncated, damaged "
            "or another file"
        )
    files = {
        pathlib.PurePath(member).name: (path / member, read(path, file))
        for member, file in members(path)
    }
    return known[md5], files


def _read_names(path, data, version, label, count):
    """The names of a label's classes."""
    if version.keys:
        names = read_pickle(path, data).get(version.keys[label][1])
    else:
        names = data.split()
    if (
        not isinstance(names, list)
        or not all(isinstance(name, bytes) for name in names)
        or not len(names) == len(set(names)) == count
    ):
        raise UserError(f"{path}: has no list of the names of {count} classes")
    return [name.decode("ascii", "replace") for name in names]


def _read_batch(path, data, version, size):
    """Images `[size, 32, 32, 3]` and labels `[size, labels]` of a file."""
    num_labels = len(version.names)
    if version.keys:
        batch = read_pickle(path, data)
        try:
            labels = [batch[version.keys[label][0]] for label in version.names]
            labels = np.array(labels, np.int64).T
            pixels = batch[b"data"].read()
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
            raise UserError(
                f"{path}: has no pixels and labels as CIFAR's files do"
            ) from None
        if pixels.shape != (size, _PIXELS) or labels.shape != (size, num_labels):
            raise UserError(
                f"{path}: pixels of shape {pixels.shape} and labels of shape "
                f"{labels.shape}, expected {size} of each"
            )
    else:
        width = num_labels + _PIXELS
        if len(data) != size * width:
            raise UserError(
                f"{path}: {len(data):,} bytes, expected {size * width:,}; the file is "
                "truncated or another"
            )
        rows = np.frombuffer(data, np.uint8).reshape(size, width)
        labels, pixels = np.int64(rows[:, :num_labels]), rows[:, num_labels:]
    return pixels.reshape(size, 3, 32, 32).transpose(0, 2, 3, 1), labels

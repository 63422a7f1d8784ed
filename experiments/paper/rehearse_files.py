"""Made-up files of the data sets that comparisons are on, as they are downloaded."""

from typing import NamedTuple

import numpy as np

from experiments.benchmarks.input import write_photographs
from svda_jax.data import cifar, fashion_mnist


class Data(NamedTuple):
    """A data set that comparisons are on.

    Attributes:
      num_train: images to train on.
      num_eval: images to evaluate.
      num_classes: of them.
      prepare: what `svda_jax prepare` is told.
      size: width and height that stand for its photographs; None where it has none.
      quality: of their JPEGs, which makes them as large as the archive's on average
        (Food-101's 5.00 GB hold 101,000, ImageNet's 147.9 GB 1,281,167).
    """

    num_train: int
    num_eval: int
    num_classes: int
    prepare: str
    size: tuple[int, int] | None = None
    quality: int | None = None


DATA = {
    "fashion_mnist": Data(60_000, 10_000, 10, "fashion_mnist"),
    "cifar10": Data(50_000, 10_000, 10, "cifar10 --from cifar-10-python.tar.gz"),
    "cifar100": Data(50_000, 10_000, 100, "cifar100 --from cifar-100-python.tar.gz"),
    "food101": Data(
        75_750, 25_250, 101, "food101 --from food-101.tar.gz", (512, 384), 88
    ),
    "imagenet100": Data(126_689, 5_000, 100, "imagenet100 --from DIR", (500, 375), 98),
}


def write_files(name, folder):
    """Writes files of noise, or of pieces of photographs.

    Args:
      name: of `DATA`.
      folder: that is made for them.

    Returns:
      Kilobytes of a photograph on average; None where there are none.
    """
    data, rng = DATA[name], np.random.default_rng(0)
    if data.size:
        return [
            write_photographs(
                folder / split,
                size=data.size,
                num_classes=data.num_classes,
                per_class=count,
                quality=data.quality,
            )
            / 1000
            for split, count in (("val", 2), ("train", 8))
        ][-1]
    folder.mkdir()
    if name == "fashion_mnist":
        _write_idx(folder, rng)
    else:
        _write_cifar(name, folder, rng)
    return None


def _write_idx(folder, rng):
    for prefix, n in fashion_mnist.FILES.values():
        images = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        labels = np.uint8(np.arange(n) % 10)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]), np.array(array.shape, ">u4")
            path = folder / f"{prefix}-{kind}-ubyte"
            path.write_bytes(b"".join([*head, array.tobytes()]))


def _write_cifar(name, folder, rng):
    version, classes = cifar.VERSIONS[name][1], cifar.CLASSES[name]
    for label, file in version.names.items():
        names = (f"{label}_{i}" for i in range(classes[label]))
        (folder / file).write_text("\n".join(names))
    for split, files in version.files.items():
        n = cifar.PER_CLASS[name][split] * classes["label"] // len(files)
        labels = [np.arange(n) % classes[label] for label in version.names]
        for file in files:
            pixels = rng.integers(256, size=(n, 3072), dtype=np.uint8)
            rows = np.column_stack([np.array(labels, np.uint8).T, pixels])
            (folder / file).write_bytes(rows.tobytes())

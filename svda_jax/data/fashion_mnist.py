"""FashionMNIST from its four IDX files, in TFDS format, without TensorFlow."""

import gzip
import itertools
import math
import pathlib
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax import UserError
from svda_jax.data.download import source_files

_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
_UNSIGNED_BYTE = 0x08  # IDX's code for the type of the elements


# How the files of a split begin, and how many images they hold.
FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """FashionMNIST as TFDS has it: same name, version, splits, labels.

    Unlike TFDS's own builder it needs no TensorFlow to encode the images, and it can
    take the files from a folder. `tfds.builder("fashion_mnist")` opens what it wrote.

    Args:
      source: folder with the four files, gzipped or not; None downloads them.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.
    """

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

    def __init__(self, *, source=None, **kwargs):
        super().__init__(**kwargs)
        self.source = source

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Zalando's article images, 28 x 28, ten classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def read(self, images_path, labels_path, num_images):
        """Reads and checks one split: uint8 images `[n, 28, 28]` and labels `[n]`.

        Raises:
          UserError: a file is not what it should be.
        """
        images = read_idx(images_path, (num_images, 28, 28))
        labels = read_idx(labels_path, (num_images,))
        if labels.max() >= len(CLASSES):
            raise UserError(f"{labels_path}: label {labels.max()}, expected 0 to 9")
        return images, labels

    def _split_generators(self, dl_manager):
        names = {
            split: [f"{prefix}-{kind}" for kind in _KINDS]
            for split, (prefix, _) in FILES.items()
        }
        urls = [f"{self.URL}{n}.gz" for n in itertools.chain(*names.values())]
        with source_files(self, urls, dl_manager) as folder:
            splits = {
                split: self.read(
                    *(_find(folder, name) for name in names[split]), num_images
                )
                for split, (_, num_images) in FILES.items()
            }
        return {
            split: self._generate_examples(*examples)
            for split, examples in splits.items()
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(image), "label": int(label)}


def read_idx(path, shape):
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Args:
      path: of the file.
      shape: that the array must have.

    Returns:
      A uint8 array of that shape.

    Raises:
      UserError: the file is damaged, not IDX, or holds an array of another shape.

    Source: the format's description by Y. LeCun.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error})") from None
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise UserError(f"{path}: not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    found = tuple(int(n) for n in np.frombuffer(data[4:start].ljust(start - 4), ">u4"))
    if found != shape:
        raise UserError(f"{path}: holds an array of shape {found}, expected {shape}")
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"{path}: {len(data) - start} bytes of data, expected {math.prod(shape)}; "
            "the file is truncated or too long"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(folder, name):
    """The path of that file in the folder, or with .gz behind its name."""
    for path in (pathlib.Path(folder, name), pathlib.Path(folder, f"{name}.gz")):
        if path.is_file():
            return path
    raise UserError(f"{folder} has neither {name} nor {name}.gz")

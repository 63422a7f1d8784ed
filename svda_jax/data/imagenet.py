"""ImageNet (ILSVRC2012) from its archives, in TFDS format, without TensorFlow."""

import collections
import io
import pathlib
import re

import scipy.io
import tensorflow_datasets as tfds

from svda_jax import UserError
from svda_jax.data.archives import ImageArchives, find_archive, members, read
from svda_jax.data.splits import read_class_list

ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "validation": "ILSVRC2012_img_val.tar",
    "devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
# What is read of the devkit.
_SYNSETS, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"


def has_archives(folder):
    """Whether a folder has one of ImageNet's archives."""
    return any(pathlib.Path(folder, name).is_file() for name in ARCHIVES.values())


class ImageNet(ImageArchives, skip_registration=True):
    """ImageNet as TFDS has it: same name, version, features, labels, order.

    Args:
      name: what the data set will be called.
      source: a folder with the three archives.
      class_list: file with the WordNet ids of the classes to take, one a line; "" takes
        all thousand. Labels are in the order of the ids, as TFDS's are.
      **kwargs: of `ImageArchives`.

    Source: Russakovsky et al. 2015, arXiv 1409.0575.
    """

    VERSION = tfds.core.Version("5.1.0")
    URL = None  # they are downloaded by hand

    def __init__(self, *, name="imagenet2012", class_list="", **kwargs):
        self.name = name
        ids = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
        self.ids = ids.read_text().split()
        self.classes = self.ids
        if class_list:
            self.VERSION = tfds.core.Version("1.0.0")
            chosen = read_class_list(
                class_list, [self.ids], "ImageNet", option="--class_list"
            )
            self.classes = [self.ids[label] for label in sorted(chosen)]
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs of all of its classes, or of some.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=self.classes),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
        )

    def _split_generators(self, dl_manager):
        if not has_archives(self.source):
            raise UserError(
                f"{self.source} is no folder with {', '.join(ARCHIVES.values())}"
            )
        train, validation, devkit = (
            find_archive(self.source, name) for name in ARCHIVES.values()
        )
        sizes, truth = read_devkit(devkit, self.ids)
        self._check(train, validation, sizes, truth)
        labels = {wnid: label for label, wnid in enumerate(self.classes)}
        return {
            "train": self._generate_examples("train", _read_train(train, labels)),
            "validation": self._generate_examples(
                "validation", _read_validation(validation, truth, labels)
            ),
        }

    def _check(self, train, validation, sizes, truth):
        """Compares the archives with the devkit; of images only the names are read."""
        found = collections.Counter(wnid for wnid, *_ in _walk(train, self.classes))
        for wnid in self.classes:
            if found[wnid] != sizes[wnid]:
                raise UserError(
                    f"{train} has {found[wnid]:,} images of {wnid}, expected "
                    f"{sizes[wnid]:,}; it is truncated or another file"
                )
        names = {name for name, _ in members(validation)}
        for name in sorted(truth.keys() ^ names):
            found = "is" if name in names else "is not"
            raise UserError(
                f"{validation}: {name} {found} there, unlike in the devkit's {_TRUTH}, "
                f"which has {len(truth):,} images"
            )


def read_devkit(path, ids):
    """What the devkit says.

    Args:
      path: of its archive.
      ids: the WordNet ids of all classes.

    Returns:
      The number of training images by WordNet id, and the WordNet id of each image of
      the validation split by its name.

    Raises:
      UserError: it is damaged, has not the two files, or has other classes.
    """
    files = {}
    for name, file in members(path):
        for wanted in (_SYNSETS, _TRUTH):
            if name.endswith(f"/{wanted}"):
                files[wanted] = read(path, file)
    for wanted in (_SYNSETS, _TRUTH):
        if wanted not in files:
            raise UserError(f"{path} has no {wanted}; it is damaged or another archive")
    try:
        mat = scipy.io.loadmat(io.BytesIO(files[_SYNSETS]), squeeze_me=True)
        # Beside the classes, which have no children, WordNet's nodes above them.
        leaves = [synset for synset in mat["synsets"] if synset["num_children"] == 0]
        by_id = {int(leaf["ILSVRC2012_ID"]): str(leaf["WNID"]) for leaf in leaves}
        sizes = {str(leaf["WNID"]): int(leaf["num_train_images"]) for leaf in leaves}
    except Exception as error:  # scipy raises whatever a damaged byte leads to
        raise UserError(f"{path}: cannot read {_SYNSETS}: {error}") from None
    if sizes.keys() != set(ids):
        raise UserError(
            f"{path}: {_SYNSETS} has {len(sizes):,} classes, which are not the "
            f"{len(ids):,} of ImageNet"
        )
    truth = {}
    for number, line in enumerate(files[_TRUTH].split(), start=1):
        if not line.isdigit() or int(line) not in by_id:
            what = line.decode(errors="replace")
            raise UserError(f"{path}: {_TRUTH}, line {number}: {what} is no class")
        truth[f"ILSVRC2012_val_{number:08}.JPEG"] = by_id[int(line)]
    return sizes, truth


def _walk(path, classes):
    """WordNet id, file name and open file of the training images of some classes."""
    for name, file in members(path):
        wnid = name.removesuffix(".tar")
        if wnid in classes:
            for image_name, image in members(path / name, file):
                if not re.fullmatch(rf"{wnid}_\d+\.JPEG", image_name):
                    raise UserError(
                        f"{path / name}: {image_name} is no image of {wnid}"
                    )
                yield wnid, image_name, image


def _read_train(path, labels):
    for wnid, name, file in _walk(path, labels):
        yield name, read(path / f"{wnid}.tar", file), labels[wnid]


def _read_validation(path, truth, labels):
    for name, file in members(path):
        if truth[name] in labels:
            yield name, read(path, file), labels[truth[name]]

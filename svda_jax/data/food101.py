"""Food-101 from its published archive, in TFDS format, without TensorFlow."""

import tensorflow_datasets as tfds

from svda_jax import UserError
from svda_jax.data.archives import ImageArchives, find_archive, members, read
from svda_jax.data.download import source_files

# The list of the images of a split, by TFDS's name of the split.
LISTS = {"train": "food-101/meta/train.txt", "validation": "food-101/meta/test.txt"}


class Food101(ImageArchives, skip_registration=True):
    """Food-101 as TFDS has it: same name, version, splits, labels, order.

    Args:
      source: food-101.tar.gz or a folder with it; None downloads it.
      **kwargs: of `ImageArchives`.

    Source: Bossard, Guillaumin and Van Gool 2014, "Food-101".
    """

    name = "food101"
    VERSION = tfds.core.Version("2.0.0")
    URL = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"

    def _info(self):
        names = tfds.core.tfds_path("image_classification/food-101_classes.txt")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs of dishes, 512 pixels and smaller.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names_file=names),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        )

    def _split_generators(self, dl_manager):
        with source_files(self, [self.URL], dl_manager) as source:
            path = find_archive(source, "food-101.tar.gz")
            lists = self.check(path)
        return {
            split: self._generate_examples(split, _read_images(path, labels))
            for split, labels in lists.items()
        }

    def check(self, path):
        """Reads the archive to its end and checks it; the images are not decoded.

        Returns:
          By split the label of each image by its name, "CLASS/ID".

        Raises:
          UserError: it is damaged, or has not the lists or an image that they name.
        """
        found, lists = set(), {}
        for name, file in members(path):
            found.add(name)
            if name in LISTS.values():
                lists[name] = read(path, file).decode("utf-8", "replace").split()
        classes = self.info.features["label"].names
        splits = {}
        for split, where in LISTS.items():
            if where not in lists:
                raise UserError(
                    f"{path} has no {where}; it is damaged or another archive"
                )
            splits[split] = labels = {}
            for name in lists[where]:
                if name.split("/")[0] not in classes:
                    raise UserError(f"{path}: {where} has {name}, which is no class's")
                if _file(name) not in found:
                    raise UserError(
                        f"{path}: {where} has {name}, but there is no image"
                    )
                labels[name] = classes.index(name.split("/")[0])
            for label, name in enumerate(classes):
                if label not in labels.values():
                    raise UserError(f"{path}: {where} has no image of {name}")
        return splits


def _file(name):
    return f"food-101/images/{name}.jpg"


def _read_images(path, labels):
    """Name, bytes and label of the images of a split, in the archive's order."""
    by_file = {_file(name): name for name in labels}
    for file_name, file in members(path):
        if name := by_file.get(file_name):
            yield name, read(path, file), labels[name]

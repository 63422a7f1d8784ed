"""scikit-learn's handwritten digits as a TFDS data set: real images, no network."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8 x 8 pixels in 17 grey levels.

    "test" is the 360 that scikit-learn puts last, by writers who are not in "train".
    The order is scikit-learn's: "train[1077:]" holds the last writers of "train" out.
    Source: E. Alpaydin and C. Kaynak 1998, UCI, the test set of "Optical Recognition of
    Handwritten Digits", as shipped in `sklearn.datasets.load_digits`.
    """

    VERSION = tfds.core.Version("1.0.0")
    NUM_TEST = 360

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8 x 8, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # a second to import, needed once

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
        labels = digits.target
        first_test = len(images) - self.NUM_TEST
        return {
            "train": self._generate_examples(images[:first_test], labels[:first_test]),
            "test": self._generate_examples(images[first_test:], labels[first_test:]),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(image), "label": int(label)}

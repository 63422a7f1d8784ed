"""A folder of class folders of images, in TFDS format, without TensorFlow."""

import io
import json
import pathlib
import re

import tensorflow_datasets as tfds
from PIL import Image

from svda_jax import UserError
from svda_jax.data.images import CorruptImageError, decode

# The folders of each split; ImageNet-100 is handed round in parts, train.X1, ...
_LAYOUT = {
    "train": r"train(\.X\d+)?",
    "validation": r"(val|validation)(\.X\d*)?",
    "test": r"test(\.X\d*)?",
}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of one's own; `tfds.builder(name)` opens what it wrote.

    JPEG and PNG files are kept byte for byte, others as PNG of the same pixels.

    Args:
      name: what the data set will be called.
      source: the folder, as `find_images` takes it.
      skip_corrupt: leaves images that cannot be decoded out; otherwise they are a
        `UserError`.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.

    Attributes:
      skipped: what was left out, and why.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name, source, skip_corrupt=False, **kwargs):
        self.name = name
        self.files, self.class_names = find_images(source)
        self.skip_corrupt = skip_corrupt
        self.skipped = []
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}, imported from a folder of images.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=self.class_names),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(files) for split, files in self.files.items()
        }

    def _generate_examples(self, files):
        for path, label in files:
            try:
                data = path.read_bytes()
                decode(data, channels=3)
            except CorruptImageError as error:
                if not self.skip_corrupt:
                    raise UserError(
                        f"{path} cannot be decoded: {error}; mend or remove it, or "
                        "leave such images out with --skip_corrupt"
                    ) from None
                self.skipped.append(f"{path}: {error}")
                continue
            name = "/".join(path.parts[-3:])
            yield name, {"image": _keep(data), "label": label, "file_name": name}


def find_images(source):
    """The images of a folder, by split, and its classes.

    Args:
      source: a folder with train/ and val/ (or validation/, test/), or with train.X1/,
        train.X2/, ... and val.X/, each with a folder of images for every class; or the
        class folders alone, which become the split "train". A Labels.json in it, from
        folder names to names in words, names the classes.

    Returns:
      A dict from split to (path, label) of every image, and the names of the classes,
      by label.

    Raises:
      UserError: source is nothing of the kind, a class has no images, or splits differ
        in their classes.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    folders = _folders(source)
    parts = {
        split: [one for one in folders if re.fullmatch(pattern, one.name)]
        for split, pattern in _LAYOUT.items()
    }
    parts = {split: found for split, found in parts.items() if found}
    if not parts:
        parts = {"train": [source]}
    if "train" not in parts:
        raise UserError(f"{source} has {folders[0].name}/ but no train/ or train.X1/")
    images = {split: _find_classes(found) for split, found in parts.items()}
    classes = sorted(images["train"])
    if not classes:
        where = ", ".join(str(part) for part in parts["train"])
        raise UserError(f"{where}: no folders of images, one for each class")
    for split, by_class in images.items():
        for name in classes:
            if not by_class.get(name):
                where = ", ".join(str(part / name) for part in parts[split])
                raise UserError(f"class {name} has no images in {split} ({where})")
        for name in sorted(set(by_class) - set(classes)):
            raise UserError(f"class {name} is in {split} but not in train")
    files = {
        split: [
            (p, label) for label, name in enumerate(classes) for p in by_class[name]
        ]
        for split, by_class in images.items()
    }
    return files, _name_classes(source, classes)


def _folders(path):
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def _find_classes(parts):
    """The image files of every class, over the parts of a split."""
    found = {}
    for part in parts:
        for folder in _folders(part):
            files = (p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
            found.setdefault(folder.name, []).extend(sorted(files))
    return found


def _name_classes(source, classes):
    """Names in words from Labels.json where there is one, else the folders'."""
    path = source / "Labels.json"
    if not path.is_file():
        return classes
    try:
        words = json.loads(path.read_text())
        names = [words.get(name, name).split(",")[0] for name in classes]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no table of class names: {error}") from None
    return names if len(set(names)) == len(names) else classes


def _keep(data):
    """The bytes to store: the file's own if JPEG or PNG."""
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return io.BytesIO(data)
    png = io.BytesIO()
    picture = Image.open(io.BytesIO(data))
    picture.convert("RGBA" if picture.has_transparency_data else "RGB").save(png, "PNG")
    png.seek(0)
    return png

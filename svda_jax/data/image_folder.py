"""A folder of class folders of images, in TFDS format, without TensorFlow."""

import collections
import io
import json
import os
import pathlib
import re

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax import UserError
from svda_jax.data.images import CorruptImageError, decode

# The folders of each split; ImageNet-100 is handed round in parts, train.X1, ...
_SPLITS = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev|devel|development",
    "test": "test|testing|tst",
}
_PART = r"(?:{})(?:[-_ ]?(?:set|data|images|split))?(?:\.X\d*)?"
# What systems put among files; so are names that begin with a dot.
_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx"} | {
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
LABELS = "Labels.json"
_NAMED = 5  # files named for each reason


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of one's own; `tfds.builder(name)` opens what it wrote.

    JPEG and PNG files are kept byte for byte, others as PNG of the pixels that `decode`
    makes of them. Beside the data, `classes.json` keeps the folders' names of classes
    and `images.json` what `Measured` says, for configs/folder.py.

    Args:
      name: what the data set will be called.
      source: the folder, as `find_images` takes it.
      strict: refuses a folder with anything that is not taken.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.

    Attributes:
      left_out: the paths of what was not taken, by reason.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name, source, strict=False, **kwargs):
        self.name = name
        self.files, self.classes, self.left_out = find_images(source)
        self.class_names = name_classes(pathlib.Path(source), self.classes)
        self.source, self.strict = source, strict
        self.measured = {"num_classes": len(self.classes), "splits": {}}
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
        for reason, paths in self.left_out.items():
            self._refuse(reason, paths[0])
        with open(os.path.join(self.data_dir, "classes.json"), "w") as file:
            json.dump(self.classes, file)
        return {
            split: self._generate_examples(split, files)
            for split, files in self.files.items()
        }

    def _generate_examples(self, split, files):
        taken, measured = collections.Counter(), Measured()
        for path, label in files:
            try:
                data, pixels = _keep(path.read_bytes())
            except (CorruptImageError, OSError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self.left_out[reason].append(as_text(path))
                self._refuse(reason, as_text(path))
                continue
            taken[label] += 1
            if split == "train":
                measured.add(pixels)
            name = as_text(path.relative_to(self.source))
            yield name, {"image": data, "label": label, "file_name": name}
        for label, name in enumerate(self.classes):
            if label not in taken:
                raise UserError(f"class {name} has no image in {split} that decodes")
        self.measured |= measured.compute() if split == "train" else {}
        self.measured["splits"][split] = taken.total()
        with open(os.path.join(self.data_dir, "images.json"), "w") as file:
            json.dump(self.measured, file)

    def _refuse(self, reason, path):
        if self.strict:
            raise UserError(f"{path} is not taken: {reason}; mend or remove it")


class Measured:
    """What a recipe has to know of images: colours and size, taken up one by one."""

    def __init__(self):
        self._sides, self._means, self._squares, self._grey = [], [], [], True

    def add(self, pixels):
        """Takes up an image, `[height, width, 3]` uint8."""
        mean, std = (x[:, 0] / 255 for x in cv2.meanStdDev(pixels))
        self._sides.append(min(pixels.shape[:2]))
        self._means.append(mean)
        self._squares.append(mean**2 + std**2)
        self._grey = self._grey and bool((pixels == pixels[..., :1]).all())

    def compute(self):
        """A dict of "side", the median of the shorter sides in pixels, and "mean" and
        "std" of each channel, full scale 1, every image counting alike; one channel
        where all images are grey."""
        mean = np.mean(self._means, axis=0)
        std = np.sqrt(np.maximum(np.mean(self._squares, axis=0) - mean**2, 0))
        channels = slice(1 if self._grey else 3)
        return {
            "side": int(np.median(self._sides)),
            "mean": mean[channels].round(4).tolist(),
            "std": np.maximum(std[channels], 1e-3).round(4).tolist(),
        }


def as_text(path):
    """A path as text that can be printed and stored, in whatever encoding it is."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def describe_left_out(left_out):
    """A line for each reason why files are not taken: how many, and the first."""
    for reason, paths in left_out.items():
        named = ", ".join(paths[:_NAMED]) + ", ..." * (len(paths) > _NAMED)
        yield f"left out {len(paths):,}, {reason}: {named}"


def find_images(source):
    """The images of a folder, by split, and its classes.

    Folders are searched to any depth. A file is an image if its suffix says so or
    Pillow knows it; hidden files and those of systems are ignored.

    Args:
      source: a folder with train/ and val/ or test/, in any usual spelling, or with
        train.X1/, train.X2/, ... and val.X/, each with a folder of images for every
        class; or the class folders alone, which become the split "train".

    Returns:
      A dict from split to (path, label) of every image, the names of the classes'
      folders, by label, and the paths of what is not taken, by reason.

    Raises:
      UserError: source is nothing of the kind or has one class alone, a class has no
        images, or splits differ in their classes.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    left_out = collections.defaultdict(list)
    beside = collections.defaultdict(list)
    folders, images = _list(source, beside)
    parts = {
        split: [f for f in folders if re.fullmatch(_PART.format(names), f.name, re.I)]
        for split, names in _SPLITS.items()
    }
    parts = {split: found for split, found in parts.items() if found}
    if parts:  # else the source is the split, and looked through below
        for path in images:
            beside["outside of a class's folder"].append(as_text(path))
        left_out.update(beside)
    for folder in folders if parts else ():
        if not any(folder in found for found in parts.values()):
            for path in walk(folder, left_out):
                left_out["its folder is no split"].append(as_text(path))
    if not parts:
        parts = {"train": [source]}
    if "train" not in parts:
        first = min(found[0] for found in parts.values())
        raise UserError(f"{source} has {first.name}/ but no train/ or train.X1/")
    images = {split: find_classes(found, left_out) for split, found in parts.items()}
    classes = sorted(images["train"])
    if not classes:
        where = ", ".join(str(part) for part in parts["train"])
        raise UserError(f"{where}: no folders of images, one for each class")
    for name in classes:
        if name != name.strip() or not name.isprintable():
            raise UserError(
                f"rename the class folder {name!r} in {parts['train'][0]}: a class has "
                "no spaces at the ends of its name, nor what cannot be printed"
            )
    for split, by_class in images.items():
        for name in classes:
            if not by_class.get(name):
                where = ", ".join(as_text(part / name) for part in parts[split])
                raise UserError(f"class {name} has no images in {split} ({where})")
        for name in sorted(set(by_class) - set(classes)):
            raise UserError(f"class {name} is in {split} but not in train")
    if len(classes) == 1:
        raise UserError(
            f"{parts['train'][0]} has one class alone, {classes[0]}; give the folder "
            "that holds train/ or all class folders"
        )
    files = {
        split: [
            (p, label) for label, name in enumerate(classes) for p in by_class[name]
        ]
        for split, by_class in images.items()
    }
    return files, classes, left_out


def _list(folder, left_out):
    """The folders and the images in a folder, sorted, without hidden ones."""
    folders, images = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _SYSTEM:
            continue
        if path.is_dir():
            folders.append(path)
        elif not path.exists():
            left_out["a broken link"].append(as_text(path))
        elif not path.is_file():
            left_out["no regular file"].append(as_text(path))
        elif _is_image(path):
            images.append(path)
        elif path.name != LABELS:
            left_out["not an image"].append(as_text(path))
    return folders, images


def _is_image(path):
    """Whether a file is to be decoded: by its suffix, or as Pillow opens it."""
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN:
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow raises whatever its bytes lead to
        return False


def walk(folder, left_out, above=()):
    """The images in a folder and those below it; a link to a folder above ends."""
    real = folder.resolve()
    if real in above:
        left_out["a link to a folder above"].append(as_text(folder))
        return []
    folders, images = _list(folder, left_out)
    for below in folders:
        images += walk(below, left_out, (*above, real))
    return images


def find_classes(parts, left_out):
    """The image files of every class, over the parts of a split."""
    found = collections.defaultdict(list)
    for part in parts:
        folders, images = _list(part, left_out)
        for path in images:
            left_out["outside of a class's folder"].append(as_text(path))
        for folder in folders:
            above = (part.resolve(), *part.resolve().parents)
            found[as_text(folder.name)] += walk(folder, left_out, above)
    return dict(found)


def name_classes(source, classes):
    """Names in words from Labels.json where there is one, else the folders'."""
    path = source / LABELS
    if not path.is_file():
        return classes
    try:
        words = json.loads(path.read_text("utf-8-sig"))
        if not isinstance(words, dict) or not all(map(_is_text, words.values())):
            raise ValueError("it has no name for each folder, {folder: name}")
        names = [words.get(name, name).split(",")[0].strip() for name in classes]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no table of class names: {error}") from None
    return names if len(set(names)) == len(names) else classes


def _is_text(value):
    return isinstance(value, str)


def _keep(data):
    """The bytes to store, the file's own if JPEG or PNG, and the pixels they hold."""
    pixels = decode(data, channels=3)
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return io.BytesIO(data), pixels
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    png.seek(0)
    return png, pixels

"""One split of a data set: random access to its encoded images and its labels."""

import dataclasses
import json
import os
import pathlib
import re
import urllib.parse
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from svda_jax import UserError

_CHUNK = 1000  # examples read at a time


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split, by place.

    Attributes:
      name: what messages call it.
      source: TFDS data source of examples whose images are left encoded.
      indices: `[n]`, the place of each example in source.
      labels: `[classes of the data set]` int32, the label of each of its classes here.
      class_names: what the labels here stand for.
    """

    name: str
    source: Any
    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self):
        return len(self.indices)

    def read(self, places):
        """Encoded image (bytes) and label (int) of each of some examples, read as one.

        A label is -1 where the data set's is none of its classes: it is not known.
        """
        examples = self.source.__getitems__(self.indices[places].tolist())
        known = range(len(self.labels))
        return [
            (e["image"], int(self.labels[e["label"]]) if e["label"] in known else -1)
            for e in examples
        ]

    def describe(self, place):
        """An example in words, with its file name where the data set keeps it."""
        index = self.indices[place]
        name = self.source[index].get("file_name", b"").decode(errors="replace")
        return f"{self.name}, example {index}" + (f" ({name})" if name else "")


def unknown_label(what):
    """The error that an example is whose label is none of the classes."""
    return UserError(
        f"{what}: its label is none of the classes, as where it is not known; use a "
        "split whose labels are known"
    )


def corrupt_image(what):
    """The error that a corrupt image is, where it is not to be skipped."""
    return UserError(
        f"corrupt image: {what}; mend the data set, or leave such images out with "
        "--config.dataset.skip_corrupt=True"
    )


def features_of(builder):
    """The features of a data set by name; none where they have no names."""
    features = builder.info.features
    return dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}


def open_split(builder, config, kind):
    """The split that a run trains on, or the one that it evaluates.

    Args:
      builder: a TFDS builder whose data is on disk.
      config: the `dataset` section of a config.
      kind: "train" or "eval".

    Raises:
      UserError: there is no such split, its classes are not as many as the config says,
        or the class list does not fit.
    """
    held_out = kind == "eval" and config.holdout > 0
    key = "train_split" if kind == "train" or held_out else "eval_split"
    split = config[key]
    features = features_of(builder)
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        found = " ".join(f"{k}: {v}" for k, v in features.items())
        raise UserError(
            f"dataset.name={builder.name} has no image and label of named classes; its "
            f"features are {' '.join(found.split())}"
        )
    try:
        source = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except NotImplementedError:
        raise UserError(
            f"{builder.data_dir} is stored without random access; run tfds "
            f"convert_format --out_file_format=array_record --dataset_dir="
            f"{builder.data_dir} --out_path={os.path.dirname(builder.data_dir)}"
        ) from None
    except (ValueError, KeyError):
        found = builder.info.splits.items()
        sizes = ", ".join(f"{k} ({v.num_examples:,} images)" for k, v in found)
        raise UserError(
            f"dataset.{key}={split} is no split of {builder.name}, which has {sizes}"
        ) from None

    name = f"{builder.name} {split}"
    class_names = tuple(features["label"].names)
    indices = np.arange(len(source))
    labels = np.arange(len(class_names), dtype=np.int32)
    if config.class_list:
        known = [_read_ids(builder, class_names), class_names]
        chosen = read_class_list(config.class_list, known, builder.name)
        labels = np.full(len(class_names), -1, np.int32)
        labels[chosen] = np.arange(len(chosen))
        class_names = tuple(class_names[label] for label in chosen)
        indices = np.flatnonzero(labels[_read_labels(source, builder, split)] >= 0)
    if len(class_names) != config.num_classes:
        where = config.class_list or builder.name
        raise UserError(
            f"{where} has {len(class_names)} classes; dataset.num_classes="
            f"{config.num_classes} must be that"
        )
    num_kept = len(indices) - round(config.holdout * len(indices))
    if config.holdout and not 0 < num_kept < len(indices):
        raise UserError(
            f"dataset.holdout={config.holdout} leaves nothing to train on or nothing "
            f"to evaluate of the {len(indices)} images of {name}"
        )
    if held_out:
        indices = indices[num_kept:]
    elif kind == "train":
        indices = indices[:num_kept]
    if not len(indices):
        raise UserError(f"{name} has no images of the classes in {config.class_list}")
    return Split(name, source, indices, labels, class_names)


def _read_ids(builder, class_names):
    """The names of the classes' folders, of a data set that was imported from them."""
    try:
        ids = json.loads(pathlib.Path(builder.data_dir, "classes.json").read_text())
    except (OSError, ValueError):
        return class_names
    return tuple(ids) if len(ids) == len(class_names) else class_names


def read_class_list(path, known, name, *, option="dataset.class_list"):
    """The classes that a file names, one a line, as labels of the data set.

    Args:
      path: of the file.
      known: the classes' ids and the classes' names, by label.
      name: of the data set.
      option: that names the file, for messages.

    Raises:
      UserError: there is no such file, it names no class, or a line is no class of the
        data set or comes twice.
    """
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}={path} cannot be read: {error}") from None
    chosen = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        # Behind a WordNet id, a comma, # or wider space may stand a comment.
        parts = re.match(r"n\d{8}(?=\s)|.+?(?=\s*[,#\t]|\s\s|$)", line)
        found = [
            names.index(text)
            for text in (line, parts[0] if parts else line)
            for names in known
            if text in names
        ]
        if not found:
            raise UserError(
                f"{path}, line {number}: {line} is no class of {name}, which has "
                f"classes such as {known[0][0]}"
            )
        if found[0] in chosen:
            raise UserError(f"{path}, line {number}: {line} comes twice")
        chosen.append(found[0])
    if not chosen:
        raise UserError(f"{option}={path} names no class")
    return chosen


def _read_labels(source, builder, split):
    """The labels of all examples, `[n]`; they are kept beside the data set.

    Reading them means reading the whole split once.

    Raises:
      UserError: one is none of the classes.
    """
    labels = _read_kept_labels(source, builder, split)
    unknown = np.flatnonzero(
        (labels < 0) | (labels >= builder.info.features["label"].num_classes)
    )
    if len(unknown):
        raise unknown_label(f"{builder.name} {split}, example {unknown[0]}")
    return labels


def _read_kept_labels(source, builder, split):
    name = urllib.parse.quote(split, safe="")
    path = pathlib.Path(builder.data_dir, f"labels-{name}.npy")
    if path.exists():
        labels = np.load(path, allow_pickle=False)
        if labels.shape == (len(source),):
            return labels
    labels = np.empty(len(source), np.int32)
    title = f"looking for the classes in {builder.name} {split}"
    with tqdm(total=len(source), desc=title, disable=None, leave=False) as bar:
        for start in range(0, len(source), _CHUNK):
            places = range(start, min(start + _CHUNK, len(source)))
            labels[places] = [e["label"] for e in source.__getitems__(places)]
            bar.update(len(places))
    try:
        with open(path.with_suffix(".tmp"), "wb") as file:
            np.save(file, labels, allow_pickle=False)
        os.replace(path.with_suffix(".tmp"), path)
    except OSError:
        pass  # a data set that may only be read is searched each time
    return labels

"""One split of a data set: random access to its encoded images and its labels."""

import dataclasses
import os
import pathlib
import re
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

    def read(self, place):
        """The encoded image (bytes) and the label (int) of an example."""
        example = self.source[self.indices[place]]
        return example["image"], int(self.labels[example["label"]])

    def describe(self, place):
        """An example in words, with its file name where the data set keeps it."""
        index = self.indices[place]
        name = self.source[index].get("file_name", b"").decode()
        return f"{self.name}, example {index}" + (f" ({name})" if name else "")


def corrupt_image(what):
    """The error that a corrupt image is, where it is not to be skipped."""
    return UserError(
        f"corrupt image: {what}; mend the data set, or leave such images out with "
        "--config.dataset.skip_corrupt=True"
    )


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
        raise UserError(
            f"dataset.{key}={split} is no split of {builder.name}, which has "
            f"{list(builder.info.splits)}"
        ) from None

    name = f"{builder.name} {split}"
    class_names = tuple(builder.info.features["label"].names)
    indices = np.arange(len(source))
    labels = np.arange(len(class_names), dtype=np.int32)
    if config.class_list:
        chosen = _read_class_list(config.class_list, class_names, builder.name)
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


def _read_class_list(path, known, name):
    """The classes that a file names, one a line, as labels of the data set.

    Raises:
      UserError: there is no such file, or a line is no class of the data set or comes
        twice.
    """
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset.class_list={path} cannot be read: {error}") from None
    chosen = []
    for number, line in enumerate(lines, start=1):
        # What follows the WordNet id, such as the class in words, is a comment.
        words = line.split()
        if not words:
            continue
        if words[0] not in known:
            raise UserError(
                f"{path}, line {number}: {words[0]} is no class of {name}, which has "
                f"classes such as {known[0]}"
            )
        if (label := known.index(words[0])) in chosen:
            raise UserError(f"{path}, line {number}: {words[0]} comes twice")
        chosen.append(label)
    return chosen


def _read_labels(source, builder, split):
    """The labels of all examples, `[n]`; they are kept beside the data set.

    Reading them means reading the whole split once.
    """
    name = re.sub(r"\W+", "_", split).strip("_")
    path = pathlib.Path(builder.data_dir, f"labels-{name}.npy")
    if path.exists():
        labels = np.load(path, allow_pickle=False)
        if len(labels) == len(source):
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

"""What a model says of a split, and files as images that it takes."""

import functools
import os

import jax
import numpy as np
from flax import nnx

from svda_jax import UserError, local_path
from svda_jax.data.images import CorruptImageError, center_crop


def eval_crop(dataset):
    """What a run looks at of an image, as a fraction of its shorter side.

    Args:
      dataset: that section of its config.
    """
    return dataset.eval_crop if dataset.streaming else 1.0


def read_images(files, config):
    """Image files as a run evaluates them: `model(read_images(files, run.config))`.

    Whatever an image's mode and turn, `images.decode` makes uint8 of it. Its centre, of
    `eval_crop`, is scaled to `dataset.image_size`.

    Args:
      files: a path, or several.
      config: of the run.

    Returns:
      `[n, S, S, channels]` uint8.

    Raises:
      UserError: a file cannot be read or decoded.
    """
    dataset = config.dataset
    fraction = eval_crop(dataset)
    options = {"size": dataset.image_size, "channels": dataset.channels}
    images = []
    for file in [files] if isinstance(files, (str, os.PathLike)) else files:
        try:
            data = local_path(file).read_bytes()
            images.append(center_crop(data, fraction=fraction, **options))
        except (OSError, CorruptImageError) as error:
            said = getattr(error, "strerror", None) or error
            raise UserError(f"{file} cannot be read as an image: {said}") from None
    if not images:
        raise UserError("no image files are given")
    return np.stack(images)


def predict_images(model, images, batch_size=64):
    """What a model says of images as they are stored, 0 to 255.

    Args:
      model: a `ViT`.
      images: `[n, S, S, channels]`, as from `read_images`.
      batch_size: images that the model takes at once; the last batch is filled up.

    Returns:
      Logits `[n, C]`.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    size = min(batch_size, len(images))
    found = []
    for start in range(0, len(images), size):
        some = images[start : start + size]
        short = size - len(some)
        if short:
            some = np.pad(some, [(0, short), (0, 0), (0, 0), (0, 0)])
        found.append(np.asarray(_logits(params, some, graphdef))[: size - short])
    return np.concatenate(found)


def predict(model, data):
    """What a model says of a split.

    Args:
      model: a `ViT`.
      data: the split, from `datasets.load`.

    Returns:
      Logits `[n, C]`, labels `[n]` and places `[n]` of its n images, but for those that
      were left out as corrupt.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    batches = [
        (_logits(params, batch["image"], graphdef), batch["label"], batch["mask"])
        for batch in data.eval_batches()
    ]
    logits, labels, mask = map(np.concatenate, zip(*batches, strict=True))
    return logits[mask], labels[mask], np.flatnonzero(mask)


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, images, graphdef):
    return nnx.merge(graphdef, params)(images)[0]

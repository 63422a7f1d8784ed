"""What a model says of a split."""

import functools

import jax
import numpy as np
from flax import nnx


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

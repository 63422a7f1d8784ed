"""What pruning measures of a model over images: moments, and how far scores move."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svda_jax.models.ops.plain import normalize, second_moments

# Images that moments are measured over, the first of the training split. They have
# K (K + 1) / 2 numbers each, and every image adds all of its tokens.
MAX_IMAGES = 10_000


def measure_moments(model, data):
    """The second moments of queries and keys in each layer.

    Args:
      model: a `ViT`.
      data: the training split, from `datasets.load`.

    Returns:
      `[2, H, K, K]` float64 for each layer, the mean of `plain.second_moments`; and
      `[2, H, K, K]` for each layer, the mean over tokens of x x^T, x queries and keys
      before they are normalised.
    """
    totals = _add_up(_sum_moments, model, data)
    return tuple(zip(*totals, strict=True))


def measure_movement(model, forms, data):
    """How far each head's scores move when its form changes and its inputs do not.

        sqrt(mean over images, rows i and tokens j of (x_i^T G (y_j - mean y))^2)

    Args:
      model: a `ViT`.
      forms: G, the change of each layer's form: `[H, K, K]`.
      data: the images, from `datasets.load`.

    Returns:
      `[L, H]` in logits, for a query and a key of one image. If the two were drawn
      independently it would be the root of the squared sizes of what G takes away.
    """
    forms = [jnp.float32(form) for form in forms]
    return np.sqrt(np.stack(_add_up(_sum_movement, model, data, forms)))


def _add_up(function, model, data, *args):
    """Means over the first images of what function sums up, in float64."""
    graphdef, params = nnx.split(model, nnx.Param)
    batches = itertools.islice(data.eval_batches(), -(-MAX_IMAGES // data.batch_size))
    totals, count = None, 0
    for batch in batches:
        sums = function(params, *args, batch["image"], batch["mask"], graphdef=graphdef)
        sums = jax.tree.map(np.float64, jax.device_get(sums))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        count += int(batch["mask"].sum())
    return jax.tree.map(lambda total: total / count, totals)


@functools.partial(jax.jit, static_argnames="graphdef")
def _sum_moments(params, images, mask, *, graphdef):
    _, traces = nnx.merge(graphdef, params)(images)
    weights = mask / traces[0].query.shape[1]
    multiply = functools.partial(jnp.einsum, "b,bihk,bihl->hkl", precision="highest")
    return [
        (
            second_moments(t.query, t.key, mask, unit=t.sigma is not None),
            jnp.stack([multiply(weights, x, x) for x in _float32(t)]),
        )
        for t in traces
    ]


@functools.partial(jax.jit, static_argnames="graphdef")
def _sum_movement(params, forms, images, mask, *, graphdef):
    _, traces = nnx.merge(graphdef, params)(images)
    sums = []
    for trace, form in zip(traces, forms, strict=True):
        query, key = _float32(trace)
        if trace.sigma is not None:
            query, key = normalize(query), normalize(key)
        key = key - jnp.mean(key, axis=1, keepdims=True)
        moved = jnp.einsum("bihk,hkl,bjhl->bhij", query, form, key, precision="highest")
        moved = jnp.mean(jnp.square(moved), axis=(2, 3))  # [B, H]
        sums.append(jnp.sum(jnp.where(mask[:, None], moved, 0), axis=0))
    return sums


def _float32(trace):
    return trace.query.astype(jnp.float32), trace.key.astype(jnp.float32)

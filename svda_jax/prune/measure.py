"""What is measured of a model over images: moments, fits, and how far scores move."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svda_jax import UserError
from svda_jax.models.attention import diagonal
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

    Raises:
      UserError: parameters, or queries or keys, are not finite.
    """
    totals = _add_up(_sum_moments, model, data)
    if not all(np.isfinite(total).all() for total in jax.tree.leaves(totals)):
        raise UserError("the model has queries or keys that are not finite")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"the model has numbers in {name} that are not finite")
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


def measure_fit(model, coordinates, data):
    """What `convert.fit_sigma` fits sigma to.

    Args:
      model: a `ViT` with softmax attention.
      coordinates: `convert.Coordinates` of each layer.
      data: the training split, from `datasets.load`.

    Returns:
      For each layer `[H, K, K]` and `[H, K]` float64, the means of z_k z_l and of z_k x
      over images, rows i and tokens j:

        x = softmax's score,  z_k = q'_ik / |q'_i| (k'_j / |k'_j|)_k / sqrt(K)
    """
    return _add_up(_sum_fit, model, data, jax.tree.map(jnp.float32, coordinates))


def measure_apart(model, other, data):
    """How far the attention of two models is apart, each with its own inputs.

    Args:
      model: a `ViT`.
      other: a `ViT` of as many layers and heads.
      data: the images, from `datasets.load`.

    Returns:
      A dict of `[L, H]`, means over images, rows and tokens: "logits", the root mean
      square difference of their scores, each row's mean left out; "size", that of the
      first model's scores; "weights", the total variation distance of their rows, 0 to
      1: half the sum of |A_ij - A'_ij|.
    """
    found = np.stack(_add_up(_sum_apart, model, data, other))  # [L, 3, H]
    logits, size, weights = np.moveaxis(found, 1, 0)
    return {"logits": np.sqrt(logits), "size": np.sqrt(size), "weights": weights}


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
        query, key = vectors(trace)
        moved = _mean_square(_multiply(_turn(query, form), key))  # [B, H]
        sums.append(_sum_images(moved, mask))
    return sums


@functools.partial(jax.jit, static_argnames="graphdef")
def _sum_fit(params, coordinates, images, mask, *, graphdef):
    _, traces = nnx.merge(graphdef, params)(images)
    # Means over i and j of products of z are products of means: no [N, N] is formed.
    multiply = functools.partial(jnp.einsum, "bihk,bihl->bhkl", precision="highest")
    sums = []
    for trace, one in zip(traces, coordinates, strict=True):
        query, key = _float32(trace)
        query_hat = normalize(_turn(query, one.query) + one.constant)
        key_hat = _centre(normalize(_turn(key, one.key) + one.constant))
        key = _centre(key)
        scale = trace.scale / query.shape[1]
        gram = multiply(query_hat, query_hat) * multiply(key_hat, key_hat)
        target = jnp.sum(multiply(query, query_hat) * multiply(key, key_hat), axis=-2)
        sums.append([_sum_images(scale**2 * x, mask) for x in (gram, target)])
    return sums


@functools.partial(jax.jit, static_argnames="graphdef")
def _sum_apart(params, other, images, mask, *, graphdef):
    _, traces = nnx.merge(graphdef, params)(images)
    _, others = other(images)
    sums = []
    for pair in zip(traces, others, strict=True):
        one, two = map(scores, pair)
        apart = jnp.abs(jax.nn.softmax(one) - jax.nn.softmax(two))
        distance = jnp.mean(jnp.sum(apart, axis=-1), axis=-1) / 2
        found = (_mean_square(one - two), _mean_square(one), distance)  # [B, H] each
        sums.append(jnp.stack([_sum_images(x, mask) for x in found]))
    return sums


def _float32(trace):
    return trace.query.astype(jnp.float32), trace.key.astype(jnp.float32)


def vectors(trace):
    """Queries, and keys centred within their image, as scores see them.

    Args:
      trace: a `Trace`.

    Returns:
      Two `[B, N, H, K]` float32, of unit length before that with sigma.
    """
    query, key = _float32(trace)
    if trace.sigma is not None:
        query, key = normalize(query), normalize(key)
    return query, _centre(key)


def _centre(key):
    return key - jnp.mean(key, axis=1, keepdims=True)


def scores(trace):
    """The scores of a `Trace` in logits, `[B, H, N, N]` float32, each row's mean left
    out, which its softmax does not see."""
    query, key = vectors(trace)
    return _multiply(query * diagonal(query, trace.sigma, trace.scale), key)


def _turn(x, form):
    return jnp.einsum("bihk,hkl->bihl", x, form, precision="highest")


def _multiply(query, key):
    return jnp.einsum("bihk,bjhk->bhij", query, key, precision="highest")


def _mean_square(scores):
    return jnp.mean(jnp.square(scores), axis=(2, 3))


def _sum_images(values, mask):
    """The sum over images of `[B, ...]`."""
    mask = mask.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(mask, values, 0), axis=0)

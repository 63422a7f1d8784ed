"""The operations as equations, for every machine and every transformation of JAX.

Sums, means and norms are float32; results have the dtype of the activations, which is
what memory holds between operations. Axes: B images, N tokens, H heads, K per-head
width of queries and keys, V of values.
"""

import functools

import jax
import jax.numpy as jnp

# The shortest vector that still normalises to unit length. It keeps the gradient of a
# zero row finite, which dividing by max(norm, epsilon) does not: there the gradient of
# the norm itself is 0 / 0.
EPSILON = 1e-6


def linear(x, kernel, bias):
    """x W + b over the last axes of x.

    Args:
      x: `[..., *inputs]`.
      kernel: `[*inputs, *outputs]` float32.
      bias: `[*outputs]` float32.

    Returns:
      `[..., *outputs]` of the dtype of x.
    """
    num_inputs = kernel.ndim - bias.ndim
    y = jnp.tensordot(x, kernel.astype(x.dtype), num_inputs)
    return (y + bias).astype(x.dtype)


def embed(images, kernel, bias, *, patch_size):
    """Tokens of images: their patches, each laid out in a row, by `linear`.

    Args:
      images: `[B, h P, w P, channels]`.
      kernel: `[P P channels, D]` float32.
      bias: `[D]` float32.
      patch_size: P.

    Returns:
      `[B, h w, D]` of the dtype of images, patches row by row.
    """
    return linear(cut(images, patch_size), kernel, bias)


def cut(images, patch_size):
    """`[B, h P, w P, channels]` -> `[B, h w, P P channels]`, patches row by row."""
    batch, height, width, channels = images.shape
    p = patch_size
    grid = (height // p, width // p)
    x = images.reshape(batch, grid[0], p, grid[1], p, channels)
    x = x.swapaxes(2, 3)  # [B, h, w, P, P, c]
    return x.reshape(batch, grid[0] * grid[1], p * p * channels)


def layer_norm(x, scale, bias):
    """(x - mean) / sqrt(variance + 1e-6) * scale + bias over the last axis.

    Args:
      x: `[..., D]`.
      scale: `[D]` float32.
      bias: `[D]` float32.

    Returns:
      `[..., D]` of the dtype of x. A constant row has a finite gradient.

    Source: Ba et al. 2016.
    """
    mean, inverse = moments(x)
    y = (x - mean) * inverse
    return (y * scale + bias).astype(x.dtype)


def moments(x):
    """Mean and 1 / sqrt(variance + 1e-6) over the last axis, `[..., 1]` float32."""
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    if x.dtype == jnp.float32:
        variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
    else:  # squares of 16 bits are exact in float32: one pass takes both means
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True) - jnp.square(mean)
        variance = jnp.maximum(variance, 0)
    return mean, jax.lax.rsqrt(variance + 1e-6)


@jax.custom_jvp
def normalize(x):
    """x / max(||x||_2, EPSILON) over the last axis.

    Args:
      x: `[..., K]`.

    Returns:
      `[..., K]` of the dtype of x. A zero row stays zero and has a finite gradient.
    """
    return _normalize(x)[0]


def _normalize(x):
    y = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(squared, EPSILON**2))  # [..., 1]
    return (y * inverse).astype(x.dtype), inverse


@normalize.defjvp
def _normalize_jvp(primals, tangents):
    """A change less its part along x; of x, x_hat alone is kept, as attention does."""
    x_hat, inverse = _normalize(*primals)
    change = tangents[0].astype(jnp.float32)
    along = jnp.sum(change * x_hat, axis=-1, keepdims=True)
    # A vector shorter than EPSILON is only multiplied by 1 / EPSILON.
    change = (change - x_hat * jnp.where(inverse < 1 / EPSILON, along, 0)) * inverse
    return x_hat, change.astype(x_hat.dtype)


def attend(query, key, value, sigma, *, unit):
    """softmax(q diag(sigma) k^T) v over tokens, without a divisor in the score.

    Args:
      query: `[B, N, H, K]`.
      key: `[B, N, H, K]`.
      value: `[B, N, H, V]`.
      sigma: `[H, K]` float32.
      unit: whether queries and keys are first brought to unit length, see `normalize`.

    Returns:
      `[B, N, H, V]` of the dtype of value.
    """
    weights = weigh(query, key, sigma, unit=unit).astype(value.dtype)
    return jnp.einsum("bhij,bjhv->bihv", weights, value)


def weigh(query, key, sigma, *, unit):
    """The weights of `attend`, softmax(q diag(sigma) k^T).

    Args:
      query: see `attend`, as for key, sigma and unit.
      key: likewise.
      sigma: likewise.
      unit: likewise.

    Returns:
      `[B, H, N, N]` float32.
    """
    return jax.nn.softmax(score(query, key, sigma, unit=unit))


def score(query, key, sigma, *, unit, precision=None):
    """The logits of `weigh`, q diag(sigma) k^T.

    Args:
      query: `[..., N, H, K]`.
      key: `[..., M, H, K]`.
      sigma: see `attend`, as for unit.
      unit: likewise.
      precision: of the product, as `jnp.einsum` takes it.

    Returns:
      `[..., H, N, M]` float32.
    """
    if unit:
        query, key = normalize(query), normalize(key)
    query = (query * sigma).astype(query.dtype)
    scores = jnp.einsum("...ihk,...jhk->...hij", query, key, precision=precision)
    return scores.astype(jnp.float32)


def observe(function, query, key, value, sigma, noise, mask=None, *, unit):
    """`attend`, and a function of what each token sees of the others, in float32.

    Args:
      function: of a dict of arrays `[..., N]`, a token's "cosines" to all keys, its
        "weights" on them, and "perturbed", the weights under noise; to a pytree of
        `[...]`. It is given many tokens at once.
      query: see `attend`, as for key, value, sigma and unit.
      key: likewise.
      value: likewise.
      sigma: likewise.
      noise: `[2, N, H, K]` float32, what queries and keys gain, in units of each
        vector's root mean square. Directions that are 0 only fill up a head of a pruned
        model: they neither count nor gain.
      mask: `[B]` bool, the images whose moments count; None for all.
      unit: likewise.

    Returns:
      What `attend` does, the pytree, of `[B, H, N]`, and `second_moments`.
    """
    out = attend(query, key, value, sigma, unit=unit)
    seconds = second_moments(query, key, mask, unit=unit)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    total = functools.partial(jnp.sum, axis=-1, keepdims=True)
    moved = (perturb(x, y, total) for x, y in zip((query, key), noise, strict=True))
    rows = {
        "cosines": jnp.einsum("bihk,bjhk->bhij", normalize(query), normalize(key)),
        "weights": weigh(query, key, sigma, unit=unit),
        "perturbed": weigh(*moved, sigma, unit=unit),
    }
    return out, function(rows), seconds


def second_moments(query, key, mask=None, *, unit):
    """Second moments of queries and keys, summed over images.

        M_q = sum_b mean_i x_i x_i^T
        M_k = sum_b mean_j (y_j - mean y) (y_j - mean y)^T

    x and y are queries and keys, of unit length if so. Keys are centred within their
    image: what a row's scores have in common leaves its softmax as it is.

    Args:
      query: `[B, N, H, K]`.
      key: `[B, N, H, K]`.
      mask: `[B]` bool, which images count; None for all.
      unit: whether queries and keys are brought to unit length.

    Returns:
      `[2, H, K, K]` float32.
    """
    if unit:
        query, key = normalize(query), normalize(key)
    mean = jnp.mean(key, axis=1, keepdims=True, dtype=jnp.float32)
    key = (key.astype(jnp.float32) - mean).astype(key.dtype)
    if mask is not None:
        query, key = (jnp.where(mask[:, None, None, None], x, 0) for x in (query, key))
    multiply = functools.partial(
        jnp.einsum,
        "bihk,bihl->hkl",
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    return jnp.stack([multiply(x, x) for x in (query, key)]) / query.shape[1]


def perturb(x, noise, total):
    """x with the noise of `observe`; total sums over directions, keeping the axis."""
    there = x != 0
    number = jnp.maximum(total(there.astype(x.dtype)), 1)
    return x + jnp.sqrt(total(jnp.square(x)) / number) * jnp.where(there, noise, 0)


def draw(keys, size):
    """Random numbers for dropout.

    Args:
      keys: `[B]` PRNG keys, one an image.
      size: numbers that an image needs.

    Returns:
      `[B, size]` uint16, two to a random word: 16 bits set a rate to 1e-5.
    """
    words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 2),)))(keys)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [B, size / 2, 2]
    return halves.reshape(keys.shape[0], -1)[:, :size]

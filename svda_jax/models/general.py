"""SVDA with what attention in Flax has: masks, biases, dropout, grouped heads.

Axes: any leading ones, N queries, M keys, H heads of queries, G heads of keys and
values, where G divides H, K per-head width of queries and keys, V of values.
"""

import jax
import jax.numpy as jnp
from flax.nnx.nn.dtypes import promote_dtype

from svda_jax import UserError
from svda_jax.models.attention import SPECTRUM_STARTS, diagonal
from svda_jax.models.ops.plain import score


def svda_weights(
    query, key, sigma, *, bias=None, mask=None, is_causal=False, precision=None
):
    """The attention weights of SVDA among the keys that each query may see.

        A = softmax(q_hat diag(sigma) k_hat^T / sqrt(K) + bias)

    Args:
      query: `[..., N, H, K]`, raw (not normalised).
      key: `[..., M, G, K]`, raw; head h of the queries reads its head h // (H / G).
      sigma: `[H, K]` of either sign.
      bias: of the scores, in logits, broadcast to `[..., H, N, M]`; -inf is a mask.
      mask: likewise, of any dtype: where it is False or 0 a query does not see a key.
      is_causal: whether query i sees keys 0 to i alone.
      precision: of the product, as `jnp.einsum` takes it.

    Returns:
      `[..., H, N, M]` float32, each row a distribution over the keys that it sees, and
      zeros where it sees none. Differs there from Flax, which then weighs all alike.

    Raises:
      UserError: shapes do not fit each other.

    Source: arXiv 2602.10994.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    check_heads(query, key, sigma)
    key = repeat_heads(key, query.shape[-2])
    factors = diagonal(query, sigma, None)
    scores = score(query, key, factors, unit=True, precision=precision)
    if bias is not None:
        scores = scores + _fit(bias, scores.shape, "bias")
    seen = scores != -jnp.inf
    if mask is not None:
        seen &= _fit(mask, scores.shape, "mask").astype(bool)
    if is_causal:
        seen &= jnp.tri(*scores.shape[-2:], dtype=bool)
    # Not -inf: where nothing is seen, a row of those has NaN on the way.
    scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(seen, jax.nn.softmax(scores), 0)


def svda_attention(
    query,
    key,
    value,
    sigma,
    *,
    bias=None,
    mask=None,
    is_causal=False,
    dropout_rng=None,
    dropout_rate=0.0,
    broadcast_dropout=True,
    deterministic=False,
    dtype=None,
    precision=None,
    sow=None,
):
    """SVDA with the options of Flax's `dot_product_attention`.

    Args:
      query: see `svda_weights`, as for key, sigma, bias, mask and is_causal.
      key: likewise.
      value: `[..., M, G, V]`.
      sigma: likewise.
      bias: likewise.
      mask: likewise.
      is_causal: likewise.
      dropout_rng: PRNG key, needed where dropout takes place.
      dropout_rate: in [0, 1), share of the weights that are zeroed; the others are
        divided by what is left.
      broadcast_dropout: whether leading axes and heads lose the same weights.
      deterministic: whether there is no dropout.
      dtype: of the activations; None is what query, key and value promote to. Norms
        and softmax are float32.
      precision: of the products, as `jnp.einsum` takes it.
      sow: a function that is given the weights before dropout, or None.

    Returns:
      `[..., N, H, V]` of that dtype; zeros for a query that sees no key.

    Raises:
      UserError: shapes do not fit each other, numbers are complex, dropout_rate is not
        in [0, 1), or dropout has no key.
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f"query, key and value are {value.dtype}; they must be real")
    _check_value(key, value)
    options = {"bias": bias, "mask": mask, "is_causal": is_causal}
    weights = svda_weights(query, key, sigma, precision=precision, **options)
    if sow:
        sow(weights)
    if not 0 <= dropout_rate < 1:
        raise UserError(f"dropout_rate={dropout_rate} must be at least 0 and below 1")
    if dropout_rate and not deterministic:
        weights = _drop(weights, dropout_rng, dropout_rate, broadcast_dropout)
    value = repeat_heads(value, query.shape[-2])
    weights = weights.astype(value.dtype)
    return jnp.einsum("...hij,...jhv->...ihv", weights, value, precision=precision)


def start_sigma(spectrum_init, head_dim):
    """The start c of sigma, a number.

    Raises:
      UserError: spectrum_init is no key of `SPECTRUM_STARTS`.
    """
    if spectrum_init not in SPECTRUM_STARTS:
        names = ", ".join(SPECTRUM_STARTS)
        raise UserError(f"spectrum_init={spectrum_init} must be one of {names}")
    return SPECTRUM_STARTS[spectrum_init](head_dim)


def split_heads(*, num_heads, num_kv_heads, qk_features, v_features, decode):
    """The sizes `[H, K]`, `[G, K]` and `[G, V]` of queries, keys and values.

    Args:
      num_heads: H.
      num_kv_heads: G; None is H.
      qk_features: H K.
      v_features: H V.
      decode: refused.

    Raises:
      UserError: sizes do not divide each other, or decode is asked for.
    """
    if decode:
        raise UserError(
            "decode=True is what Flax's own layer does, with SVDA as its attention_fn"
        )
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    sizes = {"qk_features": qk_features, "v_features": v_features}
    for name, size in {"num_heads": num_heads, "num_kv_heads": num_kv_heads}.items():
        if size < 1:
            raise UserError(f"{name}={size} must be at least 1")
    for name, size in sizes.items():
        if size < 1 or size % num_heads:
            raise UserError(f"{name}={size} must be a multiple of {num_heads} heads")
    if num_heads % num_kv_heads:
        raise UserError(f"num_kv_heads={num_kv_heads} must divide {num_heads} heads")
    k, v = (size // num_heads for size in sizes.values())
    return (num_heads, k), (num_kv_heads, k), (num_kv_heads, v)


def complete(inputs_q, inputs_k, inputs_v):
    """What keys and values are made of: what is None is taken from the one before.

    Raises:
      UserError: there are values without keys.
    """
    if inputs_k is None and inputs_v is not None:
        raise UserError("inputs_v needs inputs_k, the keys of these values")
    inputs_k = inputs_q if inputs_k is None else inputs_k
    return inputs_k, inputs_k if inputs_v is None else inputs_v


def decide_dropout(rate, deterministic):
    """Whether a layer drops weights.

    Args:
      rate: of the layer.
      deterministic: of the call, or of the layer; the first that is not None counts.

    Raises:
      UserError: neither says it though the layer has a rate.
    """
    said = [choice for choice in deterministic if choice is not None]
    if rate and not said:
        raise UserError(f"dropout_rate={rate} needs deterministic=True or False")
    return bool(rate) and not said[0]


def check_heads(query, key, sigma):
    """Refuses queries, keys and sigma whose shapes do not fit each other.

    Args:
      query: see `svda_weights`, as for key.
      key: likewise.
      sigma: likewise; None is softmax attention's.

    Raises:
      UserError: they do not.
    """
    shapes = f"query has shape {list(query.shape)}, key {list(key.shape)}"
    if min(query.ndim, key.ndim) < 3:
        raise UserError(f"{shapes}; they take [..., tokens, heads, width]")
    if (*query.shape[:-3], query.shape[-1]) != (*key.shape[:-3], key.shape[-1]):
        raise UserError(f"{shapes}; only their tokens and heads may differ")
    if query.shape[-2] % key.shape[-2]:
        raise UserError(f"{shapes}; the heads of key must divide those of query")
    if sigma is not None and sigma.shape != query.shape[-2:]:
        expected = list(query.shape[-2:])
        raise UserError(f"sigma has shape {list(sigma.shape)}, not {expected}")


def repeat_heads(x, num_heads):
    """`[..., G, K]` -> `[..., H, K]`, each head H / G times."""
    return jnp.repeat(x, num_heads // x.shape[-2], axis=-2)


def _drop(weights, key, rate, broadcast):
    if key is None:
        raise UserError(f"dropout_rate={rate} needs a PRNG key, dropout_rng")
    leading = (1,) * (weights.ndim - 2) if broadcast else weights.shape[:-2]
    keep = jax.random.bernoulli(key, 1 - rate, leading + weights.shape[-2:])
    return jnp.where(keep, weights / (1 - rate), 0)


def _fit(x, shape, name):
    """x, after a check that it broadcasts to the shape of the scores."""
    x = jnp.asarray(x)
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.ndim > len(shape) or any(one not in (1, size) for one, size in pairs):
        raise UserError(
            f"{name} has shape {list(x.shape)}; it must broadcast to {list(shape)}, "
            "[..., heads, queries, keys]"
        )
    return x


def _check_value(key, value):
    if value.shape[:-1] != key.shape[:-1]:
        raise UserError(
            f"key has shape {list(key.shape)}, value {list(value.shape)}; only their "
            "width may differ"
        )

"""Dot-product attention with a diagonal in its score, by the quickest means at hand.

Axes: B images, N tokens, H heads, K per-head width of queries and keys, V of values.
"""

import jax
import jax.extend
import jax.numpy as jnp

from svda_jax.models.linear import sum_last, sum_rows


def dot_product_attention(query, key, value, sigma):
    """`softmax(q diag(sigma) k^T) v` over tokens, without a divisor in the score.

    Args:
      query: `[B, N, H, K]`.
      key: `[B, N, H, K]`.
      value: `[B, N, H, V]`.
      sigma: `[H, K]` float32.

    Returns:
      `[B, N, H, V]` of the dtype of value; scores and softmax are float32.

    cuDNN's fused kernel where there is one for the arguments; elsewhere products of
    matrices, see `_attend`.
    """
    if _has_fused_kernel(query, value):
        query = (query * sigma).astype(query.dtype)
        return jax.nn.dot_product_attention(
            query, key, value, scale=1.0, implementation="cudnn"
        )
    return _attend(query, key, value, sigma)


def exponentials(query, key, sigma):
    """Weights before they are divided by their sums: `[B, H, N, N]` float32."""
    scores = _product("bihk,bjhk->bhij", (query * sigma).astype(query.dtype), key)
    # Any shift of a row leaves its weights as they are.
    return jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(query, key, value, sigma):
    """`dot_product_attention` by products of matrices, its gradient written out.

    The weights are divided by their sum after they have been applied to the values,
    which saves a pass over `[B, H, N, N]` and in the gradient a sum over it. Of query
    and key the gradient reads the directions alone, not their product with sigma. Each
    product adds up over the last axis of its first factor: XLA packs others on CPU as
    slowly as it multiplies. Against autodiff a step of width 64 takes a tenth less (two
    CPU cores, JAX 0.10).
    """
    return _attend_forward(query, key, value, sigma)[0]


def _attend_forward(query, key, value, sigma):
    weights = exponentials(query, key, sigma)
    inverse = jnp.swapaxes(1 / jnp.sum(weights, axis=-1), 1, 2)[..., None]
    weights = weights.astype(value.dtype)
    out = jnp.swapaxes(_product("bhij,bjhk->bhik", weights, value), 1, 2)
    out = (out * inverse).astype(value.dtype)  # [B, N, H, V]
    return out, (query, key, value, sigma, weights, inverse, out)


def _attend_backward(saved, grad):
    query, key, value, sigma, weights, inverse, out = saved
    # Of what was divided by the sums.
    grad = grad.astype(jnp.float32)
    undivided = grad * inverse  # [B, N, H, V]
    transposed = jnp.moveaxis(grad, 1, 3) * jnp.moveaxis(inverse, 1, 3)  # [B, H, V, N]
    grad_value = _product("bhki,bhij->bhkj", transposed.astype(value.dtype), weights)
    grad_scores = weights * (
        _product("bihk,bjhk->bhij", undivided.astype(value.dtype), value)
        - jnp.swapaxes(sum_last(undivided * out), 1, 2)
    )
    grad_scores = grad_scores.astype(query.dtype)  # [B, H, N, N]
    weighted = jnp.swapaxes(_product("bhij,bjhk->bhik", grad_scores, key), 1, 2)
    grad_sigma = sum_rows((weighted * query).reshape(-1, sigma.size))
    transposed = jnp.moveaxis(query, 1, 3) * sigma[..., None]  # [B, H, K, N]
    grad_key = _product("bhki,bhij->bhkj", transposed.astype(query.dtype), grad_scores)
    return (
        (weighted * sigma).astype(query.dtype),
        jnp.moveaxis(grad_key, 3, 1).astype(key.dtype),
        jnp.moveaxis(grad_value, 3, 1).astype(value.dtype),
        grad_sigma.reshape(sigma.shape),
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _has_fused_kernel(query, value):
    """Whether cuDNN's flash attention, as JAX wraps it, takes such arrays."""
    return (
        query.shape == value.shape
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and "cuda" in jax.extend.backend.get_backend().platform_version
    )

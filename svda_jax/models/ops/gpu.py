"""The operations on NVIDIA GPUs: attention by cuDNN's fused kernel.

Beside the products a step moves memory: each gradient is written out to keep what is in
memory anyway, and sums over the rows of a matrix. What XLA (of JAX 0.12) makes of these
forms for an H100 is in experiments/results/benchmark_accelerators_h100.md.
"""

import math

import jax
import jax.numpy as jnp

from svda_jax.models.ops import plain
from svda_jax.models.ops.plain import EPSILON, cut, draw, normalize

__all__ = [
    "attend",
    "draw",
    "embed",
    "gelu",
    "layer_norm",
    "linear",
    "normalize",
    "observe",
]

# Scores that `observe` keeps in memory at once, thrice, as float32.
MANY_SCORES = 2**24

# What a smaller sigma is taken as: it adds nothing to a score, and can be divided by.
TINY = 2.0**-100


def has_kernel(device):
    """Whether cuDNN has the kernel for a device: compute capability 8.0 and later."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return major.isdigit() and minor.isdigit() and int(major) >= 8


def linear(x, kernel, bias):
    """`plain.linear` as one product of two matrices, whose kernel adds the bias."""
    num_inputs = kernel.ndim - bias.ndim
    size = math.prod(kernel.shape[:num_inputs])
    rows = x.reshape(-1, size) @ kernel.astype(x.dtype).reshape(size, -1)
    y = _add(rows, bias.reshape(-1))
    return y.reshape(*x.shape[: x.ndim - num_inputs], *bias.shape)


@jax.custom_vjp
def _add(rows, bias):
    """`[M, D]` + `[D]` float32. What the bias' gradient adds up is float32."""
    return rows + bias.astype(rows.dtype)


_add.defvjp(
    lambda rows, bias: (_add(rows, bias), None),
    lambda _, grad: (grad, jnp.sum(grad, axis=0, dtype=jnp.float32)),
)


def embed(images, kernel, bias, *, patch_size):
    """`plain.embed` by this `linear`."""
    return linear(cut(images, patch_size), kernel, bias)


def gelu(x):
    """`jax.nn.gelu`; its gradient keeps x alone.

    The product in front of it then writes GELU(x) beside x itself.
    """
    return jax.checkpoint(jax.nn.gelu)(x)


def layer_norm(x, scale, bias):
    """`plain.layer_norm`; its gradient keeps x and two numbers a row."""
    return _layer_norm(x.reshape(-1, x.shape[-1]), scale, bias).reshape(x.shape)


@jax.custom_vjp
def _layer_norm(x, scale, bias):
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    mean, inverse = plain.moments(x)
    y = (x - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(saved, grad):
    x, mean, inverse, scale = saved
    grad = grad.astype(jnp.float32)
    x_hat = (x - mean) * inverse
    change = grad * scale
    along = jnp.mean(change * x_hat, axis=-1, keepdims=True)
    change = change - jnp.mean(change, axis=-1, keepdims=True) - x_hat * along
    return (
        (change * inverse).astype(x.dtype),
        jnp.sum(grad * x_hat, axis=0),
        jnp.sum(grad, axis=0),
    )


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def attend(query, key, value, sigma, *, unit):
    """`plain.attend`; in bfloat16 scores and softmax, float32, stay in the kernel.

    The gradient's kernel takes even numbers of tokens alone: an odd one gets a token
    more, which nobody attends to.
    """
    if query.dtype == jnp.float16:  # TINY is 0
        return plain.attend(query, key, value, sigma, unit=unit)
    fits = (
        query.shape == key.shape == value.shape
        and query.dtype == jnp.bfloat16
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
    )
    batch, num_tokens = query.shape[:2]
    lengths = None
    if fits and num_tokens % 2:
        more = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, more) for x in (query, key, value))
        lengths = jnp.full(batch, num_tokens, jnp.int32)
    if unit:
        ones = jnp.ones_like(sigma)
        query, key, sigma = _stretch(query, sigma), _stretch(key, ones), ones
    if not fits:
        return plain.attend(query, key, value, sigma, unit=False)
    out = jax.nn.dot_product_attention(
        (query * sigma).astype(query.dtype),
        key,
        value,
        scale=1.0,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :num_tokens]


def observe(function, query, key, value, sigma, noise, mask=None, *, unit):
    """`plain.observe` of some images at a time, `MANY_SCORES`, and this `attend`."""
    num_tokens, num_heads = query.shape[1:3]
    images = max(1, MANY_SCORES // (num_heads * num_tokens**2))

    def observe_one(inputs):
        inputs = (x[None] for x in inputs)
        _, rows, _ = plain.observe(function, *inputs, sigma, noise, unit=unit)
        return jax.tree.map(lambda row: row[0], rows)

    rows = jax.lax.map(observe_one, (query, key, value), batch_size=images)
    out = attend(query, key, value, sigma, unit=unit)
    moments = plain.second_moments(query, key, mask, unit=unit)
    # Without the barrier XLA may keep queries and keys of all layers for the moments.
    return jax.lax.optimization_barrier((out, rows, moments))


@jax.custom_vjp
def _stretch(x, sigma):
    """`normalize(x) * sigma`, `[B, N, H, K]` and `[H, K]`.

    The gradient reads the result, which the kernel keeps too, and a number a row.
    """
    return _stretch_forward(x, sigma)[0]


def _stretch_forward(x, sigma):
    sigma = jnp.where(jnp.abs(sigma) < TINY, TINY, sigma)
    y = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(squared, EPSILON**2))  # [B, N, H, 1]
    # Without the barrier XLA computes the result again in the gradient, and keeps x.
    out = jax.lax.optimization_barrier((y * inverse * sigma).astype(x.dtype))
    return out, (out, inverse, sigma)


def _stretch_backward(saved, grad):
    out, inverse, sigma = saved
    grad = grad.astype(jnp.float32)
    x_hat = out / sigma
    along = jnp.sum(grad * out, axis=-1, keepdims=True)
    # A vector shorter than EPSILON is only multiplied by 1 / EPSILON.
    change = grad * sigma - x_hat * jnp.where(inverse < 1 / EPSILON, along, 0)
    return (change * inverse).astype(out.dtype), jnp.sum(grad * x_hat, axis=(0, 1))


_stretch.defvjp(_stretch_forward, _stretch_backward)

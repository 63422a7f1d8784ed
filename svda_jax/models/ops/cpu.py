"""The operations on CPUs, where XLA (of JAX 0.10) does some forms better than others.

Products of two matrices with few axes, each adding up over the last axis of its first
factor; sums as products with ones, which are vectorised; gradients written out, so that
less is kept and passed over. What each is worth was measured on two CPU cores.
"""

import functools
import math

import jax
import jax.numpy as jnp

from svda_jax.models.ops.plain import EPSILON, cut, draw, perturb

__all__ = [
    "attend",
    "draw",
    "embed",
    "layer_norm",
    "linear",
    "normalize",
    "observe",
]


def linear(x, kernel, bias):
    """`plain.linear` as one product of two matrices.

    With all axes kept a training step of width 64 takes a tenth longer.
    """
    num_inputs = kernel.ndim - bias.ndim
    size = math.prod(kernel.shape[:num_inputs])
    rows = x.reshape(-1, size)
    kernel = kernel.astype(x.dtype).reshape(size, -1)
    y = rows @ kernel + broadcast_rows(bias.astype(x.dtype).reshape(-1), len(rows))
    return y.reshape(*x.shape[: x.ndim - num_inputs], *bias.shape)


def embed(images, kernel, bias, *, patch_size):
    """`plain.embed` by this `linear`."""
    return linear(cut(images, patch_size), kernel, bias)


def layer_norm(x, scale, bias):
    """`plain.layer_norm`; against Flax's own it takes 4 to 7 % off a training step."""
    rows = standardize(x.astype(jnp.float32)).reshape(-1, x.shape[-1])
    scale, bias = (broadcast_rows(p, len(rows)) for p in (scale, bias))
    return (rows * scale + bias).reshape(x.shape).astype(x.dtype)


@jax.custom_vjp
def standardize(x):
    """(x - mean) / sqrt(variance + 1e-6) over the last axis of x, float32."""
    return _standardize_forward(x)[0]


def _standardize_forward(x):
    x = x - _mean(x)
    scale = jax.lax.rsqrt(_mean(jnp.square(x)) + 1e-6)  # [..., 1]
    x_hat = x * scale
    return x_hat, (x_hat, scale)


def _standardize_backward(saved, grad):
    x_hat, scale = saved
    return (scale * (grad - _mean(grad) - x_hat * _mean(grad * x_hat)),)


standardize.defvjp(_standardize_forward, _standardize_backward)


@jax.custom_vjp
def normalize(x):
    """`plain.normalize`; its gradient keeps x_hat alone, as attention does.

    With the queries and keys of a width of 64 that is a twentieth of the step.
    """
    return _normalize_forward(x)[0]


def _normalize_forward(x):
    y = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.maximum(sum_last(jnp.square(y)), EPSILON**2))  # [..., 1]
    x_hat = (y * scale).astype(x.dtype)
    return x_hat, (x_hat, scale)


def _normalize_backward(saved, grad):
    """The gradient less its part along x, which has no effect on x_hat."""
    x_hat, scale = saved
    grad = grad.astype(jnp.float32)
    # A vector shorter than EPSILON is only multiplied by 1 / EPSILON.
    radial = jnp.where(scale < 1 / EPSILON, sum_last(grad * x_hat), 0)
    return (((grad - x_hat * radial) * scale).astype(x_hat.dtype),)


normalize.defvjp(_normalize_forward, _normalize_backward)


def attend(query, key, value, sigma, *, unit):
    """`plain.attend`, its gradient written out.

    The weights are divided by their sum after they have been applied to the values,
    which saves a pass over `[B, H, N, N]` and in the gradient a sum over it. Of query
    and key the gradient reads the directions alone, not their product with sigma.
    Against autodiff a step of width 64 takes a tenth less.
    """
    if unit:
        query, key = normalize(query), normalize(key)
    return _attend(query, key, value, sigma)


def observe(function, query, key, value, sigma, noise, mask=None, *, unit):
    """`plain.observe`, with the forms of `attend`: what both compute, XLA does once."""
    out = attend(query, key, value, sigma, unit=unit)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    directions = normalize(query), normalize(key)
    moved = (perturb(x, y, sum_last) for x, y in zip((query, key), noise, strict=True))
    if unit:
        query, key, moved = *directions, map(normalize, moved)
    seconds = _second_moments(query, key, mask)
    weights, perturbed = (
        weights / jnp.sum(weights, axis=-1, keepdims=True)
        for weights in (_weigh(query, key, sigma), _weigh(*moved, sigma))
    )
    cosines = _product("bihk,bjhk->bhij", *directions)
    rows = {"cosines": cosines, "weights": weights, "perturbed": perturbed}
    return out, function(rows), seconds


def _second_moments(query, key, mask):
    """`plain.second_moments`, not of unit length, by a product of matrices a head."""
    moments = []
    for x in (query, key):
        heads = []
        for h in range(x.shape[2]):
            y = x[:, :, h]  # [B, N, K]
            if x is key:
                y = y - jnp.mean(y, axis=1, keepdims=True)
            if mask is not None:
                y = jnp.where(mask[:, None, None], y, 0)
            y = y.reshape(-1, y.shape[-1])
            heads.append(y.T @ y)
        moments.append(jnp.stack(heads))
    return jnp.stack(moments) / query.shape[1]


@jax.custom_vjp
def _attend(query, key, value, sigma):
    return _attend_forward(query, key, value, sigma)[0]


def _attend_forward(query, key, value, sigma):
    weights = _weigh(query, key, sigma)
    inverse = jnp.swapaxes(1 / jnp.sum(weights, axis=-1), 1, 2)[..., None]
    weights = weights.astype(value.dtype)
    out = jnp.swapaxes(_product("bhij,bjhk->bhik", weights, value), 1, 2)
    out = (out * inverse).astype(value.dtype)  # [B, N, H, V]
    return out, (query, key, value, sigma, weights, inverse, out)


def _weigh(query, key, sigma):
    """`[B, H, N, N]`, exp of scores, but for a factor of each row."""
    scores = _product("bihk,bjhk->bhij", (query * sigma).astype(query.dtype), key)
    return jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def broadcast_rows(vector, num_rows):
    """Repeats a vector: `[D]` -> `[num_rows, D]`. Its gradient is `sum_rows`."""
    return jnp.broadcast_to(vector, (num_rows, len(vector)))


broadcast_rows.defvjp(
    lambda vector, num_rows: (broadcast_rows(vector, num_rows), None),
    lambda num_rows, _, grad: (sum_rows(grad),),
)


def sum_rows(x):
    """Sums over the first axis: `[M, D]` -> `[D]` of x's dtype, added up in float32.

    As a product with ones: a step of width 64 takes 5 % less.
    """
    ones = jnp.ones(len(x), x.dtype)
    return jnp.matmul(
        ones, x, precision="highest", preferred_element_type=jnp.float32
    ).astype(x.dtype)


def sum_last(x):
    """Sums over the last axis and keeps it: `[..., K]` float32 -> `[..., 1]`.

    As a product with ones: XLA adds up a short last axis one number after the other.
    SVDA's step of width 64 takes 2.5 % less.
    """
    return jnp.matmul(x, jnp.ones(x.shape[-1]), precision="highest")[..., None]


def _mean(x):
    return sum_last(x) / x.shape[-1]


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)

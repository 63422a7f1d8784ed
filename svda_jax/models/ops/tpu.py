"""The operations on TPUs: attention by a kernel that keeps its scores in VMEM.

Patches are projected by a convolution: to cut them out of images moves numbers of which
three lie side by side, and took a sixth of the step of a small model of two blocks. Of
gray or small images it costs up to 2 % more (both as the compiler for a v5e estimates).

The kernel reads queries, keys and values as the projections write them, `[B, N, H K]`,
and works on the heads that share 128 lanes. Of these a head is picked by zeroing the
others' lanes in one factor: the product over all lanes is then that head's.
Scores are held transposed, `[keys, queries]`: sums over keys add up registers, and in
the gradient no `[N, N]` matrix has to be transposed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from svda_jax.models.ops import plain
from svda_jax.models.ops.plain import EPSILON, draw, layer_norm, linear, normalize

__all__ = ["attend", "draw", "embed", "layer_norm", "linear", "normalize"]

LANES = 128
# Of the 16 MB that a kernel gets of a v5e, what its blocks and scores may fill.
VMEM_BYTES = 14 * 2**20


def embed(images, kernel, bias, *, patch_size):
    """`plain.embed` as a convolution."""
    filters = kernel.reshape(patch_size, patch_size, images.shape[-1], -1)
    x = jax.lax.conv_general_dilated(
        images,
        filters.astype(images.dtype),  # [P, P, channels, D]
        (patch_size, patch_size),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, h w, D]
    return (x + bias).astype(images.dtype)


def attend(query, key, value, sigma, *, unit):
    """`plain.attend`; norms, softmax and sums are float32, and stay in the kernel.

    The gradient recomputes them from query, key and value. Images of more tokens than
    `fits` admits are left to `plain`.
    """
    if not fits(query, value):
        return plain.attend(query, key, value, sigma, unit=unit)
    batch, num_tokens, num_heads, _ = query.shape
    stacked = count_stacked(batch, num_tokens, query.dtype)
    rows = (batch // stacked, stacked * num_tokens, -1)
    query, key, flat = (x.reshape(rows) for x in (query, key, value))  # [B', M, H K]
    out = _attend(query, key, flat, sigma.reshape(1, -1), num_heads, stacked, unit)
    return out.reshape(value.shape)


def fits(query, value):
    """Whether an image's blocks and scores, as the gradient needs them, fit in VMEM."""
    num_tokens, num_heads, width = query.shape[1:]
    padded = -(-num_tokens // LANES) * LANES
    lanes = num_heads * (4 * width + 3 * value.shape[-1])  # of seven operands
    blocks = 2 * padded * lanes * query.dtype.itemsize  # one computed, one on its way
    return blocks + 4 * 4 * padded**2 <= VMEM_BYTES


def count_stacked(batch, num_tokens, dtype):
    """How many images share a program, so that small ones fill the lanes.

    They are one sequence whose tokens attend to their own image alone: a divisor of the
    batch, and one where stacking would move the tokens within their tiles.
    """
    if num_tokens % (32 // jnp.dtype(dtype).itemsize):
        return 1
    sizes = range(1, max(LANES // num_tokens, 1) + 1)
    return max(size for size in sizes if batch % size == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(query, key, value, sigma, num_heads, stacked, unit):
    return _attend_forward(query, key, value, sigma, num_heads, stacked, unit)[0]


def _attend_forward(query, key, value, sigma, *static):
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype)]
    (out,) = _call(_forward, static, (query, key, value), sigma, shapes)
    return out, (query, key, value, sigma)


def _attend_backward(*args):
    *static, (query, key, value, sigma), grad = args
    operands = (query, key, value, grad)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands[:3]]
    shapes.append(jax.ShapeDtypeStruct((len(query), *sigma.shape), jnp.float32))
    *grads, of_sigma = _call(_backward, static, operands, sigma, shapes)
    return *grads, jnp.sum(of_sigma, axis=0)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, static, operands, sigma, shapes):
    """Runs a kernel on each of the `[M, ...]` of operands and results."""

    def block(x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda i: (i, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, *static),
        grid=(len(operands[0]),),
        in_specs=[*map(block, operands), pl.BlockSpec(sigma.shape, lambda i: (0, 0))],
        out_specs=[block(shape) for shape in shapes],
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name=f"attend{kernel.__name__}",
    )(*operands, sigma)


def _forward(num_heads, stacked, unit, query, key, value, sigma, out):
    own = _own_image(query.shape[0], stacked)
    for heads, k, v in _groups(num_heads, query, value):
        q_hat, _, _ = _normalize(query[:, k], heads, unit)
        k_hat, _, _ = _normalize(key[:, k], heads, unit)
        q = (q_hat * sigma[:, k]).astype(query.dtype)
        k_hat, values = k_hat.astype(key.dtype), value[:, v].T  # [g V, M]
        rows = []
        for head, part in enumerate(jnp.split(values, heads)):
            weights, total = _weigh(k_hat, _pick(q, head, heads), own)
            rows.append(_dot(part, weights.astype(value.dtype)) / total)  # [V, M]
        out[:, v] = jnp.concatenate(rows).T.astype(out.dtype)


def _backward(num_heads, stacked, unit, *refs):
    query, key, value, grad, sigma, grad_query, grad_key, grad_value, grad_sigma = refs
    own = _own_image(query.shape[0], stacked)
    for heads, k, v in _groups(num_heads, query, value):
        q_hat, *of_query = _normalize(query[:, k], heads, unit)
        k_hat, *of_key = _normalize(key[:, k], heads, unit)
        q = (q_hat * sigma[:, k]).astype(query.dtype)
        keys, values, grads = k_hat.astype(key.dtype), value[:, v], grad[:, v]
        rows, to_key, to_value = [], 0, 0
        for head, part in enumerate(jnp.split(keys.T, heads)):  # [K, M]
            q_head, g_head = _pick(q, head, heads), _pick(grads, head, heads)
            weights, total = _weigh(keys, q_head, own)
            weights = weights / total
            to_value += _dot(weights.astype(value.dtype), g_head)
            change = _dot(values, g_head, transposed=True)  # [keys, queries]
            change -= jnp.sum(weights * change, axis=0, keepdims=True)
            change = (weights * change).astype(query.dtype)
            to_key += _dot(change, q_head)
            rows.append(_dot(part, change))
        to_query = jnp.concatenate(rows).T  # [M, g K], of q_hat sigma
        grad_sigma[:, k] = jnp.sum(to_query * q_hat, axis=0, keepdims=True)
        to_query *= sigma[:, k]
        if unit:
            to_query = _tangential(to_query, q_hat, *of_query, heads)
            to_key = _tangential(to_key, k_hat, *of_key, heads)
        grad_query[:, k] = to_query.astype(query.dtype)
        grad_key[:, k] = to_key.astype(key.dtype)
        grad_value[:, v] = to_value.astype(value.dtype)


def _groups(num_heads, query, value):
    """Heads that share the lanes: their number, lanes of query and key, of value."""
    k, v = query.shape[1] // num_heads, value.shape[1] // num_heads
    most = max(LANES // max(k, v), 1)
    for start in range(0, num_heads, most):
        heads = min(most, num_heads - start)
        yield heads, pl.ds(start * k, heads * k), pl.ds(start * v, heads * v)


def _own_image(size, stacked):
    """Which of stacked tokens are of the same image, `[M, M]`; None where all are."""
    if stacked == 1:
        return None
    rows, columns = (
        jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) // (size // stacked)
        for axis in (0, 1)
    )
    return rows == columns


def _weigh(key, query, own):
    """Of a head, exp of its scores `[keys, queries]` and their sums `[1, queries]`."""
    scores = _dot(key, query, transposed=True)
    if own is not None:
        scores = jnp.where(own, scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True))
    return weights, jnp.sum(weights, axis=0, keepdims=True)


def _normalize(x, heads, unit):
    """x_hat of each head, 1 / max(||x||, EPSILON), and whether ||x|| is the larger."""
    x = x.astype(jnp.float32)
    if not unit:
        return x, None, None
    squared = _sum_heads(jnp.square(x), heads)
    inverse = jax.lax.rsqrt(jnp.maximum(squared, EPSILON**2))
    return x * inverse, inverse, squared > EPSILON**2


def _tangential(grad, x_hat, inverse, is_long, heads):
    """The gradient less its part along x, which has no effect on x_hat."""
    along = jnp.where(is_long, _sum_heads(grad * x_hat, heads), 0)
    return (grad - x_hat * along) * inverse


def _sum_heads(x, heads):
    """Sums over each head's lanes, at each of them: `[M, g K]` -> the same."""
    total = jnp.sum(_pick(x, 0, heads), axis=1, keepdims=True)
    for head in range(1, heads):
        own = _lanes(x, heads) == head
        total = jnp.where(own, jnp.sum(jnp.where(own, x, 0), 1, keepdims=True), total)
    return total


def _pick(x, head, heads):
    """x with the lanes of other heads set to zero."""
    return jnp.where(_lanes(x, heads) == head, x, 0) if heads > 1 else x


def _lanes(x, heads):
    """The head of each lane."""
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) // (x.shape[1] // heads)


def _dot(a, b, *, transposed=False):
    """a b or a b^T, added up in float32."""
    axes = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)

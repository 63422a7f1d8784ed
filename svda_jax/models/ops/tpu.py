"""The operations on TPUs: attention by kernels that keep its scores in VMEM.

`tpu_kernels` has them. What else is here was worth it as the compiler for a v5e
estimates. Patches are projected
by a convolution: to cut them out of images moves numbers of which three lie side by
side, a sixth of the step of a small model of two blocks; of gray or small images it
costs up to 2 % more. The gradient of a bias, where a kernel wrote what it sums over, is
a product with ones: a seventh of the step of the CIFAR recipe.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from svda_jax.models.ops import plain
from svda_jax.models.ops.plain import draw, layer_norm, normalize
from svda_jax.models.ops.tpu_kernels import (
    LANES,
    Layout,
    backward,
    forward,
    observe_rows,
)

__all__ = [
    "attend",
    "draw",
    "embed",
    "layer_norm",
    "linear",
    "normalize",
    "observe",
]

# Of the 16 MB that a kernel gets of a v5e, what its blocks and scores may fill.
VMEM_BYTES = 14 * 2**20


def linear(x, kernel, bias):
    """`plain.linear`; of queries, keys and values the bias's gradient is a product."""
    if bias.ndim == 1:
        return plain.linear(x, kernel, bias)
    return _add_bias(jnp.tensordot(x, kernel.astype(x.dtype), 1), bias)


@jax.custom_vjp
def _add_bias(x, bias):
    return (x + bias).astype(x.dtype)


def _add_bias_backward(shape, grad):
    rows = grad.reshape(-1, math.prod(shape))
    ones = jnp.ones((8, len(rows)), grad.dtype)  # a tile; one row is not a product
    sums = jnp.matmul(
        ones, rows, precision="highest", preferred_element_type=jnp.float32
    )
    return grad, sums[0].reshape(shape)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias.shape), _add_bias_backward)


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
    layout = Layout.of(query)
    operands = (layout.flatten(x) for x in (query, key, value))
    out = _attend(*operands, sigma.reshape(-1, 1), layout, unit)
    return layout.restore(out).reshape(value.shape)


def observe(function, query, key, value, sigma, noise, mask=None, *, unit):
    """`plain.observe`; what the function reads stays in the kernel."""
    if not fits(query, value):
        return plain.observe(function, query, key, value, sigma, noise, mask, unit=unit)
    layout = Layout.of(query)
    row = jnp.zeros((1, layout.num_tokens))
    leaves, tree = jax.tree.flatten(
        jax.eval_shape(function, {"cosines": row, "weights": row, "perturbed": row})
    )
    flat = [layout.flatten(x) for x in (query, key, value)]
    programs = layout.count_programs(flat[0])
    shape = jax.ShapeDtypeStruct((programs, layout.num_heads, layout.size), "float32")
    noise = noise.reshape(2, layout.num_tokens, -1).swapaxes(1, 2)  # [2, H K, N]
    counts = jnp.ones(len(query)) if mask is None else mask.astype(jnp.float32)
    counts = jnp.repeat(counts, layout.num_tokens).reshape(programs, 1, layout.size)
    width = query.shape[-1]
    seconds = jax.ShapeDtypeStruct((2 * layout.num_heads * width, width), "float32")
    out, *rows, seconds = _call(
        functools.partial(observe_rows, layout, function, unit),
        layout,
        [*flat, counts],
        (sigma.reshape(-1, 1), *jnp.tile(noise, (1, 1, layout.stacked))),
        [jax.ShapeDtypeStruct(flat[2].shape, value.dtype)] + [shape] * len(leaves),
        [seconds],
    )
    seconds = seconds.reshape(2, layout.num_heads, width, width) / layout.num_tokens
    each = (programs, layout.num_heads, layout.stacked, layout.num_tokens)
    rows = [jnp.swapaxes(x.reshape(each), 1, 2) for x in rows]
    shape = (len(query), layout.num_heads, layout.num_tokens)
    rows = jax.tree.unflatten(tree, [x.reshape(shape) for x in rows])
    return layout.restore(out).reshape(value.shape), rows, seconds


def fits(query, value):
    """Whether an image's blocks and scores, as the gradient needs them, fit in VMEM."""
    num_tokens, num_heads, width = query.shape[1:]
    padded = -(-num_tokens // LANES) * LANES
    lanes = num_heads * (4 * width + 3 * value.shape[-1])  # of seven operands
    blocks = 2 * padded * lanes * query.dtype.itemsize  # one computed, one on its way
    return blocks + 4 * 4 * padded**2 <= VMEM_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, sigma, layout, unit):
    return _attend_forward(query, key, value, sigma, layout, unit)[0]


def _attend_forward(query, key, value, sigma, layout, unit):
    kernel = functools.partial(forward, layout, unit)
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype)]
    (out,) = _call(kernel, layout, (query, key, value), (sigma,), shapes)
    return out, (query, key, value, sigma)


def _attend_backward(layout, unit, saved, grad):
    query, key, value, sigma = saved
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)]
    programs = layout.count_programs(query)
    shapes.append(jax.ShapeDtypeStruct((programs, 1, len(sigma)), jnp.float32))
    kernel = functools.partial(backward, layout, unit)
    *grads, of_sigma = _call(
        kernel, layout, (query, key, value, grad), (sigma,), shapes
    )
    return *grads, jnp.sum(of_sigma, axis=0).T


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, layout, operands, shared, shapes, sums=()):
    """Runs a kernel on each block of operands and results, and all that is shared.

    Results behind these, of the shapes of sums, are added up over all programs.
    """

    def block(x):
        if x.ndim == 2:
            return pl.BlockSpec((x.shape[0], layout.size), lambda i: (0, i))
        return pl.BlockSpec((None, *x.shape[1:]), lambda i: (i, 0, 0))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda i: (0, 0))

    order = "arbitrary" if sums else "parallel"
    return pl.pallas_call(
        kernel,
        grid=(layout.count_programs(operands[0]),),
        in_specs=[*map(block, operands), *map(whole, shared)],
        out_specs=[*map(block, shapes), *map(whole, sums)],
        out_shape=[*shapes, *sums],
        compiler_params=pltpu.CompilerParams(dimension_semantics=(order,)),
        name=f"attend_{kernel.func.__name__}",
    )(*operands, *shared)

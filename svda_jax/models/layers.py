"""Modules of one operation each: their parameters, and how these start."""

import math

import jax.numpy as jnp
from flax import nnx

KERNEL_INIT = nnx.initializers.xavier_uniform()


class Linear(nnx.Module):
    """x W + b over the last axes of x.

    Args:
      in_features: sizes of the axes that are summed over, a number or a tuple.
      out_features: sizes of those that come in their place, likewise.
      kernel_init: start of W as a matrix; b starts at zero.
      dtype: of the result; parameters are float32.
      ops: the model's `Ops`.
      rngs: `nnx.Rngs` to initialise from.
    """

    def __init__(
        self,
        in_features,
        out_features,
        *,
        kernel_init=KERNEL_INIT,
        dtype=jnp.float32,
        ops,
        rngs,
    ):
        inputs, outputs = (
            (sizes,) if isinstance(sizes, int) else tuple(sizes)
            for sizes in (in_features, out_features)
        )
        matrix = kernel_init(rngs.params(), (math.prod(inputs), math.prod(outputs)))
        self.kernel = nnx.Param(matrix.reshape(*inputs, *outputs))
        rngs.params()  # a key for b, which Flax's layers take too
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype, self.ops = dtype, ops

    def __call__(self, x):
        """`[..., *in_features]` -> `[..., *out_features]`."""
        return self.ops.linear(x.astype(self.dtype), self.kernel[...], self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32.

    Args:
      width: D.
      dtype: of the result; parameters are float32.
      ops: the model's `Ops`.
      rngs: `nnx.Rngs`, of which two keys are taken, as by Flax's layer.
    """

    def __init__(self, width, *, dtype=jnp.float32, ops, rngs):
        rngs.params(), rngs.params()
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype, self.ops = dtype, ops

    def __call__(self, x):
        """`[..., D]` -> `[..., D]`."""
        return self.ops.layer_norm(
            x.astype(self.dtype), self.scale[...], self.bias[...]
        )

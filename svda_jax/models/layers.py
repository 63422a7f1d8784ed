"""What blocks are made of: linear maps and how they start, norms, MLPs, dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

# Of GELU(x) = x Phi(x): Phi by tanh, as in Flax, or by erf, as in PyTorch.
GELUS = ("tanh", "erf")

_XAVIER = nnx.initializers.xavier_uniform()


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
        kernel_init=_XAVIER,
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


class Mlp(nnx.Module):
    """Two linear maps with a GELU between them.

    Args:
      width: D.
      hidden: width between the maps.
      gelu: one of `GELUS`, which differ by up to 5e-4.
      dtype: of the result; parameters are float32.
      ops: the model's `Ops`.
      rngs: `nnx.Rngs` to initialise from.
    """

    def __init__(self, width, hidden, *, gelu="tanh", dtype=jnp.float32, ops, rngs):
        options = {"dtype": dtype, "ops": ops, "rngs": rngs}
        self.hidden = Linear(width, hidden, **options)
        self.out = Linear(hidden, width, **options)
        self.gelu, self.ops = gelu, ops

    def __call__(self, x):
        """`[..., D]` -> `[..., D]`."""
        x = self.hidden(x)
        if self.gelu == "tanh":
            return self.out(self.ops.gelu(x))
        return self.out(jax.nn.gelu(x, approximate=False))


class Dropout:
    """Dropout of several places, from one draw of random numbers.

    A draw of its own for every place would cost more than the numbers do: on two CPU
    cores it doubled the time of a training step (width 64, 4 layers, JAX 0.10).

    Args:
      numbers: `[B, size]` uint16, as many as all calls together take of an image.
    """

    def __init__(self, numbers):
        self._numbers, self._taken = numbers, 0

    def __call__(self, x, rate, shape):
        """Zeroes entries at a rate and scales the others by 1 / (1 - rate).

        Args:
          x: `[B, ...]`.
          rate: in [0, 1), a number or an array of no axes.
          shape: of one image's mask; it broadcasts against `x[0]`.

        Returns:
          Like x.
        """
        start, self._taken = self._taken, self._taken + math.prod(shape)
        numbers = self._numbers[:, start : self._taken].reshape(x.shape[0], *shape)
        keep = numbers < jnp.round((1 - rate) * 2**16).astype(jnp.int32)
        kept = x / jnp.asarray(1 - rate, x.dtype)
        return jnp.where(keep, kept, jnp.zeros_like(x))

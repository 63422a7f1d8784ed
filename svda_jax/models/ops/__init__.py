"""The operations of a model that have a quicker form on some machine.

`plain` has the equations. `cpu`, `gpu` and `tpu` have the same names: each equals
`plain` in values and gradients, and stands for a gain measured on its machine alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from svda_jax.models.ops import cpu, gpu, plain, tpu


class Ops(NamedTuple):
    """What a `ViT` computes with; `plain` says what each function is.

    Attributes:
      linear: (x, kernel, bias) -> x W + b.
      embed: (images, kernel, bias, patch_size) -> tokens of their patches.
      layer_norm: (x, scale, bias) -> layer normalisation over the last axis.
      normalize: x -> x of unit length.
      attend: (query, key, value, sigma, unit) -> attention.
      observe: (function, query, key, value, sigma, noise, mask, unit) -> attention,
        the function of its rows, and second moments of queries and keys.
      draw: (keys, size) -> the random numbers of dropout.
      gelu: x -> GELU(x) by tanh, `jax.nn.gelu` where a module has no other form.
    """

    linear: Callable
    embed: Callable
    layer_norm: Callable
    normalize: Callable
    attend: Callable
    observe: Callable
    draw: Callable
    gelu: Callable = jax.nn.gelu

    @classmethod
    def of(cls, module):
        """The operations that a module has under these names."""
        names = (name for name in cls._fields if hasattr(module, name))
        return cls(**{name: getattr(module, name) for name in names})


PLAIN = Ops.of(plain)


def choose(device):
    """The quickest operations on a device.

    Args:
      device: that the step is compiled for, which need not be there.
    """
    if device.platform == "gpu" and not gpu.has_kernel(device):
        return PLAIN
    modules = {"cpu": cpu, "gpu": gpu, "tpu": tpu}
    return Ops.of(modules.get(device.platform, plain))

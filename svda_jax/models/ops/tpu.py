"""The operations on TPUs, where the equations are as quick as anything."""

from svda_jax.models.ops.plain import attend, draw, layer_norm, linear, normalize

__all__ = ["attend", "draw", "layer_norm", "linear", "normalize"]

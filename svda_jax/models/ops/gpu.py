"""The operations on NVIDIA GPUs: attention by cuDNN's fused kernel."""

import jax
import jax.numpy as jnp

from svda_jax.models.ops import plain
from svda_jax.models.ops.plain import draw, layer_norm, linear, normalize

__all__ = ["attend", "draw", "layer_norm", "linear", "normalize"]


def has_kernel(device):
    """Whether cuDNN has the kernel for a device: compute capability 8.0 and later."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return major.isdigit() and minor.isdigit() and int(major) >= 8


def attend(query, key, value, sigma):
    """`plain.attend`; scores and softmax stay in the kernel, in float32."""
    fits = (
        query.shape == key.shape == value.shape
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
    )
    if not fits:
        return plain.attend(query, key, value, sigma)
    query = (query * sigma).astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, scale=1.0, implementation="cudnn"
    )

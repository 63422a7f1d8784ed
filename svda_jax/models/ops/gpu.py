"""The operations on NVIDIA GPUs: attention by cuDNN's fused kernel."""

import jax
import jax.numpy as jnp

from svda_jax.models.ops import plain
from svda_jax.models.ops.plain import (
    draw,
    embed,
    layer_norm,
    linear,
    normalize,
    observe,
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


def has_kernel(device):
    """Whether cuDNN has the kernel for a device: compute capability 8.0 and later."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return major.isdigit() and minor.isdigit() and int(major) >= 8


def attend(query, key, value, sigma, *, unit):
    """`plain.attend`; scores and softmax stay in the kernel, in float32.

    The gradient's kernel takes even numbers of tokens alone: an odd one gets a token
    more, which nobody attends to.
    """
    fits = (
        query.shape == key.shape == value.shape
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
    )
    if not fits:
        return plain.attend(query, key, value, sigma, unit=unit)
    if unit:
        query, key = normalize(query), normalize(key)
    batch, num_tokens = query.shape[:2]
    query, lengths = (query * sigma).astype(query.dtype), None
    if num_tokens % 2:
        more = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, more) for x in (query, key, value))
        lengths = jnp.full(batch, num_tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=1.0,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :num_tokens]

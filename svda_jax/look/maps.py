"""Where a model looks: attention as maps over the patches of an image.

Axes: B images, N tokens, H heads, L layers, g patches along a side.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from svda_jax.models.attention import attention_weights


@functools.partial(jax.jit, static_argnames="graphdef")
def look(params, images, *, graphdef):
    """What a model says of images and where it looks.

    Args:
      params: its parameters.
      images: `[B, S, S, channels]`, 0 to 255.
      graphdef: from `vit.create_graphdef`.

    Returns:
      Class probabilities `[B, C]`, `attention_maps` `[B, L, H, g, g]` and
      `attention_rollout` `[B, g, g]`.
    """
    model = nnx.merge(graphdef, params)
    logits, traces = model(images)
    return (
        jax.nn.softmax(logits),
        attention_maps(traces, model.config),
        attention_rollout(traces, model.config),
    )


@functools.partial(jax.jit, static_argnames="graphdef")
def look_by_query(params, images, *, graphdef):
    """Where each patch of an image looks, layer by layer and head by head.

    Args:
      params: see `look`, as for images and graphdef.
      images: likewise.
      graphdef: likewise.

    Returns:
      `[B, L, H, 1 + g g, g, g]` float32: first `attention_maps`, then for each patch as
      the query, row by row, its weights on the patches, times the number of tokens.
    """
    model = nnx.merge(graphdef, params)
    _, traces = model(images)
    weights = _stack_weights(traces)  # [B, L, H, N, N]
    num_tokens, grid = weights.shape[-1], model.config.grid
    first = num_tokens - grid**2  # a class token comes before the patches
    patches = num_tokens * weights[..., first:, first:]
    patches = patches.reshape(*patches.shape[:-1], grid, grid)  # [B, L, H, g g, g, g]
    received = _to_grid(weights, model.config)[..., None, :, :]
    return jnp.concatenate([received, patches], axis=-3)


def attention_maps(traces, config):
    """How much each patch is attended to, by layer and head.

    The mean over the queries of the weight on each key; with a class token, the weights
    of its query alone. Times the number of tokens, so that 1 is what each patch gets
    from uniform attention.

    Args:
      traces: L `Trace`s of B images.
      config: the `ViTConfig` of their model.

    Returns:
      `[B, L, H, g, g]` float32, not negative.
    """
    weights = _stack_weights(traces)  # [B, L, H, N, N]
    return _to_grid(weights, config)


def attention_rollout(traces, config):
    """Attention followed through all layers to the patches of the image.

        R = prod over layers of (mean over heads of A + I) / 2

    Args:
      traces: L `Trace`s of B images.
      config: the `ViTConfig` of their model.

    Returns:
      `[B, g, g]` float32: R read as the weights of `attention_maps` are.

    Source: attention rollout, Abnar & Zuidema 2020.
    """
    weights = jnp.mean(_stack_weights(traces), axis=2)  # [B, L, N, N]
    identity = jnp.eye(weights.shape[-1])
    rollout = identity
    for layer in range(weights.shape[1]):
        rollout = 0.5 * (weights[:, layer] + identity) @ rollout  # [B, N, N]
    return _to_grid(rollout, config)


def _stack_weights(traces):
    weights = [
        attention_weights(t.query, t.key, t.sigma, scale=t.scale) for t in traces
    ]
    return jnp.stack(weights, axis=1)


def _to_grid(weights, config):
    """`[..., N, N]` weights -> `[..., g, g]`, what the patches get."""
    num_tokens = weights.shape[-1]
    if config.pool == "cls":
        received = weights[..., 0, 1:]
    else:
        received = jnp.mean(weights, axis=-2)
    grid = (config.grid, config.grid)
    return num_tokens * received.reshape(*received.shape[:-1], *grid)

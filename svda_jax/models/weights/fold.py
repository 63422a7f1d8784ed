"""What other models have and a `ViT` has not, made part of what it has; exactly.

Everything is done in place, to a dict from our names (parts joined by "/") to float32
arrays, matrices as `[inputs, outputs]`.
"""

import re

import numpy as np

from svda_jax import UserError


def split_qkv(params):
    """Gives query, key and value, which timm has in one, their own names."""
    for name in [name for name in params if "/qkv/" in name]:
        if params[name].shape[-1] % 3:
            raise UserError(f"{name} has {params[name].shape[-1]} outputs, not 3 x D")
        parts = np.split(params.pop(name), 3, axis=-1)
        for part, array in zip(("query", "key", "value"), parts, strict=True):
            params[name.replace("qkv", part)] = array


def join_qkv(params):
    """The inverse of `split_qkv`."""
    for name in [name for name in params if "/query/" in name]:
        names = [name.replace("query", part) for part in ("query", "key", "value")]
        joined = np.concatenate([params.pop(name) for name in names], axis=-1)
        params[name.replace("query", "qkv")] = joined


def add_biases(params):
    """Queries, keys and values without a bias have one of 0."""
    for name in [
        name for name in params if re.search("/(query|key|value)/kernel", name)
    ]:
        zeros = np.zeros(params[name].shape[1:], np.float32)
        params.setdefault(name.replace("kernel", "bias"), zeros)


def fold_sigma(params, head_dim):
    """sigma of a file of ours, relative to K, which the start "matched" is."""
    for name in [name for name in params if name.endswith("/sigma")]:
        sigma = params.pop(name)
        params[name.replace("sigma", "relative_sigma")] = sigma / np.float32(head_dim)


def fold_layer_scale(params):
    """LayerScale: gamma (x W + b) = x (W gamma) + b gamma."""
    for name in [name for name in params if name.endswith("/gamma")]:
        gamma = params.pop(name)
        for leaf in ("kernel", "bias"):
            out = name.replace("gamma", f"out/{leaf}")
            if out in params:
                params[out] = params[out] * gamma


def fold_query_key_norms(params, num_heads):
    """Norms of queries and keys: SVDA with sigma = K gamma_q gamma_k in every head.

    An RMSNorm gives sqrt(K) gamma q_hat, so that a score over sqrt(K) is

        sum_k gamma_q gamma_k q_hat k_hat K / sqrt(K)

    which leaves relative_sigma = gamma_q gamma_k from the start "matched", c = K. A
    LayerNorm is an RMSNorm of centred heads, W <- W (I - 1 1^T / K).

    Args:
      params: see above.
      num_heads: H.

    Raises:
      UserError: a norm has a bias that is not 0, or stands on one side alone.
    """
    sides = ("query", "key")
    names = [name for name in params if re.search("/(query|key)_norm/scale$", name)]
    for name in sorted(names):
        attention = re.sub("(query|key)_norm/scale", "", name)
        gammas = [params.get(f"{attention}{side}_norm/scale") for side in sides]
        if any(gamma is None for gamma in gammas):
            raise UserError(f"{attention}: queries or keys alone have a norm")
        sigma = np.prod(gammas, axis=0)  # [K]
        params[f"{attention}relative_sigma"] = np.tile(sigma, (num_heads, 1))
    for name in names:
        del params[name]
        bias = params.pop(name.replace("scale", "bias"), None)
        if bias is None:
            continue
        if bias.any():
            raise UserError(
                f"{name.replace('scale', 'bias')} is not 0, which SVDA has no place for"
            )
        for leaf in ("kernel", "bias"):
            heads = name.replace("_norm/scale", f"/{leaf}")
            array = params[heads]
            split = array.reshape(*array.shape[:-1], num_heads, -1)
            split = split - split.mean(-1, keepdims=True)
            params[heads] = split.reshape(array.shape)


def renormalize(kernel, bias, old, new):
    """A patch embedding of images normalised otherwise: what it gives stays the same.

        (x - m) / s = ((x - m') / s') s' / s + (m' - m) / s

    Args:
      kernel: `[P P channels, D]`.
      bias: `[D]`.
      old: mean and std, m and s, each with a value for each channel.
      new: those it is to be given, m' and s'.

    Returns:
      Kernel and bias.
    """
    (mean, std), (new_mean, new_std) = np.float64(old), np.float64(new)
    each = np.asarray(kernel, np.float64).reshape(-1, len(std), kernel.shape[-1])
    shift = np.einsum("pcd,c->d", each, (new_mean - mean) / std)
    kernel = (each * (new_std / std)[:, None]).reshape(kernel.shape)
    return np.float32(kernel), np.float32(bias + shift)

"""Spectral energy retention: a trained model with fewer directions in its scores.

    python -m svda_jax prune --workdir runs/digits-svda-0 --rho=0.9

Every head keeps the fewest directions that hold rho of the energy of its spectrum,
sum sigma^2. Two models come of that. In the *masked* one sigma is zero in the others,
which is exact: norms run over all K directions as before. In the *shrunk* one they are
gone, from W_q, W_k, their biases and sigma; norms run over what is kept, so it is not
the same model, and how far the two are apart is measured. Scores are divided by the
square root of the original K in both.

The shrunk model becomes a run of its own, by default <workdir>-pruned-<rho>, which
everything opens that opens a run; prune.md in it says what was gained and lost.

Source: arXiv 2609.24370.
"""

import copy
import dataclasses

import jax
import numpy as np
from flax import nnx

from svda_jax.models.vit import create_graphdef


def choose(spectrum, rho):
    """The fewest directions of each head that hold rho of its energy.

    Args:
      spectrum: `[H, K]`, of any sign.
      rho: share of sum sigma^2, in (0, 1]; 1 keeps all directions.

    Returns:
      `[H, K]` bool, at least one True a head. Of equal directions the first is kept
      first; one without energy is kept at rho = 1 alone, or as a head's only one.
    """
    if rho == 1:
        return np.ones(np.shape(spectrum), bool)
    energy = np.square(np.float64(spectrum))
    order = np.argsort(-energy, axis=-1, kind="stable")
    energy = np.take_along_axis(energy, order, axis=-1)
    before = np.cumsum(energy, axis=-1) - energy
    needed = (before < rho * energy.sum(-1, keepdims=True)) & (energy > 0)
    needed[:, 0] = True
    keep = np.zeros_like(needed)
    np.put_along_axis(keep, order, needed, axis=-1)
    return keep


def mask(model, keep):
    """The model with directions switched off, its arrays as large as before.

    Args:
      model: a `ViT`; with softmax attention one that `factorise` returned.
      keep: `[H, K]` bool for each layer.
    """
    model = copy.deepcopy(model)
    for block, kept in zip(model.blocks, keep, strict=True):
        attention = block.attention
        if attention.sigma is None:
            attention.query.kernel[...] *= kept
            attention.query.bias[...] *= kept
        else:
            attention.relative_sigma[...] *= kept
    return model


def shrink(model, keep, *, multiple=1):
    """The model without directions.

    Heads of one layer that keep fewer than another are filled up with zeros, which
    training leaves as they are: neither their gradient nor their decay is anything.

    Args:
      model: a `ViT`; with softmax attention one that `factorise` returned.
      keep: `[H, K]` bool for each layer.
      multiple: what the number of directions of a layer is rounded up to a multiple of,
        up to the number it had.

    Returns:
      A `ViT` whose config says the directions of each layer, `qk_dim`.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    widths = []
    for layer, kept in enumerate(keep):
        most = int(kept.sum(-1).max())
        widths.append(min(-(-most // multiple) * multiple, kept.shape[-1]))
        # The places of what is kept, in order, then others, which become zero.
        places = np.argsort(~kept, axis=-1, kind="stable")[:, : widths[-1]]  # [H, K']
        valid = np.take_along_axis(kept, places, axis=-1)

        def take(array, places=places, valid=valid):
            places = places.reshape((1,) * (array.ndim - 2) + places.shape)
            return np.take_along_axis(np.asarray(array), places, axis=-1) * valid

        attention = params["blocks"][layer]["attention"]
        for name in ("query", "key"):
            attention[name] = {k: take(v) for k, v in attention[name].items()}
        if "relative_sigma" in attention:
            attention["relative_sigma"] = take(attention["relative_sigma"])
    config = dataclasses.replace(model.config, qk_dim=tuple(widths))
    return nnx.merge(create_graphdef(config), jax.tree.map(jax.numpy.asarray, params))


def factorise(model):
    """The same function as softmax attention, with singular directions as its own.

        W_q W_k^T = U diag(s) V^T,   W_q <- U diag(s),  W_k <- V,  b_q <- b_q W_k^T V

    What the biases add to all scores of a row alike changes no weight and is left out.
    """
    model = copy.deepcopy(model)
    for block in model.blocks:
        query, key = block.attention.query, block.attention.key
        w_query, w_key = (
            np.moveaxis(np.float64(projection.kernel[...]), 1, 0)
            for projection in (query, key)
        )  # [H, D, K]
        q_query, r_query = np.linalg.qr(w_query)
        q_key, r_key = np.linalg.qr(w_key)
        u, s, vt = np.linalg.svd(r_query @ np.swapaxes(r_key, -1, -2))
        v = np.swapaxes(vt, -1, -2)  # [H, K, K]
        bias = np.einsum("hk,hlk,hlm->hm", np.float64(query.bias[...]), r_key, v)
        for projection, kernel, bias_ in (
            (query, q_query @ u * s[:, None], bias),
            (key, q_key @ v, np.zeros_like(bias)),
        ):
            kernel = np.moveaxis(kernel, 0, 1)  # [D, H, K]
            projection.kernel[...] = jax.numpy.float32(kernel)
            projection.bias[...] = jax.numpy.float32(bias_)
    return model

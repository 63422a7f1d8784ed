"""Softmax attention as the SVDA that scores most like it.

A softmax head's score is a sum of directions (`models.score.decompose`),

    q^T k / sqrt(K) = sum_k s_k q'_k k'_k,  q'_k = a_k^T q,  k'_k = b_k^T k

and with q' and k' for queries and keys SVDA's is the same but for their lengths:

    sum_k sigma_k q'_k k'_k / (|q'| |k'| sqrt(K))

Over the data q' and k' are white, so that each length is a sum of K terms alike and
varies little, 15 % of itself at K = 16. Sigma is what fits softmax's scores best.

A constant in place of the weakest direction, with sigma 0, makes lengths vary less: the
larger it is, the nearer SVDA comes to softmax attention without that direction, and the
less its unit length says.

Axes: H heads, D width, K directions.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svda_jax.models.attention import SPECTRUM_STARTS
from svda_jax.models.score import decompose
from svda_jax.models.vit import create_graphdef
from svda_jax.prune.measure import measure_fit, measure_moments


class Coordinates(NamedTuple):
    """What becomes of the queries and keys of a layer: q' = q @ query + constant.

    Attributes:
      query: `[H, K, K]`.
      key: `[H, K, K]`.
      constant: `[H, K]`, the same for both.
    """

    query: np.ndarray
    key: np.ndarray
    constant: np.ndarray


def convert(model, data, *, constant=0.0):
    """The SVDA model that scores most like a softmax model.

    Args:
      model: a `ViT` with softmax attention.
      data: the training split, from `datasets.load`; its first images are measured.
      constant: that takes the place of each head's weakest direction, over the root
        mean square length of q'; 0 leaves all directions.

    Returns:
      A `ViT` of the same size, with sigma besides.

    Raises:
      UserError: queries or keys are not finite.
    """
    moments, _ = measure_moments(model, data)
    coordinates = [
        find_coordinates(moment, block.attention.factors, constant)
        for block, moment in zip(model.blocks, moments, strict=True)
    ]
    fits = measure_fit(model, coordinates, data)
    pairs = zip(fits, coordinates, strict=True)
    sigmas = [fit_sigma(*fit, one.constant == 0) for fit, one in pairs]
    return rebuild(model, coordinates, sigmas)


def find_coordinates(moments, factors, constant=0.0):
    """The `Coordinates` of a layer in which scores are diagonal and the data white.

    Args:
      moments: `[2, H, K, K]`, the mean over images of `plain.second_moments`.
      factors: `[H, K]`, what the score multiplies each direction by.
      constant: see `convert`.
    """
    query, _, key = decompose(moments, factors)
    shift = np.zeros(factors.shape)
    if constant:
        query[..., -1] = key[..., -1] = 0
        shift[:, -1] = constant * np.sqrt(factors.shape[-1])
    return Coordinates(query, key, shift)


def fit_sigma(gram, target, scoring):
    """The sigma of each head that fits softmax's scores best, by least squares.

        min over sigma of mean (x_ij - sum_k sigma_k z_ijk)^2:  sigma = gram^+ target

    x_ij is softmax's score and z_ijk what sigma_k multiplies, keys centred in their
    image: a shift of a row leaves its softmax as it is.

    Args:
      gram: `[H, K, K]`, the mean of z_k z_l.
      target: `[H, K]`, that of z_k x.
      scoring: `[H, K]` bool, the directions whose sigma is not 0.

    Returns:
      `[H, K]` float64, 0 also for directions that the data do not reach.
    """
    gram = gram * (scoring[:, None] & scoring[..., None])
    inverse = np.linalg.pinv(gram, rcond=1e-6, hermitian=True)
    return np.einsum("hkl,hl->hk", inverse, target)


def rebuild(model, coordinates, sigmas):
    """The SVDA model with these `Coordinates` and this sigma `[H, K]` in each layer."""
    config = dataclasses.replace(model.config, attention="svda")
    start = SPECTRUM_STARTS[config.spectrum_init](config.width // config.num_heads)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    blocks = params["blocks"].values()
    for block, one, sigma in zip(blocks, coordinates, sigmas, strict=True):
        attention = block["attention"]
        attention["relative_sigma"] = sigma / start
        for name, turn in (("query", one.query), ("key", one.key)):
            kernel, bias = (np.float64(attention[name][k]) for k in ("kernel", "bias"))
            attention[name] = {
                "kernel": np.einsum("dhk,hkl->dhl", kernel, turn),
                "bias": np.einsum("hk,hkl->hl", bias, turn) + one.constant,
            }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return nnx.merge(create_graphdef(config), params)

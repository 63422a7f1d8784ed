"""The six interpretability indicators, and what pruning asks, as pure functions.

The paper (arXiv 2602.10994) names the six and prints no formula for any. Each is
defined here as a published source defines the quantity of that name, so values can be
compared between runs of this program, not with the paper's.

Axes: B images, N tokens, H heads, K per-head width. All arithmetic is float32, whatever
the dtype of the arguments.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from svda_jax.models.attention import diagonal
from svda_jax.models.ops import PLAIN


def spectral_entropy(spectrum):
    """Shannon entropy of a spectrum.

        -sum_k p_k ln p_k,  p_k = |sigma_k| / sum_j |sigma_j|

    Args:
      spectrum: `[..., K]`, of any sign and scale.

    Returns:
      `[...]` in [0, ln K] nats: ln K for equal values, 0 for a single one that is not
      zero, and for zeros alone.

    Source: Roy & Vetterli 2007.
    """
    magnitude = _scaled(spectrum)
    total = jnp.sum(magnitude, axis=-1, keepdims=True)  # 0, or from 1 to K
    p = magnitude / jnp.where(total > 0, total, 1)
    return jnp.sum(p * -jnp.log(jnp.where(p > 0, p, 1)), axis=-1)


def effective_rank(spectrum):
    """How many directions a spectrum amounts to, exp(spectral entropy).

    Args:
      spectrum: `[..., K]`, of any sign and scale.

    Returns:
      `[...]` in [1, K]: K for equal values, 1 for a single one that is not zero, and
      for zeros alone.

    Source: Roy & Vetterli 2007, Definition 1.
    """
    return jnp.exp(spectral_entropy(spectrum))


def spectral_sparsity(spectrum):
    """How few directions hold a spectrum, by the ratio of its L1 and L2 norms.

        (sqrt K - ||sigma||_1 / ||sigma||_2) / (sqrt K - 1)

    Args:
      spectrum: `[..., K]`, of any sign and scale.

    Returns:
      `[...]` in [0, 1]: 0 for equal values and for K = 1, 1 for a single one that is
      not zero, and for zeros alone.

    Source: Hoyer 2004.
    """
    size = spectrum.shape[-1]
    if size == 1:
        return jnp.zeros(spectrum.shape[:-1], jnp.float32)
    magnitude = _scaled(spectrum)
    l1 = jnp.sum(magnitude, axis=-1)
    l2 = jnp.sqrt(jnp.sum(jnp.square(magnitude), axis=-1))
    ratio = jnp.where(l2 > 0, l1 / jnp.where(l2 > 0, l2, 1), 1)  # [...] in [1, sqrt K]
    # Rounding can carry the ratio past its ends.
    return jnp.clip((size**0.5 - ratio) / (size**0.5 - 1), 0, 1)


def retained_rank(spectrum, rho=0.9):
    """The fewest directions that hold the share rho of a spectrum's energy.

        min r such that the r largest sigma_k^2 sum to at least rho sum_k sigma_k^2

    Args:
      spectrum: `[..., K]`, of any sign and scale.
      rho: share of the energy, in (0, 1].

    Returns:
      `[...]` int32 in [1, K]: 1 for zeros alone.

    Source: the spectral energy retention of arXiv 2609.24370.
    """
    energy = jnp.sort(jnp.square(_scaled(spectrum)), axis=-1, descending=True)
    missing = jnp.cumsum(energy, axis=-1) < rho * jnp.sum(
        energy, axis=-1, keepdims=True
    )
    return jnp.minimum(1 + jnp.sum(missing, axis=-1), spectrum.shape[-1])


def angular_alignment(cosines):
    """Mean absolute cosine between a query and the keys of its image.

        mean over j of |q_hat_i . k_hat_j|

    Args:
      cosines: `[..., N]`, of a query to each key.

    Returns:
      `[...]` in [0, 1]: 1 where all are parallel, 0 where the query is orthogonal to
      the keys, about sqrt(2 / (pi K)) for independent directions.

    Source: cosine similarity.
    """
    return jnp.minimum(jnp.mean(jnp.abs(cosines), axis=-1), 1)


def selectivity_index(weights):
    """How much a token prefers the key it weighs most over the others.

        (a_max - a_rest) / (a_max + a_rest),
        a_rest the mean of the row's other N - 1 weights

    Args:
      weights: `[..., N]`, rows that sum to 1.

    Returns:
      `[...]` in [0, 1]: 0 for uniform rows, 1 for one-hot rows and for N = 1.

    Source: Morcos et al. 2018, on the rows of the attention.
    """
    largest = jnp.max(weights, axis=-1)
    rest = jnp.maximum(1 - largest, 0) / max(weights.shape[-1] - 1, 1)
    return jnp.clip((largest - rest) / (largest + rest), 0, 1)


def perturbation_robustness(weights, perturbed):
    """How little a token's attention weights move under a perturbation.

        1 - (1/2) sum_j |A_ij - A'_ij|

    Args:
      weights: A, `[..., N]`, rows that sum to 1.
      perturbed: A', likewise, under noise on queries and keys.

    Returns:
      `[...]` in [0, 1]: 1 for equal weights, 0 for rows without a common key.

    Source: total variation distance.
    """
    moved = jnp.sum(jnp.abs(weights - perturbed), axis=-1)
    return jnp.clip(1 - 0.5 * moved, 0, 1)


class Indicator(NamedTuple):
    """An entry of `INDICATORS`.

    Attributes:
      function: of what it reads, `[..., n]` each, to `[...]`.
      reads: `("spectrum",)`, a head's, `[..., K]`, measured once an evaluation; or of
        the rows `[..., N]` that `ops.plain.observe` has of each token: its value is
        their mean over the tokens of an image.
      label: its name in words.
      unit: of its values.
      range: its lowest and highest value, as functions of K.
      low: what a low value means.
      high: what a high value means.
      source: where it is defined.
    """

    function: Callable
    reads: tuple[str, ...]
    label: str
    unit: str
    range: tuple[Callable, Callable]
    low: str
    high: str
    source: str

    @property
    def meaning(self):
        """What its values say, in a sentence, with the source."""
        return f"Low: {self.low}. High: {self.high}. ({self.source})"


# Every indicator, by name, those of the spectrum first. What is measured, written,
# drawn and explained is read off this table.
INDICATORS = {
    "spectral_entropy": Indicator(
        spectral_entropy,
        ("spectrum",),
        "spectral entropy",
        "nats",
        (lambda K: 0, math.log),
        "one of a head's K directions does all",
        "all K directions count alike, ln K",
        "Roy & Vetterli 2007",
    ),
    "effective_rank": Indicator(
        effective_rank,
        ("spectrum",),
        "effective rank",
        "directions",
        (lambda K: 1, lambda K: K),
        "the head in effect uses one direction",
        "it uses all K",
        "Roy & Vetterli 2007",
    ),
    "spectral_sparsity": Indicator(
        spectral_sparsity,
        ("spectrum",),
        "spectral sparsity",
        "0 flat, 1 one direction",
        (lambda K: 0, lambda K: 1),
        "all directions count alike",
        "one direction does all",
        "Hoyer 2004",
    ),
    "angular_alignment": Indicator(
        angular_alignment,
        ("cosines",),
        "angular alignment",
        "mean |cosine|",
        (lambda K: 0, lambda K: 1),
        "queries are orthogonal to keys; unrelated ones have sqrt(2 / (pi K))",
        "all queries and keys lie on one line",
        "cosine similarity",
    ),
    "selectivity_index": Indicator(
        selectivity_index,
        ("weights",),
        "selectivity index",
        "0 uniform, 1 one key",
        (lambda K: 0, lambda K: 1),
        "attention is uniform",
        "each token attends to one key alone",
        "Morcos et al. 2018, on rows of attention",
    ),
    "perturbation_robustness": Indicator(
        perturbation_robustness,
        ("weights", "perturbed"),
        "perturbation robustness",
        "1 unmoved",
        (lambda K: 0, lambda K: 1),
        "noise on queries and keys moves all attention elsewhere",
        "attention stays where it is",
        "total variation distance",
    ),
}


def of_spectrum():
    """The names of the indicators of a head's spectrum alone."""
    return [name for name, i in INDICATORS.items() if i.reads == ("spectrum",)]


def of_images():
    """The names of those that are measured image by image."""
    return [name for name, i in INDICATORS.items() if i.reads != ("spectrum",)]


def of_score(spectrum):
    """What is read off the score's own spectrum, by name in a run's history.

    Args:
      spectrum: `[L, H, K]` in logits, NaN where a layer has fewer directions.

    Returns:
      A dict of `[L, H]`; the strength is the root of the sum of squares, in logits.
    """
    layers = [_of_score(s[:, : np.isfinite(s).sum(-1).max() or None]) for s in spectrum]
    return jax.tree.map(lambda *layers: np.stack(layers), *jax.device_get(layers))


@jax.jit
def _of_score(spectrum):
    return {
        "score_entropy": spectral_entropy(spectrum),
        "score_rank": effective_rank(spectrum),
        "score_sparsity": spectral_sparsity(spectrum),
        "score_retained_rank": retained_rank(spectrum),
        "score_strength": jnp.sqrt(jnp.sum(jnp.square(spectrum), axis=-1)),
    }


def compute_indicators(observed):
    """The indicators of what was observed, by name.

    Args:
      observed: a dict of arrays `[..., n]`: "spectrum" gives those `of_spectrum`, what
        `ops.plain.observe` has of a token those `of_images`.

    Returns:
      A dict of `[...]`, float32, of all that read nothing else.
    """
    return {
        name: indicator.function(*(observed[part] for part in indicator.reads))
        for name, indicator in INDICATORS.items()
        if set(indicator.reads) <= observed.keys()
    }


def measure(key, noise_scale, mask, layer, trace, value, ops=PLAIN):
    """Attention, and what an evaluation measures of it.

    One draw `[2, N, H, K]` of the noise serves all images, so that an image's values
    depend neither on its batch nor on its place there.

    Args:
      key: PRNG key of the noise, the run's.
      noise_scale: standard deviation of the noise on each query and key, in units of
        its root mean square over K.
      mask: `[B]` bool, the images whose moments count; None for all.
      layer: its number; the noise of each is another.
      trace: a `Trace`, of either attention.
      value: `[B, N, H, V]`.
      ops: the `Ops` to compute with.

    Returns:
      What `attention` gives, and a dict: "indicators", those `of_images`, `[B, H]`
      float32 by name, and "moments", see `plain.second_moments`.
    """
    shape = (2, *trace.query.shape[1:])
    noise = noise_scale * jax.random.normal(jax.random.fold_in(key, layer), shape)
    out, rows, moments = ops.observe(
        compute_indicators,
        trace.query,
        trace.key,
        value,
        diagonal(trace.query, trace.sigma, trace.scale),
        noise,
        mask,
        unit=trace.sigma is not None,
    )
    return out, {
        "indicators": {name: jnp.mean(rows[name], axis=-1) for name in of_images()},
        "moments": moments,
    }


def _scaled(spectrum):
    """|sigma| over its largest value, so that neither squares nor sums overflow."""
    # A quarter, because XLA multiplies by the reciprocal of the divisor, and that of
    # the largest floats is subnormal, which it takes for zero.
    magnitude = 0.25 * jnp.abs(spectrum.astype(jnp.float32))
    largest = jnp.max(magnitude, axis=-1, keepdims=True)
    return magnitude / jnp.where(largest > 0, largest, 1)

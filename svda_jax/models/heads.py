"""The indicators of heads, from queries, keys and sigma in one call."""

import jax
import jax.numpy as jnp

from svda_jax import UserError
from svda_jax.models.attention import Trace, diagonal
from svda_jax.models.general import check_heads, repeat_heads
from svda_jax.models.indicators import compute_indicators, measure, of_score
from svda_jax.models.score import score_spectrum


def head_indicators(
    query, key, sigma=None, *, spectrum=None, rng=None, noise_scale=0.1, layer=0
):
    """What an evaluation measures of a layer: the six indicators and the score's own.

    Of self-attention in which every token sees every other.

    Args:
      query: `[..., N, H, K]`, raw (not normalised), of all images or sequences.
      key: `[..., N, G, K]`, raw; head h of the queries reads its head h // (H / G).
      sigma: `[H, K]`; None for softmax attention.
      spectrum: `[H, K]`, what the indicators of the spectrum read; None is sigma. For
        softmax attention it is `singular_values` of the projections, and without it
        those three are not in the result.
      rng: PRNG key of the noise of the perturbation; None is `jax.random.key(0)`.
      noise_scale: see `indicators.measure`.
      layer: likewise.

    Returns:
      A dict of arrays `[H]`, means over all tokens of all images: the indicators by
      their names in `INDICATORS`, and "score_entropy", "score_rank", "score_sparsity",
      "score_retained_rank", "score_strength", see `indicators.of_score`, of the array
      "score_spectrum" `[H, K]`, see `score.score_spectrum`.

    Raises:
      UserError: shapes do not fit each other, there is nothing to measure, or the call
        is inside of jit.
    """
    if isinstance(query, jax.core.Tracer):
        raise UserError("head_indicators works on arrays, outside of jit")
    query, key = jnp.asarray(query), jnp.asarray(key)
    sigma = None if sigma is None else jnp.asarray(sigma, jnp.float32)
    check_heads(query, key, sigma)
    if not query.size:
        raise UserError(f"query has shape {list(query.shape)}: nothing to measure")
    if query.shape[-3] != key.shape[-3]:
        raise UserError(
            f"query has {query.shape[-3]} tokens and key {key.shape[-3]}, not as many"
        )
    spectrum = sigma if spectrum is None else jnp.asarray(spectrum)
    if spectrum is not None and spectrum.shape != query.shape[-2:]:
        expected = list(query.shape[-2:])
        raise UserError(f"spectrum has shape {list(spectrum.shape)}, not {expected}")
    key = repeat_heads(key, query.shape[-2])
    query, key = (x.reshape(-1, *x.shape[-3:]) for x in (query, key))
    rng = jax.random.key(0) if rng is None else rng
    measured = _measure(rng, noise_scale, layer, query, key, sigma)
    images, moments, factors = jax.device_get(measured)
    heads = {} if spectrum is None else compute_indicators({"spectrum": spectrum})
    score = score_spectrum(moments, factors)
    own = {name: values[0] for name, values in of_score(score[None]).items()}
    return jax.device_get(heads) | images | own | {"score_spectrum": score}


@jax.jit
def _measure(rng, noise_scale, layer, query, key, sigma):
    trace = Trace(query, key, sigma)
    _, measured = measure(rng, noise_scale, None, layer, trace, key)
    indicators = {k: jnp.mean(v, axis=0) for k, v in measured["indicators"].items()}
    moments = measured["moments"] / query.shape[0]
    return indicators, moments, diagonal(query, sigma, None)

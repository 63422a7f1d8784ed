"""The spectrum of a head's score: what queries and keys can tell apart, in logits.

Sigma stands in coordinates that nothing keeps orthogonal. The score is a bilinear form,
q^T diag(f) k, and what it does to the tokens of a data set has singular values of its
own, the same for every choice of coordinates and of one unit for both attentions.

Axes: H heads, K directions, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np


def weigh_moments(query_kernel, key_kernel, *, unit):
    """Moments by the weights alone, those of inputs of unit covariance.

        M_q = W_q^T W_q,  M_k = W_k^T W_k

    Args:
      query_kernel: `[D, H, K]`.
      key_kernel: `[D, H, K]`.
      unit: whether queries and keys are brought to unit length; each moment is then
        divided by its trace, their mean squared length.

    Returns:
      `[2, H, K, K]` float32.
    """
    moments = jnp.stack(
        [
            jnp.einsum("dhk,dhl->hkl", kernel, kernel, precision="highest")
            for kernel in (query_kernel, key_kernel)
        ]
    )
    if unit:
        total = jnp.trace(moments, axis1=-2, axis2=-1)[..., None, None]
        moments = moments / jnp.where(total > 0, total, 1)
    return moments


def score_spectrum(moments, factors):
    """Singular values of the score in the metric of the data.

        singular values of M_q^(1/2) diag(f) M_k^(1/2)

    Their squares add up to the mean squared centred score of a query and a key that are
    drawn independently, and the best r directions in that sense are the first r.

    Args:
      moments: `[..., 2, H, K, K]`, M_q and M_k, the mean over images of what
        `plain.second_moments` adds up.
      factors: `[..., H, K]`, what the score multiplies each direction by, see
        `attention.diagonal`.

    Returns:
      `[..., H, K]` float64, largest first, in logits; NaN for a head of which a number
      is not finite.

    Source: Eckart & Young 1936, for the metric of the data.
    """
    finite = np.isfinite(moments).all((-4, -2, -1)) & np.isfinite(factors).all(-1)
    moments = np.where(finite[..., None, :, None, None], moments, 0)
    factors = np.where(finite[..., None], factors, 0)
    spectrum = np.linalg.svd(_core(factors, *_roots(moments)), compute_uv=False)
    return np.where(finite[..., None], spectrum, np.nan)


def decompose(moments, factors):
    """The score as the sum of its singular directions in the metric of the data.

        diag(f) = sum_k s_k a_k b_k^T,  with s of `score_spectrum`

    What the data do not reach has a millionth of the mean energy here, so that parts of
    the sum stay as small there as they can.

    Args:
      moments: as for `score_spectrum`, as factors are.
      factors: likewise.

    Returns:
      `[..., H, K, K]`, a_k in column k; `[..., H, K]`, s, largest first;
      `[..., H, K, K]`, b_k in column k. All float64.
    """
    values, vectors = _roots(moments, floor=1e-6)
    u, s, vt = np.linalg.svd(_core(factors, values, vectors))
    query, key = vectors / values[..., None, :]  # the inverses
    return query @ u, s, key @ np.swapaxes(vt, -1, -2)


def _roots(moments, floor=0.0):
    """The roots of the eigenvalues of M_q and M_k, and their vectors, in columns.

    Args:
      moments: `[..., 2, H, K, K]`.
      floor: added to the eigenvalues of each, over their mean.

    Returns:
      `[2, ..., H, K]` and `[2, ..., H, K, K]`: diag(values) vectors^T is M^(1/2) but
      for a turn.
    """
    values, vectors = np.linalg.eigh(np.moveaxis(np.float64(moments), -4, 0))
    values = np.maximum(values, 0)  # rounding makes those of 0 a little less
    mean = values.mean(-1, keepdims=True)
    return np.sqrt(values + floor * np.where(mean > 0, mean, 1)), vectors


def _core(factors, values, vectors):
    """`[..., H, K, K]`, M_q^(1/2) diag(f) M_k^(1/2) but for turns, from `_roots`."""
    query, key = values[..., None] * np.swapaxes(vectors, -1, -2)
    return query * np.float64(factors)[..., None, :] @ np.swapaxes(key, -1, -2)


def collision_entropy(moments, factors):
    """How evenly the score's energy is spread over its directions.

        -ln sum_k p_k^2,  p_k = s_k^2 / sum_j s_j^2,  s of `score_spectrum`

    Of traces alone, sum s^2 = tr(M_q F M_k F) and sum s^4 = tr((M_q F M_k F)^2) with
    F = diag(f), so it is smooth where singular values meet or are 0.

    Args:
      moments: as for `score_spectrum`, as factors are.
      factors: likewise.

    Returns:
      `[..., H]` float32 in [0, ln K] nats; where the score is 0 ln K, without gradient.

    Source: Renyi 1961, the entropy of order 2.
    """
    query, key = jnp.moveaxis(moments, -4, 0)
    product = query * factors[..., None, :] @ (key * factors[..., None, :])
    energy = jnp.trace(product, axis1=-2, axis2=-1)
    # No size of the whole score changes p; a gradient through it would square it.
    size = jax.lax.stop_gradient(jnp.where(energy > 0, energy, 1))[..., None, None]
    product = product / size
    share = jnp.trace(product, axis1=-2, axis2=-1)  # 1
    product = product / jnp.where(energy > 0, share, 1)[..., None, None]
    purity = jnp.sum(product * jnp.swapaxes(product, -1, -2), (-2, -1))
    purity = jnp.where(energy > 0, purity, 1 / factors.shape[-1])
    return -jnp.log(purity)

"""The spectrum of a head's score: what queries and keys can tell apart, in logits.

Sigma stands in coordinates that nothing keeps orthogonal. The score is a bilinear form,
q^T diag(f) k, and what it does to the tokens of a data set has singular values of its
own, the same for every choice of coordinates and of one unit for both attentions.

Axes: B images, N tokens, H heads, K directions.
"""

import jax.numpy as jnp
import numpy as np

from svda_jax.models.ops import PLAIN


def sum_moments(trace, mask=None, ops=PLAIN):
    """Second moments of queries and keys, summed over images.

        M_q = sum_b mean_i x_i x_i^T
        M_k = sum_b mean_j (y_j - mean y) (y_j - mean y)^T

    x and y are queries and keys as the score takes them, for SVDA of unit length. Keys
    are centred within their image, as what a row's scores have in common leaves its
    softmax as it is.

    Args:
      trace: a `Trace`, of either attention.
      mask: `[B]` bool, which images count; None for all.
      ops: the `Ops` to compute with.

    Returns:
      `[2, H, K, K]` float32.
    """
    query, key = trace.query, trace.key
    if trace.sigma is not None:
        query, key = ops.normalize(query), ops.normalize(key)
    mean = jnp.mean(key, axis=1, keepdims=True, dtype=jnp.float32)
    key = (key.astype(jnp.float32) - mean).astype(key.dtype)
    if mask is not None:
        query, key = (jnp.where(mask[:, None, None, None], x, 0) for x in (query, key))
    moments = [
        jnp.einsum(
            "bihk,bihl->hkl",
            x,
            x,
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        for x in (query, key)
    ]
    return jnp.stack(moments) / query.shape[1]


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
      moments: `[..., 2, H, K, K]`, M_q and M_k, means over images.
      factors: `[..., H, K]`, what the score multiplies each direction by, see
        `attention.diagonal`.

    Returns:
      `[..., H, K]` float64, largest first, in logits.

    Source: Eckart & Young 1936, for the metric of the data.
    """
    values, vectors = np.linalg.eigh(np.float64(moments))
    # R with R^T R = M; rounding makes values of 0 a little less.
    roots = np.sqrt(np.maximum(values, 0))[..., None] * np.swapaxes(vectors, -1, -2)
    query, key = np.moveaxis(roots, -4, 0)
    core = query * np.float64(factors)[..., None, :] @ np.swapaxes(key, -1, -2)
    return np.linalg.svd(core, compute_uv=False)

"""SVDA and softmax attention: pure functions, and one module for each.

Axes: B images, N tokens, H heads, D width, K per-head width of queries and keys, D / H
unless the model was made, or pruned, to have less.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from svda_jax.models.dot_product import dot_product_attention, exponentials
from svda_jax.models.linear import Linear
from svda_jax.models.normalization import normalize

# The start c of sigma = c * relative_sigma, as a function of K. For independent
# Gaussian queries and keys the logits of softmax attention have variance 1 and SVDA's
# have (c / K)^2: they match at c = K.
SPECTRUM_STARTS = {
    "matched": lambda head_dim: float(head_dim),
    "sqrt": lambda head_dim: head_dim**0.5,
    "ones": lambda head_dim: 1.0,
}


class Trace(NamedTuple):
    """What an attention layer leaves behind; its weights are a function of it.

    Attributes:
      query: `[B, N, H, K]`, projected, before any normalisation.
      key: `[B, N, H, K]`, likewise.
      sigma: `[H, K]` float32, SVDA's diagonal; None for softmax attention.
      spectrum: `[H, K]` float32, the head's importance of directions: sigma, or for
        softmax attention the singular values of `W_q W_k^T`, largest first.
      scale: of the scores, see `attention_weights`.
    """

    query: jax.Array
    key: jax.Array
    sigma: jax.Array | None
    spectrum: jax.Array
    scale: float | None = None


def attention_weights(query, key, sigma=None, *, scale=None):
    """The attention weights of SVDA or, without sigma, of softmax attention.

        A = softmax(q_hat diag(sigma) k_hat^T / sqrt(K))      with sigma
        A = softmax(q k^T / sqrt(K))                          without

    Args:
      query: `[B, N, H, K]`, raw (not normalised).
      key: `[B, N, H, K]`, raw.
      sigma: `[H, K]` of either sign, or None.
      scale: in place of 1 / sqrt(K), for queries and keys without all their directions.

    Returns:
      `[B, H, N, N]` float32, each row a distribution over the keys.

    Raises:
      ValueError: sigma is not `[H, K]`.

    Source: arXiv 2602.10994; Vaswani et al. 2017, Eq. 1.
    """
    weights = exponentials(*_score_operands(query, key, sigma, scale))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def softmax_attention(query, key, value, *, scale=None):
    """Softmax attention, `attention_weights(query, key) v`.

    Args:
      query: `[B, N, H, K]`.
      key: `[B, N, H, K]`.
      value: `[B, N, H, V]`.
      scale: see `attention_weights`.

    Returns:
      `[B, N, H, V]` of the dtype of value.

    Source: Vaswani et al. 2017, Eq. 1.
    """
    query, key, sigma = _score_operands(query, key, None, scale)
    return dot_product_attention(query, key, value, sigma)


def svda_attention(query, key, value, sigma, *, scale=None):
    """SVDA attention, `attention_weights(query, key, sigma) v`.

    It is ordinary attention between `q_hat * sigma / sqrt(K)` and `k_hat`.

    Args:
      query: `[B, N, H, K]`, raw (not normalised).
      key: `[B, N, H, K]`, raw.
      value: `[B, N, H, V]`.
      sigma: `[H, K]` of either sign.
      scale: see `attention_weights`.

    Returns:
      `[B, N, H, V]` of the dtype of value. Norms and softmax are float32 whatever the
      dtype of the arguments.

    Raises:
      ValueError: sigma is not `[H, K]`.

    Source: arXiv 2602.10994.
    """
    query, key, sigma = _score_operands(query, key, sigma, scale)
    return dot_product_attention(query, key, value, sigma)


def orthonormality_penalty(kernel):
    """How far the K directions of each head are from being orthogonal.

        ||W_hat^T W_hat - I||_F^2 / K,  W_hat the projection W with unit columns

    Args:
      kernel: `[D, H, K]`, a query or key projection.

    Returns:
      `[H]` float32 in [0, K - 1]: 0 for orthogonal columns, K - 1 for parallel ones.

    Source: the soft-orthonormal projections of arXiv 2602.10994, which prints no
    formula; this one is ours.
    """
    directions = normalize(jnp.moveaxis(kernel, 0, -1))  # [H, K, D]
    gram = jnp.einsum("hkd,hld->hkl", directions, directions)
    head_dim = kernel.shape[-1]
    return jnp.sum(jnp.square(gram - jnp.eye(head_dim)), axis=(-2, -1)) / head_dim


def singular_values(query_kernel, key_kernel):
    """Singular values of `W_q W_k^T`, head by head, without forming the D x D product.

    With `W_q = Q_q R_q` and `W_k = Q_k R_k` they are those of the K x K `R_q R_k^T`.

    Args:
      query_kernel: `[D, H, K]`.
      key_kernel: `[D, H, K]`.

    Returns:
      `[H, K]` float32, largest first.
    """
    r_query, r_key = (
        jnp.linalg.qr(jnp.moveaxis(kernel, 1, 0).astype(jnp.float32), mode="r")
        for kernel in (query_kernel, key_kernel)
    )  # [H, K, K]
    return jnp.linalg.svd(r_query @ jnp.swapaxes(r_key, -1, -2), compute_uv=False)


class SoftmaxAttention(nnx.Module):
    """Multi-head softmax(q k^T / sqrt(K)) attention, the baseline.

    Args:
      width: D, a multiple of num_heads.
      num_heads: H.
      qk_dim: K; None is D / H. The scores are divided by sqrt(D / H) all the same.
      spectrum_init: unused here; SVDA's start of sigma, so that both attentions are
        built by the same call.
      dtype: of the activations; parameters are float32.
      rngs: `nnx.Rngs` to initialise from.
    """

    def __init__(self, width, num_heads, *, qk_dim=None, spectrum_init, dtype, rngs):
        del spectrum_init
        head_dim = width // num_heads
        self.scale = head_dim**-0.5
        directions = (num_heads, qk_dim or head_dim)
        heads = (num_heads, head_dim)
        options = {
            "kernel_init": nnx.initializers.xavier_uniform(),
            "dtype": dtype,
            "rngs": rngs,
        }
        self.query = Linear(width, directions, **options)
        self.key = Linear(width, directions, **options)
        self.value = Linear(width, heads, **options)
        self.out = Linear(heads, width, axis=(-2, -1), **options)

    def __call__(self, x):
        """Attends over tokens: `[B, N, D]` -> (`[B, N, D]`, its `Trace`)."""
        query, key, value = self.query(x), self.key(x), self.value(x)  # [B, N, H, K]
        out = self.out(self.attend(query, key, value))
        return out, Trace(query, key, self.sigma, self.spectrum, self.scale)

    def attend(self, query, key, value):
        """The attention itself, `[B, N, H, D / H]` as value is."""
        return softmax_attention(query, key, value, scale=self.scale)

    @property
    def sigma(self):
        """SVDA's diagonal; softmax attention has none."""
        return None

    @property
    def spectrum(self):
        """`[H, K]` float32: singular values of `W_q W_k^T`, a measurement: no gradient
        runs through it."""
        return singular_values(
            jax.lax.stop_gradient(self.query.kernel[...]),
            jax.lax.stop_gradient(self.key.kernel[...]),
        )

    def orthonormality_penalty(self):
        """Mean of `orthonormality_penalty` over heads and over query and key."""
        return 0.5 * sum(
            jnp.mean(orthonormality_penalty(projection.kernel[...]))
            for projection in (self.query, self.key)
        )


class SVDAAttention(SoftmaxAttention):
    """Multi-head SVDA: softmax(q_hat diag(sigma) k_hat^T / sqrt(K)).

    The parameter is relative, `sigma = c * relative_sigma` with relative_sigma `[H, K]`
    learned from 1, so that its learning rate does not depend on the start c.

    Args:
      width: D, a multiple of num_heads.
      num_heads: H.
      qk_dim: K; None is D / H.
      spectrum_init: a key of `SPECTRUM_STARTS`, the start c of sigma.
      dtype: of the activations; parameters, norms and softmax are float32.
      rngs: `nnx.Rngs` to initialise from.

    Source: arXiv 2602.10994. Differs: the start of sigma, which it does not print.
    """

    def __init__(self, width, num_heads, *, qk_dim=None, spectrum_init, dtype, rngs):
        super().__init__(
            width,
            num_heads,
            qk_dim=qk_dim,
            spectrum_init=spectrum_init,
            dtype=dtype,
            rngs=rngs,
        )
        head_dim = width // num_heads
        self.start = SPECTRUM_STARTS[spectrum_init](head_dim)
        self.relative_sigma = nnx.Param(jnp.ones((num_heads, qk_dim or head_dim)))

    def attend(self, query, key, value):
        """The attention itself, `[B, N, H, D / H]` as value is."""
        return svda_attention(query, key, value, self.sigma, scale=self.scale)

    @property
    def sigma(self):
        """`[H, K]` float32, c * relative_sigma."""
        return self.start * self.relative_sigma[...]

    @property
    def spectrum(self):
        """`[H, K]` float32: sigma."""
        return self.sigma


# The attentions a model can have, by the name that `model.attention` gives.
ATTENTIONS = {"svda": SVDAAttention, "softmax": SoftmaxAttention}


def _score_operands(query, key, sigma, scale):
    """Query, key and `[H, K]` float32 sigma whose `q diag(sigma) k^T` is the score."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if sigma is None:
        return query, key, jnp.full(query.shape[-2:], scale)
    if sigma.shape != query.shape[-2:]:
        raise ValueError(f"sigma has shape {sigma.shape}, not {query.shape[-2:]}")
    q_hat, k_hat = normalize(query), normalize(key)
    return q_hat.astype(query.dtype), k_hat.astype(key.dtype), sigma * scale

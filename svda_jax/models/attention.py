"""SVDA and softmax attention: pure functions, and the module with its projections.

Axes: B images, N tokens, H heads, D width, K per-head width of queries and keys, D / H
unless the model was made, or pruned, to have less, V per-head width of values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from svda_jax.models.layers import Linear
from svda_jax.models.ops import PLAIN
from svda_jax.models.ops.plain import weigh
from svda_jax.models.score import collision_entropy, weigh_moments

# The attentions a model can have, as `model.attention` names them.
ATTENTIONS = ("svda", "softmax")

# The start c of sigma = c * relative_sigma, as a function of K. For independent
# Gaussian queries and keys the logits of softmax attention have variance 1 and SVDA's
# have (c / K)^2: they match at c = K.
SPECTRUM_STARTS = {
    "matched": lambda head_dim: float(head_dim),
    "sqrt": lambda head_dim: head_dim**0.5,
    "ones": lambda head_dim: 1.0,
}


def label_sigma(params):
    """Tells SVDA's sigma from all other parameters, for `optax.multi_transform`.

        optax.multi_transform(
            {"sigma": optax.adam(30 * rate), "rest": optax.adamw(rate)}, label_sigma
        )

    gives sigma a learning rate of its own and no weight decay.

    Args:
      params: a tree of parameters, or of their gradients: nested dicts, an `nnx.State`,
        a model.

    Returns:
      The same tree of "sigma" at every leaf called relative_sigma and "rest" elsewhere.
    """

    def label(path, _):
        names = (jax.tree_util.keystr((key,), simple=True) for key in path)
        return "sigma" if "relative_sigma" in names else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


class Trace(NamedTuple):
    """What an attention layer leaves behind; its weights are a function of it.

    Attributes:
      query: `[B, N, H, K]`, projected, before any normalisation.
      key: `[B, N, H, K]`, likewise.
      sigma: `[H, K]` float32, SVDA's diagonal; None for softmax attention.
      scale: of the scores, see `attention_weights`.
      indicators: those of `indicators.measure`, where the model was asked to measure.
      moments: of `plain.second_moments`, likewise.
    """

    query: jax.Array
    key: jax.Array
    sigma: jax.Array | None
    scale: float | None = None
    indicators: dict | None = None
    moments: jax.Array | None = None


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
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    factors = diagonal(query, sigma, scale)
    return weigh(query, key, factors, unit=sigma is not None)


def attention(query, key, value, sigma=None, *, scale=None, ops=PLAIN):
    """SVDA or, without sigma, softmax attention: `attention_weights(query, key) v`.

    Args:
      query: see `attention_weights`, as for key, sigma, scale and what is raised.
      key: likewise.
      value: `[B, N, H, V]`.
      sigma: likewise.
      scale: likewise.
      ops: the `Ops` to compute with.

    Returns:
      `[B, N, H, V]` of the dtype of value. Norms and softmax are float32 whatever the
      dtype of the arguments.
    """
    factors = diagonal(query, sigma, scale)
    return ops.attend(query, key, value, factors, unit=sigma is not None)


def diagonal(query, sigma, scale):
    """`[H, K]` float32, what the score multiplies each direction by.

    Args:
      query: see `attention_weights`, as for sigma, scale and what is raised.
      sigma: likewise.
      scale: likewise.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if sigma is None:
        return jnp.full(query.shape[-2:], scale)
    if sigma.shape != query.shape[-2:]:
        raise ValueError(f"sigma has shape {sigma.shape}, not {query.shape[-2:]}")
    return sigma * scale


def orthonormality_penalty(kernel):
    """How far the K directions of each head are from being orthogonal.

        ||W_hat^T W_hat - I||_F^2 / K,  W_hat the projection W with unit columns

    Columns of zeros, which only fill up a head of a pruned model, do not count.

    Args:
      kernel: `[D, H, K]`, a query or key projection.

    Returns:
      `[H]` float32 in [0, K - 1]: 0 for orthogonal columns, K - 1 for parallel ones.

    Source: the soft-orthonormal projections of arXiv 2602.10994, which prints no
    formula; this one is ours.
    """
    directions = PLAIN.normalize(jnp.moveaxis(kernel, 0, -1))  # [H, K, D]
    gram = jnp.einsum("hkd,hld->hkl", directions, directions)
    there = jnp.any(kernel != 0, axis=0)  # [H, K]
    identity = jnp.eye(kernel.shape[-1]) * there[:, None]  # [H, K, K]
    number = jnp.maximum(jnp.sum(there, axis=-1), 1)  # [H]
    return jnp.sum(jnp.square(gram - identity), axis=(-2, -1)) / number


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


class Attention(nnx.Module):
    """Multi-head attention: SVDA, or without a start of sigma softmax attention.

    SVDA's parameter is relative, `sigma = c * relative_sigma` with relative_sigma
    `[H, K]` learned from 1, so that its learning rate does not depend on the start c.

    Args:
      width: D, a multiple of num_heads.
      num_heads: H.
      qk_dim: K; None is D / H. The scores are divided by sqrt(D / H) all the same.
      spectrum_init: a key of `SPECTRUM_STARTS`, the start c of sigma; None for softmax
        attention, which has none.
      dtype: of the activations; parameters, norms and softmax are float32.
      ops: the model's `Ops`.
      rngs: `nnx.Rngs` to initialise from. Both attentions draw the same projections.

    Source: arXiv 2602.10994. Differs: the start of sigma, which it does not print.
    """

    def __init__(
        self,
        width,
        num_heads,
        *,
        qk_dim=None,
        spectrum_init=None,
        dtype=jnp.float32,
        ops=PLAIN,
        rngs,
    ):
        head_dim = width // num_heads
        directions = (num_heads, qk_dim or head_dim)
        heads = (num_heads, head_dim)
        options = {"dtype": dtype, "ops": ops, "rngs": rngs}
        self.query = Linear(width, directions, **options)
        self.key = Linear(width, directions, **options)
        self.value = Linear(width, heads, **options)
        self.out = Linear(heads, width, **options)
        self.scale, self.ops, self.start = head_dim**-0.5, ops, None
        if spectrum_init:
            self.start = SPECTRUM_STARTS[spectrum_init](head_dim)
            self.relative_sigma = nnx.Param(jnp.ones(directions))

    def __call__(self, x, *, measure=None):
        """Attends over tokens: `[B, N, D]` -> (`[B, N, D]`, its `Trace`).

        Args:
          x: `[B, N, D]`.
          measure: (trace, value, ops) -> what `attention` gives, and a dict of what
            was measured, which the trace gets.
        """
        query, key, value = self.query(x), self.key(x), self.value(x)  # [B, N, H, K]
        trace = Trace(query, key, self.sigma, self.scale)
        if measure:
            attended, measured = measure(trace, value, self.ops)
            return self.out(attended), trace._replace(**measured)
        options = {"scale": self.scale, "ops": self.ops}
        return self.out(attention(query, key, value, trace.sigma, **options)), trace

    @property
    def sigma(self):
        """`[H, K]` float32, c * relative_sigma; None for softmax attention."""
        return None if self.start is None else self.start * self.relative_sigma[...]

    @property
    def spectrum(self):
        """`[H, K]` float32, how much each direction counts: sigma, or for softmax
        attention the singular values of `W_q W_k^T`, largest first. The latter are a
        measurement: no gradient runs through them."""
        if self.start is not None:
            return self.sigma
        return singular_values(
            jax.lax.stop_gradient(self.query.kernel[...]),
            jax.lax.stop_gradient(self.key.kernel[...]),
        )

    @property
    def factors(self):
        """`[H, K]` float32, what the score multiplies each direction by."""
        return diagonal(self.query.bias[...][None, None], self.sigma, self.scale)

    @property
    def weight_moments(self):
        """`[2, H, K, K]` float32, see `score.weigh_moments`."""
        return weigh_moments(
            self.query.kernel[...], self.key.kernel[...], unit=self.start is not None
        )

    def orthonormality_penalty(self):
        """Mean of `orthonormality_penalty` over heads and over query and key."""
        return 0.5 * sum(
            jnp.mean(orthonormality_penalty(projection.kernel[...]))
            for projection in (self.query, self.key)
        )

    def score_entropy(self):
        """Mean over heads of `score.collision_entropy` by weights alone, in nats."""
        return jnp.mean(collision_entropy(self.weight_moments, self.factors))

"""SVDA in a Flax Linen model of one's own: as attention_fn, and as a layer.

`label_sigma` gives an optimizer's sigma its learning rate, `head_indicators` measures.
Axes: N queries, M keys, H heads of queries, G of keys and values, K per-head width of
queries and keys.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from svda_jax import UserError
from svda_jax.models import general
from svda_jax.models.attention import label_sigma, singular_values
from svda_jax.models.general import svda_weights
from svda_jax.models.heads import head_indicators

__all__ = [
    "MultiHeadAttention",
    "Sigma",
    "head_indicators",
    "label_sigma",
    "singular_values",
    "svda_attention",
    "svda_weights",
]


class Sigma(nn.Module):
    """SVDA's diagonal, sigma = c * relative_sigma, as a parameter.

    Attributes:
      spectrum_init: a key of `SPECTRUM_STARTS`, the start c; "matched" is K.
    """

    spectrum_init: str = "matched"

    @nn.compact
    def __call__(self, num_heads, head_dim):
        """`[H, K]` float32; relative_sigma is learned from 1.

        Raises:
          UserError: spectrum_init is no key of `SPECTRUM_STARTS`.
        """
        start = general.start_sigma(self.spectrum_init, head_dim)
        shape = (num_heads, head_dim)
        relative = self.param("relative_sigma", nn.initializers.ones, shape)
        return start * relative.astype(jnp.float32)


# Flax's layer hands on what the signature names, and drops the rest without a word.
def svda_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    broadcast_dropout=True,
    dropout_rng=None,
    dropout_rate=0.0,
    deterministic=False,
    dtype=None,
    precision=None,
    module=None,
    qk_attn_weights_einsum=None,
    attn_weights_value_einsum=None,
    *,
    is_causal=False,
    spectrum_init="matched",
):
    """An attention_fn for `linen.MultiHeadDotProductAttention`.

        softmax(q_hat diag(sigma) k_hat^T / sqrt(K)) v

    Sigma is a submodule, `Sigma`, of the layer that calls this in its compact method:
    each layer has its own. `functools.partial` sets what the layer does not pass on.

    Args:
      query: `[..., N, H, K]`.
      key: `[..., M, G, K]`.
      value: `[..., M, G, V]`.
      bias: see `general.svda_attention`, as for what is not named here.
      mask: likewise.
      broadcast_dropout: likewise.
      dropout_rng: likewise.
      dropout_rate: likewise.
      deterministic: likewise.
      dtype: likewise.
      precision: likewise.
      module: the layer that sows the weights, float32, as "attention_weights".
      qk_attn_weights_einsum: refused, as attn_weights_value_einsum is.
      attn_weights_value_einsum: likewise.
      is_causal: likewise.
      spectrum_init: see `Sigma`.

    Returns:
      `[..., N, H, V]`.

    Raises:
      UserError: shapes or options do not fit each other.

    Source: arXiv 2602.10994. Differs: the start of sigma, which it does not print.
    """
    if qk_attn_weights_einsum or attn_weights_value_einsum:
        raise UserError("SVDA takes no einsum of a layer's: leave *_einsum_cls out")
    sow = None
    if module is not None:
        sow = functools.partial(module.sow, "intermediates", "attention_weights")
    return general.svda_attention(
        query,
        key,
        value,
        Sigma(spectrum_init)(*query.shape[-2:]),
        bias=bias,
        mask=mask,
        is_causal=is_causal,
        dropout_rng=dropout_rng,
        dropout_rate=dropout_rate,
        broadcast_dropout=broadcast_dropout,
        deterministic=deterministic,
        dtype=dtype,
        precision=precision,
        sow=sow,
    )


class MultiHeadAttention(nn.Module):
    """Multi-head SVDA with its projections: what Flax's layer has, and biases, groups.

    Parameters have the names that they have in Flax's layer with `svda_attention`:
    query, key, value, out, Sigma_0.

    Attributes:
      num_heads: H.
      qk_features: H K, of queries and keys together; None is the width of inputs_q.
      v_features: H V, of values; None is qk_features.
      out_features: width of the outputs; None is that of inputs_q.
      num_kv_heads: G, which divides H; None is H.
      spectrum_init: see `Sigma`.
      dropout_rate: in [0, 1), share of the weights that are dropped in training.
      broadcast_dropout: whether leading axes and heads lose the same weights.
      deterministic: whether there is no dropout; None leaves it to the call.
      decode: refused; Flax's layer has it.
      use_bias: whether projections add one.
      dtype: of the activations; None is what inputs and parameters promote to.
      param_dtype: of the projections' parameters; sigma is float32.
      precision: of all products, as `jnp.einsum` takes it.
      kernel_init: of the projections.
      bias_init: likewise.
    """

    num_heads: int
    qk_features: int | None = None
    v_features: int | None = None
    out_features: int | None = None
    num_kv_heads: int | None = None
    spectrum_init: str = "matched"
    dropout_rate: float = 0.0
    broadcast_dropout: bool = True
    deterministic: bool | None = None
    decode: bool = False
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        inputs_q,
        inputs_k=None,
        inputs_v=None,
        *,
        mask=None,
        bias=None,
        is_causal=False,
        deterministic=None,
        dropout_rng=None,
        sow_weights=False,
    ):
        """Attends from some tokens to others, or to themselves.

        Args:
          inputs_q: `[..., N, width]`.
          inputs_k: `[..., M, any width]`; None is inputs_q.
          inputs_v: likewise; None is inputs_k.
          mask: see `svda_weights`, as for bias and is_causal.
          bias: likewise.
          is_causal: likewise.
          deterministic: in place of the layer's.
          dropout_rng: PRNG key; None is of the stream "dropout".
          sow_weights: whether to sow the weights as "attention_weights".

        Returns:
          `[..., N, out_features]`.

        Raises:
          UserError: sizes or shapes do not fit each other, there are values without
            keys, decode is asked for, or nothing says whether there is dropout.
        """
        inputs_k, inputs_v = general.complete(inputs_q, inputs_k, inputs_v)
        width = inputs_q.shape[-1]
        qk_features = width if self.qk_features is None else self.qk_features
        queries, keys, values = general.split_heads(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            qk_features=qk_features,
            v_features=qk_features if self.v_features is None else self.v_features,
            decode=self.decode,
        )
        project = functools.partial(
            nn.DenseGeneral,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        said = (deterministic, self.deterministic)
        drop = general.decide_dropout(self.dropout_rate, said)
        if drop and dropout_rng is None:
            dropout_rng = self.make_rng("dropout")
        attended = svda_attention(
            project(queries, name="query")(inputs_q),
            project(keys, name="key")(inputs_k),
            project(values, name="value")(inputs_v),
            bias,
            mask,
            self.broadcast_dropout,
            dropout_rng,
            self.dropout_rate,
            not drop,
            self.dtype,
            self.precision,
            self if sow_weights else None,
            is_causal=is_causal,
            spectrum_init=self.spectrum_init,
        )
        out = width if self.out_features is None else self.out_features
        return project(out, axis=(-2, -1), name="out")(attended)

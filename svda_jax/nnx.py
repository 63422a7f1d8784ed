"""SVDA in a Flax NNX model of one's own: as attention_fn, and as a layer.

`svda_attention` is the function of arrays, `label_sigma` gives an optimizer's sigma its
learning rate, `head_indicators` measures. Axes: N queries, M keys, H heads of queries,
G of keys and values, K per-head width of queries and keys.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from svda_jax.models.attention import label_sigma, singular_values
from svda_jax.models.general import (
    complete,
    decide_dropout,
    split_heads,
    start_sigma,
    svda_attention,
    svda_weights,
)
from svda_jax.models.heads import head_indicators

__all__ = [
    "MultiHeadAttention",
    "SvdaAttention",
    "head_indicators",
    "label_sigma",
    "singular_values",
    "svda_attention",
    "svda_weights",
]


class SvdaAttention(nnx.Module):
    """An attention_fn for `nnx.MultiHeadAttention`, with the sigma of one layer.

        softmax(q_hat diag(sigma) k_hat^T / sqrt(K)) v,  sigma = c * relative_sigma

    `relative_sigma` `[H, K]` float32 is learned from 1. A layer needs one of its own:
    two layers that are given the same object share it.

    Args:
      num_heads: H.
      head_dim: K, which is qkv_features / num_heads of Flax's layer.
      spectrum_init: a key of `SPECTRUM_STARTS`, the start c of sigma; "matched" is K.

    Raises:
      UserError: spectrum_init is none.

    Source: arXiv 2602.10994. Differs: the start of sigma, which it does not print.
    """

    def __init__(self, num_heads, head_dim, *, spectrum_init="matched"):
        self.start = start_sigma(spectrum_init, head_dim)
        self.relative_sigma = nnx.Param(jnp.ones((num_heads, head_dim)))

    def __call__(
        self, query, key, value, bias=None, mask=None, *, module=None, **options
    ):
        """Attends as `nnx.dot_product_attention` does.

        Args:
          query: `[..., N, H, K]`.
          key: `[..., M, G, K]`.
          value: `[..., M, G, V]`.
          bias: see `svda_attention`, as for mask.
          mask: likewise.
          module: the layer that sows the weights, float32, as "attention_weights".
          options: of `svda_attention`.

        Returns:
          `[..., N, H, V]`.
        """
        if module is not None:
            options["sow"] = functools.partial(
                module.sow, nnx.Intermediate, "attention_weights"
            )
        return svda_attention(
            query, key, value, self.sigma, bias=bias, mask=mask, **options
        )

    @property
    def sigma(self):
        """`[H, K]` float32, c * relative_sigma."""
        return self.start * self.relative_sigma[...].astype(jnp.float32)


class MultiHeadAttention(nnx.Module):
    """Multi-head SVDA with its projections: what Flax's layer has, and biases, widths.

    Parameters have the names that they have in `nnx.MultiHeadAttention`: query, key,
    value, out, attention_fn.

    Args:
      num_heads: H.
      in_features: width of the inputs.
      qk_features: H K, of queries and keys together; None is in_features.
      v_features: H V, of values; None is qk_features.
      out_features: width of the outputs; None is in_features.
      in_kv_features: width of what keys and values are made of; None is in_features.
      num_kv_heads: G, which divides H; None is H.
      spectrum_init: see `SvdaAttention`.
      dropout_rate: in [0, 1), share of the weights that are dropped in training.
      broadcast_dropout: whether leading axes and heads lose the same weights.
      deterministic: whether there is no dropout; None leaves it to the call.
      decode: refused; Flax's layer has it.
      dtype: of the activations; None is what inputs and parameters promote to.
      precision: of all products, as `jnp.einsum` takes it.
      rngs: `nnx.Rngs` to initialise from; with dropout its stream is kept.
      options: of the four projections, as `nnx.LinearGeneral` takes them: use_bias,
        kernel_init, param_dtype and others.

    Raises:
      UserError: sizes do not divide each other, or decode is asked for.
    """

    def __init__(
        self,
        num_heads,
        in_features,
        *,
        qk_features=None,
        v_features=None,
        out_features=None,
        in_kv_features=None,
        num_kv_heads=None,
        spectrum_init="matched",
        dropout_rate=0.0,
        broadcast_dropout=True,
        deterministic=None,
        decode=False,
        dtype=None,
        precision=None,
        rngs,
        **options,
    ):
        qk_features = in_features if qk_features is None else qk_features
        queries, keys, values = split_heads(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qk_features=qk_features,
            v_features=qk_features if v_features is None else v_features,
            decode=decode,
        )
        out_features = in_features if out_features is None else out_features
        of_keys = in_features if in_kv_features is None else in_kv_features
        options |= {"dtype": dtype, "precision": precision, "rngs": rngs}
        self.query = nnx.LinearGeneral(in_features, queries, **options)
        self.key = nnx.LinearGeneral(of_keys, keys, **options)
        self.value = nnx.LinearGeneral(of_keys, values, **options)
        self.out = nnx.LinearGeneral(
            (num_heads, values[1]), out_features, axis=(-2, -1), **options
        )
        self.attention_fn = SvdaAttention(*queries, spectrum_init=spectrum_init)
        self.dropout_rate, self.broadcast_dropout = dropout_rate, broadcast_dropout
        self.deterministic, self.dtype, self.precision = deterministic, dtype, precision
        self.rngs = rngs.dropout.fork() if dropout_rate else None

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
        rngs=None,
        sow_weights=False,
    ):
        """Attends from some tokens to others, or to themselves.

        Args:
          inputs_q: `[..., N, in_features]`.
          inputs_k: `[..., M, in_kv_features]`; None is inputs_q.
          inputs_v: likewise; None is inputs_k.
          mask: see `svda_weights`, as for bias and is_causal.
          bias: likewise.
          is_causal: likewise.
          deterministic: in place of the layer's.
          rngs: `nnx.Rngs` or a stream for dropout, in place of the layer's.
          sow_weights: whether to sow the weights as "attention_weights".

        Returns:
          `[..., N, out_features]`.

        Raises:
          UserError: shapes do not fit each other, there are values without keys, or
            nothing says whether there is dropout.
        """
        inputs_k, inputs_v = complete(inputs_q, inputs_k, inputs_v)
        key = None
        drop = decide_dropout(self.dropout_rate, (deterministic, self.deterministic))
        if drop:
            rngs = self.rngs if rngs is None else rngs
            key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs()
        attended = self.attention_fn(
            self.query(inputs_q),
            self.key(inputs_k),
            self.value(inputs_v),
            bias,
            mask,
            is_causal=is_causal,
            dropout_rng=key,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=self.broadcast_dropout,
            deterministic=not drop,
            dtype=self.dtype,
            precision=self.precision,
            module=self if sow_weights else None,
        )
        return self.out(attended)

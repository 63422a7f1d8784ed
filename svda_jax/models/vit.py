"""The Vision Transformer, with either attention.

Axes: B images, N tokens, H heads, D width, C classes, P patch side.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svda_jax import UserError
from svda_jax.models.attention import ATTENTIONS, Attention
from svda_jax.models.layers import GELUS, Dropout, LayerNorm, Linear, Mlp
from svda_jax.models.ops import PLAIN
from svda_jax.models.stack import REMATS, run_blocks

POOLS = ("gap", "avg", "cls")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that decides what a `ViT` computes, and how.

    Attributes:
      image_size: side of the square images, in pixels.
      channels: of the images.
      mean: per-channel mean of the training images, fraction of full scale (0 to 1).
      std: per-channel standard deviation, likewise.
      num_classes: C.
      patch_size: P, a divisor of image_size.
      width: D, a multiple of num_heads.
      depth: number of blocks, L.
      num_heads: H.
      qk_dim: directions a head's queries and keys have, layer by layer; () is D / H in
        all, which is also what the scores are scaled by.
      mlp_dim: hidden width of the MLPs.
      gelu: theirs, one of `GELUS`.
      pool: what the head is given: "gap", the mean of the normalised tokens, "avg", the
        normalised mean of tokens, or "cls", a class token.
      dropout: rate on the embeddings and on what each residual branch adds.
      drop_path: rate at which the last block's residual branches are dropped for an
        image; it grows linearly from 0 at the first block.
      attention: one of `ATTENTIONS`.
      spectrum_init: a key of `SPECTRUM_STARTS`; read by SVDA alone.
      dtype: of the activations, "float32" or "bfloat16". Parameters, norms, softmax and
        logits are float32 in either case.
      scan: see `run_blocks`, as for remat. Neither changes a value.
      remat: one of `REMATS`.

    Raises:
      UserError: values do not fit each other; `svda_jax.config` has the rules of each.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    qk_dim: tuple[int, ...] = ()
    gelu: str = "tanh"
    pool: str = "gap"
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: str = "svda"
    spectrum_init: str = "matched"
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"

    def __post_init__(self):
        fields = {"pool": POOLS, "gelu": GELUS, "attention": ATTENTIONS}
        fields["remat"] = REMATS
        for name, choices in fields.items():
            self._require(
                getattr(self, name) in choices, name, f"be one of {', '.join(choices)}"
            )
        self._require(
            self.width % self.num_heads == 0, "num_heads", f"divide width={self.width}"
        )
        self._require(
            self.image_size % self.patch_size == 0,
            "patch_size",
            f"divide image_size={self.image_size}",
        )
        self._require(
            len(self.qk_dim) in (0, self.depth),
            "qk_dim",
            f"be () or have one value for each layer of depth={self.depth}",
        )
        for name in ("mean", "std"):
            self._require(
                len(getattr(self, name)) == self.channels,
                name,
                f"have one value for each of channels={self.channels}",
            )

    def _require(self, holds, name, rule):
        if not holds:
            raise UserError(f"{name}={getattr(self, name)} must {rule}")

    @property
    def grid(self):
        """Patches along each side of the image."""
        return self.image_size // self.patch_size


def create_graphdef(config, ops=PLAIN):
    """The static part of a `ViT`: `nnx.merge(graphdef, params)` is the model."""
    return _abstract(config, ops)[0]


def abstract_params(config):
    """Shapes and dtypes of a `ViT`'s parameters, as nested dicts."""
    return jax.tree.map(lambda leaf: leaf, _abstract(config, PLAIN)[1])  # a copy


@functools.lru_cache(maxsize=32)
def _abstract(config, ops):
    model = nnx.eval_shape(lambda: ViT(config, ops=ops, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def count_macs(config):
    """Multiply-accumulate operations of an image's forward pass, of matrix products.

    Args:
      config: a `ViTConfig`; padded directions count as what they are, computed.
    """
    n, width = config.grid**2 + (config.pool == "cls"), config.width
    macs = config.grid**2 * config.patch_size**2 * config.channels * width
    for qk_dim in config.qk_dim or (width // config.num_heads,) * config.depth:
        scores = config.num_heads * qk_dim
        macs += 2 * n * width * (scores + width)  # query and key, value and out
        macs += n * n * (scores + width) + 2 * n * width * config.mlp_dim
    return macs + width * config.num_classes


def count_parameters(model):
    """Numbers that a model, or the shape of one, learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


class PatchEmbed(nnx.Module):
    """Cuts images into P x P patches and projects each to D."""

    def __init__(self, config, *, ops, rngs):
        self.patch_size = config.patch_size
        self.projection = Linear(
            config.patch_size**2 * config.channels,
            config.width,
            dtype=jnp.dtype(config.dtype),
            ops=ops,
            rngs=rngs,
        )

    def __call__(self, images):
        """`[B, h P, w P, channels]` -> `[B, h w, D]`, row by row."""
        projection = self.projection
        return projection.ops.embed(
            images,
            projection.kernel[...],
            projection.bias[...],
            patch_size=self.patch_size,
        )


class Block(nnx.Module):
    """A pre-norm Transformer block: attention, then MLP, each on a residual branch."""

    def __init__(self, config, *, layer, ops, rngs):
        options = {"dtype": jnp.dtype(config.dtype), "ops": ops, "rngs": rngs}
        self.dropout = config.dropout
        self.attention_norm = LayerNorm(config.width, **options)
        self.attention = Attention(
            config.width,
            config.num_heads,
            qk_dim=config.qk_dim[layer] if config.qk_dim else None,
            spectrum_init=config.spectrum_init if config.attention == "svda" else None,
            **options,
        )
        self.mlp_norm = LayerNorm(config.width, **options)
        self.mlp = Mlp(config.width, config.mlp_dim, gelu=config.gelu, **options)

    def __call__(self, x, *, drop=None, drop_path=None, measure=None):
        """`[B, N, D]` -> (`[B, N, D]`, attention's trace).

        Args:
          x: `[B, N, D]`.
          drop: a `Dropout` or None.
          drop_path: rate of this block; None where no block has one.
          measure: see `Attention`.
        """
        update, trace = self.attention(self.attention_norm(x), measure=measure)
        x = x + self._drop(update, drop, drop_path)
        x = x + self._drop(self.mlp(self.mlp_norm(x)), drop, drop_path)
        return x, trace

    def _drop(self, update, drop, drop_path):
        if drop is not None and self.dropout:
            update = drop(update, self.dropout, update.shape[1:])
        if drop is not None and drop_path is not None:
            update = drop(update, drop_path, (1, 1))
        return update


class ViT(nnx.Module):
    """A Vision Transformer that returns its logits and every layer's trace.

    Args:
      config: a `ViTConfig`.
      ops: the `Ops` to compute with, from `ops.choose` where a device is known.
      rngs: `nnx.Rngs` to initialise from. Both attentions draw the same values for all
        that they share.

    Source: Dosovitskiy et al. 2021; the mean over tokens in place of a class token and
    the zero-initialised head as in Beyer et al. 2022.
    """

    def __init__(self, config, *, ops=PLAIN, rngs):
        self.config, self.ops = config, ops
        num_tokens = config.grid**2
        self.patch_embed = PatchEmbed(config, ops=ops, rngs=rngs)
        if config.pool == "cls":
            num_tokens += 1
            self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width)))
        self.position_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (1, num_tokens, config.width))
        )
        self.blocks = nnx.List(
            Block(config, layer=layer, ops=ops, rngs=rngs)
            for layer in range(config.depth)
        )
        self.norm = LayerNorm(config.width, ops=ops, rngs=rngs)
        options = {"kernel_init": nnx.initializers.zeros, "ops": ops, "rngs": rngs}
        self.head = Linear(config.width, config.num_classes, **options)

    def __call__(self, images, *, dropout_keys=None, measure=None):
        """Classifies images as they are stored: normalisation is the model's.

        Args:
          images: `[B, image_size, image_size, channels]`, 0 to 255, any dtype;
            `run.predict.read_images` makes them of files.
          dropout_keys: `[B]` PRNG keys, one an image, which turn dropout and drop path
            on. What an image meets does not depend on the batch it stands in.
          measure: (layer, trace, value, ops) -> attention and what was measured; see
            `indicators.measure`.

        Returns:
          logits `[B, C]` float32, and a tuple of L `Trace`s.

        Raises:
          UserError: images are no array, have another shape, or, where that can be seen
            (outside of jit), values of another range, from 0 to 1 or below 0.
        """
        config = self.config
        _check_images(images, config)
        dtype = jnp.dtype(config.dtype)
        images = images.astype(jnp.float32) / 255
        images = (images - jnp.array(config.mean)) / jnp.array(config.std)
        x = self.patch_embed(images.astype(dtype))  # [B, N, D]
        if config.pool == "cls":
            cls = jnp.broadcast_to(
                self.cls_token[...].astype(dtype), (x.shape[0], 1, config.width)
            )
            x = jnp.concatenate([cls, x], axis=1)
        x = x + self.position_embedding[...].astype(dtype)

        # Numbers that dropout takes of an image: at the embeddings, and in each block.
        tokens = x[0].size if config.dropout else 0
        share = 2 * (tokens + (config.drop_path > 0))
        numbers, rates = None, _drop_path_rates(config)
        if dropout_keys is not None:
            numbers = self.ops.draw(dropout_keys, tokens + share * config.depth)
            if config.dropout:
                x = Dropout(numbers)(x, config.dropout, x.shape[1:])

        def call(block, layer, x):
            each = measure and functools.partial(measure, layer)
            if numbers is None:
                return block(x, measure=each)
            start = tokens + share * layer
            own = jax.lax.dynamic_slice_in_dim(numbers, start, share, axis=1)
            rate = rates[layer] if config.drop_path else None
            return block(x, drop=Dropout(own), drop_path=rate, measure=each)

        x, traces = run_blocks(
            call, self.blocks, x, scan=config.scan, remat=config.remat
        )
        x = x.astype(jnp.float32)
        if config.pool == "avg":
            return self.head(self.norm(jnp.mean(x, axis=1))), traces
        x = self.norm(x)
        x = x[:, 0] if config.pool == "cls" else jnp.mean(x, axis=1)  # [B, D]
        return self.head(x), traces

    def orthonormality_penalty(self):
        """Mean over layers, heads and {query, key} of `orthonormality_penalty`."""
        return jnp.mean(
            jnp.stack([b.attention.orthonormality_penalty() for b in self.blocks])
        )

    def score_entropy(self):
        """Mean over layers and heads of `score.collision_entropy` by weights, nats."""
        return jnp.mean(jnp.stack([b.attention.score_entropy() for b in self.blocks]))


def _drop_path_rates(config):
    """`[L]` float32, from 0 to the last block's; `Dropout` tells 2^-16 apart."""
    rates = config.drop_path * np.arange(config.depth) / max(config.depth - 1, 1)
    return jnp.asarray(np.round(rates * 2**16) / 2**16, jnp.float32)


def _check_images(images, config):
    size, channels = config.image_size, config.channels
    if not isinstance(images, (jax.Array, np.ndarray)):
        raise UserError(
            f"images are a {type(images).__name__}; the model takes an array"
        )
    if images.shape[1:] != (size, size, channels):
        raise UserError(
            f"images have shape {list(images.shape)}; the model takes [B, {size}, "
            f"{size}, {channels}]"
        )
    traced = isinstance(images, jax.core.Tracer)
    if traced or images.dtype == "uint8" or min(config.std) <= 1 / 255:
        return
    low, high = float(images.min()), float(images.max())
    if low < 0 or 0 < high <= 1:
        raise UserError(
            f"images have values from {low:.3g} to {high:.3g}; the model takes them as "
            "they are stored, 0 to 255"
        )

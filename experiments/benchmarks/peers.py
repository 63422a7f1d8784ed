"""The table `peers` of `experiments.benchmarks`: what people would use instead.

A plain Vision Transformer of the same shapes in PyTorch, and one of Flax Linen's own
layers, as google-research/vision_transformer and big_vision are described.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from experiments.benchmarks.speed import (
    compile_step,
    create_batch,
    create_config,
    create_step,
    models,
    with_attention,
)
from experiments.benchmarks.table import Table, apart
from svda_jax.devices.timing import measure, spread


def peers(repeats):
    """A training step of ours against that of PyTorch and of Flax Linen's layers."""
    rows = []
    for name, (config, batch_size) in _models().items():
        softmax = with_attention(config, "softmax")
        svda = with_attention(config, "svda")
        variants = {
            "ours, softmax": (create_step, softmax, batch_size),
            "ours, SVDA": (create_step, svda, batch_size),
            "Linen, softmax": (create_linen_step, softmax, batch_size),
        }
        if importlib.util.find_spec("torch"):
            variants |= {
                "PyTorch, eager, softmax": (create_torch_step, softmax, batch_size),
                "PyTorch, torch.compile, softmax": (
                    create_torch_step,
                    softmax,
                    batch_size,
                    True,
                ),
            }
        with apart(variants) as steps:
            seconds = measure(steps, repeats)
        for variant, values in seconds.items():
            rows.append(
                (
                    name,
                    variant,
                    spread(1000 * values, 1),
                    spread(values / seconds["ours, softmax"]),
                    spread(values / seconds["ours, SVDA"]),
                )
            )
    return Table(
        "A training step beside its peers",
        "Each step is forward, loss, gradient, clipping of its norm to 1 and AdamW, "
        "and is waited for. PyTorch: scaled_dot_product_attention, fused AdamW, "
        "autocast where the model is bfloat16, TF32 products on GPUs as JAX has them. "
        "Linen: its own attention and normalisation, as big_vision (mean over tokens) "
        "and vision_transformer (class token) build on. Each variant runs in a process "
        "of its own, since PyTorch's threads slow down JAX's in the same one, and is "
        f"asked for a step in turn. Median and quartiles over {repeats} rounds.",
        ("model", "variant", "ms", "over ours, softmax", "over ours, SVDA"),
        rows,
        packages=("optax", "torch"),
    )


def _models():
    """(config, batch size) by name."""
    if jax.default_backend() != "cpu":
        return models()
    return {
        f"FashionMNIST recipe, batch of 128, {pool}": (create_config(pool=pool), 128)
        for pool in ("gap", "cls")
    }


class LinenViT(linen.Module):
    """A Vision Transformer of Linen's layers, images `[B, S, S, C]` to logits."""

    config: object

    @linen.compact
    def __call__(self, images):
        """Patches by a convolution, pre-norm blocks, a zero-initialised head."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = (images.astype(jnp.float32) / 255 - c.mean[0]) / c.std[0]
        x = x.astype(dtype)
        patches = (c.patch_size, c.patch_size)
        x = linen.Conv(c.width, patches, strides=patches, padding="VALID", dtype=dtype)(
            x
        )
        x = x.reshape(len(x), -1, c.width)  # [B, N, D]
        if c.pool == "cls":
            token = self.param("cls", linen.initializers.zeros, (1, 1, c.width))
            x = jnp.concatenate(
                [jnp.tile(token, (len(x), 1, 1)).astype(dtype), x], axis=1
            )
        positions = linen.initializers.normal(0.02)
        x = x + self.param("positions", positions, (1, *x.shape[1:])).astype(dtype)
        for _ in range(c.depth):
            y = linen.LayerNorm(dtype=dtype)(x)
            attend = linen.MultiHeadDotProductAttention(c.num_heads, dtype=dtype)
            x = x + attend(y, y)
            y = linen.Dense(c.mlp_dim, dtype=dtype)(linen.LayerNorm(dtype=dtype)(x))
            x = x + linen.Dense(c.width, dtype=dtype)(linen.gelu(y))
        x = linen.LayerNorm()(x)
        x = x[:, 0] if c.pool == "cls" else jnp.mean(x, axis=1)
        return linen.Dense(c.num_classes, kernel_init=linen.initializers.zeros)(x)


def create_linen_step(config, batch_size):
    """As `speed.create_step`, of `LinenViT`."""
    batch = create_batch(config, batch_size)
    model = LinenViT(config)
    return compile_step(
        jax.jit(model.init)(jax.random.key(0), batch[0])["params"],
        lambda params, images: model.apply({"params": params}, images),
        batch,
    )


def create_torch_step(config, batch_size, compiled=False):
    """As `speed.create_step`, by PyTorch, eager or compiled."""
    import torch  # optional
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm = nn.LayerNorm(config.width)
            self.qkv = nn.Linear(config.width, 3 * config.width)
            self.out = nn.Linear(config.width, config.width)
            self.mlp_norm = nn.LayerNorm(config.width)
            self.mlp = nn.Sequential(
                nn.Linear(config.width, config.mlp_dim),
                nn.GELU(approximate="tanh"),
                nn.Linear(config.mlp_dim, config.width),
            )

        def forward(self, x):
            qkv = self.qkv(self.attention_norm(x))
            qkv = qkv.unflatten(-1, (3, config.num_heads, -1))  # [B, N, 3, H, K]
            attended = functional.scaled_dot_product_attention(
                *qkv.permute(2, 0, 3, 1, 4)
            )
            x = x + self.out(attended.transpose(1, 2).flatten(-2))
            return x + self.mlp(self.mlp_norm(x))

    class TorchViT(nn.Module):
        def __init__(self):
            super().__init__()
            p = config.patch_size
            self.patches = nn.Conv2d(config.channels, config.width, p, p)
            num_tokens = config.grid**2 + (config.pool == "cls")
            self.cls = nn.Parameter(torch.zeros(1, 1, config.width))
            self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, config.width))
            self.blocks = nn.Sequential(*(Block() for _ in range(config.depth)))
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, config.num_classes)

        def forward(self, images):
            x = (images.float() / 255 - config.mean[0]) / config.std[0]
            x = self.patches(x).flatten(2).transpose(1, 2)  # [B, N, D]
            if config.pool == "cls":
                x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
            x = self.norm(self.blocks(x + self.positions))
            return self.head(x[:, 0] if config.pool == "cls" else x.mean(1))

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs
    model = TorchViT().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.05, fused=True
    )
    images, labels = create_batch(config, batch_size)
    images = torch.tensor(np.moveaxis(images, -1, 1), device=device)
    labels = torch.tensor(labels, dtype=torch.long, device=device)

    def loss_fn(images, labels):
        with torch.autocast(device, torch.bfloat16, config.dtype == "bfloat16"):
            logits = model(images)
        return functional.cross_entropy(logits.float(), labels)

    if compiled:
        loss_fn = torch.compile(loss_fn)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss_fn(images, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return ()

    return run

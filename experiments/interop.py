"""Logits of other libraries' models and of the same models read by this one.

    pip install -r requirements-interop.txt
    python -m experiments.interop

writes experiments/results/pretrained.md: for each kind of model the largest difference
of logits, in float32, of a model whose every parameter is random, norms, biases and
scales too.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import timm
import torch
import transformers
from flax import nnx
from safetensors.torch import save_file
from timm.layers import RmsNorm
from timm.models.vision_transformer import _load_weights

from svda_jax.models.vit import ViT, ViTConfig, create_graphdef
from svda_jax.models.weights.read import read
from svda_jax.models.weights.write import write

RESULTS = pathlib.Path(__file__).with_name("results") / "pretrained.md"
MEAN, STD, BATCH, CLASSES = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 2, 11
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


class Case(NamedTuple):
    """A kind of model.

    Attributes:
      build: () -> a torch module.
      save: (module, folder) -> the path of its file.
      num_heads: H, where the file does not say it.
    """

    build: Callable
    save: Callable
    num_heads: int | None = None


def create(name="vit_tiny_patch16_224", norms=None, **options):
    """A timm model, its queries and keys normalised by `norms` if given."""
    model = timm.create_model(name, num_classes=CLASSES, **options)
    for block in model.blocks if norms else ():
        head_dim = block.attn.head_dim
        block.attn.q_norm, block.attn.k_norm = norms(head_dim), norms(head_dim)
    return model


def create_hugging_face(**options):
    """A `ViTForImageClassification`."""
    config = transformers.ViTConfig(
        **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3},
        **{"intermediate_size": 80, "image_size": 32, "patch_size": 8},
        **{"num_labels": CLASSES, **options},
    )
    return transformers.ViTForImageClassification(config)


def save_state(model, folder):
    """A file of the names that a module has in memory."""
    path = folder / "state.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def save_pretrained(model, folder):
    """A folder as transformers writes it."""
    model.save_pretrained(folder)
    return folder


def layer_norm_without_bias(head_dim):
    """A LayerNorm whose bias is there and 0."""
    norm = torch.nn.LayerNorm(head_dim, eps=1e-6)
    norm.bias.requires_grad = False
    return norm


def _timm(heads=3, name="vit_tiny_patch16_224", **options):
    return Case(lambda: create(name, **options), save_state, heads)


def _small(**options):
    return _timm(**SMALL, **options)


CASES = {
    "timm ViT-Ti/16": _timm(),
    "timm ViT-S/16": _timm(6, "vit_small_patch16_224"),
    "timm ViT-B/16, 2 blocks": _timm(12, "vit_base_patch16_224", depth=2),
    "timm ViT-L/16, 2 blocks": _timm(16, "vit_large_patch16_224", depth=2),
    "timm DeiT-Ti/16": _timm(3, "deit_tiny_patch16_224"),
    "timm DeiT III-S/16: LayerScale, no class position": _timm(
        6, "deit3_small_patch16_224"
    ),
    "timm, no class token, mean of normalised tokens": _small(
        class_token=False, global_pool="avg", fc_norm=False
    ),
    "timm, no class token, fc_norm after the mean": _small(
        class_token=False, global_pool="avg"
    ),
    "timm, no bias of queries, keys, values": _small(qkv_bias=False),
    "timm, RMSNorm of queries and keys: SVDA": _small(norms=RmsNorm),
    "timm, LayerNorm of queries and keys: SVDA": _small(norms=layer_norm_without_bias),
    "Hugging Face ViT, its folder": Case(create_hugging_face, save_pretrained),
    "Hugging Face ViT, names of transformers 5": Case(
        create_hugging_face, save_state, 3
    ),
    "Hugging Face ViT, GELU by tanh": Case(
        lambda: create_hugging_face(hidden_act="gelu_pytorch_tanh", qkv_bias=False),
        save_pretrained,
    ),
    "Hugging Face ViT, LayerNorm's epsilon 1e-6": Case(
        lambda: create_hugging_face(layer_norm_eps=1e-6), save_pretrained
    ),
}


@torch.no_grad()
def randomize(model, seed=0):
    """Every parameter that has a gradient at random, matrices by their inputs."""
    torch.manual_seed(seed)
    for name, leaf in model.named_parameters():
        if not leaf.requires_grad:
            continue
        noise = torch.randn_like(leaf)
        if "embed" not in name and "token" not in name and leaf.ndim > 1:
            leaf.copy_(noise / leaf[0].numel() ** 0.5)
        elif name.endswith(("weight", "gamma")) and leaf.ndim == 1:
            leaf.copy_(1 + 0.3 * noise)
        else:
            leaf.copy_(0.3 * noise)
    return model.eval()


def compare(case, folder):
    """Logits `[B, C]` of their model and of ours, of the same images."""
    theirs = randomize(case.build())
    weights = read(case.save(theirs, folder))
    params = weights.params(case.num_heads)
    says = {"num_heads": case.num_heads, **weights.says, "mean": MEAN, "std": STD}
    return _logits(theirs, says), our_logits(params, ViTConfig(**says))


def images(size):
    """`[B, size, size, 3]` uint8, at random."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)


@torch.no_grad()
def _logits(model, says):
    """Of a torch model, which takes normalised images, channels first."""
    x = (images(says["image_size"]) / 255 - says["mean"]) / says["std"]
    found = model(torch.from_numpy(np.float32(x.transpose(0, 3, 1, 2))))
    return np.asarray(getattr(found, "logits", found))


def our_logits(params, config):
    """Of a `ViT`, which normalises images itself."""
    model = nnx.merge(create_graphdef(config), params)
    return np.asarray(model(images(config.image_size))[0])


def compare_npz(folder, pool="cls"):
    """The same of a model of ours that timm reads from a .npz file."""
    config = ViTConfig(
        **{"image_size": 32, "channels": 3, "mean": MEAN, "std": STD},
        **{"num_classes": CLASSES, "patch_size": 8, "width": 48, "depth": 3},
        **{"num_heads": 3, "mlp_dim": 192, "attention": "softmax", "pool": pool},
    )
    params = nnx.to_pure_dict(nnx.state(ViT(config, rngs=nnx.Rngs(0)), nnx.Param))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + np.float32(0.2 * rng.normal(size=x.shape)), params
    )
    write(folder / "ours.npz", params, config, family="augreg")
    pooling = {"global_pool": "avg", "class_token": False, "fc_norm": False}
    theirs = create(
        act_layer="gelu_tanh", **SMALL, **(pooling if pool == "gap" else {})
    )
    _load_weights(theirs, str(folder / "ours.npz"))
    says = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return _logits(theirs.eval(), says), our_logits(params, config)


NPZ = {
    "AugReg .npz, read by timm": "cls",
    "AugReg .npz without class token, read by timm": "gap",
}


def main():
    """Writes the table."""
    lines = [
        "# Logits of pretrained models",
        "",
        "Models with random parameters; the largest difference of a logit to that of "
        "the same file",
        f"read here, float32, CPU, {BATCH} images, and the logits' standard deviation. "
        "`python -m experiments.interop`,",
        f"timm {timm.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, JAX {jax.__version__}.",
        "",
        "| model | largest difference | logits |",
        "|---|---|---|",
    ]
    for name in (*CASES, *NPZ):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            if name in CASES:
                pair = compare(CASES[name], folder)
            else:
                pair = compare_npz(folder, NPZ[name])
        difference = np.abs(np.subtract(*pair)).max()
        lines.append(f"| {name} | {difference:.1e} | {pair[0].std():.2f} |")
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Files that are no weights of a `ViT`: each ends in one line that says what it is."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from svda_jax import UserError
from svda_jax.models.vit import ViT
from svda_jax.models.weights.read import read
from svda_jax.models.weights.write import rename


@pytest.fixture
def arrays(make_model_config):
    """Makes a model's arrays under names of a family."""

    def arrays(family):
        config = make_model_config(
            attention="softmax",
            pool="cls",
            gelu="tanh" if family == "augreg" else "erf",
        )
        params = nnx.to_pure_dict(nnx.state(ViT(config, rngs=nnx.Rngs(0)), nnx.Param))
        params = jax.tree.map(lambda x: np.full_like(x, 0.5), params)
        return rename(params, config, family=family)

    return arrays


def save(path, arrays):
    """Arrays as a .npz or .safetensors file."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


def ones(*shape):
    return np.ones(shape, np.float32)


def refuse(path, message, num_heads=3):
    """Reading it raises one line."""
    with pytest.raises(UserError, match=message) as error:
        read(path).params(num_heads)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("timm", {"dist_token": ones(1, 1, 15)}, "second token of a distilled DeiT"),
        ("timm", {"head_dist.bias": ones(7)}, "second token .*: head_dist.bias"),
        ("timm", {"reg_token": ones(1, 4, 15)}, "it has register tokens"),
        ("timm", {"norm_pre.weight": ones(15)}, "it has a norm before the blocks"),
        ("timm", {"attn_pool.q.weight": ones(15, 15)}, "pools by attention"),
        ("timm", {"fc_norm.weight": ones(15)}, "two norms, norm and fc_norm"),
        ("timm", {"a.b": ones(2), "c": ones(2)}, "no ViT of timm: it holds a.b, c$"),
        (
            "timm",
            {"blocks.1.attn.q_norm.weight": ones(5)},
            "blocks/1/attention/: queries or keys alone have a norm",
        ),
        (
            "timm",
            {
                f"blocks.{layer}.attn.{side}_norm.{leaf}": ones(5)
                for layer in (0, 1)
                for side in "qk"
                for leaf in ("weight", "bias")
            },
            "key_norm/bias is not 0, which SVDA has no place for",
        ),
        (
            "timm",
            {f"blocks.1.attn.{side}_norm.weight": ones(5) for side in "qk"},
            "has, and should not, .*relative_sigma",
        ),
        ("timm", {"blocks.0.ls1.gamma": ones(4)}, "parameters do not fit each other"),
        ("timm", {"blocks.7.norm1.bias": ones(15)}, "it lacks block 2"),
        ("huggingface", {"vit.layers.0.layernorm_before.bias": ones(15)}, "twice"),
        (
            "huggingface",
            {"embeddings.distillation_token": ones(1, 1, 15)},
            "second token of a distilled DeiT, which .*: embeddings.distill",
        ),
        ("augreg", {"MAPHead_0/probe": ones(1, 1, 15)}, "pools by attention .MAP"),
        ("augreg", {"pre_logits/bias": ones(15)}, "a layer before the head"),
    ],
)
def test_what_a_vit_has_no_place_for(arrays, tmp_path, family, more, message):
    name = "a.npz" if family == "augreg" else "a.safetensors"
    refuse(save(tmp_path / name, arrays(family) | more), message)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("blocks.0.norm1.bias", None, r"it lacks blocks\.0\.norm1\.bias$"),
        ("blocks.1.attn.qkv.weight", None, r"it lacks blocks\.1\.attn\.qkv\.weight"),
        ("pos_embed", None, "it lacks pos_embed"),
        ("patch_embed.proj.weight", None, r"it lacks patch_embed\.proj\.weight"),
        ("head.weight", None, r"it lacks head\.weight$"),
        ("blocks.1.mlp.fc1.weight", ones(9, 15), r"fc1.weight has shape \(15, 9\), no"),
        ("blocks.1.attn.qkv.weight", ones(44, 15), "has 44 outputs, not 3 x D"),
        (
            "blocks.1.attn.qkv.weight",
            ones(3),
            r"it lacks blocks\.1\.attn\.qkv\.weight$",
        ),
        ("pos_embed", ones(1, 12, 15), "its 11 patches are no square"),
        ("pos_embed", ones(10, 15), "pos_embed has 2 axes"),
        ("patch_embed.proj.weight", ones(15, 2, 2, 3), "2 x 3 pixels, no square"),
        ("norm.bias", np.ones(15, np.int32), "norm.bias is of int32, not of floating"),
        ("norm.bias", np.full(15, np.nan, np.float32), "values that are not finite"),
        ("norm.bias", ones(0), "norm.bias is empty"),
    ],
)
def test_arrays_that_are_not_there_or_are_other_ones(
    arrays, tmp_path, name, array, message
):
    stored = arrays("timm")
    stored.pop(name)
    more = {} if array is None else {name: array}
    refuse(save(tmp_path / "a.safetensors", stored | more), message)


@pytest.mark.parametrize(
    "names",
    [
        ["stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.fc.weight"],
        ["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"],
        ["swin.embeddings.norm.weight", "swin.encoder.layers.0.blocks.0.x"],
        ["conv1.weight"],
        [],
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_other_families(tmp_path, names, suffix):
    path = save(tmp_path / f"a.{suffix}", {name: ones(3, 3) for name in names})
    refuse(
        path, "it is no ViT of .*: it holds (head.fc|layers.0|swin|conv1|nothing|pa)"
    )


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_damaged_files(arrays, tmp_path, suffix):
    family = "augreg" if suffix == "npz" else "timm"
    path = save(tmp_path / f"a.{suffix}", arrays(family))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for data in (b"", b"hello", whole[:50], whole[:-20], whole[middle:]):
        path.write_bytes(data)
        refuse(path, f"a.{suffix} is damaged or no .{suffix} file: ")


def test_a_file_that_is_no_archive_is_called_so(tmp_path):
    (tmp_path / "a.npz").write_bytes(bytes(range(256)))
    refuse(tmp_path / "a.npz", "a.npz is damaged or no .npz file: it is no zip archive")


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, head=np.array([{"a": 1}], object))
    refuse(path, "is damaged or no .npz file: .*allow_pickle")


def test_files_of_another_kind(tmp_path):
    refuse(tmp_path / "a.npz", "there is no such file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refuse(tmp_path / "pytorch_model.bin", "read from .npz and .safetensors files")
    with open(tmp_path / "b.npz", "wb") as file:
        np.save(file, ones(3))
    refuse(tmp_path / "b.npz", "is damaged or no .npz file")


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("huggingface", {"model_type": "dinov2"}, "its config.json is of a dinov2"),
        ("huggingface", {"model_type": "vit"}, "said beside .* no ViT: KeyError"),
        (
            "huggingface",
            {"model_type": "vit", "num_attention_heads": 3, "hidden_act": "relu"},
            "KeyError: 'relu'",
        ),
        ("timm", {"architecture": "vit_siglip"}, "config.json does not say its GELU"),
        ("timm", {"global_pool": "map"}, "global_pool=map is none of ours"),
        ("timm", {"global_pool": "avg"}, "a class token and takes the mean"),
        ("timm", {"model_args": {"num_heads": "x"}}, "ValueError"),
        ("timm", {"model_args": {"num_heads": 4}}, "num_heads=4 must divide width=15"),
        (
            "timm",
            {"pretrained_cfg": {"mean": [0.5], "std": [0.5]}},
            r"mean=\(0.5,\) must have one value for each of channels=2",
        ),
    ],
)
def test_what_a_config_beside_says(arrays, tmp_path, family, config, message):
    path = save(tmp_path / "model.safetensors", arrays(family))
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuse(path, message)
    refuse(tmp_path, message)


def test_no_number_of_heads(arrays, tmp_path):
    path = save(tmp_path / "a.safetensors", arrays("timm"))
    refuse(path, "it does not say the number of its heads", num_heads=None)

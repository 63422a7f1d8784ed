"""Weights of other libraries: read, refused, written; without the libraries."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from svda_jax import UserError
from svda_jax.models.vit import ViT, ViTConfig, create_graphdef
from svda_jax.models.weights.fold import renormalize
from svda_jax.models.weights.read import read
from svda_jax.models.weights.write import rename, write

SUFFIX = {"timm": "safetensors", "huggingface": "safetensors", "augreg": "npz"}
GELU = {"timm": "erf", "huggingface": "erf", "augreg": "tanh"}


@pytest.fixture(scope="module")
def make():
    """Makes a config and random parameters: 2 blocks, 3 heads of 5, 9 patches."""

    def make(**changes):
        options = {"image_size": 6, "channels": 2, "mean": (0.25, 0.5)}
        options |= {"std": (0.5, 0.25), "num_classes": 7, "patch_size": 2}
        options |= {"width": 15, "depth": 2, "num_heads": 3, "mlp_dim": 11}
        config = ViTConfig(
            **options | {"attention": "softmax", "pool": "cls"} | changes
        )
        params = nnx.to_pure_dict(nnx.state(ViT(config, rngs=nnx.Rngs(0)), nnx.Param))
        rng = np.random.default_rng(1)
        return config, jax.tree.map(
            lambda leaf: np.float32(rng.normal(size=leaf.shape)), params
        )

    return make


def save(path, arrays):
    """Arrays as a .npz or .safetensors file."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def logits(params, config):
    """Of five images, by the model as an equation."""
    shape = (5, config.image_size, config.image_size, config.channels)
    images = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    return nnx.merge(create_graphdef(config), params)(images)[0]


def assert_same(found, expected):
    """Equal leaves, of the same tree."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("family", "pool"),
    [
        *(("timm", pool) for pool in ("gap", "avg", "cls")),
        ("huggingface", "cls"),
        ("augreg", "gap"),
        ("augreg", "cls"),
    ],
)
def test_what_is_written_is_read_again(make, tmp_path, family, pool):
    mean = std = (0.5, 0.5)  # those of AugReg, whose files cannot say others
    config, params = make(pool=pool, gelu=GELU[family], mean=mean, std=std)
    path = tmp_path / f"model.{SUFFIX[family]}"
    write(path, params, config, family=family)
    weights = read(path)
    assert_same(weights.params(), params)
    says = dict(weights.says)
    says["qk_dim"] = says["qk_dim"] if says["qk_dim"] != (5, 5) else ()
    assert says.items() <= vars(config).items()
    assert says.keys() >= {"image_size", "num_heads", "gelu", "mean", "pool"}


@pytest.mark.parametrize("start", ["ones", "matched"])
def test_svda_and_fewer_directions_go_through_npz(make, tmp_path, start):
    changes = {"attention": "svda", "qk_dim": (4, 2), "spectrum_init": start}
    config, params = make(**changes)
    write(tmp_path / "a.npz", params, config, family="augreg")
    weights = read(tmp_path / "a.npz")
    assert weights.says["attention"] == "svda"
    assert weights.says["qk_dim"] == (4, 2)
    found = ViTConfig(**vars(config) | weights.says | {"spectrum_init": "matched"})
    np.testing.assert_allclose(
        logits(weights.params(), found), logits(params, config), rtol=1e-4, atol=1e-4
    )


def test_an_npz_file_takes_images_from_minus_1_to_1(make, tmp_path):
    config, params = make()
    write(tmp_path / "a.npz", params, config, family="augreg")
    weights = read(tmp_path / "a.npz")
    assert weights.says["mean"] == weights.says["std"] == (0.5, 0.5)
    found = ViTConfig(**vars(config) | weights.says)
    np.testing.assert_allclose(
        logits(weights.params(), found), logits(params, config), rtol=1e-4, atol=1e-4
    )


def test_another_normalisation_is_the_same_model(make):
    old, params = make()
    new, _ = make(mean=(0.1, 0.9), std=(2.0, 0.125))
    expected = logits(params, old)
    embed = params["patch_embed"]["projection"]
    pairs = (old.mean, old.std), (new.mean, new.std)
    pair = renormalize(embed["kernel"], embed["bias"], *pairs)
    embed["kernel"], embed["bias"] = pair
    np.testing.assert_allclose(logits(params, new), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("timm", {"attention": "svda"}, "timm has no models with SVDA attention"),
        ("huggingface", {"attention": "svda"}, "no models with SVDA attention"),
        ("timm", {"qk_dim": (4, 2)}, "no models with model.qk_dim"),
        ("huggingface", {"pool": "gap"}, "no models with model.pool=gap"),
        ("augreg", {"pool": "avg"}, "no models with model.pool=avg"),
        ("augreg", {"gelu": "erf"}, "no models with model.gelu=erf"),
    ],
)
def test_what_a_library_has_not_is_not_written(make, family, changes, what):
    config, params = make(**changes)
    with pytest.raises(UserError, match=what):
        rename(params, config, family=family)


def test_files_that_cannot_be_written(make, tmp_path):
    config, params = make()
    with pytest.raises(UserError, match="names of timm ends in"):
        write(tmp_path / "a.npz", params, config, family="timm")
    with pytest.raises(UserError, match=r"cannot write .*nowhere"):
        write(tmp_path / "nowhere" / "a.safetensors", params, config, family="timm")


@pytest.fixture
def timm(make):
    """A model's arrays by timm's names."""
    config, params = make(gelu="erf")
    return rename(params, config, family="timm")


@pytest.mark.parametrize("prefix", ["vit.", "deit.", ""])
def test_transformers_five_calls_them_otherwise(make, tmp_path, prefix):
    config, params = make(gelu="erf")
    renamed = {}
    for name, array in rename(params, config, family="huggingface").items():
        for old, new in (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(old, new)
        renamed[name if name.startswith("classifier") else prefix + name] = array
    renamed["pooler.dense.weight"] = np.ones((15, 15), np.float32)
    path = save(tmp_path / "a.safetensors", renamed)
    assert_same(read(path).params(num_heads=3), params)


@pytest.mark.parametrize(
    "form", ["params/", "opt/target/", "params/ and opt/", "one array of blocks"]
)
def test_big_visions_names(make, tmp_path, form):
    config, params = make(mean=(0.5, 0.5), std=(0.5, 0.5))
    renamed = {}
    for name, array in rename(params, config, family="augreg").items():
        for old, new in (
            ("Transformer/posembed_input/", ""),
            ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
            ("LayerNorm_2", "LayerNorm_1"),
            ("MlpBlock_3", "MlpBlock_0"),
        ):
            name = name.replace(old, new)
        renamed[f"params/{name}"] = array
    if form == "opt/target/":
        renamed = {k.replace("params/", form): v for k, v in renamed.items()}
        renamed["opt/state/step"] = np.int32(3)
    if form == "params/ and opt/":
        renamed["opt/0/count"] = np.int32(3)
    if form == "one array of blocks":
        for name in [name for name in renamed if "_0/" in name and "block_0" in name]:
            second = renamed.pop(name.replace("block_0", "block_1"))
            both = np.stack([renamed.pop(name), second])
            renamed[name.replace("block_0", "block")] = both
    assert_same(read(save(tmp_path / "a.npz", renamed)).params(), params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("family", ["timm", "augreg"])
def test_other_floats_become_float32(make, tmp_path, family, dtype):
    config, params = make(mean=(0.5, 0.5), std=(0.5, 0.5))
    arrays = {
        k: v.astype(jnp.dtype(dtype))
        for k, v in rename(params, config, family=family).items()
    }
    path = save(tmp_path / f"a.{SUFFIX[family]}", arrays)
    found = read(path).params(num_heads=3)
    expected = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
    assert_same(found, jax.tree.map(np.float32, expected))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_a_folder_and_its_parts(timm, tmp_path):
    names = sorted(timm)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, those in parts.items():
        save(tmp_path / file, {name: timm[name] for name in those})
    with pytest.raises(UserError, match=r"which .* It has a.safetensors, b.safeten"):
        read(tmp_path)
    index = {"weight_map": {name: file for file, of in parts.items() for name in of}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_any",
                "global_pool": "token",
                "model_args": {"num_heads": 5, "act_layer": "gelu_tanh"},
                "pretrained_cfg": {"mean": [0.1, 0.2], "std": [0.3, 0.4]},
            }
        )
    )
    says = read(tmp_path).says
    assert (says["num_heads"], says["gelu"]) == (5, "tanh")
    assert (says["mean"], says["std"]) == ((0.1, 0.2), (0.3, 0.4))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors"):
        read(tmp_path)


def test_layer_scale_and_class_token_without_position(timm, make, tmp_path):
    expected = make(gelu="erf")[1]
    rng = np.random.default_rng(4)
    timm["pos_embed"] = timm["pos_embed"][:, 1:]
    expected["position_embedding"][:, 0] = 0
    for layer in range(2):
        for number, part in ((1, "attention"), (2, "mlp")):
            gamma = np.float32(rng.normal(size=15))
            timm[f"blocks.{layer}.ls{number}.gamma"] = gamma
            out = expected["blocks"][layer][part]["out"]
            out["kernel"], out["bias"] = out["kernel"] * gamma, out["bias"] * gamma
    found = read(save(tmp_path / "a.safetensors", timm)).params(num_heads=3)
    assert_same(found, expected)


@pytest.mark.parametrize("norm", ["RMSNorm", "LayerNorm"])
def test_normalised_queries_and_keys_are_svda(timm, tmp_path, norm):
    """Scores of each head, as timm computes them."""
    rng = np.random.default_rng(3)
    for layer in range(2):
        for side in "qk":
            name = f"blocks.{layer}.attn.{side}_norm"
            timm[f"{name}.weight"] = np.float32(rng.normal(size=5))
            if norm == "LayerNorm":
                timm[f"{name}.bias"] = np.zeros(5, np.float32)
    weights = read(save(tmp_path / "a.safetensors", timm))
    assert (weights.says["attention"], weights.says["num_heads"]) == ("svda", 3)
    attention = weights.params()["blocks"][1]["attention"]
    x = np.float32(rng.normal(size=(9, 15)))
    qkv = x @ timm["blocks.1.attn.qkv.weight"].T + timm["blocks.1.attn.qkv.bias"]
    sides, ours = [], []
    for index, (side, name) in enumerate((("q", "query"), ("k", "key"))):
        heads = qkv[:, 15 * index : 15 * (index + 1)].reshape(9, 3, 5)
        if norm == "LayerNorm":
            heads = heads - heads.mean(-1, keepdims=True)
        heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True))
        sides.append(heads * timm[f"blocks.1.attn.{side}_norm.weight"])
        projection = attention[name]
        y = np.einsum("nd,dhk->nhk", x, projection["kernel"]) + projection["bias"]
        ours.append(y / np.linalg.norm(y, axis=-1, keepdims=True))
    sigma = 5 * attention["relative_sigma"]
    np.testing.assert_allclose(
        np.einsum("nhk,hk,mhk->hnm", ours[0], sigma, ours[1]) / 5**0.5,
        np.einsum("nhk,mhk->hnm", *sides) / 5**0.5,
        rtol=1e-4,
        atol=1e-5,
    )

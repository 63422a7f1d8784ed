"""What training starts from: a run or a file whose head, grid or numbers differ."""

import shlex

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.config import check, flatten, load, to_json, vit_config
from svda_jax.models.vit import ViT, abstract_params, create_graphdef
from svda_jax.models.weights.write import rename, write
from svda_jax.run import runs
from svda_jax.run.start import load_start, resample
from svda_jax.train.loop import train_and_evaluate

FAMILIES = {"timm": "a.safetensors", "augreg": "a.npz"}


@pytest.fixture
def make_file(make_config, randomize, tmp_path):
    """Makes a file of a model with random parameters; returns its path and config."""

    def make(family="timm", **changes):
        gelu = {"timm": "erf", "augreg": "tanh"}[family]
        options = {"model__attention": "softmax", "model__gelu": gelu, **changes}
        config = make_config(**options)
        model = ViT(vit_config(config), rngs=nnx.Rngs(0))
        params = randomize(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        path = tmp_path / FAMILIES[family]
        write(path, params, vit_config(config), family=family)
        return path, config, params

    return make


def change(config, path, **changes):
    """A config that starts from there, with other values; keys with __ for a dot."""
    flat = flatten(config) | {"init_from": str(path)}
    return check(flat | {k.replace("__", "."): v for k, v in changes.items()})


def start(config, tmp_path):
    return load_start(config, vit_config(config), tmp_path / "run")


def logits(params, config, images):
    return nnx.merge(create_graphdef(vit_config(config)), params)(images)[0]


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


def test_a_file_is_a_start_as_it_is(make_file, tmp_path):
    path, config, params = make_file()
    found, lines = start(change(config, path), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert not lines


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_another_head_and_grid(make_file, tmp_path, family, pool):
    path, config, params = make_file(family, model__pool=pool)
    other = change(config, path, dataset__num_classes=3, dataset__image_size=12)
    found, lines = start(other, tmp_path)
    shapes = (jax.tree.map(np.shape, tree) for tree in (found, _shapes(other)))
    assert len(set(map(str, shapes))) == 1
    assert not np.any(found["head"]["kernel"])
    head, grid, *rest = lines
    assert head == f"{path}: the head for 3 classes starts at 0; it was for 10"
    assert "resampled from 2 x 2 to 3 x 3, bicubic, antialiased" in grid
    assert len(rest) == (family == "augreg")  # whose images are from -1 to 1
    first = (x["position_embedding"][:, 0] for x in (found, params))
    if pool == "cls":
        np.testing.assert_array_equal(*first)
    same = (x["blocks"][1]["mlp"]["out"]["kernel"] for x in (found, params))
    np.testing.assert_array_equal(*same)


def _shapes(config):
    leaves = abstract_params(vit_config(config))
    return jax.tree.map(lambda leaf: np.broadcast_to(0.0, leaf.shape), leaves)


def test_another_normalisation_gives_the_same_logits(make_file, tmp_path, images):
    path, config, params = make_file()
    other = change(config, path, dataset__mean=(0.7,), dataset__std=(2.0,))
    found, lines = start(other, tmp_path)
    assert lines == [
        f"{path}: its mean and std of images become part of the patch embedding"
    ]
    expected = logits(params, config, images)
    np.testing.assert_allclose(
        logits(found, other, images), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__width": 32}, "model.width is 16 there and 32 here"),
        ({"model__depth": 3}, "model.depth is 2 there and 3 here"),
        ({"model__num_heads": 4}, "model.num_heads is 2 there and 4 here"),
        ({"model__mlp_dim": 17}, "model.mlp_dim is 16 there and 17 here"),
        ({"model__patch_size": 2}, "model.patch_size is 4 there and 2 here"),
        ({"model__pool": "cls"}, "model.pool is gap there and cls here"),
        ({"model__pool": "avg"}, "model.pool is gap there and avg here"),
        ({"model__gelu": "tanh"}, "model.gelu is erf there and tanh here"),
        ({"model__qk_dim": (8, 4)}, r"model.qk_dim is \(\) there and \(8, 4\) here"),
        (
            {"model__attention": "svda"},
            "attention is softmax there and svda here; python -m svda_jax convert",
        ),
        (
            {"model__width": 36, "model__depth": 1, "model__num_heads": 3},
            "model.width is 16 there and 36 here",
        ),
        (
            dict.fromkeys(("dataset__mean", "dataset__std"), (0.5, 0.5, 0.5))
            | {"dataset__channels": 3},
            "dataset.channels is 1 there and 3 here",
        ),
    ],
)
def test_another_model_is_refused_with_the_options_that_fit(
    make_file, tmp_path, changes, message
):
    path, config, _ = make_file()
    other = change(config, path, **changes)
    with pytest.raises(UserError, match=f"init_from=.*: .*{message}") as error:
        start(other, tmp_path)
    said = str(error.value)
    assert "\n" not in said
    options = shlex.split(said.partition("fits it: ")[2])
    pairs = [option.removeprefix("--config.").split("=", 1) for option in options]
    (tmp_path / "config.json").write_text(to_json(other))
    fitting = load(tmp_path / "config.json", pairs)
    assert start(fitting, tmp_path)[0] is not None


def test_what_a_file_does_not_say_is_said_to_be_the_configs(
    make_file, tmp_path, randomize
):
    _, config, params = make_file(model__width=128)
    arrays = rename(params, vit_config(config), family="timm")
    np.savez(tmp_path / "b.npz", **arrays)
    found, lines = start(change(config, tmp_path / "b.npz"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    said = "does not say num_heads=2, mean=(0.3054,), std=(0.3753,), which are"
    assert said in lines[0]
    with pytest.raises(UserError, match=r"width=128 --config.model.num_heads=2$"):
        start(change(config, tmp_path / "b.npz", model__width=96), tmp_path)


def test_svda_is_no_start_of_softmax_attention(make_file, tmp_path):
    changes = {"model__attention": "svda", "model__qk_dim": (4, 2)}
    path, config, _ = make_file("augreg", **changes)
    softmax = change(config, path, model__attention="softmax")
    with pytest.raises(UserError, match="svda there and softmax here; what fits it"):
        start(softmax, tmp_path)


@pytest.mark.parametrize("spectrum_init", ["matched", "sqrt", "ones"])
def test_a_files_sigma_stays_what_it_was(make_file, tmp_path, images, spectrum_init):
    options = {"dataset__mean": (0.5,), "dataset__std": (0.5,)}
    path, config, params = make_file("augreg", model__attention="svda", **options)
    other = change(config, path, model__spectrum_init=spectrum_init)
    found, _ = start(other, tmp_path)
    np.testing.assert_allclose(
        logits(found, other, images),
        logits(params, config, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_run_is_a_start_of_other_classes_and_another_grid(make_config, tmp_path):
    config = make_config(num_epochs=1, eval_every_epochs=100)
    train_and_evaluate(config, tmp_path / "old")
    changes = {"dataset__num_classes": 3, "dataset__image_size": 16}
    other = change(config, tmp_path / "old", **changes)
    (tmp_path / "old" / "model.safetensors").write_bytes(b"exported")
    found, lines = start(other, tmp_path)
    assert found["head"]["kernel"].shape == (16, 3)
    assert found["position_embedding"].shape == (1, 16, 16)
    assert [line.partition(": ")[2][:9] for line in lines] == ["the head ", "position "]
    old = nnx.to_pure_dict(nnx.state(runs.load(tmp_path / "old").model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, found["blocks"], old["blocks"])


def test_a_run_trains_from_a_file_and_says_what_changed(
    make_file, tmp_path, capsys, two_devices
):
    path, config, _ = make_file("augreg", model__pool="cls", dataset__num_classes=4)
    other = change(config, path, dataset__num_classes=10, num_epochs=1)
    train_and_evaluate(other, tmp_path / "run")
    output = capsys.readouterr().out
    assert f"{path}: the head for 10 classes starts at 0; it was for 4\n" in output
    path.unlink()  # which a run that has begun needs no more
    train_and_evaluate(other, tmp_path / "run")
    assert start(other, tmp_path) == (None, [])


def test_resampled_embeddings_keep_the_class_token_and_a_constant(rng):
    token = np.float32(rng.normal(size=(1, 1, 5)))
    constant = np.broadcast_to(np.float32(rng.normal(size=5)), (1, 49, 5))
    found = resample(np.concatenate([token, constant], axis=1), 3)
    assert found.shape == (1, 10, 5)
    np.testing.assert_array_equal(found[:, :1], token)
    np.testing.assert_allclose(found[:, 1:], constant[:, :9], rtol=1e-5)
    ramp = np.float32(np.arange(8.0)[None, :, None] + np.zeros((8, 8, 1)))
    halved = resample(ramp.reshape(1, 64, 1), 4).reshape(4, 4)
    np.testing.assert_allclose(halved[1:3, 1:3], [[2.5, 4.5]] * 2, atol=0.1)
    np.testing.assert_allclose(halved[0], halved[3], rtol=1e-6)


def test_what_is_no_start(make_config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x")
    for name, message in (
        ("nowhere", "nowhere holds no run"),
        ("empty", "empty holds no run"),
        ("a.bin", "weights are read from .npz and .safetensors files"),
        ("b.safetensors", "there is no such file"),
    ):
        config = change(make_config(), tmp_path / name)
        with pytest.raises(UserError, match=f"init_from=.*{name}: .*{message}"):
            start(config, tmp_path)
    assert not (tmp_path / "run").exists()

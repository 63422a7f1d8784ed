"""The rules of a config, and that every config keeps them."""

import ast
import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.config import (
    check,
    defaults,
    flatten,
    load,
    recipe,
    to_json,
    validate,
)
from svda_jax.devices import parallel
from svda_jax.models.attention import ATTENTIONS, SPECTRUM_STARTS
from svda_jax.models.indicators import of_images
from svda_jax.models.layers import GELUS
from svda_jax.models.ops import choose
from svda_jax.models.vit import DTYPES, POOLS, ViT, ViTConfig, create_graphdef
from svda_jax.options import OPTIONS
from svda_jax.train.compiled import create_training
from svda_jax.train.steps import eval_step

RECIPES = pathlib.Path(__file__).parent.parent.joinpath("configs").glob("*.py")
# That of a folder depends on the folder: test_folder.
CONFIGS = sorted(path for path in RECIPES if path.stem != "folder")


# Parameters with SVDA, and of them those of sigma, which softmax attention has not.
NUM_PARAMETERS = {
    "cifar10": (2_698_954, 9 * 192),
    "cifar100": (2_716_324, 9 * 192),
    "digits": (136_266, 4 * 64),
    "emoji": (840_926, 6 * 128),
    "fashion_mnist": (206_218, 6 * 64),
    "fashion_mnist_small": (139_146, 4 * 64),
    "food101": (21_708_389, 12 * 384),
    "imagenet100": (21_708_004, 12 * 384),
}


def test_every_config_is_counted():
    assert sorted(path.stem for path in CONFIGS) == sorted(NUM_PARAMETERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_its_number_of_parameters(path):
    config = load(path)
    expected, of_sigma = NUM_PARAMETERS[path.stem]
    for attention, count in (("svda", expected), ("softmax", expected - of_sigma)):
        config.model.attention = attention
        model_config = validate(config, num_devices=1)
        model = nnx.eval_shape(lambda c=model_config: ViT(c, rngs=nnx.Rngs(0)))
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert sum(leaf.size for leaf in leaves) == count
        images = jax.ShapeDtypeStruct(
            (
                2,
                model_config.image_size,
                model_config.image_size,
                model_config.channels,
            ),
            np.uint8,
        )
        logits, traces = nnx.eval_shape(lambda m, x: m(x), model, images)
        assert logits.shape == (2, config.dataset.num_classes)
        assert len(traces) == config.model.depth


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_its_steps(path):
    """Training and evaluation of two of its blocks are traced: shapes in and out."""
    config = load(path)
    config.model.depth = 2
    mesh = parallel.create_mesh(jax.devices()[:1])
    model_config = validate(config, num_devices=1)
    init, step = create_training(config, model_config, num_steps=9, mesh=mesh)
    side, size = model_config.image_size, config.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct(
            (size, side, side, config.dataset.channels), "u1"
        ),
        "label": jax.ShapeDtypeStruct((size,), "int32"),
    }
    key = jax.random.key(0)
    before = jax.eval_shape(init, key)
    after, _ = jax.eval_shape(step, before, batch, key)
    assert jax.tree.map(shape_of, after) == jax.tree.map(shape_of, before)
    assert (after.ema is not None) == (config.ema_decay > 0)
    evaluate = functools.partial(
        eval_step,
        graphdef=create_graphdef(model_config, choose(mesh.devices.flat[0])),
        noise_scale=config.indicators.noise_scale,
    )
    evaluate = parallel.pmap(evaluate, mesh, split_argnums=(1,))
    batch["mask"] = jax.ShapeDtypeStruct((size,), "bool")
    metrics = jax.eval_shape(evaluate, after.eval_params, batch, key)
    layers_and_heads = (model_config.depth, model_config.num_heads)
    totals = jax.tree.map(shape_of, metrics.indicators)
    assert totals.total[0] == (len(of_images()), *layers_and_heads)


def shape_of(x):
    return x.shape, x.dtype


# The smallest and the one with most augmentation; all train in the slow form.
TRAINED = ("digits", "cifar10")


@pytest.mark.parametrize(
    ("path", "depth"),
    [pytest.param(p, 2, id=p.stem) for p in CONFIGS if p.stem in TRAINED]
    + [
        pytest.param(p, None, marks=pytest.mark.slow, id=f"{p.stem} in full")
        for p in CONFIGS
    ],
)
def test_every_config_trains(path, depth, rng):
    """Two steps, with its augmentation, on data of its shape."""
    config = load(path)
    config.batch_size = 2
    config.model.depth = depth or config.model.depth
    mesh = parallel.create_mesh(jax.devices()[:1])
    model_config = validate(config, num_devices=1)
    init, step = create_training(config, model_config, num_steps=9, mesh=mesh)
    size, channels = model_config.image_size, model_config.channels
    batch = {
        "image": rng.integers(0, 256, (2, size, size, channels)).astype(np.uint8),
        "label": np.array([0, model_config.num_classes - 1], np.int32),
    }
    state = init(jax.random.key(0))
    before = jax.device_get(state.params)
    for _ in range(2):
        state, report = step(state, batch, jax.random.key(1))
        assert report.skipped_in_a_row == 0
    assert state.step == 2
    assert (state.ema is not None) == (config.ema_decay > 0)
    moved = jax.tree.map(
        lambda a, b: np.any(a != b), before, jax.device_get(state.params)
    )
    assert moved["head"]["kernel"]
    assert moved["patch_embed"]["projection"]["kernel"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed=-1 must be from 0 to"),
        ({"num_epochs": 0}, "num_epochs=0 must be positive"),
        ({"num_epochs": -3}, "num_epochs=-3 must be positive"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"batch_size": 12}, "batch_size=12 must be a multiple of 8 devices"),
        ({"accumulate_steps": 3}, "batch_size=32 .* times accumulate_steps=3"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be positive"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be positive"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"spectrum_lr_scale": -1.0}, "spectrum_lr_scale=-1.0 must not be negative"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be at least 0 and less"),
        ({"warmup_fraction": 1.0}, "warmup_fraction=1.0 must be at least 0 and less"),
        ({"eval_every_epochs": 0}, "eval_every_epochs=0 must be positive"),
        ({"augment__affine": 1.5}, "augment.affine=1.5 must be from 0 to 1"),
        ({"augment__mixup": -1.0}, "augment.mixup=-1.0 must not be negative"),
        ({"augment__cutmix": -1.0}, "augment.cutmix=-1.0 must not be negative"),
        ({"augment__erase": 1.1}, "augment.erase=1.1 must be from 0 to 1"),
        (
            {"augment__rand_augment": -1},
            "augment.rand_augment=-1 must be from 0 to",
        ),
        ({"augment__rand_augment": 10**8}, "augment.rand_augment=1.* must be from 0"),
        ({"model__depth": 10**8}, "model.depth=100000000 must be from 1 to 1000"),
        ({"augment__magnitude": 11.0}, "augment.magnitude=11.0 must be from 0 to 10"),
        ({"dataset__channels": 2}, "dataset.channels=2 must be 1 or 3"),
        ({"dataset__holdout": 1.0}, "dataset.holdout=1.0 must be at least 0 and less"),
        ({"dataset__min_crop_area": 0.0}, "min_crop_area=0.0 must be more than 0 and"),
        (
            {"dataset__eval_crop": 1.1},
            "eval_crop=1.1 must be more than 0 and at most 1",
        ),
        ({"dataset__num_threads": -1}, "num_threads=-1 must be from 0 to 1000"),
        ({"dataset__num_threads": 10**9}, "num_threads=1.* must be from 0 to 1000"),
        ({"dataset__num_workers": -1}, "num_workers=-1 must be from 0 to 1000"),
        ({"dataset__num_workers": 10**9}, "num_workers=1.* must be from 0 to 1000"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 must be at least 0 and less than 1"),
        (
            {"augment__cutmix": 1.0, "batch_size": 8},
            "augment.cutmix=1.0 pairs images: batch_size=8 must be",
        ),
        (
            {"augment__mixup": 0.5, "batch_size": 8},
            "pairs images: batch_size=8 must be",
        ),
        ({"augment__crop_padding": -1}, "augment.crop_padding=-1 must not be negative"),
        (
            {"augment__crop_padding": 8},
            "crop_padding=8 must be less than dataset.image",
        ),
        ({"model__num_heads": 3}, "model.num_heads=3 must divide model.width=16"),
        ({"model__patch_size": 3}, "model.patch_size=3 must divide dataset.image_size"),
        ({"model__attention": "svd"}, "model.attention=svd must be one of"),
        ({"model__pool": "max"}, "model.pool=max must be one of gap, avg, cls"),
        ({"model__spectrum_init": "big"}, "model.spectrum_init=big must be one of"),
        ({"model__dtype": "float16"}, "model.dtype=float16 must be one of"),
        ({"model__dropout": 1.0}, "model.dropout=1.0 must be at least 0 and less"),
        ({"model__drop_path": -0.1}, "model.drop_path=-0.1 must be at least 0 and"),
        ({"model__width": 0}, "model.width=0 must be from 1 to 100000"),
        ({"model__mlp_dim": 10**14}, "model.mlp_dim=1.* must be from 1 to 1000000"),
        ({"model__qk_dim": (10**9, 1)}, "model.qk_dim=.* positive integer, at most"),
        ({"dataset__image_size": 10**6}, "dataset.image_size=1.* must be from 1 to"),
        ({"model__num_heads": 0}, "model.num_heads=0 must be positive"),
        ({"dataset__num_classes": 0}, "dataset.num_classes=0 must be from 1 to"),
        ({"model__qk_dim": (4,)}, "model.qk_dim=.* for each layer of model.depth=2"),
        ({"model__qk_dim": (4, 0)}, "model.qk_dim=.* must be .* a positive integer"),
        ({"dataset__mean": (0.5, 1)}, "mean=.* for each of dataset.channels=1"),
        ({"dataset__std": (0.0,)}, "dataset.std=.* must be positive"),
        ({"log_every_steps": -1}, "log_every_steps=-1 must not be negative"),
        ({"pictures_every_epochs": -1}, "pictures_every_epochs=-1 must not be neg"),
    ],
)
def test_bad_value_names_key_rule_and_value(make_config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        validate(make_config(**changes), num_devices=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "2"}, "seed='2' must be an integer"),
        ({"seed": 2.0}, "seed=2.0 must be an integer"),
        ({"seed": None}, "seed=None must be an integer"),
        ({"seed": True}, "seed=True must be an integer"),
        ({"num_epochs": 10**15}, "num_epochs=10* must be an integer of at most 15 dig"),
        ({"model.qk_dim": (10**15,)}, r"model.qk_dim=\(10*,\) must be numbers"),
        ({"dataset.mean": (True,)}, r"dataset.mean=\(True,\) must be numbers"),
        ({"learning_rate": "1"}, "learning_rate='1' must be a number"),
        ({"learning_rate": True}, "learning_rate=True must be a number"),
        ({"learning_rate": 10**400}, "learning_rate=1000* must be a number"),
        ({"augment.flip": 1}, "augment.flip=1 must be True or False"),
        ({"dataset.name": 3}, "dataset.name=3 must be text"),
        ({"dataset.mean": 0.5}, "dataset.mean=0.5 must be numbers"),
        ({"dataset.mean": ["a"]}, r"dataset.mean=\('a',\) must be numbers"),
        ({"lr": 0.5}, "the config has no key lr; did you mean learning_rate?"),
        (
            {"augment.rand_aug": 2},
            "no key augment.rand_aug; did you mean augment.rand_augment?",
        ),
        ({"model": 3}, "the config has no key model; did you mean model."),
        ({"seed.x": 3}, "the config has no key seed.x; did you mean seed"),
    ],
)
def test_bad_type_or_key_is_named(changes, message):
    with pytest.raises(UserError, match=message) as error:
        check(flatten(recipe("digits")) | changes)
    assert "\n" not in str(error.value)


def test_a_config_is_completed_converted_and_locked():
    config = recipe("digits")
    config.learning_rate = 1
    config.dataset.mean = [0.5]
    config = check(config)
    assert type(config.learning_rate) is float
    assert config.dataset.mean == (0.5,)
    assert list(flatten(config)) == sorted(OPTIONS)
    assert config.is_locked


def test_the_defaults_keep_the_rules_and_lack_what_a_data_set_says():
    with pytest.raises(UserError, match=r"dataset.name is not set"):
        check(defaults())
    said = {"name": "x", "image_size": 8, "channels": 1, "num_classes": 2}
    config = defaults()
    config.dataset.update(said, mean=(0.5,), std=(0.5,))
    validate(config, num_devices=1)


def test_a_json_file_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(recipe("digits")), "utf-8-sig")
    assert load(file) == check(recipe("digits"))


def test_a_config_goes_through_json():
    config = load(CONFIGS[2])
    assert check(json.loads(to_json(config))) == config


def test_a_run_older_than_an_option_has_its_default():
    values = load(CONFIGS[2]).to_dict()
    del values["init_from"], values["augment"]["cutmix"]
    assert check(values) == load(CONFIGS[2])


def test_choices_and_fields_are_those_of_the_model():
    for key, names in (
        ("model.attention", ATTENTIONS),
        ("model.spectrum_init", SPECTRUM_STARTS),
        ("model.pool", POOLS),
        ("model.gelu", GELUS),
        ("model.dtype", DTYPES),
    ):
        assert OPTIONS[key].rule[0] == f"must be one of {', '.join(names)}"
        assert all(map(OPTIONS[key].rule[1], names))
    names = {key.removeprefix("model.") for key in OPTIONS if key.startswith("model.")}
    names |= {"image_size", "channels", "mean", "std", "num_classes"}
    assert {field.name for field in dataclasses.fields(ViTConfig)} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_says_differences_alone(path):
    """Every value that it sets is another than that of what it builds on."""
    function = ast.parse(path.read_text()).body[-1]
    _, start, *assignments, end = function.body
    assert isinstance(end, ast.Return)
    name = ast.unparse(start.value)
    base = flatten(eval(name, {"defaults": defaults, "recipe": recipe}))
    said = {
        ast.unparse(line.targets[0]).removeprefix("config."): line.value
        for line in assignments
    }
    assert len(said) == len(assignments)
    for key, value in said.items():
        assert base.get(key) != ast.literal_eval(value), key

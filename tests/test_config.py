"""The rules of a config, and that every config keeps them."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.config import validate
from svda_jax.devices import parallel
from svda_jax.main import load_config
from svda_jax.models.vit import ViT
from svda_jax.train.loop import create_training

CONFIGS = sorted(
    path
    for path in pathlib.Path(__file__).parent.parent.joinpath("configs").glob("*.py")
    if path.stem != "default"
)


# Parameters with SVDA, and of them those of sigma, which softmax attention has not.
NUM_PARAMETERS = {
    "cifar10": (2_698_954, 9 * 192),
    "cifar100": (2_716_324, 9 * 192),
    "digits": (136_266, 4 * 64),
    "fashion_mnist": (206_218, 6 * 64),
    "fashion_mnist_small": (139_146, 4 * 64),
    "food101": (21_708_389, 12 * 384),
    "imagenet100": (21_708_004, 12 * 384),
}


def test_every_config_is_counted():
    assert sorted(path.stem for path in CONFIGS) == sorted(NUM_PARAMETERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_its_number_of_parameters(path):
    config = load_config(path)
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


@pytest.mark.parametrize(
    "depth", [pytest.param(2, id=""), pytest.param(None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(path, depth, rng):
    """Two steps, with its augmentation, on data of its shape."""
    config = load_config(path)
    config.batch_size = 2
    config.model.depth = depth or config.model.depth
    mesh = parallel.create_mesh(jax.devices()[:1])
    model_config = validate(config, num_devices=1)
    _, init, step = create_training(config, model_config, num_steps=9, mesh=mesh)
    size, channels = model_config.image_size, model_config.channels
    batch = {
        "image": rng.integers(0, 256, (2, size, size, channels)).astype(np.uint8),
        "label": np.array([0, model_config.num_classes - 1], np.int32),
    }
    state = init(jax.random.key(0))
    before = jax.device_get(state.params)
    for _ in range(2):
        state, skipped = step(state, batch, jax.random.key(1))
        assert skipped == 0
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
        ({"augment__rand_augment": -1}, "augment.rand_augment=-1 must not be negative"),
        ({"augment__magnitude": 11.0}, "augment.magnitude=11.0 must be from 0 to 10"),
        ({"dataset__channels": 2}, "dataset.channels=2 must be 1 or 3"),
        ({"dataset__holdout": 1.0}, "dataset.holdout=1.0 must be at least 0 and less"),
        ({"dataset__min_crop_area": 0.0}, "min_crop_area=0.0 must be more than 0 and"),
        (
            {"dataset__eval_crop": 1.1},
            "eval_crop=1.1 must be more than 0 and at most 1",
        ),
        ({"dataset__num_threads": -1}, "num_threads=-1 must not be negative"),
        ({"dataset__num_workers": -1}, "num_workers=-1 must not be negative"),
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
    ],
)
def test_bad_value_names_key_rule_and_value(make_config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        validate(make_config(**changes), num_devices=8)
    assert "\n" not in str(error.value)

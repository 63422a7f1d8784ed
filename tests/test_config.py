"""The rules of a config, and that every config keeps them."""

import pathlib

import pytest

from svda_jax import UserError
from svda_jax.config import flatten, validate
from svda_jax.main import load_config

CONFIGS = sorted(
    path
    for path in pathlib.Path(__file__).parent.parent.joinpath("configs").glob("*.py")
    if path.stem != "default"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    config = load_config(path)
    model = validate(config, num_devices=1)
    assert model.num_classes == config.dataset.num_classes
    assert flatten(config)["model.width"] == model.width


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
        ({"dataset__eval_crop": 1.1}, "eval_crop=1.1 must be more than 0 and at most 1"),
        ({"dataset__num_threads": 0}, "dataset.num_threads=0 must be positive"),
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

"""What a config must satisfy, checked once, before anything compiles."""

import json
import math

from ml_collections import config_dict

from svda_jax import UserError
from svda_jax.models.vit import ViTConfig

_RULES = {
    "must be from 0 to 4294967295": (
        lambda value: 0 <= value < 2**32,
        ("seed",),
    ),
    "must be positive": (
        lambda value: 0 < value < math.inf,
        (
            "num_epochs",
            "batch_size",
            "accumulate_steps",
            "learning_rate",
            "clip_norm",
            "eval_every_epochs",
            "checkpoint.keep_last",
        ),
    ),
    "must not be negative": (
        lambda value: 0 <= value < math.inf,
        (
            "weight_decay",
            "spectrum_lr_scale",
            "orthonormality_weight",
            "max_skipped_in_a_row",
            "log_every_steps",
            "pictures_every_epochs",
            "checkpoint.every_epochs",
            "checkpoint.every_steps",
            "checkpoint.every_minutes",
            "checkpoint.keep_every_steps",
            "dataset.num_threads",
            "dataset.num_workers",
            "augment.crop_padding",
            "augment.rand_augment",
            "augment.mixup",
            "augment.cutmix",
            "indicators.noise_scale",
        ),
    ),
    "must be from 0 to 1": (
        lambda value: 0 <= value <= 1,
        ("augment.affine", "augment.erase"),
    ),
    "must be more than 0 and at most 1": (
        lambda value: 0 < value <= 1,
        ("dataset.min_crop_area", "dataset.eval_crop"),
    ),
    "must be 1 or 3": (
        lambda value: value in (1, 3),
        ("dataset.channels",),
    ),
    "must be from 0 to 10": (
        lambda value: 0 <= value <= 10,
        ("augment.magnitude",),
    ),
    "must be at least 0 and less than 1": (
        lambda value: 0 <= value < 1,
        ("label_smoothing", "warmup_fraction", "ema_decay", "dataset.holdout"),
    ),
}


def validate(config, *, num_devices):
    """Checks a config and returns the `ViTConfig` that it describes.

    Args:
      config: as from `configs/default.py`.
      num_devices: that a batch is split over.

    Raises:
      UserError: a value breaks a rule; the message names key, rule and value.
    """
    flat = flatten(config)
    for rule, (holds, keys) in _RULES.items():
        for key in keys:
            if not holds(flat[key]):
                raise UserError(f"{key}={flat[key]} {rule}")
    parts = num_devices * config.accumulate_steps
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size} must be a multiple of {num_devices} "
            f"devices times accumulate_steps={config.accumulate_steps}"
        )
    for name in ("mixup", "cutmix"):
        if config.augment[name] and (config.batch_size // parts) % 2:
            raise UserError(
                f"augment.{name}={config.augment[name]} pairs images: batch_size="
                f"{config.batch_size} must be a multiple of 2 x {parts}"
            )
    model = vit_config(config)
    if config.augment.crop_padding >= model.image_size:
        raise UserError(
            f"augment.crop_padding={config.augment.crop_padding} must be less than "
            f"dataset.image_size={model.image_size}"
        )
    return model


def vit_config(config):
    """The `ViTConfig` of a config: its model section and what the images are.

    Raises:
      UserError: a value breaks a rule of `ViTConfig`.
    """
    dataset = config.dataset
    return ViTConfig(
        image_size=dataset.image_size,
        channels=dataset.channels,
        mean=dataset.mean,
        std=dataset.std,
        num_classes=dataset.num_classes,
        **config.model,
    )


def to_json(config):
    """A config as JSON."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text):
    """The config that `to_json` wrote, locked; tuples, which it wrote as lists, again.

    Raises:
      ValueError: it is not JSON, or not a config.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no options")
    return config_dict.ConfigDict(_with_tuples(values)).lock()


def _with_tuples(values):
    if isinstance(values, dict):
        return {key: _with_tuples(value) for key, value in values.items()}
    return tuple(values) if isinstance(values, list) else values


def flatten(config):
    """A config as one dict from dotted keys to values.

    Raises:
      UserError: a required value is not set.
    """
    flat = {}
    for key in config:
        try:
            value = config[key]
        except config_dict.RequiredValueError:
            raise UserError(f"{key} is not set in the config file") from None
        if isinstance(value, config_dict.ConfigDict):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat

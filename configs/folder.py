"""Images of your own: size, model, schedule and augmentation by rule.

Data: n images to train on, of a folder that was imported by
    python -m svda_jax prepare NAME --from DIR
which measures their mean and standard deviation. They are evaluated on its validation
split, else on its test split, else on a fifth of the training split.
Rules, for a processor (and for an accelerator):
    images    as large as half of them are, up to 64 x 64 (224 x 224), in 8 x 8 patches
              (14 x 14)
    model     6 blocks of width 128, 0.8 M parameters (from 10,000 images on 9 blocks of
              width 192, 2.9 M; from 50,000 on 12 of width 384, 21.7 M)
    batch     n / 8, a power of two from 8 to 128 (512)
    epochs    those of 150,000 images a core (30 million), from 10 to 300
    augment   crops of a third of the area and more, mirrored if they have colour (grey
              ones are often digits, text or X-rays, where left is not right); from
              5,000 images on RandAugment, erasing, mixup and cutmix too
Colour does not say that left is right: for signs or text --config.augment.flip=False.
On another machine the same line may choose otherwise; --config=RUN/config.json goes on
as the run began.
Measured: ten photographs in 452 pieces, told apart by 231 others, 93.9 % after 20
epochs with 3 blocks (tests/test_folder.py; chance is 10 %).
Command: python -m svda_jax train --config=configs/folder.py:NAME
"""

import glob
import json
import os

from svda_jax import UserError, local_path
from svda_jax.config import defaults
from svda_jax.devices.memory import may_use_accelerator

# Where Linux shows a GPU of NVIDIA's, one of AMD's, and TPUs.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
_MODELS = {"width": (128, 192, 384), "depth": (6, 9, 12), "num_heads": (4, 12, 6)}


def get_config(name="", options=()):
    """What differs from the defaults, for the data set of that name.

    Args:
      name: of the data set.
      options: what the command line sets, by key.

    Raises:
      UserError: there is no such data set, or it was not imported from a folder.
    """
    if not name:
        raise UserError(
            "which images? --config=configs/folder.py:NAME, after python -m svda_jax "
            "prepare NAME --from DIR"
        )
    options = dict(options)
    data_dir = options.get("dataset.data_dir", "")
    data = _read_measured(name, data_dir)
    splits = data["splits"]
    num_images = splits["train"]
    config = defaults()
    config.dataset.name = name
    config.dataset.data_dir = data_dir
    evaluated = [split for split in ("validation", "test") if split in splits]
    if evaluated:
        config.dataset.eval_split = evaluated[0]
    else:
        config.dataset.holdout = 0.2 if num_images > 2 else 0.5
        num_images -= round(config.dataset.holdout * num_images)
    quick = _has_accelerator()
    cores = os.cpu_count()

    grid, largest = (14, 16) if quick else (8, 8)
    patch = min(max(data["side"] // grid, 1), largest)
    config.model.patch_size = patch
    config.dataset.image_size = grid * patch
    config.dataset.streaming = True
    config.dataset.channels = len(data["mean"])
    config.dataset.num_classes = data["num_classes"]
    config.dataset.mean = tuple(data["mean"])
    config.dataset.std = tuple(data["std"])

    size = quick * ((num_images >= 10_000) + (num_images >= 50_000))
    for key, values in _MODELS.items():
        config.model[key] = values[size]
    config.model.mlp_dim = (256, 384, 1536)[size]
    config.model.drop_path = 0.1
    config.model.dtype = "bfloat16" if size == 2 else "float32"
    if size == 2:
        config.learning_rate = 5e-4

    batch = max(num_images // 8, min(num_images, 8))
    config.batch_size = 2 ** min(batch.bit_length() - 1, 9 if quick else 7)
    budget = 30_000_000 if quick else 150_000 * cores
    config.num_epochs = min(max(budget // num_images, 10), 300)
    config.eval_every_epochs = config.checkpoint.every_epochs = max(
        int(options.get("num_epochs", config.num_epochs)) // 20, 1
    )

    config.dataset.min_crop_area = 0.35
    config.augment.flip = config.dataset.channels == 3
    if num_images >= 5_000:
        config.augment.rand_augment = 2
        config.augment.erase = 0.25
        config.augment.mixup = 0.8
        config.augment.cutmix = 1.0
    mirrored = ", mirrored (--config.augment.flip=False where left is not right)"
    machine = "an accelerator" if quick else f"{cores} processor cores"
    applies = {
        "batch_size": config.batch_size,
        "num_epochs": config.num_epochs,
        "augment.flip": config.augment.flip,
    } | options
    config.note = (
        f"for {num_images:,} images, half of them {data['side']} pixels and more, and "
        f"{machine}: batches of {applies['batch_size']}, "
        f"{applies['num_epochs']:g} epochs, "
        f"{'strong' if config.augment.mixup else 'light'} augmentation"
        f"{mirrored * applies['augment.flip']}; options of the command line go before"
    )
    return config


def _read_measured(name, data_dir):
    """What `data.image_folder` wrote beside the images it imported."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path = local_path(root) / name / "1.0.0" / "images.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}; python -m svda_jax prepare {name} --from DIR writes "
            "it, and --config.dataset.data_dir says where else a data set lies"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _has_accelerator():
    """Whether there is one and JAX has its plugin, without starting JAX."""
    return may_use_accelerator() and any(map(glob.glob, _ACCELERATORS))

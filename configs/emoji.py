"""Emoji of unseen vendors at 64 x 64, in patches of 8 x 8, for a processor core.

Model: 0.8 M parameters, 6 blocks of width 128 with 4 heads.
Recipe: that of configs/cifar10.py, its crops by area as images stream.
Data: 10,841 drawings of six vendors to train on, 1,588 of a seventh to evaluate.
    python -m experiments.emoji --out DIR
    python -m svda_jax prepare emoji --from DIR
Counts, licences and near-duplicates: experiments/results/emoji/data.md. Options are
chosen with --config.dataset.train_split=train --config.dataset.eval_split=validation,
never on the test split.
Cost: 1.1 million images; three to four hours of one core, estimated from the first
seven epochs.
Measured: not yet run.
Command: python -m svda_jax.main --config=configs/emoji.py
"""

from svda_jax.config import recipe


def get_config():
    """What differs from `configs/cifar10.py`."""
    config = recipe("cifar10")
    config.num_epochs = 100
    config.model.patch_size = 8
    config.model.width = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 256
    config.dataset.name = "emoji"
    config.dataset.train_split = "train+validation"
    config.dataset.image_size = 64
    config.dataset.num_classes = 94
    config.dataset.mean = (0.8191, 0.7836, 0.7268)
    config.dataset.std = (0.2833, 0.2651, 0.3301)
    config.dataset.streaming = True
    config.dataset.min_crop_area = 0.35
    config.dataset.eval_crop = 1.0
    config.augment.crop_padding = 0
    return config

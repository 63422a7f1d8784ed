"""CIFAR-10: a Vision Transformer from scratch, patches of 4 x 4.

Model: 2.7 M parameters, 9 blocks of width 192 with 12 heads.
Recipe: augmentation and regularisation of Hassani et al. 2021 (arXiv 2104.05704), with
RandAugment for AutoAugment, a longer schedule and a moving average of the parameters.
Data: 50,000 images to train on, 10,000 to evaluate (download 163 MB).
Measured: not yet run. Published for plain ViTs from scratch: 91.4 % with 3.7 M
parameters after 200 epochs, 93.6 % with a model of this size, best epoch on test.
Command: python -m svda_jax.main --config=configs/cifar10.py
"""

from svda_jax.config import defaults


def get_config():
    """What differs from the defaults."""
    config = defaults()
    config.num_epochs = 300
    config.eval_every_epochs = 5
    config.checkpoint.every_epochs = 5
    config.ema_decay = 0.999
    config.model.drop_path = 0.1
    config.dataset.name = "cifar10"
    config.dataset.image_size = 32
    config.dataset.channels = 3
    config.dataset.num_classes = 10
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment.crop_padding = 4
    config.augment.flip = True
    config.augment.rand_augment = 2
    config.augment.erase = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config

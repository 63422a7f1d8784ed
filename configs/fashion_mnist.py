"""FashionMNIST: a small Vision Transformer from scratch.

Model: 206,218 parameters with SVDA, 205,834 with softmax attention.
Data: 60,000 images to train on, 10,000 to evaluate.
Measured: not yet run; configs/fashion_mnist_small.py is this recipe scaled down. A
published plain ViT of this size reaches 92.3 %.
Command: python -m svda_jax.main --config=configs/fashion_mnist.py
"""

from svda_jax.config import defaults


def get_config():
    """What differs from the defaults."""
    config = defaults()
    config.learning_rate = 2e-3
    config.ema_decay = 0.999
    config.model.width = 64
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.model.drop_path = 0.1
    config.dataset.name = "fashion_mnist"
    config.dataset.image_size = 28
    config.dataset.channels = 1
    config.dataset.num_classes = 10
    config.dataset.mean = (0.2860,)
    config.dataset.std = (0.3530,)
    config.augment.crop_padding = 2
    config.augment.flip = True
    config.augment.erase = 0.25
    return config

"""CIFAR-100: the model and recipe of configs/cifar10.py.

Model: 2.7 M parameters.
Data: 50,000 images to train on, 10,000 to evaluate (download 161 MB).
Measured: not yet run. Published for plain ViTs from scratch: 69.8 % with 3.7 M
parameters after 200 epochs, 73.8 % with a model of this size, best epoch on test.
Command: python -m svda_jax.main --config=configs/cifar100.py
"""

from svda_jax.config import recipe


def get_config():
    """What differs from `configs/cifar10.py`."""
    config = recipe("cifar10")
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 100
    config.dataset.mean = (0.5071, 0.4865, 0.4409)
    config.dataset.std = (0.2673, 0.2564, 0.2762)
    return config

"""Food-101: the model and recipe of configs/imagenet100.py.

Model: 21.7 M parameters, ViT-S/16 at 224 x 224.
Data: 75,750 images to train on, 25,250 to evaluate (download 5.0 GB), or from a file:
    python -m svda_jax prepare food101 --from food-101.tar.gz
Measured: not yet run; a run needs an accelerator.
Command: python -m svda_jax.main --config=configs/food101.py
"""

from svda_jax.config import recipe


def get_config():
    """What differs from `configs/imagenet100.py`."""
    config = recipe("imagenet100")
    config.dataset.name = "food101"
    config.dataset.num_classes = 101
    return config

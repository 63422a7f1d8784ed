"""A folder of images of one's own, scaled to 64 x 64: a small ViT for a start.

Model: 829,058 parameters with SVDA, for two classes.
Data: python -m svda_jax prepare NAME --from DIR, which prints the command with the
data set's name, its classes and a batch that fits; so name and num_classes here only
stand for them.
Measured: not, it is for data of any kind.
Command: python -m svda_jax.main --config=configs/image_folder.py \\
    --config.dataset.name=NAME --config.dataset.num_classes=N
"""

from svda_jax.config import defaults


def get_config():
    """What differs from the defaults."""
    config = defaults()
    config.batch_size = 64
    config.model.patch_size = 8
    config.model.width = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 256
    config.model.drop_path = 0.1
    config.dataset.name = "my_images"
    config.dataset.image_size = 64
    config.dataset.channels = 3
    config.dataset.num_classes = 2
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.dataset.streaming = True
    config.dataset.min_crop_area = 0.35
    config.augment.flip = True
    return config

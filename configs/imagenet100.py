"""ImageNet-100, and any other folder of images: ViT-S/16 at 224 x 224, from scratch.

Model: 21.7 M parameters.
Recipe: DeiT's (Touvron et al. 2021, arXiv 2012.12877) without repeated augmentation.
Data: about 126,000 images to train on, 5,000 to evaluate. Either a folder of images, or
one with ImageNet's archives and a file with the WordNet ids of the classes, one a line
(there are several such lists, so none comes with this program):
    python -m svda_jax prepare imagenet100 --from DIR
    python -m svda_jax prepare imagenet100 --from DIR --class_list FILE
or, where all of ImageNet is prepared as imagenet2012,
    --config.dataset.name=imagenet2012 --config.dataset.class_list=FILE
Measured: not yet run; a run needs an accelerator. No published figure that is sure.
Command: python -m svda_jax.main --config=configs/imagenet100.py
"""

from svda_jax.config import defaults


def get_config():
    """What differs from the defaults."""
    config = defaults()
    config.num_epochs = 300
    config.batch_size = 512
    config.learning_rate = 5e-4
    config.eval_every_epochs = 5
    config.checkpoint.every_epochs = 5
    config.ema_decay = 0.9999
    config.model.patch_size = 16
    config.model.width = 384
    config.model.depth = 12
    config.model.num_heads = 6
    config.model.mlp_dim = 1536
    config.model.drop_path = 0.1
    config.model.dtype = "bfloat16"
    config.dataset.name = "imagenet100"
    config.dataset.eval_split = "validation"
    config.dataset.image_size = 224
    config.dataset.channels = 3
    config.dataset.num_classes = 100
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.dataset.streaming = True
    config.augment.flip = True
    config.augment.rand_augment = 2
    config.augment.erase = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    return config

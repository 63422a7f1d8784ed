from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 20
    config.model.patch_size = 4
    config.model.width = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.mlp_dim = 256
    config.dataset.name = "fashion_mnist"
    config.dataset.image_size = 28
    config.dataset.channels = 1
    config.dataset.num_classes = 10
    config.dataset.mean = (0.286,)
    config.dataset.std = (0.353,)
    config.augment.flip = True
    return config

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 200
    config.batch_size = 64
    config.learning_rate = 2e-3
    config.warmup_fraction = 0.05
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 25
    config.model.patch_size = 2
    config.model.width = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.model.dropout = 0.1
    config.model.drop_path = 0.1
    config.dataset.name = "digits"
    config.dataset.image_size = 8
    config.dataset.channels = 1
    config.dataset.num_classes = 10
    config.dataset.mean = (0.3054,)
    config.dataset.std = (0.3753,)
    config.augment.crop_padding = 1
    return config

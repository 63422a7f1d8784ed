"""Every option, once. `configs/<data set>.py` says what differs."""

from ml_collections import config_dict


def get_config():
    """The options and their defaults; what a data set must say itself has none."""
    config = config_dict.ConfigDict()

    # Folder of a run whose parameters training starts from; "" starts anew.
    config.init_from = ""
    # Of all that is random: first parameters, order of examples, augmentation, dropout.
    config.seed = 0
    # Passes over the training split.
    config.num_epochs = 100
    # Images an update, over all devices together.
    config.batch_size = 128
    # Parts an update's batch is worked through in, to save memory.
    config.accumulate_steps = 1

    # Peak learning rate of AdamW, reached linearly in that fraction of the run and left
    # along a cosine to 0.
    config.learning_rate = 1e-3
    config.warmup_fraction = 0.05
    # Times the learning rate, on matrices alone.
    config.weight_decay = 0.05
    # Longest gradient (global L2 norm) let through unscaled.
    config.clip_norm = 1.0
    # Probability moved from the true class to all classes alike.
    config.label_smoothing = 0.1
    # Decay of the moving average of the parameters, which is then what is evaluated;
    # 0 keeps none.
    config.ema_decay = 0.0
    # What the learning rate of sigma is multiplied by; 0 keeps sigma at its start.
    config.spectrum_lr_scale = 30.0
    # Weight in the loss of the penalty on non-orthogonal query and key directions.
    config.orthonormality_weight = 0.0

    # Steps in a row whose loss or gradient is not finite and which are skipped; one
    # more ends the run.
    config.max_skipped_in_a_row = 10

    # Epochs from one evaluation to the next; one also comes at the end of the run.
    config.eval_every_epochs = 1

    # Steps from one entry of the training step (loss, gradient norm, learning rate,
    # images/s) in TensorBoard to the next; 0 is never.
    config.log_every_steps = 50
    # Epochs from one set of pictures in TensorBoard to the next, 0 is never; one also
    # comes at the end of the run.
    config.pictures_every_epochs = 0

    # Whether compiled programs are kept in ~/.cache/svda_jax, for a quicker next start.
    config.compile_cache = True
    # Whether a profile of ten steps is written into the run's folder, for xprof.
    config.profile = False

    config.checkpoint = checkpoint = config_dict.ConfigDict()
    # Epochs, steps and minutes from one checkpoint to the next, 0 is never; one also
    # comes at the end of the run, and when SIGTERM or Ctrl-C asks to stop.
    checkpoint.every_epochs = 1
    checkpoint.every_steps = 0
    checkpoint.every_minutes = 0.0
    # Newest checkpoints kept; those at a multiple of so many steps are kept too, 0 is
    # none.
    checkpoint.keep_last = 2
    checkpoint.keep_every_steps = 0

    config.model = model = config_dict.ConfigDict()
    # "svda" or "softmax".
    model.attention = "svda"
    # Start of sigma: "matched" (K, the per-head width: logits start as those of softmax
    # attention do), "sqrt" (sqrt K) or "ones" (1).
    model.spectrum_init = "matched"
    model.patch_size = 4
    model.width = 192
    model.depth = 9
    model.num_heads = 12
    # Directions of a head's queries and keys, layer by layer, as in (12, 8, 9); () is
    # width / num_heads in all. A pruned model has fewer.
    model.qk_dim = ()
    model.mlp_dim = 384
    # "gap", the mean over tokens, or "cls", a class token.
    model.pool = "gap"
    model.dropout = 0.0
    # Rate at which an image skips the last block; it grows from 0 at the first.
    model.drop_path = 0.0
    # Of the activations: "float32" or "bfloat16".
    model.dtype = "float32"

    config.dataset = dataset = config_dict.ConfigDict()
    # As TFDS knows it.
    dataset.name = config_dict.required_placeholder(str)
    # Where TFDS keeps data sets; "" is its default, ~/tensorflow_datasets.
    dataset.data_dir = ""
    # In TFDS's notation, such as "train[:50%]".
    dataset.train_split = "train"
    dataset.eval_split = "test"
    # Fraction of the training split, its end, that is evaluated in place of eval_split
    # and not trained on: options are chosen with it, never on the test split.
    dataset.holdout = 0.0
    # File of the classes to use, one a line, in the order of their labels; "" uses all.
    dataset.class_list = ""
    # Whether images that cannot be decoded are left out, and said, or stop the run.
    dataset.skip_corrupt = False
    # Side of the square that the model sees; of its channels, mean and standard
    # deviation as fractions of full scale.
    dataset.image_size = config_dict.required_placeholder(int)
    # 1 for grey, 3 for RGB; images of the other kind are converted.
    dataset.channels = config_dict.required_placeholder(int)
    dataset.num_classes = config_dict.required_placeholder(int)
    dataset.mean = config_dict.required_placeholder(tuple)
    dataset.std = config_dict.required_placeholder(tuple)
    # False puts all images on the device, True decodes each when its turn comes. The
    # rest is read when streaming: threads that a process decodes in (0: one a processor
    # core) and worker processes (0: in the training process); the least area of the
    # random box an image is trained on; the side of the centre it is evaluated on, over
    # its shorter side.
    dataset.streaming = False
    dataset.num_threads = 0
    dataset.num_workers = 0
    dataset.min_crop_area = 0.08
    dataset.eval_crop = 0.875

    config.indicators = indicators = config_dict.ConfigDict()
    # Noise on queries and keys for the perturbation robustness, in units of each one's
    # root mean square.
    indicators.noise_scale = 0.1

    config.augment = augment = config_dict.ConfigDict()
    # Probability of a small random affine map: turned up to 10 degrees, slanted up to
    # 0.2, zoomed by up to 10 %.
    augment.affine = 0.0
    # Pixels an image is shifted by at most, each way; 0 is off.
    augment.crop_padding = 0
    # Whether images are mirrored left to right, half of the time.
    augment.flip = False
    # Operations of RandAugment an image, and their magnitude, from 0 to 10.
    augment.rand_augment = 0
    augment.magnitude = 9.0
    # Probability that a box of an image is filled with noise.
    augment.erase = 0.0
    # Alphas of mixup, which blends neighbours of a batch and their labels, and of
    # cutmix, which swaps a box between them; 0 is off. With both, each pair meets one.
    augment.mixup = 0.0
    augment.cutmix = 0.0
    return config

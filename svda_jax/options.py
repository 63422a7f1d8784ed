"""Every option: its default, its rule and its comment.

Nothing slow is imported here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option.

    Attributes:
      default: a type alone is that of an option that every data set must say itself. A
        config without the key, such as that of an older run, has the default.
      rule: what a value must be, in words and as a function; None: all are right.
    """

    default: Any
    rule: tuple[str, Callable] | None
    comment: str


def _one_of(*names):
    return f"must be one of {', '.join(names)}", lambda value: value in names


def _between(least, most):
    return f"must be from {least} to {most}", lambda value: least <= value <= most


# fmt: off
_POSITIVE = "must be positive", lambda v: 0 < v < math.inf
_NOT_NEGATIVE = "must not be negative", lambda v: 0 <= v < math.inf
_FRACTION = _between(0, 1)
_ABOVE_0 = "must be more than 0 and at most 1", lambda v: 0 < v <= 1
_BELOW_1 = "must be at least 0 and less than 1", lambda v: 0 <= v < 1
_FINITE = "must be finite numbers", lambda v: all(abs(x) < math.inf for x in v)
_SCALES = "must be positive", lambda v: all(0 < x < math.inf for x in v)
_COUNTS = ("must be () or a positive integer, at most 100000, for each layer",
           lambda v: all(type(x) is int and 0 < x <= 10**5 for x in v))

OPTIONS = {
    "note": Option("", None,
        "Said before training, as by a recipe that chooses by rule; changes nothing."),
    "init_from": Option("", None,
        'What training starts from: a run, a .npz or .safetensors file, a folder with '
        'the latter, or "".'),
    "seed": Option(0, _between(0, 2**32 - 1),
        "Seed of all that is random: parameters, order, augmentation, dropout."),
    "num_epochs": Option(100, _POSITIVE, "Passes over the training split."),
    "batch_size": Option(128, _POSITIVE, "Images an update, over all devices."),
    "accumulate_steps": Option(1, _POSITIVE, "Parts of a batch, to save memory."),
    "learning_rate": Option(1e-3, _POSITIVE,
        "Peak learning rate of AdamW, reached linearly and left along a cosine to 0."),
    "warmup_fraction": Option(0.05, _BELOW_1, "Part of the run in which it rises."),
    "weight_decay": Option(0.05, _NOT_NEGATIVE,
        "Weight decay, times the learning rate, of matrices alone."),
    "spectrum_weight_decay": Option(0.0, _NOT_NEGATIVE, "That of sigma, likewise."),
    "clip_norm": Option(1.0, _POSITIVE, "Largest L2 norm of a gradient let through."),
    "label_smoothing": Option(0.1, _BELOW_1, "Probability moved to all classes alike."),
    "ema_decay": Option(0.0, _BELOW_1,
        "Decay of the moving average of the parameters that is evaluated; 0: none."),
    "spectrum_lr_scale": Option(30.0, _NOT_NEGATIVE,
        "Multiplier of the learning rate of sigma; 0 keeps sigma at its start."),
    "orthonormality_weight": Option(0.0, _NOT_NEGATIVE,
        "Weight of the penalty on non-orthogonal query and key directions."),
    "score_entropy_weight": Option(0.0, _NOT_NEGATIVE,
        "Weight of the penalty on the entropy of the score's spectrum, by weights."),
    "max_skipped_in_a_row": Option(10, _NOT_NEGATIVE,
        "Steps in a row with a loss or gradient not finite; one more ends the run."),
    "eval_every_epochs": Option(1, _POSITIVE,
        "Epochs between evaluations; one also comes at the end of the run."),
    "pictures_every_epochs": Option(0, _NOT_NEGATIVE,
        "Epochs between pictures of attention in TensorBoard; 0: at the end alone."),
    "log_every_steps": Option(50, _NOT_NEGATIVE,
        "Steps between loss, rate, gradient norm, images/s in TensorBoard; 0: never."),
    "tracker": Option("",
        ('must be "", wandb or mlflow', lambda value: value in ("", "wandb", "mlflow")),
        "Where metrics and pictures go too: Weights & Biases or MLflow."),
    "fsdp": Option(False, None, "Whether devices share out parameters and optimizer."),
    "compile_cache": Option(True, None,
        "Whether ~/.cache/svda_jax keeps compiled programs, for a quicker next start."),
    "profile": Option(False, None, "Whether ten steps are profiled, for xprof."),
    "checkpoint.every_epochs": Option(1, _NOT_NEGATIVE,
        "Epochs between checkpoints; 0: never. One also comes at the end and a stop."),
    "checkpoint.every_steps": Option(0, _NOT_NEGATIVE, "Steps between them; 0: never."),
    "checkpoint.every_minutes": Option(0.0, _NOT_NEGATIVE, "Minutes; 0: never."),
    "checkpoint.keep_last": Option(2, _POSITIVE, "Newest checkpoints that are kept."),
    "checkpoint.keep_every_steps": Option(0, _NOT_NEGATIVE,
        "Steps of which checkpoints at a multiple are kept too, 0 is none."),
    "model.attention": Option("svda", _one_of("svda", "softmax"), "Attention."),
    "model.spectrum_init": Option("matched", _one_of("matched", "sqrt", "ones"),
        'Start of sigma: "matched" (K, the per-head width: logits start as those of '
        'softmax attention do), "sqrt" (sqrt K) or "ones" (1).'),
    "model.patch_size": Option(4, _POSITIVE, "Side of a patch, in pixels."),
    "model.width": Option(192, _between(1, 10**5), "Width of the tokens."),
    "model.depth": Option(9, _between(1, 1000), "Number of blocks."),
    "model.num_heads": Option(12, _POSITIVE, "Heads of each attention."),
    "model.qk_dim": Option((), _COUNTS,
        "Directions of a head's queries and keys, layer by layer, as in (12, 8, 9); () "
        "is width / num_heads in all. A pruned model has fewer."),
    "model.mlp_dim": Option(384, _between(1, 10**6), "Hidden width of the MLPs."),
    "model.gelu": Option("tanh", _one_of("tanh", "erf"),
        "GELU of the MLPs by tanh, as in Flax, or by erf, as in PyTorch."),
    "model.pool": Option("gap", _one_of("gap", "avg", "cls"),
        'What the head is given: "gap", the mean of the normalised tokens, "avg", the '
        'normalised mean of tokens, or "cls", a class token.'),
    "model.dropout": Option(0.0, _BELOW_1,
        "Dropout rate on the embeddings and on what each residual branch adds."),
    "model.drop_path": Option(0.0, _BELOW_1,
        "Rate at which an image skips the last block; it grows from 0 at the first."),
    "model.dtype": Option("float32", _one_of("float32", "bfloat16"), "Of activations."),
    "model.scan": Option(False, None, "Whether blocks are a loop, compiled once."),
    "model.remat": Option("none",
        _one_of("none", "dots_with_no_batch_dims_saveable", "nothing_saveable"),
        "What of a block is computed again for gradients, which saves memory and costs "
        "time: nothing, or all but what a policy of jax.checkpoint_policies keeps."),
    "dataset.name": Option(str, None, "Name of the data set, as TFDS knows it."),
    "dataset.data_dir": Option("", None,
        'Folder where TFDS keeps data sets; "" is its default, ~/tensorflow_datasets.'),
    "dataset.train_split": Option("train", None,
        'Split to train on, in TFDS\'s notation, such as "train[:50%]".'),
    "dataset.eval_split": Option("test", None, "Split to evaluate, likewise."),
    "dataset.holdout": Option(0.0, _BELOW_1,
        "Fraction of the training split, its end, evaluated in place of eval_split and "
        "not trained on: options are chosen with it, never on the test split."),
    "dataset.class_list": Option("", None,
        'File of the classes to use, one a line, in the order of labels; "": all.'),
    "dataset.skip_corrupt": Option(False, None,
        "Whether images that cannot be decoded are left out, or stop the run."),
    "dataset.image_size": Option(int, _between(1, 10**5),
        "Side of the square images, pixels."),
    "dataset.channels": Option(int, ("must be 1 or 3", lambda v: v in (1, 3)),
        "1 for grey, 3 for RGB; images of the other kind are converted."),
    "dataset.num_classes": Option(int, _between(1, 10**7), "Number of classes."),
    "dataset.mean": Option(tuple, _FINITE, "Mean of each channel; full scale is 1."),
    "dataset.std": Option(tuple, _SCALES, "Standard deviation of each, likewise."),
    "dataset.streaming": Option(False, None,
        "Whether each image is decoded when its turn comes, or all lie on the device. "
        "The rest of this section is read when streaming."),
    "dataset.num_threads": Option(0, _between(0, 1000),
        "Threads that a process decodes in; 0 is one a processor core."),
    "dataset.num_workers": Option(0, _between(0, 1000),
        "Worker processes; 0 decodes in the training process."),
    "dataset.min_crop_area": Option(0.08, _ABOVE_0,
        "Least area of the random box an image is trained on, as a fraction."),
    "dataset.eval_crop": Option(0.875, _ABOVE_0,
        "Side of the centre an image is evaluated on, over its shorter side."),
    "indicators.noise_scale": Option(0.1, _NOT_NEGATIVE,
        "Noise on queries and keys for the robustness, over their root mean square."),
    "augment.affine": Option(0.0, _FRACTION,
        "Probability of an affine map of at most 10 degrees, slant 0.2 and zoom 10 %."),
    "augment.crop_padding": Option(0, _NOT_NEGATIVE,
        "Pixels an image is shifted by at most, each way; 0 is off."),
    "augment.flip": Option(False, None, "Whether half of all images are mirrored."),
    "augment.rand_augment": Option(0, _between(0, 100), "Operations of RandAugment."),
    "augment.magnitude": Option(9.0, _between(0, 10),
        "Magnitude of RandAugment's operations, from 0 to 10."),
    "augment.erase": Option(0.0, _FRACTION, "Probability of a box full of noise."),
    "augment.mixup": Option(0.0, _NOT_NEGATIVE,
        "Alpha of mixup, which blends neighbours of a batch and their labels; 0: off."),
    "augment.cutmix": Option(0.0, _NOT_NEGATIVE,
        "Alpha of cutmix, which swaps a box; 0: off. With both, each pair meets one."),
}
KINDS = {int: "must be an integer of at most 15 digits", bool: "must be True or False",
         str: "must be text", float: "must be a number",
         tuple: "must be numbers in brackets, as in (8, 8) or (0.5,)"}
# fmt: on
TYPES = {
    key: option.default if isinstance(option.default, type) else type(option.default)
    for key, option in OPTIONS.items()
}
PATHS = ("init_from", "dataset.data_dir", "dataset.class_list")
IN_BUCKETS = PATHS[:2]  # may be there
REQUIRED = {key for key, option in OPTIONS.items() if option.default is TYPES[key]}

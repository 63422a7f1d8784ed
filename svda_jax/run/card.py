"""What an exported model says of itself, to programs and to people."""

import importlib.metadata
import math
import platform

import jinja2

import svda_jax
from svda_jax.config import check
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.options import PATHS
from svda_jax.run.predict import eval_crop

_PACKAGES = ("jax", "flax", "numpy")


def summarize(run, name):
    """What programs that take the model want to know of it, as JSON has it.

    Args:
      run: a `runs.Run`.
      name: of its folder.

    Returns:
      A dict of "name", "step", "classes" (names by label), "preprocessing",
      "evaluation" (at that step, fraction and nats; {} where there was none), "config"
      (without paths, which say nothing elsewhere) and "versions".
    """
    dataset, history = run.config.dataset, run.history
    held_out = f"{dataset.train_split}, its last {100 * dataset.holdout:g} %"
    evaluation = {}
    if run.step in history.step:
        last = history.sel(step=run.step)
        evaluation = {
            "data_set": dataset.name,
            "split": held_out if dataset.holdout else dataset.eval_split,
            "epoch": round(float(last["epoch"]), 2),
            "accuracy": round(float(last["eval_accuracy"]), 6),
            "cross_entropy": round(float(last["eval_loss"]), 6),
        }
    config = check(run.config).to_dict()
    for path in PATHS:
        section, _, option = path.rpartition(".")
        (config[section] if section else config)[option] = ""
    return {
        "name": name,
        "step": run.step,
        "classes": list(run.names),
        "preprocessing": {
            "image_size": dataset.image_size,
            "channels": dataset.channels,
            "crop_fraction": eval_crop(dataset),
            "interpolation": "bilinear",
            "layout": "NHWC",
            "dtype": "uint8",
            "normalisation": "in the model",
            "mean": list(dataset.mean),
            "std": list(dataset.std),
        },
        "evaluation": evaluation,
        "config": config,
        "versions": {
            "python": platform.python_version(),
            "svda_jax": svda_jax.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def timm_config(summary, config):
    """What timm's config.json says of a softmax model, as its hub has it.

    Args:
      summary: from `summarize`.
      config: the `ViTConfig`.
    """
    inputs, classes = summary["preprocessing"], summary["classes"]
    pool = "token" if config.pool == "cls" else "avg"
    ratio = config.mlp_dim / config.width
    if int(config.width * ratio) < config.mlp_dim:  # which is how timm reads it
        ratio = math.nextafter(ratio, math.inf)
    return {
        "architecture": "vit_tiny_patch16_224",  # but for all that follows
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": pool,
        "label_names": classes,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "in_chans": config.channels,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": ratio,
            "act_layer": "gelu_tanh" if config.gelu == "tanh" else "gelu",
            "class_token": config.pool == "cls",
            "global_pool": pool,
            "fc_norm": config.pool == "avg",
        },
        "pretrained_cfg": {
            "input_size": [config.channels, config.image_size, config.image_size],
            "fixed_input_size": True,
            "num_classes": config.num_classes,
            "crop_pct": inputs["crop_fraction"],
            "crop_mode": "center",
            "interpolation": inputs["interpolation"],
            "mean": inputs["mean"],
            "std": inputs["std"],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def write_card(summary, model, kind, *, attention=False):
    """The model card, in Markdown, with the lines that load the file.

    Args:
      summary: from `summarize`.
      model: the `ViT`.
      kind: of the file: "stablehlo", "onnx", or whose names its parameters have.
      attention: whether it gives attention too.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svda_jax.run", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        summary,
        model=model.config,
        parameters=count_parameters(model),
        macs=count_macs(model.config),
        kind=kind,
        attention=attention,
    )

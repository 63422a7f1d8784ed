"""The parameters that a run starts from: those of another run, or of a file."""

import dataclasses
import math
import shlex

import jax
import numpy as np
from flax import nnx

from svda_jax import UserError
from svda_jax.models.attention import SPECTRUM_STARTS
from svda_jax.models.vit import abstract_params
from svda_jax.models.weights.files import holds_weights
from svda_jax.models.weights.fold import renormalize
from svda_jax.models.weights.read import read
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.mirror import reading

# What a model must have in common with the one that it starts from.
_SAME = (
    *("model.attention", "model.width", "model.depth", "model.num_heads"),
    *("model.mlp_dim", "model.patch_size", "model.pool", "model.gelu"),
    *("model.qk_dim", "dataset.channels"),
)


def load_start(config, model_config, workdir):
    """The parameters that a run starts from, if it begins and is to have other ones.

    The head is a fresh one, of zeros, for another number of classes. Position
    embeddings are resampled for another grid. Normalisation of images by another mean
    or std becomes part of the patch embedding, exactly.

    Args:
      config: of the run.
      model_config: its `ViTConfig`.
      workdir: of the run.

    Returns:
      Parameters as nested dicts, and lines that say what of them is not as it was; None
      and none where `init_from` is "" or the run has a checkpoint of its own.

    Raises:
      UserError: there is nothing to start from, or its model is another.
    """
    if not config.init_from:
        return None, []
    with Checkpoints(runs.checkpoints_path(workdir)) as checkpoints:
        if checkpoints.steps():
            return None, []
    try:
        with reading(config.init_from) as path:
            params, says = _read(path, model_config)
    except UserError as error:
        raise UserError(f"init_from={config.init_from}: {error}") from None
    lines = _fit(params, says, model_config)
    return params, [f"{config.init_from}: {line}" for line in lines]


def _read(path, config):
    """Parameters, and what is said of their model by the names of `ViTConfig`."""
    is_run = runs.checkpoints_path(path).exists()  # which may hold an exported file
    if holds_weights(path) and not is_run:
        weights = read(path)
        _check(weights.says, config)
        return weights.params(config.num_heads), weights.says
    _, model, _ = runs.load_model(path)
    says = dataclasses.asdict(model.config)
    _check(says, config)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), says


def _check(says, config):
    """Refuses a model that is another in more than head, grid and normalisation."""
    differ = {}
    for key in _SAME:
        name = key.partition(".")[2]
        found, wanted = (_value(values, name) for values in (says, vars(config)))
        if name in says and found != wanted:
            differ[key] = found, wanted
    if not differ:
        return
    key, (found, wanted) = next(iter(differ.items()))
    options = {key: values[0] for key, values in differ.items()}
    if "dataset.channels" in options and "mean" in says:
        options |= {f"dataset.{name}": says[name] for name in ("mean", "std")}
    if "num_heads" not in says and says["width"] % 64 == 0:  # all ViTs' and DeiTs'
        options["model.num_heads"] = says["width"] // 64
    convert = (
        "python -m svda_jax convert makes SVDA of it, or " if found == "softmax" else ""
    )
    flags = " ".join(shlex.quote(f"--config.{k}={v}") for k, v in options.items())
    raise UserError(
        f"it is of another model: {key} is {found} there and {wanted} here; {convert}"
        f"what fits it: {flags}"
    )


def _fit(params, says, config):
    """Makes parameters those of a config, in place; returns a line for each change."""
    lines = []
    unsaid = [name for name in ("num_heads", "mean", "std") if name not in says]
    if unsaid:
        values = ", ".join(f"{name}={getattr(config, name)}" for name in unsaid)
        lines.append(f"it does not say {values}, which are the config's")
    if says["num_classes"] != config.num_classes:
        params["head"] = {
            name: np.zeros(leaf.shape, leaf.dtype)
            for name, leaf in abstract_params(config)["head"].items()
        }
        lines.append(
            f"the head for {config.num_classes} classes starts at 0; it was for "
            f"{says['num_classes'] or 'none'}"
        )
    if says["image_size"] != config.image_size:
        old, new = (
            c // config.patch_size for c in (says["image_size"], config.image_size)
        )
        params["position_embedding"] = resample(params["position_embedding"], new)
        lines.append(
            f"position embeddings are resampled from {old} x {old} to {new} x {new}, "
            "bicubic, antialiased"
        )
    norms = [(c["mean"], c["std"]) for c in (says, vars(config)) if "mean" in c]
    if len(norms) == 2 and norms[0] != norms[1]:
        embed = params["patch_embed"]["projection"]
        pair = renormalize(embed["kernel"], embed["bias"], *norms)
        embed["kernel"], embed["bias"] = pair
        lines.append("its mean and std of images become part of the patch embedding")
    if config.attention == "svda":  # sigma, start times parameter, stays what it was
        width = config.width // config.num_heads
        starts = says.get("spectrum_init", "matched"), config.spectrum_init
        old, new = (SPECTRUM_STARTS[start](width) for start in starts)
        for block in params["blocks"].values():
            sigma = block["attention"]["relative_sigma"]
            block["attention"]["relative_sigma"] = sigma * (old / new)
    return lines


def resample(embedding, grid):
    """Position embeddings for another grid; that of a class token stays.

    Bicubic and antialiased, the convention of timm and Pillow.

    Args:
      embedding: `[1, N, D]`, N = g^2 or, with a class token, 1 + g^2.
      grid: the other g.

    Returns:
      `[1, N', D]` float32.
    """
    width = embedding.shape[-1]
    tokens = embedding.shape[1]
    old = math.isqrt(tokens)
    first = tokens - old**2  # 1 where there is a class token
    square = embedding[:, first:].reshape(1, old, old, width)
    shape = (1, grid, grid, width)
    square = jax.image.resize(square, shape, "cubic", antialias=True)
    square = square.reshape(1, grid**2, width)
    return np.concatenate([embedding[:, :first], square], axis=1)


def _value(values, name):
    """A value to compare: () for qk_dim that says D / H in every layer."""
    value = values.get(name)
    if name == "qk_dim" and value:
        full = values["width"] // values["num_heads"]
        return () if set(value) == {full} else value
    return value

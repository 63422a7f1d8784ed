"""A `ViT`'s parameters in a file that other libraries read."""

import json
import os
import pathlib
import re

import jax
import numpy as np
from safetensors.numpy import save

from svda_jax import UserError
from svda_jax.models.attention import SPECTRUM_STARTS
from svda_jax.models.weights import fold
from svda_jax.models.weights.files import METADATA
from svda_jax.models.weights.names import (
    FLAX,
    HUGGING_FACE,
    OWN,
    TIMM,
    translate_back,
)

FAMILIES = {"timm": TIMM, "huggingface": HUGGING_FACE, "augreg": FLAX, "own": OWN}


def write(path, params, config, *, family):
    """Writes parameters under another library's names; `read` is the inverse.

    Args:
      path: of the file, .npz for "augreg", which big_vision and timm read too, and
        .safetensors for the others.
      params: nested dicts, as `abstract_params` has them.
      config: the `ViTConfig`.
      family: a key of `FAMILIES`.

    Raises:
      UserError: as from `rename`; the suffix is another; or the file cannot be written,
        and an older one of that name stays.
    """
    path, suffix = pathlib.Path(path), ".npz" if family == "augreg" else ".safetensors"
    if path.suffix != suffix:
        raise UserError(f"{path}: a file with names of {family} ends in {suffix}")
    arrays = rename(params, config, family=family)
    names = ("num_heads", "gelu", "pool", "mean", "std")
    says = {name: getattr(config, name) for name in names}
    part = path.with_name(f".{path.stem}.tmp{suffix}")
    try:
        if suffix == ".npz":
            np.savez(part, **arrays)
        else:
            said = {"format": "pt", METADATA: json.dumps(says)}
            part.write_bytes(save(arrays, said))  # save_file's mode is 0600
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def rename(params, config, *, family):
    """Parameters by another library's names, in the order of its axes.

    AugReg's models take images from -1 to 1: the patch embedding is changed so that it
    does too.

    Args:
      params: see `write`, as for config and family.
      config: likewise.
      family: likewise.

    Returns:
      A dict from names to float32 arrays.

    Raises:
      UserError: the library has no such model: SVDA in timm or Hugging Face, a mean
        over tokens in Hugging Face, GELU by erf or a norm after the mean in AugReg.
    """
    names, flax = FAMILIES[family], family in ("augreg", "own")
    augreg = family == "augreg"
    for there, what in (
        (config.attention == "svda" and not flax, "SVDA attention"),
        (config.qk_dim and not flax, "model.qk_dim"),
        (config.pool != "cls" and family == "huggingface", f"model.pool={config.pool}"),
        (config.pool == "avg" and augreg, "model.pool=avg"),
        (config.gelu == "erf" and augreg, "model.gelu=erf"),
    ):
        if there:
            raise UserError(f"{names.label} has no models with {what}")
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    embed = "patch_embed/projection"
    if augreg:
        anew = [(0.5,) * config.channels] * 2
        ours[f"{embed}/kernel"], ours[f"{embed}/bias"] = fold.renormalize(
            ours[f"{embed}/kernel"],
            ours[f"{embed}/bias"],
            (config.mean, config.std),
            anew,
        )
    shape = (config.patch_size, config.patch_size, config.channels, config.width)
    ours[f"{embed}/kernel"] = ours[f"{embed}/kernel"].reshape(shape)
    if config.attention == "svda":
        start = SPECTRUM_STARTS[config.spectrum_init](config.width // config.num_heads)
        for name in [name for name in ours if name.endswith("/relative_sigma")]:
            sigma = np.float32(start) * ours.pop(name)
            ours[name.replace("relative_sigma", "sigma")] = sigma
    if not flax:
        ours = {name: _flatten(name, ours) for name in ours}
    if family == "timm":
        fold.join_qkv(ours)
        if config.pool == "avg":
            ours = {re.sub("^norm/", "fc_norm/", name): x for name, x in ours.items()}
    if not flax:
        ours = {name: _transpose(name, array) for name, array in ours.items()}
    return {
        translate_back(name, names): np.ascontiguousarray(array)
        for name, array in ours.items()
    }


def _flatten(name, ours):
    """A kernel as `[inputs, outputs]`, a bias as `[outputs]`; patches' stay."""
    array = ours[name]
    if name.endswith("/bias"):
        return array.reshape(-1)
    if name.endswith("/kernel") and array.ndim == 3:
        outputs = ours[name.replace("kernel", "bias")].size
        return array.reshape(-1, outputs)
    return array


def _transpose(name, array):
    """As torch has it: `[outputs, inputs]`, patches `[D, channels, P, P]`."""
    if not name.endswith("/kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T

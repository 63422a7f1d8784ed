"""Parameters of other libraries' Vision Transformers, as a `ViT` has them."""

import dataclasses
import math
import re

import jax
import numpy as np

from svda_jax import UserError
from svda_jax.models.vit import ViTConfig, abstract_params
from svda_jax.models.weights import fold
from svda_jax.models.weights.files import read_arrays, to_float32
from svda_jax.models.weights.names import (
    FAMILIES,
    FLAX,
    FOREIGN,
    HUGGING_FACE,
    OWN,
    TIMM,
    UNREAD,
    Family,
    translate,
    translate_back,
)

_GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model from a file.

    Attributes:
      says: what the file says of the model, by the names of `ViTConfig`. num_classes is
        0 without a head; num_heads, mean and std are there where the file, or a JSON
        file beside it, says them.
      family: of `names.FAMILIES`.
      flat: its arrays by our names, matrices as `[inputs, outputs]`.
    """

    says: dict
    family: Family
    flat: dict

    def params(self, num_heads=None):
        """The parameters.

        What `fold` describes is exact: LayerScale, and norms of queries and keys, which
        make a model SVDA.

        Args:
          num_heads: where the file does not say it, as timm's mostly do not.

        Returns:
          Nested dicts of float32 arrays, as `abstract_params` has them for says, with
          zeros for a head that is not there. sigma is relative to the start "matched".

        Raises:
          UserError: the file has parameters that a `ViT` has not, lacks some or has
            them in other shapes; the message names them. Or nobody says num_heads.
        """
        if "num_heads" not in self.says and num_heads is None:
            raise UserError("it does not say the number of its heads")
        says, params = {"num_heads": num_heads} | self.says, dict(self.flat)
        anything = (0.5,) * says["channels"]
        config = ViTConfig(
            **{"mean": anything, "std": anything}
            | says
            | {"num_classes": max(says["num_classes"], 1)}
        )
        try:
            fold.add_biases(params)
            fold.fold_layer_scale(params)
            fold.fold_query_key_norms(params, config.num_heads)
            fold.fold_sigma(params, config.width // config.num_heads)
        except UserError:
            raise
        except (KeyError, ValueError) as error:
            raise UserError(f"its parameters do not fit each other: {error}") from None
        return _shape(params, config, self.family)


def read(path):
    """Reads a ViT or DeiT of AugReg, big_vision, timm or Hugging Face.

    Args:
      path: of a .npz or .safetensors file, or of a folder with the latter, which may be
        in parts, listed by model.safetensors.index.json.

    Returns:
      `Weights`.

    Raises:
      UserError: there is no such file, or it is damaged or of another kind of model.
    """
    stored, beside = read_arrays(path)
    params, family = _translate(stored)
    fold.split_qkv(params)
    said = _read_beside(beside, family)
    says = _describe(params, family, said.pop("global_pool", None)) | said
    return Weights(says, family, params)


def _translate(stored):
    """Arrays by our names, matrices as `[inputs, outputs]`, and their family."""
    stored = _unstack(stored)
    for prefix in ("params/", "opt/target/"):  # the rest is of an optimizer
        if of_model := {k: v for k, v in stored.items() if k.startswith(prefix)}:
            stored = of_model
            break
    names = {
        family: {name: translate(name, family, a.ndim) for name, a in stored.items()}
        for family in FAMILIES
    }
    family = max(FAMILIES, key=lambda f: sum(map(bool, names[f].values())))
    foreign = [
        name
        for name, ours in names[family].items()
        if not ours and not re.fullmatch(f"(.*\\.)?({UNREAD})", name)
    ]
    for pattern, reason in FOREIGN.items():
        if found := [name for name in foreign if re.search(pattern, name)]:
            raise UserError(f"it has {reason}, which our models have not: {found[0]}")
    if foreign or not stored:
        some = ", ".join(sorted(foreign)[:3]) or "nothing"
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UserError(f"it is no ViT of {family.label}: it holds {some}{more}")
    params = {}
    for name, ours in names[family].items():
        if ours in params:
            raise UserError(f"it has {ours} twice, once as {name}")
        if ours:
            array = to_float32(name, stored[name])
            if family not in (FLAX, OWN) and ours.endswith("/kernel"):
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            params[ours] = array
    return params, family


def _unstack(stored):
    """Blocks that big_vision keeps in one array, one by one."""
    found = {}
    for name, array in stored.items():
        if "/encoderblock/" in name and array.ndim:
            for number, each in enumerate(array):
                found[name.replace("block/", f"block_{number}/")] = each
        else:
            found[name] = array
    return found


def _describe(params, family, pool):
    """What the parameters say of the model, by the names of `ViTConfig`.

    A position embedding without a place for the class token, which adds nothing to it,
    gets one.

    Args:
      params: by our names.
      family: they are of.
      pool: timm's global_pool, or None.
    """

    def shape(name, ndim):
        if name not in params:
            raise UserError(f"it lacks {_theirs(name, family)}")
        if params[name].ndim != ndim:
            raise UserError(f"{_theirs(name, family)} has {params[name].ndim} axes")
        return params[name].shape

    patch, patch_width, channels, width = shape("patch_embed/projection/kernel", 4)
    if patch != patch_width:
        raise UserError(f"its patches have {patch} x {patch_width} pixels, no square")
    num_tokens = shape("position_embedding", 3)[1]
    cls = "cls_token" in params
    grid = math.isqrt(num_tokens)
    if cls and grid**2 == num_tokens:  # 1 token is that of a patch
        embedding = params["position_embedding"]
        params["position_embedding"] = np.pad(embedding, ((0, 0), (1, 0), (0, 0)))
    else:
        grid = math.isqrt(num_tokens - cls)
    if grid**2 + cls not in (num_tokens, num_tokens + cls):
        raise UserError(f"its {num_tokens - cls} patches are no square")
    blocks = {int(name.split("/")[1]) for name in params if name[:7] == "blocks/"}
    if lacking := set(range(max(len(blocks), 1))) - blocks:
        raise UserError(f"it lacks block {min(lacking)}")
    says = {
        "image_size": patch * grid,
        "channels": channels,
        "num_classes": shape("head/bias", 1)[0] if "head/bias" in params else 0,
        "patch_size": patch,
        "width": width,
        "depth": len(blocks),
        "mlp_dim": shape("blocks/0/mlp/hidden/kernel", 2)[1],
        "pool": _pool(params, pool),
        "gelu": family.gelu,
        "qk_dim": (),
    }
    marks = ("query_norm/scale", "sigma")
    svda = any(f"blocks/0/attention/{mark}" in params for mark in marks)
    says["attention"] = "svda" if svda else "softmax"
    if family in (FLAX, OWN):
        says["num_heads"] = shape("blocks/0/attention/value/kernel", 3)[1]
        says["qk_dim"] = tuple(
            shape(f"blocks/{layer}/attention/query/kernel", 3)[2]
            for layer in range(says["depth"])
        )
        says["mean"] = says["std"] = (0.5,) * channels  # images from -1 to 1
    elif "blocks/0/attention/query_norm/scale" in params:
        directions = shape("blocks/0/attention/query_norm/scale", 1)[0]
        says["num_heads"] = width // directions
    return says


def _read_beside(beside, family):
    """The same, of what `write` and the JSON files of timm and Hugging Face say."""
    config, says = beside["config"], {}
    try:
        if family is HUGGING_FACE and "model_type" in config:
            if config["model_type"] not in ("vit", "deit"):
                raise UserError(f"its config.json is of a {config['model_type']}")
            heads, gelu = config["num_attention_heads"], config["hidden_act"]
            norm, names = beside["preprocessor"], ("image_mean", "image_std")
        else:
            arguments = config.get("model_args") or {}
            heads, gelu = arguments.get("num_heads"), arguments.get("act_layer")
            norm, names = config.get("pretrained_cfg") or {}, ("mean", "std")
            says["global_pool"] = config.get("global_pool")
            if gelu is None and "siglip" in str(config.get("architecture")):
                raise UserError(  # some of its sizes have one, some the other
                    "its config.json does not say its GELU; add "
                    '"model_args": {"act_layer": "gelu_tanh"}, or "gelu"'
                )
        if heads is not None:
            says["num_heads"] = int(heads)
        if gelu is not None:
            says["gelu"] = _GELUS[gelu]
        if all(name in norm for name in names):
            mean, std = (tuple(map(float, norm[name])) for name in names)
            says |= {"mean": mean, "std": std}
        own = beside["own"]
        if own:
            says |= {"num_heads": int(own["num_heads"])}
            says |= {name: str(own[name]) for name in ("gelu", "pool") if name in own}
            says |= {name: tuple(map(float, own[name])) for name in ("mean", "std")}
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(
            f"what is said beside its parameters is no ViT: {said}"
        ) from None
    return says


def _pool(params, said):
    """`ViTConfig.pool`; a norm after the mean gets the name of the last norm."""
    cls, after = "cls_token" in params, "fc_norm/scale" in params
    if said not in (None, "", "avg", "token"):
        raise UserError(f"its global_pool={said} is none of ours")
    if after and "norm/scale" in params:
        raise UserError("it has two norms, norm and fc_norm, after its blocks")
    if cls and said != "token" and (after or said == "avg"):
        raise UserError(
            "it has a class token and takes the mean over patches (fc_norm)"
        )
    if not cls and said == "token":
        raise UserError(
            "its config.json says global_pool=token, and it has no cls_token"
        )
    for leaf in ("scale", "bias") if after else ():
        if f"fc_norm/{leaf}" in params:
            params[f"norm/{leaf}"] = params.pop(f"fc_norm/{leaf}")
    return "cls" if cls else "avg" if after else "gap"


def _shape(params, config, family):
    """Nested dicts of the parameters in the shapes that a `ViT` has."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
    }
    if not {"head/kernel", "head/bias"} & params.keys():
        params |= {
            f"head/{x}": np.zeros(shapes[f"head/{x}"]) for x in ("kernel", "bias")
        }
    for what, names in (
        ("lacks", sorted(shapes.keys() - params.keys())),
        ("has, and should not,", sorted(params.keys() - shapes.keys())),
    ):
        if names:
            names = list(dict.fromkeys(_theirs(name, family) for name in names))
            some = ", ".join(names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"it {what} {some}{more}")
    found = []
    for name, shape in shapes.items():
        array, merged = params[name], (math.prod(shape),)
        if name.endswith("/kernel"):
            outputs = math.prod(shapes[name.replace("kernel", "bias")])
            merged = (math.prod(shape) // outputs, outputs)
        if array.ndim == 4:  # the patches'
            array = array.reshape(-1, array.shape[-1])
        if array.shape not in (shape, merged):
            raise UserError(
                f"{_theirs(name, family)} has shape {array.shape}, not {merged}, as "
                "[inputs, outputs]"
            )
        found.append(np.float32(array.reshape(shape)))
    return jax.tree.unflatten(treedef, found)


def _theirs(name, family):
    """The name in the file, for a message."""
    if family is TIMM:
        name = re.sub("/(query|key|value)/", "/qkv/", name)
    try:
        return translate_back(name, family)
    except KeyError:
        return name

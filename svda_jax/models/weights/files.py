"""Arrays and what is said of them, read from .npz and .safetensors files."""

import json
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from svda_jax import UserError

INDEX = "model.safetensors.index.json"
# The key in a .safetensors file's metadata of what `write` says of the model, as JSON.
METADATA = "svda_jax"


def holds_weights(path):
    """Whether a path is for `read`: a file, or a folder with .safetensors in it."""
    path = pathlib.Path(path)
    if path.is_dir():
        return any(path.glob("*.safetensors")) or (path / INDEX).exists()
    return path.is_file() or path.suffix in (".npz", ".safetensors")


def read_arrays(path):
    """Arrays by name, as they are stored, and what is said beside them.

    Returns:
      A dict from names to arrays of any dtype, and a dict: "own", what `write` put
      into the file, "config" and "preprocessor", the JSON files beside a `model...` of
      timm's or Hugging Face's; {} where there is none.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    path = pathlib.Path(path)
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError("there is no such file")
    beside = {"own": {}, "config": {}, "preprocessor": {}}
    if file.suffix == ".npz":
        return _read_npz(file), beside
    if file.name.endswith(".index.json"):
        found = _read_json(file).get("weight_map")
        if not isinstance(found, dict):
            raise UserError(f"{file.name} has no weight_map")
        shards = sorted({pathlib.Path(str(name)).name for name in found.values()})
        arrays = {}
        for shard in shards:
            arrays |= _read_safetensors(file.with_name(shard))[0]
        if lacking := sorted(found.keys() - arrays.keys()):
            raise UserError(f"{file.name} lists {lacking[0]}, which no file of it has")
    elif file.suffix == ".safetensors":
        arrays, beside["own"] = _read_safetensors(file)
    else:
        raise UserError(
            "weights are read from .npz and .safetensors files; torch's own become one "
            "by safetensors.torch.save_file(model.state_dict(), FILE)"
        )
    if file.name.startswith("model"):
        for name, other in (
            ("config", "config.json"),
            ("preprocessor", "preprocessor_config.json"),
        ):
            if file.with_name(other).exists():
                beside[name] = _read_json(file.with_name(other))
    return arrays, beside


def to_float32(name, array):
    """An array as float32.

    Raises:
      UserError: it holds no floating-point numbers, or some that are not finite.
    """
    if array.dtype == "V2":  # what NumPy makes of bfloat16 in a .npz file
        array = array.view(jnp.bfloat16)
    if not array.size:
        raise UserError(f"{name} is empty")
    if array.dtype not in (np.float16, np.float32, np.float64, jnp.bfloat16):
        raise UserError(f"{name} is of {array.dtype}, not of floating-point numbers")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UserError(f"{name} has values that are not finite")
    return array


def _find(folder):
    """The file of a folder that holds its weights, or lists those that do."""
    for name in ("model.safetensors", INDEX):
        if (folder / name).exists():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:3]) or "none"
        raise UserError(f"which .safetensors file of the folder? It has {names}")
    return files[0]


def _read_npz(file):
    try:
        if not zipfile.is_zipfile(file):  # NumPy would advise to unpickle it
            raise ValueError("it is no zip archive")
        with file.open("rb") as data, np.load(data, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # whatever the damaged byte leads to
        raise UserError(f"{file.name} is damaged or no .npz file: {error}") from None


def _read_safetensors(file):
    """Arrays by name, and what `write` said of them."""
    try:
        with safe_open(file, framework="numpy") as found:
            own = json.loads((found.metadata() or {}).get(METADATA, "{}"))
            names = found.keys()
            return {name: found.get_tensor(name) for name in names}, own
    except (SafetensorError, OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{file.name} is damaged or no .safetensors file: {error}"
        ) from None


def _read_json(file):
    try:
        found = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.name} is damaged: {error}") from None
    return found if isinstance(found, dict) else {}

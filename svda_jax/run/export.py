"""A run's model in files that other programs read: a program, or its parameters."""

import contextlib
import dataclasses
import importlib.util
import logging as python_logging
import os
import pathlib
import tempfile
import warnings

import jax
import jax.numpy as jnp
from flax import nnx

from svda_jax import UserError, is_address, place
from svda_jax.commands import parse
from svda_jax.models.attention import attention_weights
from svda_jax.models.vit import count_parameters, create_graphdef
from svda_jax.models.weights.write import write
from svda_jax.run import runs
from svda_jax.run.card import summarize, timm_config, write_card
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.run.console import to_json
from svda_jax.run.mirror import exists

PROGRAMS = ("stablehlo", "onnx")
FORMATS = (*PROGRAMS, "safetensors", "npz")
_PLATFORMS = ("cpu", "cuda", "tpu")
_OPSET = 20  # the first with Gelu, which jax2onnx writes
_MAX_ONNX = 2**31  # bytes of a protocol buffer


def create_function(model, *, attention=False):
    """What an exported program computes, as a function of images.

    Args:
      model: a `ViT` whose ops are plain.
      attention: whether to give the weights too.

    Returns:
      A function of images `[b, S, S, channels]` uint8 that gives a dict of
      "probabilities" `[b, C]` and, if asked to, "attention" `[b, L, H, N, N]`, both
      float32.
    """

    def function(images):
        logits, traces = model(images)
        outputs = {"probabilities": jax.nn.softmax(logits)}
        if attention:
            weights = [
                attention_weights(t.query, t.key, t.sigma, scale=t.scale)
                for t in traces
            ]
            outputs["attention"] = jnp.stack(weights, axis=1)
        return outputs

    return function


def to_stablehlo(model, *, attention=False):
    """`create_function` as bytes for `jax.export.deserialize`, on any platform."""
    function = jax.jit(create_function(model, attention=attention))
    exported = jax.export.export(function, platforms=_PLATFORMS)(_images(model.config))
    return bytes(exported.serialize())


def to_onnx(model, summary, *, attention=False):
    """`create_function` as the bytes of an ONNX file, activations in float32.

    Args:
      model: a `ViT` whose ops are plain.
      summary: what the file says of itself; values become JSON.
      attention: see `create_function`.

    Raises:
      UserError: jax2onnx is not installed, or the model is larger than an ONNX file may
        be.
    """
    if not importlib.util.find_spec("jax2onnx"):
        raise UserError("ONNX needs a package that is not here: pip install jax2onnx")
    if (size := 4 * count_parameters(model)) >= _MAX_ONNX:
        raise UserError(
            f"the model's {size / 2**30:.1f} GiB are more than the 2 GiB that an ONNX "
            "file may have; --format=stablehlo has no such limit"
        )
    # ONNX multiplies no bfloat16 by Einsum.
    config = dataclasses.replace(model.config, dtype="float32")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    model = nnx.merge(create_graphdef(config), params)
    function = create_function(model, attention=attention)
    names = ["probabilities", "attention"][: 1 + attention]
    for name in ("jax2onnx", "onnx_ir"):  # tracebacks of plugins that nobody asked for
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jax2onnx  # seconds
        import onnx

        proto = jax2onnx.to_onnx(
            lambda images: [function(images)[name] for name in names],
            [_images(config)],
            model_name="svda_jax",
            opset=_OPSET,
            input_names=["images"],
            output_names=names,
        )
    texts = {key: to_json(value) for key, value in summary.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _images(config):
    """Any number of images, in shape and dtype."""
    shape = (config.image_size, config.image_size, config.channels)
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *shape), jnp.uint8)


def export_run(workdir, out, *, format, attention=False):
    """Writes a run's model, what it says of itself and how to load it into a folder.

    Args:
      workdir: the run's folder or address.
      out: the new folder or address, which must not exist.
      format: one of `FORMATS`.
      attention: whether the program gives attention too.

    Raises:
      UserError: an argument or a folder is not what it should be, a package is missing,
        or the format has no such model; nothing is written.
    """
    workdir, out = place(workdir), place(out)
    if format not in FORMATS:
        raise UserError(f"--format={format} must be one of {', '.join(FORMATS)}")
    if attention and format not in PROGRAMS:
        raise UserError(f"--attention is for {' and '.join(PROGRAMS)}, not {format}")
    if exists(out):
        raise UserError(f"{out} exists; give another --out or remove it")
    run = runs.load(workdir)
    model, summary = run.model, summarize(run, workdir.resolve().name)
    with _new_folder(out) as folder:
        file, family = folder / f"model.{format}", None
        if format == "stablehlo":
            file.write_bytes(to_stablehlo(model, attention=attention))
        elif format == "onnx":
            file.write_bytes(to_onnx(model, summary, attention=attention))
        else:
            family = choose_family(model.config, format)
            params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
            write(file, params, model.config, family=family)
            (folder / "run.json").write_text(to_json(summary["config"], indent=2))
        if family == "timm":
            config = timm_config(summary, model.config)
            (folder / "config.json").write_text(to_json(config, indent=2))
        (folder / "model.json").write_text(to_json(summary, indent=2))
        card = write_card(summary, model, family or format, attention=attention)
        (folder / "README.md").write_text(card, encoding="utf-8")


def choose_family(config, format):
    """The library whose names a file of parameters has, see `weights.write`."""
    if format == "npz":
        return "augreg"
    return "timm" if config.attention == "softmax" and not config.qk_dim else "own"


@contextlib.contextmanager
def _new_folder(out):
    """A folder to write into, which becomes out if nothing goes wrong."""
    above = None if is_address(out) else out.parent
    try:
        if above:
            above.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{out.name}.") as new:
            folder = pathlib.Path(new, out.name)
            folder.mkdir()
            yield folder
            if above:
                os.rename(folder, out)
                return
            for file in folder.iterdir():
                runs.write_atomically(out / file.name, file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None


def main(argv=None):
    """Runs the command line."""
    args = parse("export", argv)
    quiet_orbax()
    out = place(args.out or runs.name_out(place(args.workdir), args.format))
    export_run(args.workdir, out, format=args.format, attention=args.attention)
    print(f"{out} has the model; {out / 'README.md'} says how to load it")

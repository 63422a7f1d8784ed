"""Table of `experiments.benchmarks`: exported models, their size and their latency."""

import dataclasses
import functools
import os

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks.table import Table
from svda_jax.config import recipe, vit_config
from svda_jax.devices.timing import measure, spread
from svda_jax.models.vit import ViT
from svda_jax.run.export import create_function, to_onnx, to_stablehlo

RECIPES = ("digits", "fashion_mnist_small")
BATCHES = (1, 64)
# Directions of a head: all 16, or what `prune --rank=6` leaves, for SVDA with three
# columns that stand in the lengths and a constant.
WIDTHS = {"whole": {}, "shrunk": {"softmax": 6, "svda": 10}}
ROUNDS = 10  # to a repeat: a call takes less than a millisecond


def export(repeats):
    """ONNX Runtime on one processor core, and jitted JAX beside it."""
    if hasattr(os, "sched_setaffinity"):  # before either makes its threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for name in RECIPES:
        models = _create_models(vit_config(recipe(name)))
        files = {key: to_onnx(model, {}) for key, model in models.items()}
        programs = {key: len(to_stablehlo(model)) for key, model in models.items()}
        for batch in BATCHES:
            rows += _measure(name, models, files, programs, batch, ROUNDS * repeats)
    return Table(
        "Exported models",
        "Models of the recipes, parameters random, as python -m svda_jax export writes "
        "them, float32, without attention: images in, probabilities out, in ONNX "
        "Runtime and, the same function, in jitted JAX, both on one processor core, "
        "batches from and to NumPy. Shrunk: as wide as pruning leaves them with "
        "--rank=6, 6 of 16 directions for softmax and 10 for SVDA. Each round calls "
        f"all eight in turn; median and quartiles of {ROUNDS * repeats} rounds, for "
        "times as for ratios of neighbours.",
        (
            *("model", "attention", "directions", "batch"),
            *("ONNX, KB", "StableHLO, KB", "ONNX Runtime, ms"),
            *("over softmax", "over whole", "JAX over ONNX Runtime"),
        ),
        rows,
        packages=("jax2onnx", "onnx", "onnxruntime"),
    )


def _create_models(config):
    """Models by what they are of `WIDTHS` and their attention."""
    models = {}
    for width, directions in WIDTHS.items():
        for attention in ("softmax", "svda"):
            qk_dim = (directions[attention],) * config.depth if directions else ()
            changes = {"attention": attention, "qk_dim": qk_dim, "drop_path": 0.0}
            one = dataclasses.replace(config, **changes)
            models[width, attention] = ViT(one, rngs=nnx.Rngs(0))
    return models


def _measure(name, models, files, programs, batch, rounds):
    """Rows of a batch size, a model each."""
    import onnxruntime  # optional, as jax2onnx, which brings it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    config = next(iter(models.values())).config
    shape = (batch, config.image_size, config.image_size, config.channels)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    calls = {}
    for key, model in models.items():
        session = onnxruntime.InferenceSession(files[key], options)
        calls["onnx", key] = functools.partial(session.run, None, {"images": images})
        function = jax.jit(create_function(model))
        calls["jax", key] = functools.partial(_call, function, images)
    seconds = measure(calls, rounds)
    rows = []
    for width, attention in models:
        own = seconds["onnx", (width, attention)]
        softmax, whole, in_jax = (
            spread(one, 2)
            for one in (
                own / seconds["onnx", (width, "softmax")],
                own / seconds["onnx", ("whole", attention)],
                seconds["jax", (width, attention)] / own,
            )
        )
        rows.append(
            (
                *(name, attention, width, batch),
                *(round(len(files[width, attention]) / 1000),),
                *(round(programs[width, attention] / 1000), spread(1000 * own, 3)),
                softmax if attention == "svda" else "1",
                whole if width == "shrunk" else "1",
                in_jax,
            )
        )
    return rows


def _call(function, images):
    return np.asarray(function(images)["probabilities"])

"""Measures what a claim about cost rests on; one command a table.

    python -m experiments.benchmark augment
    python -m experiments.benchmark checkpoint
    python -m experiments.benchmark indicators
    python -m experiments.benchmark input

Variants are timed in turn, in one process, and compared by the ratio of neighbours, so
that what else the machine does falls on all of them. Results go to
experiments/results/benchmark_<name>.md.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from svda_jax.indicators import ATTENTIONAL, attentional_indicators
from svda_jax.models.vit import ViT, ViTConfig

OUT = pathlib.Path(__file__).parent / "results"


def measure(variants, repeats):
    """Times functions in turn.

    Args:
      variants: functions without arguments that return arrays, by name.
      repeats: rounds; in each, every variant runs once.

    Returns:
      Seconds `[repeats]` by name.
    """
    seconds = {name: [] for name in variants}
    for function in variants.values():
        jax.block_until_ready(function())  # compiles
    for _ in range(repeats):
        for name, function in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def indicators(repeats):
    """Evaluation with all indicators against evaluation without, both attentions."""
    lines = [
        "# Cost of the indicators",
        "",
        "Evaluation of a batch of 256 with the three indicators of attention over that "
        "without; the three of the spectrum and the baseline's singular values are "
        "computed once an evaluation. ViT of width 192, 9 layers, 12 heads, 64 "
        "tokens, float32. Median ratio of neighbouring pairs and its quartiles, "
        f"{repeats} rounds; peak memory as XLA plans it, temporaries and outputs.",
        "",
        *where("indicators"),
        "| attention | time | same against itself | memory | logits |",
        "|---|---|---|---|---|",
    ]
    images = np.random.default_rng(0).integers(0, 256, size=(256, 32, 32, 3))
    images = jax.device_put(images.astype(np.uint8))
    for attention in ("softmax", "svda"):
        config = ViTConfig(
            image_size=32,
            channels=3,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            num_classes=10,
            patch_size=4,
            width=192,
            depth=9,
            num_heads=12,
            mlp_dim=384,
            attention=attention,
        )
        graphdef, params = nnx.split(ViT(config, rngs=nnx.Rngs(0)), nnx.Param)

        def without(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images)[0]

        def with_all(params, images, graphdef=graphdef):
            logits, traces = nnx.merge(graphdef, params)(images)
            layers = [
                attentional_indicators(
                    trace, jax.random.fold_in(jax.random.key(0), layer), 0.1
                )
                for layer, trace in enumerate(traces)
            ]
            return logits, [[layer[name] for name in ATTENTIONAL] for layer in layers]

        compiled = {
            function.__name__: jax.jit(function).lower(params, images).compile()
            for function in (without, with_all)
        }
        memory = {
            name: one.memory_analysis().temp_size_in_bytes
            + one.memory_analysis().output_size_in_bytes
            for name, one in compiled.items()
        }
        runs = {
            name: functools.partial(one, params, images)
            for name, one in compiled.items()
        }
        identical = np.array_equal(runs["without"](), runs["with_all"]()[0])
        seconds = measure({**runs, "again": runs["without"]}, repeats)
        lines.append(
            f"| {attention} | {_ratio(seconds['with_all'], seconds['without'])} "
            f"| {_ratio(seconds['again'], seconds['without'])} "
            f"| {memory['with_all'] / memory['without']:.2f} "
            f"| {'identical' if identical else 'differ'} |"
        )
    return lines


def augment(repeats):
    """The CIFAR recipe's training step with its augmentation against one without."""
    from configs import cifar10

    def create(**changes):
        config = cifar10.get_config()
        config.augment.update(changes)
        state, step = _training(config)

        def run():
            nonlocal state
            state, skipped = step(state)
            return state, skipped

        return run

    off = {"crop_padding": 0, "flip": False, "rand_augment": 0, "erase": 0.0}
    off |= {"mixup": 0.0, "cutmix": 0.0}
    variants = {"without": create(**off), "with": create(), "again": create(**off)}
    seconds = measure(variants, repeats)
    return [
        "# Cost of augmentation",
        "",
        "A training step of configs/cifar10.py (SVDA, batch of 128) with its "
        "augmentation, all compiled into the step, over one without any. Median ratio "
        f"of neighbouring steps and quartiles, {repeats} rounds.",
        "",
        *where("augment"),
        "| crop, flip, RandAugment, erasing, mixup, cutmix | same against itself |",
        "|---|---|",
        f"| {_ratio(seconds['with'], seconds['without'])} "
        f"| {_ratio(seconds['again'], seconds['without'])} |",
    ]


def checkpoint(repeats):
    """What a checkpoint adds to a run of configs/digits.py at its settings."""
    from configs import digits
    from svda_jax.checkpoint import Checkpoints

    num_images, num_steps = 1437, 100
    config = digits.get_config()
    state, step = _training(config)
    number = 0

    def run(save):
        """A hundred steps, after the start of a save if so."""
        nonlocal state, number
        number += 1
        if save:
            checkpoints.save(number, vars(state))
        for i in range(num_steps):
            state, _ = step(state)
            if i % 8 == 0:
                jax.block_until_ready(state)
        return state.step

    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        with_save, without = functools.partial(run, True), functools.partial(run, False)
        seconds = measure({"without": without, "with": with_save}, repeats)
    added = np.median(seconds["with"] - seconds["without"])
    steps = config.checkpoint.every_epochs * num_images / config.batch_size
    between = steps * np.median(seconds["without"]) / num_steps
    return [
        "# Cost of a checkpoint",
        "",
        f"What a save adds to the {num_steps} steps after it, median of {repeats} "
        "neighbouring pairs, and that over the time between two saves of "
        f"configs/digits.py ({config.checkpoint.every_epochs} epochs).",
        "",
        *where("checkpoint"),
        "| added | between two saves | share |",
        "|---|---|---|",
        f"| {1000 * added:.0f} ms | {between:.1f} s | {100 * added / between:.2f} % |",
    ]


def _training(config):
    """The first state of a config's training, and its step on a batch of noise."""
    from svda_jax import parallel
    from svda_jax.config import validate
    from svda_jax.train import create_training

    mesh = parallel.create_mesh()
    model = validate(config, num_devices=mesh.size)
    shape = (config.batch_size, model.image_size, model.image_size, model.channels)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, size=shape).astype(np.uint8),
        "label": rng.integers(0, model.num_classes, size=shape[0]).astype(np.int32),
    }
    batch = jax.device_put(batch, parallel.split(mesh))
    key = jax.device_put(jax.random.key(1), parallel.replicated(mesh))
    _, init, step = create_training(config, model, num_steps=999, mesh=mesh)
    return init(key), lambda state: step(state, batch, key)


def where(table):
    """The lines that say on what, with which versions and how it was measured."""
    devices = jax.devices()
    packages = ("jax", "flax", "numpy")
    if table == "input":
        packages += ("grain", "simplejpeg", "opencv-python-headless")
        packages += ("tensorflow",) if importlib.util.find_spec("tensorflow") else ()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} processor cores, "
        f"{', '.join(versions)}.",
        "",
        f"    python -m experiments.benchmark {table}",
        "",
    ]


def _ratio(seconds, baseline):
    """Median and quartiles of the ratio of neighbours."""
    low, middle, high = np.percentile(seconds / baseline, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main(argv=None):
    """Runs the command line."""
    from experiments.benchmark_input import benchmark_input

    tables = {
        "augment": augment,
        "checkpoint": checkpoint,
        "indicators": indicators,
        "input": benchmark_input,
    }
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark")
    parser.add_argument("table", choices=tables)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args(argv)
    text = "\n".join(tables[args.table](args.repeats)) + "\n"
    OUT.mkdir(exist_ok=True)
    (OUT / f"benchmark_{args.table}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Tables of `experiments.benchmarks`: what a part of the program costs."""

import contextlib
import functools
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks.speed import create_batch, create_cifar
from experiments.benchmarks.table import Table
from svda_jax.config import recipe
from svda_jax.devices import parallel
from svda_jax.devices.timing import measure, repeat, spread
from svda_jax.models.indicators import measure as measure_indicators
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.runs import read_history
from svda_jax.train.compiled import create_timed_step
from svda_jax.train.in_flight import MAX_IN_FLIGHT
from svda_jax.train.loop import train_and_evaluate


def indicators(repeats):
    """Evaluation with all indicators against evaluation without, both attentions."""
    rows = []
    for attention in ("softmax", "svda"):
        config = create_cifar(attention=attention)
        images = jax.device_put(create_batch(config, 256)[0])
        model = ViT(config, ops=choose(jax.devices()[0]), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model, nnx.Param)

        def without(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images)[0]

        def with_all(params, images, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            measure_all = functools.partial(
                measure_indicators, jax.random.key(0), 0.1, None
            )
            logits, traces = model(images, measure=measure_all)
            layers = [(trace.indicators, trace.moments) for trace in traces]
            return logits, layers

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
        rows.append(
            (
                attention,
                spread(seconds["with_all"] / seconds["without"]),
                spread(seconds["again"] / seconds["without"]),
                round(memory["with_all"] / memory["without"], 2),
                "identical" if identical else "differ",
            )
        )
    return Table(
        "Cost of the indicators",
        "Evaluation of a batch of 256 with the three indicators of attention and the "
        "moments of the score's spectrum over that without; what is of parameters or "
        "moments is computed once an evaluation. ViT of width 192, 9 layers, 12 heads, "
        "64 tokens, float32. Median ratio of neighbouring pairs and its quartiles, "
        f"{repeats} rounds; peak memory as XLA plans it, temporaries and outputs.",
        ("attention", "time", "same against itself", "memory", "logits"),
        rows,
    )


def augment(repeats):
    """The CIFAR recipe's training step with its augmentation against one without."""

    def create(**changes):
        config = recipe("cifar10")
        config.augment.update(changes)
        return repeat(*create_timed_step(config, parallel.create_mesh()))

    off = {"crop_padding": 0, "flip": False, "rand_augment": 0, "erase": 0.0}
    off |= {"mixup": 0.0, "cutmix": 0.0}
    variants = {"without": create(**off), "with": create(), "again": create(**off)}
    seconds = measure(variants, repeats)
    return Table(
        "Cost of augmentation",
        "A training step of configs/cifar10.py (SVDA, batch of 128) with its "
        "augmentation, all compiled into the step, over one without any. Median ratio "
        f"of neighbouring steps and quartiles, {repeats} rounds.",
        ("crop, flip, RandAugment, erasing, mixup, cutmix", "same against itself"),
        [
            (
                spread(seconds["with"] / seconds["without"]),
                spread(seconds["again"] / seconds["without"]),
            )
        ],
    )


def checkpoint(repeats):
    """What a checkpoint adds to a run of configs/digits.py at its settings."""
    num_images, num_steps = 1437, 100
    config = recipe("digits")
    state, step = create_timed_step(config, parallel.create_mesh())
    number = 0

    def run(save):
        """A hundred steps, after the start of a save if so."""
        nonlocal state, number
        number += 1
        if save:
            checkpoints.save(number, vars(state))
        state = _take_steps(state, step, num_steps)
        return state.step

    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        with_save, without = functools.partial(run, True), functools.partial(run, False)
        seconds = measure({"without": without, "with": with_save}, repeats)
    added = np.median(seconds["with"] - seconds["without"])
    steps = config.checkpoint.every_epochs * num_images / config.batch_size
    between = steps * np.median(seconds["without"]) / num_steps
    return Table(
        "Cost of a checkpoint",
        f"What a save adds to the {num_steps} steps after it, median of {repeats} "
        "neighbouring pairs, and that over the time between two saves of "
        f"configs/digits.py ({config.checkpoint.every_epochs} epochs).",
        ("added", "between two saves", "share"),
        [
            (
                f"{1000 * added:.0f} ms",
                f"{between:.1f} s",
                f"{100 * added / between:.2f} %",
            )
        ],
    )


def _take_steps(state, step, num_steps):
    """The state after that many steps, as few in flight as in a run."""
    for i in range(num_steps):
        state, skipped = step(state)
        if i % MAX_IN_FLIGHT == 0:
            jax.block_until_ready(skipped)
    return jax.block_until_ready(state)


def loop(repeats):
    """The training loop of a run against its bare step on a constant batch."""
    num_epochs, num_images = 20, 1437
    rows = []
    for attention in ("softmax", "svda"):
        config = recipe("digits")
        config.model.attention = attention
        config.num_epochs = config.eval_every_epochs = num_epochs
        config.checkpoint.every_epochs = num_epochs
        state, step = create_timed_step(config, parallel.create_mesh())
        num_steps = num_epochs * num_images // config.batch_size
        ratios, waits = [], []
        for number in range(repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                with contextlib.redirect_stdout(io.StringIO()):
                    train_and_evaluate(config, pathlib.Path(folder, "run"))
                history = read_history(pathlib.Path(folder, "run"))
            in_loop = config.batch_size / float(history["images_per_second"][-1])
            start = time.perf_counter()
            state = _take_steps(state, step, num_steps)
            bare = (time.perf_counter() - start) / num_steps
            if number:  # the first compiles
                ratios.append(in_loop / bare)
                waits.append(1000 * bare)
        rows.append((attention, spread(ratios), spread(waits, 2)))
    return Table(
        "Cost of the training loop",
        f"Time per step of a run of configs/digits.py of {num_epochs} epochs (batches "
        "gathered on the device, progress, no evaluation before the end) over that of "
        f"its compiled step on one batch again and again, {num_steps} steps. Median "
        f"ratio of {repeats} neighbouring pairs and quartiles.",
        ("attention", "loop over bare step", "bare step, ms"),
        rows,
    )


def startup(repeats):
    """Seconds from the command to the end of the first step, by what is cached."""
    program = (  # the command, which ends at its first step
        "import os, runpy, sys, time, jax\n"
        "from svda_jax.train import loop\n"
        "create = loop.create_training\n"
        "def create_training(*args, **kwargs):\n"
        "    init, step = create(*args, **kwargs)\n"
        "    def first(*args):\n"
        "        jax.block_until_ready(step(*args))\n"
        "        print('first step at', time.time(), flush=True)\n"
        "        os._exit(0)\n"
        "    first.lower = step.lower\n"
        "    return init, first\n"
        "loop.create_training = create_training\n"
        "runpy.run_module('svda_jax.main', run_name='__main__')\n"
    )
    flags = ["--config=configs/digits.py"]
    seconds = {"empty": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for cache in seconds:
                start = time.time()
                done = subprocess.run(
                    [
                        sys.executable,
                        "-c",
                        program,
                        *flags,
                        f"--workdir={folder}/{cache}",
                    ],
                    env={**os.environ, "XDG_CACHE_HOME": folder},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                first_step = float(done.stdout.split("first step at")[1].split()[0])
                seconds[cache].append(first_step - start)
    return Table(
        "Time to the first step",
        "From the command python -m svda_jax.main --config=configs/digits.py to the "
        "end of the first training step, data prepared, without the restart that "
        "keeps memory, with an empty and with a warm compile cache. Median and "
        f"quartiles of {repeats} starts each.",
        ("compile cache", "seconds"),
        [(cache, spread(values, 1)) for cache, values in seconds.items()],
    )

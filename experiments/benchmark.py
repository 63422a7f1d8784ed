"""Measures what a claim about cost rests on; one command a table.

    python -m experiments.benchmark indicators

Variants are timed in turn, in one process, and compared by the ratio of neighbours, so
that what else the machine does falls on all of them. Results go to
experiments/results/benchmark_<name>.md.
"""

import argparse
import functools
import pathlib
import time

import jax
import numpy as np
from flax import nnx

from svda_jax.console import describe_devices
from svda_jax.indicators import ATTENTIONAL, attentional_indicators
from svda_jax.models.vit import ViT, ViTConfig
from svda_jax.parallel import create_mesh

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
        ", ".join(describe_devices(create_mesh()).values()) + ".",
        "",
        "    python -m experiments.benchmark indicators",
        "",
        "| attention | time | quartiles | same against itself | memory | logits |",
        "|---|---|---|---|---|---|",
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
        ratio = seconds["with_all"] / seconds["without"]
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        noise = np.percentile(seconds["again"] / seconds["without"], [25, 50, 75])
        lines.append(
            f"| {attention} | {middle:.3f} | {low:.3f} to {high:.3f} "
            f"| {noise[1]:.3f} ({noise[0]:.3f} to {noise[2]:.3f}) "
            f"| {memory['with_all'] / memory['without']:.2f} "
            f"| {'identical' if identical else 'differ'} |"
        )
    return lines


def main(argv=None):
    """Runs the command line."""
    tables = {"indicators": indicators}
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

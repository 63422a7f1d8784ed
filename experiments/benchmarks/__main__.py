"""Measures what a claim about cost rests on; one command a table.

    python -m experiments.benchmarks overhead     SVDA's step over softmax attention's
    python -m experiments.benchmarks step         a step against what bounds it
    python -m experiments.benchmarks operations   the machine's own over the equations
    python -m experiments.benchmarks peers        against PyTorch and Flax's own layers
    python -m experiments.benchmarks loop         the training loop over its bare step
    python -m experiments.benchmarks startup      from the command to the first step
    python -m experiments.benchmarks scaling      a step as sizes and devices grow
    python -m experiments.benchmarks augment      the step with augmentation
    python -m experiments.benchmarks checkpoint   what saving adds
    python -m experiments.benchmarks indicators   evaluation with the indicators
    python -m experiments.benchmarks accelerators  the step compiled for TPUs and GPUs
    python -m experiments.benchmarks export       exported models in ONNX Runtime
    python -m experiments.benchmarks input        streaming, beside tf.data

accelerators_v5e, accelerators_v6e and accelerators_h100 are those of one machine each.
Variants are timed in turn (training steps in a process each) and compared by the ratio
of neighbours, so that what else the machine does falls on all of them. Results go
to experiments/results/benchmark_<name>.md and .json. PyTorch, TensorFlow, jax2onnx and
the compilers for TPUs and GPUs are optional: requirements-benchmark.txt.
"""

import argparse
import importlib
import pathlib
import sys

from svda_jax import UserError
from svda_jax.devices.memory import keep_memory

# The module that has a table's function.
TABLES = {
    "accelerators_v5e": "accelerators",
    "accelerators_v6e": "accelerators",
    "accelerators_h100": "accelerators",
    "augment": "costs",
    "checkpoint": "costs",
    "export": "export",
    "indicators": "costs",
    "input": "input",
    "loop": "costs",
    "operations": "speed",
    "overhead": "speed",
    "peers": "peers",
    "scaling": "scaling",
    "startup": "costs",
    "step": "speed",
}
OUT = pathlib.Path(__file__).parents[1] / "results"


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks")
    parser.add_argument("table", choices=[*TABLES, "accelerators"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats={args.repeats} must be positive")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write --out={args.out}: {error.strerror}")
    for name in TABLES:
        if name == args.table or name.startswith(f"{args.table}_"):
            module = importlib.import_module(f"experiments.benchmarks.{TABLES[name]}")
            try:
                table = getattr(module, name)(args.repeats)
            except UserError as error:
                sys.exit(f"error: {error}")
            print(table.write(name, args.out))


if __name__ == "__main__":
    keep_memory()
    main()

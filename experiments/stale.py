"""Which results are older than the code that they speak of.

    python -m experiments.stale

A page of results is as old as the last commit of its numbers. It is stale where one of
the files that decide its numbers has changed since, comments and docstrings aside. That
does not say that the numbers would be others today; it says that nobody has looked.
"""

import ast
import fnmatch
import subprocess
import sys

from experiments.faults.programs import ROOT

RESULTS = "experiments/results"

_MODEL = (
    "svda_jax/models/attention.py",
    "svda_jax/models/layers.py",
    "svda_jax/models/vit.py",
    "svda_jax/models/ops/plain.py",
)
_STEP = (
    *_MODEL,
    "svda_jax/models/ops/__init__.py",
    "svda_jax/train/optimizer.py",
    "svda_jax/train/steps.py",
)
_CPU = (*_STEP, "svda_jax/models/ops/cpu.py", "svda_jax/devices/memory.py")
_GPU = (*_STEP, "svda_jax/models/ops/gpu.py")
_TPU = (*_STEP, "svda_jax/models/ops/tpu.py", "svda_jax/models/ops/tpu_kernels.py")
_EVALUATION = ("svda_jax/models/indicators.py", "svda_jax/models/score.py")
_AUGMENT = ("svda_jax/data/augment.py", "svda_jax/data/transforms.py")
_RUNS = (*_CPU, *_EVALUATION, *_AUGMENT, "svda_jax/data/in_memory.py")
_PRUNE = ("svda_jax/prune/measure.py", "svda_jax/prune/model.py")

# What decides the numbers of each page, by patterns of its path; the first that fits.
SOURCES = {
    "benchmark_accelerators_h100.json": (*_GPU, *_EVALUATION, *_AUGMENT),
    "benchmark_accelerators_*.json": (*_TPU, *_EVALUATION, *_AUGMENT),
    "benchmark_augment.json": (*_CPU, *_AUGMENT),
    "benchmark_checkpoint.json": ("svda_jax/run/checkpoints.py",),
    "benchmark_export.json": (*_MODEL, "svda_jax/run/export.py"),
    "benchmark_indicators.json": (*_CPU, *_EVALUATION),
    "benchmark_input.json": ("svda_jax/data/images.py", "svda_jax/data/streaming.py"),
    "benchmark_loop.json": (*_CPU, *_AUGMENT, "svda_jax/train/loop.py"),
    "benchmark_overhead.json": _CPU,
    "benchmark_peers.json": _CPU,
    "benchmark_scaling.json": (*_CPU, "svda_jax/devices/parallel.py"),
    "benchmark_startup.json": ("svda_jax/main.py", "svda_jax/train/compiled.py"),
    "benchmark_step.json": _CPU,
    "h200/benchmark_augment.json": (*_GPU, *_AUGMENT),
    "h200/benchmark_indicators.json": (*_GPU, *_EVALUATION),
    "h200/benchmark_operations.json": _GPU,
    "h200/benchmark_peers.json": _GPU,
    "faults.md": ("svda_jax/run/checkpoints.py", "svda_jax/train/loop.py"),
    "rehearsals/*.json": (*_TPU, *_AUGMENT, "svda_jax/models/ops/gpu.py"),
    "pretrained.md": (*_MODEL, "svda_jax/models/weights/read.py"),
    "atlas/*/*": (*_RUNS, "svda_jax/atlas/measure.py"),
    "convert/*/*": (*_RUNS, "svda_jax/prune/convert.py"),
    "prune/*/*": (*_RUNS, *_PRUNE),
    "spectrum/*/*": _RUNS,
    "digits/*": (*_RUNS, "configs/digits.py"),
    "fashion_mnist_small/*": (*_RUNS, "configs/fashion_mnist_small.py"),
}


def main():
    """Prints a line for every page, stale ones with what has changed."""
    try:
        numbers = _git("ls-files", RESULTS).splitlines()
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: ages are read off git, and this is no repository of it")
    num_stale = 0
    for pattern, sources in SOURCES.items():
        for page, paths in pages(numbers, pattern).items():
            commit, date = _git("log", "-1", "--format=%h %cs", "--", *paths).split()
            changed = [path for path in sources if _changed(path, commit)]
            num_stale += bool(changed)
            said = f"stale: {', '.join(changed)}" if changed else "as the code is"
            print(f"{page}  {commit} of {date}  {said}")
    print(f"\n{num_stale} of these pages are older than code that decides them.")


def pages(paths, pattern):
    """The files of numbers that a pattern of `SOURCES` speaks of, by page.

    Args:
      paths: the files of results in the repository.
      pattern: a key of `SOURCES`; what lies in one folder of it is one page.
    """
    found = {}
    for path in paths:
        name = path.removeprefix(f"{RESULTS}/")
        first = next((p for p in SOURCES if fnmatch.fnmatchcase(name, p)), None)
        if first == pattern and is_numbers(name):
            page = name.rpartition("/")[0] if pattern.endswith("/*") else name
            found.setdefault(page, []).append(path)
    return found


def is_numbers(name):
    """Whether a file of results holds numbers; pages and pictures are made of them."""
    if name.endswith(".md"):
        return name in SOURCES
    return name.endswith((".json", ".nc")) and not name.endswith("/config.json")


def code(text):
    """What a Python file does, without comments and docstrings."""
    tree = ast.parse(text)
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _changed(path, commit):
    """Whether a file does something else now, or was elsewhere then."""
    try:
        before = _git("show", f"{commit}:{path}")
    except subprocess.CalledProcessError:
        return True
    return code(before) != code((ROOT / path).read_text())


def _git(*args):
    return subprocess.run(
        ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main()

"""A config's comparison before it is run: what it will take, and all of it in small.

Its training step is compiled for accelerators that are not here (`rehearse_cost`), its
input is timed here on made-up files of the right kind, and every stage of the
comparison runs once with a tiny model. What an earlier rehearsal of the same config
estimated by a compiler that is not installed here is kept.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import pathlib
import shlex
import tempfile
import time

import jax
import tensorflow_datasets as tfds
from absl import logging

from experiments.benchmarks.table import describe_machine
from experiments.paper import atlas, prune
from experiments.paper.comparison import configure, read_configs, writing
from experiments.paper.rehearse_cost import estimate_targets
from experiments.paper.rehearse_files import DATA, write_files
from experiments.paper.rehearse_page import write_index, write_page
from svda_jax import UserError
from svda_jax.data import datasets
from svda_jax.data.prepare import import_files
from svda_jax.devices import parallel

TINY = {
    "num_epochs": 1,
    "batch_size": 32,
    "eval_every_epochs": 1,
    "checkpoint.every_epochs": 1,
    "model.depth": 2,
    "model.width": 16,
    "model.num_heads": 2,
    "model.mlp_dim": 16,
    "dataset.train_split": "train[:128]",
}
NUM_BATCHES = 40  # that are timed, after as many that are not
# What each stage must leave, by patterns of paths, and the command that it is of.
STAGES = {
    "data set": ("prepare", ("tfds/*/*/dataset_info.json",)),
    "input": ("input", ()),
    "training with softmax": ("train", ("out/{0}/{0}-softmax-0.nc",)),
    "training with SVDA": ("train", ("out/{0}/{0}-svda-0.nc",)),
    "figures": (
        "train",
        tuple(
            f"out/{{0}}/figure_{name}.{kind}"
            for name in (
                "1_accuracy",
                "2_time",
                "3_indicators_by_epoch",
                "4_indicators_by_layer",
                "attention",
            )
            for kind in ("png", "svg")
        ),
    ),
    "report": ("train", ("out/{0}/report.html",)),
    "table": ("train", ("out/{0}/README.md",)),
    "prune": ("prune", ("out/prune/{0}/README.md", "out/prune/{0}/numbers.json")),
    "atlas": ("atlas", ("out/atlas/{0}/README.md", "out/atlas/{0}/atlas.html")),
}


def rehearse(args, rest, reproduce):
    """All that --rehearse asks for.

    Args:
      args: of the command line, with --config and --out.
      rest: options of the configs.
      reproduce: the comparison's own command line, called with its arguments.

    Returns:
      0.

    Raises:
      UserError: a config is none whose data set can be made up, or a stage broke; the
        pages are written then too.
    """
    out = pathlib.Path(args.out, "rehearsals")
    names = read_configs(args.config, rest)
    configs = [configure(path, rest, {}, 0) for path in args.config]
    for path, config in zip(args.config, configs, strict=True):
        if config.dataset.name not in DATA:
            raise UserError(
                f"{path}: dataset.name={config.dataset.name} cannot be made up; "
                f"rehearsals know {', '.join(DATA)}"
            )
    broken = []
    for path, name, config in zip(args.config, names, configs, strict=True):
        found = {
            "options": shlex.join([f"--config={path}", *rest]),
            "config": json.loads(config.to_json()),
            "estimates": estimate_targets(path, rest),
        }
        kept = _read_kept(out / f"{name}.json", found["config"])
        found["estimates"] = kept | found["estimates"]
        _write(out, name, found)  # compiling is not to be lost
        with tempfile.TemporaryDirectory() as folder:
            for here in _rehearse_here(
                path, rest, config, pathlib.Path(folder), reproduce
            ):
                found |= here
                _write(out, name, found)
        broken += [f"{name}: {s}" for s, said in found["stages"].items() if said]
        print(f"\nthe rehearsal is in {out / name}.md")
    if broken:
        raise UserError(f"stages broke ({', '.join(broken)}); the pages say of what")
    return 0


def _write(out, name, found):
    with writing(out):
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / f"{name}.md").write_text(write_page(name, found))
        everything = {path.stem: _read(path) for path in out.glob("*.json")}
        whole = {name: one for name, one in everything.items() if "options" in one}
        (out / "README.md").write_text(write_index(whole))


def _read(path):
    """What an earlier rehearsal found; nothing where it left nothing whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _read_kept(path, config):
    """Estimates of an earlier rehearsal of the same config."""
    kept = _read(path)
    return kept["estimates"] if kept.get("config") == config else {}


def _rehearse_here(path, rest, config, folder, reproduce):
    """Input and stages, on this machine.

    Yields:
      After each command a dict: "where", "input" (see `_time_input`; empty without it),
      "seconds" of each command, "stages" (of what each broke, "" where all is well,
      None where its command is still to run), and "table", the head of the comparison's
      own and the names of its rows; empty without it.
    """
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    name, stem = config.dataset.name, pathlib.Path(path).stem
    # Names of TFDS are for the archives themselves, not for a folder of photographs.
    made_up = name if name != "food101" else "food101_made_up"
    data_dir, timed = folder / "tfds", {}
    kilobytes = write_files(name, folder / "files")
    config.dataset.update(name=made_up, data_dir=str(data_dir))
    options = TINY | {
        "dataset.name": made_up,
        "dataset.data_dir": data_dir,
        "dataset.eval_split": f"{config.dataset.eval_split}[:64]",
    }
    argv = ["", f"--config={path}", "--seeds=1", f"--runs={folder / 'runs'}"]
    argv += [f"--out={folder / 'out'}", *rest]
    argv += [f"--config.{key}={value}" for key, value in options.items()]
    commands = {
        "prepare": functools.partial(
            import_files, made_up, str(folder / "files"), str(data_dir)
        ),
        "input": lambda: timed.update(_time_input(config), kilobytes=kilobytes),
        "train": functools.partial(reproduce, argv),
        "prune": functools.partial(prune.main, argv),
        "atlas": functools.partial(atlas.main, argv),
    }
    said, seconds, load = {}, {}, os.getloadavg()[0]
    for command, function in commands.items():
        print(f"rehearsing {command}", flush=True)
        start = time.perf_counter()
        said[command] = _attempt(function)
        seconds[command] = time.perf_counter() - start
        yield {
            "where": f"{describe_machine(('grain', 'optax'))} Load average {load:.1f}.",
            "input": timed,
            "seconds": seconds,
            "stages": {
                stage: _judge(
                    folder, [p.format(stem) for p in patterns], said.get(command)
                )
                for stage, (command, patterns) in STAGES.items()
            },
            "table": _read_table(folder / "out" / stem / "README.md"),
        }


def _attempt(function):
    """What a function said when it broke, in one line; "" where it did not."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function()
    except SystemExit as error:  # how commands end after a user's mistake
        if isinstance(error.__context__, KeyboardInterrupt):
            raise
        return str(error).removeprefix("error: ")
    except Exception as error:  # whatever breaks, the other stages are of interest
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _judge(folder, patterns, said):
    """Of what a stage broke; "" where every file that it must leave is there.

    Args:
      folder: that the patterns are in.
      patterns: of a file each.
      said: by its command, see `_attempt`; None is returned as it is.
    """
    if said is None:
        return None
    for pattern in patterns:
        if not any(path.stat().st_size for path in folder.glob(pattern)):
            return said or f"left no {pathlib.Path(pattern).name}"
    return "" if patterns else said


def _read_table(path):
    """The head of a page's first table and the names of its rows, no figures."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
    table = list(itertools.takewhile(str.strip, lines))
    return table[:1] + [row.split("|")[1].strip() for row in table[2:]]


def _time_input(config):
    """How fast the input path is here.

    Returns:
      A dict: "seconds to open", "images a second", and "images a second of a core",
      by the processor time of all threads, whatever else the machine does.
    """
    start = time.perf_counter()
    data = datasets.load(
        config.dataset, "train", batch_size=64, mesh=parallel.create_mesh()
    )
    opened = time.perf_counter() - start
    with contextlib.closing(data.train_batches(jax.random.key(0), 0)) as batches:
        for i, batch in enumerate(itertools.islice(batches, 2 * NUM_BATCHES), 1):
            jax.block_until_ready(batch)
            if i == NUM_BATCHES:
                start = time.perf_counter(), time.process_time()
        end = time.perf_counter(), time.process_time()
    num_images = NUM_BATCHES * 64
    return {
        "seconds to open": opened,
        "images a second": num_images / (end[0] - start[0]),
        "images a second of a core": num_images / (end[1] - start[1]),
    }

"""A config's comparison before it is run: what it will take, and all of it in small.

Its training step is compiled for accelerators that are not here (`rehearse_cost`), its
input is timed here on made-up files of the right kind, and every stage of the
comparison runs once with a tiny model. What an earlier rehearsal of the same config
estimated by a compiler that is not installed here is kept.
"""

import contextlib
import io
import itertools
import json
import pathlib
import tempfile
import time

import jax
import numpy as np
import tensorflow_datasets as tfds

from experiments.benchmarks.input import write_photographs
from experiments.benchmarks.table import describe_machine
from experiments.paper import atlas, prune
from experiments.paper.comparison import configure, read_configs, writing
from experiments.paper.rehearse_cost import estimate_targets
from experiments.paper.rehearse_page import write_page
from svda_jax import UserError
from svda_jax.data import cifar, datasets, fashion_mnist
from svda_jax.data.prepare import import_files
from svda_jax.devices import parallel

# Images to train on and to evaluate, by data set.
NUM_IMAGES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "food101": (75_750, 25_250),
    "imagenet100": (126_689, 5_000),
}
# Width and height that stand for the photographs of a data set.
PHOTOGRAPHS = {"food101": (512, 384), "imagenet100": (500, 375)}
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
NUM_BATCHES = 20  # that are timed, after as many that are not


def rehearse(args, rest, reproduce):
    """All that --rehearse asks for.

    Args:
      args: of the command line, with --config and --out.
      rest: options of the configs.
      reproduce: the comparison's own command line, called with its arguments.

    Raises:
      UserError: a config is none whose data set can be made up, or a stage fails.
    """
    out = pathlib.Path(args.out, "rehearsals")
    for path, name in zip(args.config, read_configs(args.config, rest), strict=True):
        config = configure(path, rest, {}, 0)
        if config.dataset.name not in NUM_IMAGES:
            raise UserError(
                f"{path}: dataset.name={config.dataset.name} cannot be made up; "
                f"rehearsals know {', '.join(NUM_IMAGES)}"
            )
        found = {
            "config": json.loads(config.to_json()),
            "estimates": estimate_targets(path, rest),
        }
        kept = _read_kept(out / f"{name}.json", found["config"])
        found["estimates"] = kept | found["estimates"]
        _write(out, name, path, config, found)  # compiling is not to be lost
        with tempfile.TemporaryDirectory() as folder:
            found |= _rehearse_here(path, rest, config, pathlib.Path(folder), reproduce)
        _write(out, name, path, config, found)
        print(f"\nthe rehearsal is in {out / name}.md")
    return 0


def _write(out, name, path, config, found):
    with writing(out):
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        page = write_page(name, path, config, found, NUM_IMAGES)
        (out / f"{name}.md").write_text(page)


def _read_kept(path, config):
    """Estimates of an earlier rehearsal of the same config."""
    try:
        kept = json.loads(path.read_text())
        return kept["estimates"] if kept["config"] == config else {}
    except (OSError, ValueError, KeyError):
        return {}


def _rehearse_here(path, rest, config, folder, reproduce):
    """Input and stages, on this machine.

    Returns:
      A dict: "where", "input" (see `_time_input`), "stages" (seconds of each, and the
      files it left), and "rows", the names of those of the comparison's table.
    """
    stages = {}
    tfds.disable_progress_bar()

    def run(stage, function, *arguments, left=""):
        print(f"rehearsing {stage}", flush=True)
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            function(*arguments)
        seconds = time.perf_counter() - start
        files = sorted(p.name for p in (folder / left).iterdir()) if left else []
        stages[stage] = {"seconds": seconds, "files": files}

    name = config.dataset.name
    made_up = name if name != "food101" else "food101_made_up"
    source, data_dir = folder / "files", folder / "tfds"
    _write_files(name, source)
    run("prepare", import_files, made_up, str(source), str(data_dir))
    config.dataset.update(name=made_up, data_dir=str(data_dir))
    timed = _time_input(config)
    options = TINY | {
        "dataset.name": made_up,
        "dataset.data_dir": data_dir,
        "dataset.eval_split": f"{config.dataset.eval_split}[:64]",
    }
    argv = ["", f"--config={path}", "--seeds=1", f"--runs={folder / 'runs'}"]
    argv += [f"--out={folder / 'out'}", *rest]
    argv += [f"--config.{key}={value}" for key, value in options.items()]
    stem = pathlib.Path(path).stem
    out = f"out/{stem}"
    run("train both, figures, report", reproduce, argv, left=out)
    run("prune", prune.main, argv, left=f"out/prune/{stem}")
    run("atlas", atlas.main, argv, left=f"out/atlas/{stem}")
    lines = (folder / out / "README.md").read_text().splitlines()
    table = itertools.takewhile(
        str.strip, lines[lines.index("|---|---|---|---|") + 1 :]
    )
    return {
        "where": describe_machine(("grain", "optax")),
        "input": timed,
        "stages": stages,
        "rows": [line.split("|")[1].strip() for line in table],
    }


def _write_files(name, folder):
    """Files as they are downloaded, of noise or of pieces of photographs."""
    rng = np.random.default_rng(0)
    if name in PHOTOGRAPHS:
        for split, count in (("train", 8), ("val", 2)):
            write_photographs(
                folder / split,
                size=PHOTOGRAPHS[name],
                num_classes=101 if name == "food101" else 100,
                per_class=count,
            )
        return
    folder.mkdir()
    if name == "fashion_mnist":
        for prefix, n in fashion_mnist.FILES.values():
            images = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
            labels = np.uint8(np.arange(n) % 10)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                head = bytes([0, 0, 8, array.ndim]), np.array(array.shape, ">u4")
                path = folder / f"{prefix}-{kind}-ubyte"
                path.write_bytes(b"".join([*head, array.tobytes()]))
        return
    version, classes = cifar.VERSIONS[name][1], cifar.CLASSES[name]
    for label, file in version.names.items():
        names = (f"{label}_{i}" for i in range(classes[label]))
        (folder / file).write_text("\n".join(names))
    for split, files in version.files.items():
        n = cifar.PER_CLASS[name][split] * classes["label"] // len(files)
        labels = [np.arange(n) % classes[label] for label in version.names]
        for file in files:
            pixels = rng.integers(256, size=(n, 3072), dtype=np.uint8)
            rows = np.column_stack([np.array(labels, np.uint8).T, pixels])
            (folder / file).write_bytes(rows.tobytes())


def _time_input(config):
    """Images a second that the input path gives here, and seconds until it starts."""
    start = time.perf_counter()
    data = datasets.load(
        config.dataset, "train", batch_size=64, mesh=parallel.create_mesh()
    )
    opened = time.perf_counter() - start
    batches = data.train_batches(jax.random.key(0), 0)
    for i, batch in enumerate(batches):
        jax.block_until_ready(batch)
        if i == NUM_BATCHES - 1:
            start = time.perf_counter()
        if i == 2 * NUM_BATCHES - 1:
            break
    rate = NUM_BATCHES * 64 / (time.perf_counter() - start)
    batches.close()
    return {"seconds to open": opened, "images a second": rate}

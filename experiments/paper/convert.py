"""Softmax runs made SVDA: what conversion costs, and what is left of it after training.

    python -m experiments.paper.convert --config=configs/digits.py --seeds=3

Options of the config follow as for svda_jax.main. Runs lie under --runs, by default
runs/; softmax runs of experiments.paper are used, what is missing is trained. Each is
converted, with and without a constant, and trained for --epochs more at a tenth of its
learning rate; so is the softmax run itself. The results go to convert/<config>/ under
--out, by default experiments/results.
"""

import json
import shutil
import sys

import numpy as np

from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import (
    create_parser,
    mean_and_interval,
    mean_and_spread,
    run_command,
    train_for,
    writing,
)
from svda_jax import UserError
from svda_jax.devices.memory import keep_memory
from svda_jax.prune.convert_run import convert_run
from svda_jax.prune.measure import measure_apart
from svda_jax.run import runs
from svda_jax.train.derive import finetune, load_data

# The constants that runs are converted with, by what is added to a run's name.
CONSTANTS = {"converted": 0.0, "converted-2": 2.0}
LABELS = {
    "softmax": "softmax",
    "converted": "SVDA",
    "converted-2": "SVDA with a constant of 2",
}
COLUMNS = {
    "cross-entropy (nats)": lambda one: one["loss"],
    "scores moved (logits)": lambda one: one["logits"],
    "of their size (%)": lambda one: 100 * one["logits"] / one["size"],
    "attention moved (total variation)": lambda one: one["weights"],
    "effective rank of the score": lambda one: one["score_rank"],
    "of sigma or singular values": lambda one: one["spectrum_rank"],
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.convert", __doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--epochs", type=int, default=5, help="of further training")
    run_command(parser, argv, compare_conversions)


def compare_conversions(args, rest, command):
    """All that the command line asks for."""
    if args.epochs < 1:
        raise UserError(f"--epochs={args.epochs} must be positive")
    out, comparison = train_for("convert", args, rest, ["softmax"])
    workdirs = comparison.workdirs["softmax"]
    studies = [study(workdir, args.epochs) for workdir in workdirs]
    write_results(workdirs, studies, args.epochs, out, command)
    print(f"\nresults are in {out}")


def study(workdir, epochs):
    """What is measured of a softmax run and of what comes of it.

    Args:
      workdir: the run's folder.
      epochs: of further training.

    Returns:
      By a name of `LABELS` the model as it is, "before", and after training, "after":
      "accuracy", "loss" (nats), "score_rank" and "spectrum_rank" of its last
      evaluation; and how far it is from the softmax run over the evaluation split,
      "logits" and "size" (root mean square) and "weights" of `measure_apart`.
    """
    folders = {"softmax": workdir}
    for name, constant in CONSTANTS.items():
        folders[name] = workdir.with_name(f"{workdir.name}-{name}")
        if not runs.is_finished(folders[name]):
            print(f"converting {workdir} to {folders[name]}", flush=True)
            convert_run(workdir, folders[name], constant=constant)
    original = runs.load(workdir)
    _, _, data = load_data(original.config)
    found = {}
    for name, folder in folders.items():
        trained = workdir.with_name(f"{folder.name}-{epochs}-epochs")
        finetune(folder, trained, epochs=epochs)
        if not runs.is_finished(trained):
            raise UserError(f"{trained} was stopped; the same line goes on")
        found[name] = {
            "before": measure(folder, original.model, data),
            "after": measure(trained, original.model, data),
        }
    return found


def measure(workdir, original, data):
    """What `study` says of one run."""
    run = runs.load(workdir)
    last = run.history.isel(step=-1)
    apart = measure_apart(original, run.model, data)
    rank = last["indicators"].sel(indicator="effective_rank").mean()
    numbers = {
        "accuracy": last["eval_accuracy"],
        "loss": last["eval_loss"],
        "score_rank": last["score_rank"].mean(),
        "spectrum_rank": rank,
        "logits": np.sqrt(np.mean(np.square(apart["logits"]))),
        "size": np.sqrt(np.mean(np.square(apart["size"]))),
        "weights": apart["weights"].mean(),
    }
    return {name: round(float(number), 6) for name, number in numbers.items()}


def write_results(workdirs, studies, epochs, out, command):
    """Writes the table, the numbers, and what `svda_jax convert` said of seed 0.

    Args:
      workdirs: of the softmax runs.
      studies: of `study`, one a run.
      epochs: of further training.
      out: the folder.
      command: that makes it again.

    Raises:
      UserError: out cannot be written.
    """
    first = workdirs[0]
    with writing(out):
        shutil.copyfile(runs.config_path(first), out / "config.json")
        for name in CONSTANTS:
            page = first.with_name(f"{first.name}-{name}") / "convert.md"
            shutil.copyfile(page, out / f"{name}_seed_0.md")
        (out / "numbers.json").write_text(json.dumps(studies) + "\n")
        page = "\n".join(_page(first.name.rsplit("-", 2)[0], studies, epochs, command))
        (out / "README.md").write_text(page + "\n")


def _page(name, studies, epochs, command):
    accuracy = _values(studies, lambda one: 100 * one["accuracy"])
    run, control = (accuracy["softmax", when] for when in ("before", "after"))
    plural = "s" * (epochs > 1)
    lines = [
        f"# Softmax attention made SVDA, {name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        f"Seeds 0 to {len(studies) - 1}. Each softmax run is converted to SVDA, and "
        f"both are trained for {epochs} epoch{plural} more at a tenth of its learning "
        "rate; softmax attention so trained is the control. Mean and standard "
        "deviation; differences in accuracy (percentage points) are paired by seed, "
        "with their 95 % confidence interval (Student's t). Scores (root mean square, "
        "each row's mean left out) and attention (total variation distance, 0 to 1) "
        "have moved from the softmax run as it was, each model with its own inputs, "
        "over the evaluation split. Effective ranks are means over layers and heads. "
        "The constant was chosen among 0.5, 1, 2, 4 and 10 with the evaluation splits "
        "of digits, seeds 0 and 1, and FashionMNIST, seed 0, in view, so its accuracy "
        "flatters. "
        "`numbers.json` has every number, `converted*.md` what `python -m svda_jax "
        "convert` says of seed 0.",
        "",
        f"| | accuracy (%) | change | change to the control | {' | '.join(COLUMNS)} |",
        "|---" * (4 + len(COLUMNS)) + "|",
    ]
    columns = {name: _values(studies, read) for name, read in COLUMNS.items()}
    for key, values in accuracy.items():
        variant, when = key
        trained = f", {epochs} epoch{plural} on" * (when == "after")
        cells = [
            mean_and_spread(values, 2),
            "" if values is run else mean_and_interval(values - run, 2),
            ""
            if when == "before" or values is control
            else mean_and_interval(values - control, 2),
            *(mean_and_spread(column[key], 3) for column in columns.values()),
        ]
        lines.append(f"| {LABELS[variant]}{trained} | {' | '.join(cells)} |")
    return lines


def _values(studies, read):
    """`[seeds]` by variant and "before" or "after"."""
    return {
        (variant, when): np.array([read(study[variant][when]) for study in studies])
        for when in ("before", "after")
        for variant in LABELS
    }


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

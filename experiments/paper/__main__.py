"""Trains SVDA and softmax attention over seeds and writes down what came out.

    python -m experiments.paper --config=configs/digits.py --seeds=3

Several --config compare on several data sets and draw them into shared figures too;
options of the config follow as for svda_jax.main and hold for all of them. --controls
also trains what tells the parts of SVDA from each other. --rehearse trains nothing in
earnest: it estimates what the comparison would take and runs all of it in small.
--redraw trains nothing either: it draws figures, reports and atlases of results that
are there (`redraw`), all or those of --config.

Runs lie under --runs, by default runs/; those that are finished are not trained again,
those that were stopped go on. The results go to <config>/ under --out, by default
experiments/results.
"""

import importlib.metadata
import pathlib
import shutil
import sys

import numpy as np
from flax import nnx

from experiments.benchmarks.table import describe_machine
from experiments.paper import figures as paper_figures
from experiments.paper.comparison import (
    ATTENTIONS,
    adjusted_p,
    configure,
    create_parser,
    mean_and_interval,
    mean_and_spread,
    measure_overhead,
    progress,
    read_commit,
    read_configs,
    run_command,
    train,
    writing,
)
from experiments.paper.redraw import draw, redraw
from svda_jax import UserError
from svda_jax.config import vit_config
from svda_jax.devices.memory import keep_memory
from svda_jax.look.report import OF_SCORE
from svda_jax.models.indicators import INDICATORS, of_images, of_score, of_spectrum
from svda_jax.models.vit import ViT, count_parameters
from svda_jax.run import runs

# Each differs from SVDA in one option.
CONTROLS = {
    "svda-frozen": {"model.attention": "svda", "spectrum_lr_scale": 0.0},
    "svda-ones": {"model.attention": "svda", "model.spectrum_init": "ones"},
    "svda-penalty": {"model.attention": "svda", "orthonormality_weight": 0.1},
}
CONTROL_NAMES = {
    "svda": "SVDA",
    "svda-frozen": "sigma stays at its start, K: cosine attention "
    "(`spectrum_lr_scale=0`)",
    "svda-ones": "sigma starts at 1 (`model.spectrum_init=ones`)",
    "svda-penalty": "orthonormality penalty on (`orthonormality_weight=0.1`)",
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper", __doc__)
    parser.add_argument(
        "--config", action="append", default=[], help="may be given several times"
    )
    parser.add_argument("--controls", action="store_true", help="train these as well")
    parser.add_argument("--rehearse", action="store_true", help="in small, to see")
    parser.add_argument("--redraw", action="store_true", help="results that are there")
    if failed := run_command(parser, argv, reproduce):
        sys.exit(f"error: {failed} runs failed; the results say which")


def reproduce(args, rest, command):
    """All that the command line asks for; the number of runs that failed."""
    if args.redraw:
        names = [pathlib.Path(path).stem for path in args.config]
        return redraw(pathlib.Path(args.out), args.runs, names)
    if not args.config:
        raise UserError("which config? For a start: --config=configs/digits.py")
    if args.rehearse:
        from experiments.paper.rehearse import rehearse  # it imports what it rehearses

        return rehearse(args, rest, main)
    out = pathlib.Path(args.out)
    names = read_configs(args.config, rest)
    for path, name in zip(args.config, names, strict=True):
        runs.check_workdir(configure(path, rest, ATTENTIONS["svda"], 0), out / name)
    variants = ATTENTIONS | (CONTROLS if args.controls else {})
    say = progress(len(names) * len(variants) * args.seeds)
    comparisons = []
    for path in args.config:
        comparison = train(
            path, rest, variants, num_seeds=args.seeds, folder=args.runs, say=say
        )
        comparison.overhead = measure_overhead(path, rest)
        write_results(comparison, out / comparison.name, command)
        print(f"\nresults are in {out / comparison.name}")
        comparisons.append(comparison)
    if len(comparisons) > 1:
        paper_figures.draw(comparisons, out)
        print(f"figures of all data sets are in {out}")
    return sum(len(comparison.failures) for comparison in comparisons)


def write_results(comparison, out, command):
    """Writes the tables, the figures, the histories and a report of the runs.

    Args:
      comparison: from `train`.
      out: folder for the results; what is in it is replaced.
      command: that makes them again.

    Raises:
      UserError: out cannot be written.
    """
    with writing(out):
        for path in out.glob(f"{comparison.name}-*.nc"):
            path.unlink()
        comparison.copy_histories(out)
        first = comparison.workdirs["svda"][0]
        shutil.copyfile(runs.config_path(first), out / "config.json")
        draw(comparison, out)
        page = "\n".join([*_head(comparison, command), "", *_tables(comparison)])
        (out / "README.md").write_text(page + "\n")


def _head(comparison, command):
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("optax", "orbax-checkpoint")
    )
    seeds = len(comparison.workdirs["svda"])
    lines = [
        f"# {comparison.name}",
        "",
        f"Written at commit {read_commit()}. {describe_machine()} {versions}.",
        "",
        f"    {command}",
        "",
        f"Mean and standard deviation over seeds 0 to {seeds - 1}, of the last "
        "evaluation of each run; differences are paired by seed, with their 95 % "
        "confidence interval (Student's t) and the p of a paired t test, adjusted "
        "for all that the table compares (Holm). Indicators are means over layers and "
        "heads. Those of a spectrum are of the score's own, over the evaluation "
        "split, which is one quantity for both attentions; of sigma, as the paper "
        "has them, they stand below for SVDA alone. Seconds are of training alone, "
        "without evaluation and compilation, and show what else the machine did; the "
        "times of a step were taken in turn (30 pairs, median and quartiles). "
        "`report.html` shows the runs of seed 0 side by side; the `.nc` files are "
        "the histories, the `.svg` files the figures for print.",
    ]
    for workdir, message in comparison.failures.items():
        lines += ["", f"**{workdir.name} failed** and is in no mean: {message}."]
    for name, meaning in (
        ("figure_1_accuracy", "accuracy over epochs"),
        ("figure_2_time", "time of an epoch"),
        ("figure_3_indicators_by_epoch", "the indicators over epochs"),
        ("figure_4_indicators_by_layer", "the indicators over layers"),
        ("figure_attention", "attention maps of SVDA, seed 0, and their spectra"),
    ):
        lines += ["", f"![{meaning}]({name}.png)"]
    return lines


def _last(name):
    """A function from a history to an indicator's mean at the last evaluation."""
    return lambda h: h["indicators"].sel(indicator=name)[-1].mean()


def _tables(comparison):
    """The Markdown tables, line by line."""
    quantities = {
        "accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
        "cross-entropy (nats)": lambda h: h["eval_loss"][-1],
        "seconds an epoch": paper_figures.epoch_seconds,
        **{
            label: lambda h, name=name: of_score(h["score_spectrum"][-1].values)[
                name
            ].mean()
            for name, (label, *_) in OF_SCORE.items()
        },
        "effective rank of the score by weights": lambda h: of_score(
            h["weight_spectrum"][-1].values
        )["score_rank"].mean(),
        **{INDICATORS[name].label: _last(name) for name in of_images()},
        "orthonormality penalty": lambda h: h["orthonormality"][-1],
    }
    of_sigma = {
        f"{INDICATORS[name].label} of sigma": _last(name) for name in of_spectrum()
    }
    of_sigma["retained rank of sigma"] = lambda h: h["retained_rank"][-1].mean()
    lines = ["| | softmax | SVDA | SVDA - softmax | p |", "|---|---|---|---|---|"]
    softmax, svda = (_count_parameters(comparison, v) for v in ATTENTIONS)
    lines.append(f"| parameters | {softmax:,} | {svda:,} | {svda - softmax:,} | |")
    values = {
        name: [comparison.values(variant, read) for variant in ATTENTIONS]
        for name, read in quantities.items()
    }
    differences = [svda - softmax for softmax, svda in values.values()]
    for (name, both), difference, p in zip(
        values.items(), differences, adjusted_p(differences), strict=True
    ):
        cells = [*map(mean_and_spread, both), mean_and_interval(difference)]
        cells.append(f"{p:.2g}" if np.isfinite(p) else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, read in of_sigma.items():
        lines.append(
            f"| {name} | | {mean_and_spread(comparison.values('svda', read))} | | |"
        )
    lines.append(f"| time of a step over softmax's | 1 | {comparison.overhead} | | |")
    variants = list(comparison.workdirs)
    lines += ["", "Accuracy of every run:", "", f"| seed | {' | '.join(variants)} |"]
    lines.append("|---" * (1 + len(variants)) + "|")
    for seed in range(len(comparison.workdirs["svda"])):
        cells = [_outcome(comparison.histories[v][seed]) for v in variants]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    if len(variants) > len(ATTENTIONS):
        lines += _controls(comparison, quantities | of_sigma)
    return lines


def _controls(comparison, quantities):
    """The table of `CONTROLS`, each against SVDA."""
    names = ("accuracy (%)", "effective rank of sigma", "effective rank of the score")
    names += ("angular alignment", "selectivity index", "orthonormality penalty")
    lines = ["", "Controls, each of which differs from SVDA in one option:", ""]
    lines.append(f"| | accuracy - SVDA's | {' | '.join(names)} |")
    lines.append("|---" * (2 + len(names)) + "|")
    accuracy = quantities["accuracy (%)"]
    for variant, name in CONTROL_NAMES.items():
        difference = comparison.values(variant, accuracy)
        difference = difference - comparison.values("svda", accuracy)
        cells = [
            "" if variant == "svda" else mean_and_interval(difference),
            *(
                mean_and_spread(comparison.values(variant, quantities[n]))
                for n in names
            ),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _outcome(history):
    if history is None:
        return "failed"
    return f"{100 * float(history['eval_accuracy'][-1]):.2f} %"


def _count_parameters(comparison, variant):
    """Parameters of the model of the first run; its config says what it is."""
    config = runs.load_config(comparison.workdirs[variant][0])
    return count_parameters(
        nnx.eval_shape(lambda: ViT(vit_config(config), rngs=nnx.Rngs(0)))
    )


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

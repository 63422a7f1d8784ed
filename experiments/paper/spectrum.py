"""What start and learning rate of sigma do to accuracy and to effective rank.

    python -m experiments.paper.spectrum --config=configs/digits.py --seeds=3

Options of the config follow as for svda_jax.main. Runs lie under --runs, by default
runs/; those that are finished are not trained again, those that were stopped go on. The
results go to --out, by default experiments/results/spectrum.
"""

import pathlib
import shutil
import sys

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import (
    ATTENTIONS,
    configure,
    create_parser,
    mean_and_spread,
    read_configs,
    run_command,
    train,
    writing,
)
from experiments.paper.figures import save
from svda_jax.devices.memory import keep_memory
from svda_jax.look.figures import KINDS
from svda_jax.models.attention import SPECTRUM_STARTS
from svda_jax.run import runs

LABELS = {"ones": "1", "sqrt": "√K", "matched": "K"}
SCALES = (1, 10, 30, 100)
QUANTITIES = {
    "accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
    "effective rank": lambda h: (
        h["indicators"].sel(indicator="effective_rank")[-1].mean()
    ),
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("spectrum", __doc__)
    parser.add_argument("--config", required=True)
    parser.set_defaults(out="experiments/results/spectrum")
    run_command(parser, argv, compare_settings)


def compare_settings(args, rest, command):
    """All that the command line asks for."""
    out = pathlib.Path(args.out)
    read_configs([args.config], rest)
    runs.check_workdir(configure(args.config, rest, ATTENTIONS["svda"], 0), out)
    variants = {"study-softmax": ATTENTIONS["softmax"], **settings()}
    comparison = train(
        args.config,
        rest,
        variants,
        num_seeds=args.seeds,
        folder=args.runs,
    )
    write_results(comparison, out, command)
    print(f"\nresults are in {out}")


def settings():
    """The options of every start and learning rate, by the name in a run's folder."""
    return {
        f"study-{start}-{scale}": {
            **ATTENTIONS["svda"],
            "model.spectrum_init": start,
            "spectrum_lr_scale": float(scale),
        }
        for start in SPECTRUM_STARTS
        for scale in SCALES
    }


def write_results(comparison, out, command):
    """Writes the table, the figure and the histories.

    Raises:
      UserError: out cannot be written.
    """
    with writing(out):
        comparison.copy_histories(out)
        reference = comparison.workdirs["study-matched-30"][0]
        shutil.copyfile(runs.config_path(reference), out / "config.json")
        save(draw(comparison), out / "figure_start_and_rate")
        (out / "README.md").write_text("\n".join(_page(comparison, command)) + "\n")


def draw(comparison):
    """Accuracy and effective rank over the learning rate of sigma, a line a start."""
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    axes = figure.subplots(1, len(QUANTITIES))
    for ax, (name, read) in zip(axes, QUANTITIES.items(), strict=True):
        for start, color, marker in zip(SPECTRUM_STARTS, KINDS, "osD", strict=False):
            points = [
                comparison.values(f"study-{start}-{scale}", read) for scale in SCALES
            ]
            mean = [np.nanmean(values) for values in points]
            error = [np.nanstd(values, ddof=len(values) > 1) for values in points]
            ax.errorbar(
                SCALES,
                mean,
                yerr=error,
                color=color,
                marker=marker,
                markersize=4,
                capsize=2,
                label=f"sigma from {LABELS[start]}",
            )
        values = comparison.values("study-softmax", read)
        low, high = np.nanmin(values), np.nanmax(values)
        ax.axhspan(low, high, color="0.85", lw=0, label="softmax attention")
        ax.set_xscale("log")
        ax.set_xticks(SCALES, [str(scale) for scale in SCALES])
        ax.minorticks_off()
        ax.set_xlabel("learning rate of sigma over that of the others", fontsize=8)
        ax.set_ylabel(name, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _page(comparison, command):
    seeds = len(comparison.workdirs["study-softmax"])
    lines = [
        "# Start and learning rate of sigma",
        "",
        f"{comparison.name}, {describe_machine()}",
        "",
        f"    {command}",
        "",
        f"Mean and standard deviation over seeds 0 to {seeds - 1}, last evaluation; "
        "the effective rank is the mean over layers and heads. In the figure bars are "
        "one standard deviation, the grey band reaches over the runs with softmax "
        "attention. The `.nc` files are the histories.",
    ]
    for workdir, message in comparison.failures.items():
        lines += ["", f"**{workdir.name} failed** and is in no mean: {message}."]
    lines += [
        "",
        "![accuracy and effective rank](figure_start_and_rate.png)",
        "",
        f"| sigma starts at | learning rate times | {' | '.join(QUANTITIES)} |",
        "|---|---|---|---|",
    ]
    rows = {
        (LABELS[start], scale): f"study-{start}-{scale}"
        for start in SPECTRUM_STARTS
        for scale in SCALES
    }
    for (start, scale), variant in [*rows.items(), (("softmax", ""), "study-softmax")]:
        cells = [
            mean_and_spread(comparison.values(variant, read), 2)
            for read in QUANTITIES.values()
        ]
        lines.append(f"| {start} | {scale} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

"""What decides the spectra: sigma's options, pressure on them, and the model's size.

    python -m experiments.paper.spectrum --config=configs/digits.py --seeds=3

Sigma's learning rate ("rate"), its start and weight decay ("start"); a penalty on the
entropy of the score's spectrum ("pressure"); widths, depths, and shares of the training
images with as many steps ("size"); --part=rate takes one of them. Options of the config
follow as for svda_jax.main. Runs lie under --runs, by default runs/;
those that are finished are not trained again, those that were stopped go on. The
results go to spectrum/<config>/ under --out, by default experiments/results.
"""

import pathlib
import shutil
import sys

import numpy as np

from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import (
    ATTENTIONS,
    configure,
    create_parser,
    mean_and_interval,
    mean_and_spread,
    read_configs,
    run_command,
    train,
    writing,
)
from experiments.paper.figures import NAMES, save
from svda_jax import UserError
from svda_jax.devices.memory import keep_memory
from svda_jax.look.style import COLORS, label_axes, legend_above, legend_below, subplots
from svda_jax.models.indicators import effective_rank
from svda_jax.run import runs

PARTS = {
    "rate": "Learning rate of sigma",
    "start": "Start and weight decay of sigma",
    "pressure": "Pressure on the entropy of the score's spectrum",
    "size": "Widths, depths and shares of the training images",
}
RATES = (1, 10, 30, 100)
RATE_LABEL = "sigma learns {} times as fast"
WEIGHTS = (0.01, 0.03, 0.1, 0.3)
_MARKERS = "osD^vPX"  # of what is changed, in figures
_BARS = "bars: one standard deviation over seeds"
QUANTITIES = {
    "accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
    "sigma or singular values": lambda h: (
        h["indicators"].sel(indicator="effective_rank")[-1].mean()
    ),
    "score by weights": lambda h: np.mean(
        effective_rank(h["weight_spectrum"].values[-1])
    ),
    "score by data": lambda h: h["score_rank"][-1].mean(),
    "its strength (logits)": lambda h: h["score_strength"][-1].mean(),
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.spectrum", __doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--part", action="append", choices=PARTS, default=[])
    run_command(parser, argv, compare_settings)


def compare_settings(args, rest, command):
    """All that the command line asks for."""
    (name,) = read_configs([args.config], rest)
    out = pathlib.Path(args.out, "spectrum", name)
    config = configure(args.config, rest, ATTENTIONS["svda"], 0)
    runs.check_workdir(config, out)
    parts = args.part or list(PARTS)
    whole = config.dataset.train_split
    if "size" in parts and ("[" in whole or "+" in whole):
        raise UserError(
            f"dataset.train_split={whole} must be a whole split: shares are compared"
        )
    tables = settings(config)
    tables = {part: tables[part] for part in ("base", *parts)}
    variants = {
        f"study-{variant}": options
        for rows in tables.values()
        for variant, _, options in rows
    }
    comparison = train(
        args.config, rest, variants, num_seeds=args.seeds, folder=args.runs
    )
    write_results(comparison, tables, out, command)
    print(f"\nresults are in {out}")


def settings(config):
    """What is compared: by part, rows of a variant, what it is, and its options.

    Args:
      config: that all of it changes.
    """
    width, model = config.model.width, config.model

    def svda(variant, label, **options):
        return variant, label, ATTENTIONS["svda"] | options

    def rate(scale):
        return svda(
            f"rate-{scale}", RATE_LABEL.format(scale), spectrum_lr_scale=float(scale)
        )

    def both(variant, label, **options):
        for name, attention in ATTENTIONS.items():
            yield f"{variant}-{name}", f"{label}, {NAMES[name]}", attention | options

    def wide(factor):
        """Heads keep their width, so that ranks can be compared."""
        names = ("width", "mlp_dim", "num_heads")
        return {f"model.{name}": round(factor * model[name]) for name in names}

    def of_data(share):
        return {
            "dataset.train_split": f"{config.dataset.train_split}[:{share}%]",
            "num_epochs": round(100 / share * config.num_epochs),
            "eval_every_epochs": round(100 / share * config.eval_every_epochs),
        }

    rule = 2 * width**0.5
    return {
        "base": list(both("base", "as the config has it")),
        "rate": [
            *(rate(scale) for scale in RATES if scale != config.spectrum_lr_scale),
            rate(round(rule)),
        ],
        "start": [
            svda("ones", "sigma starts at 1", **{"model.spectrum_init": "ones"}),
            svda("sqrt", "sigma starts at √K", **{"model.spectrum_init": "sqrt"}),
            *(
                svda(
                    f"decay-{decay}",
                    f"weight decay {decay} on sigma",
                    spectrum_weight_decay=decay,
                )
                for decay in (0.01, 0.05)
            ),
        ],
        "pressure": [
            row
            for weight in WEIGHTS
            for row in both(
                f"entropy-{weight}", f"weight {weight}", score_entropy_weight=weight
            )
        ],
        "size": [
            *both("narrow", f"width {width // 2}", **wide(0.5)),
            *both("wide", f"width {width * 2}", **wide(2)),
            *both(
                "shallow", "half the depth", **{"model.depth": max(model.depth // 2, 1)}
            ),
            *both("deep", "twice the depth", **{"model.depth": model.depth * 2}),
            *both("quarter", "a quarter of the images", **of_data(25)),
            *both("half", "half of the images", **of_data(50)),
            *(
                svda(
                    f"rule-{name}",
                    f"width {round(factor * width)}, "
                    + RATE_LABEL.format(round(rule * factor**0.5)),
                    spectrum_lr_scale=float(round(rule * factor**0.5)),
                    **wide(factor),
                )
                for name, factor in (("narrow", 0.5), ("wide", 2))
            ),
        ],
    }


def write_results(comparison, tables, out, command):
    """Writes the tables, the figures and the histories.

    Raises:
      UserError: out cannot be written.
    """
    with writing(out):
        comparison.copy_histories(out)
        first = comparison.workdirs["study-base-svda"][0]
        shutil.copyfile(runs.config_path(first), out / "config.json")
        figures = {}
        if "rate" in tables:
            figures["figure_rates"] = draw_rates(comparison)
        if tables.keys() & {"pressure", "size"}:
            figures["figure_ranks"] = draw_ranks(comparison, tables)
        for name, figure in figures.items():
            save(figure, out / name)
        page = "\n".join(_page(comparison, tables, figures, command))
        (out / "README.md").write_text(page + "\n")


def draw_rates(comparison):
    """Accuracy and the effective ranks over the learning rate of sigma."""
    names = list(QUANTITIES)[:4]
    figure, axes = subplots(1, len(names), width=9.6, height=3.1)
    variants = [f"study-rate-{scale}" for scale in RATES]
    variants = [v if v in comparison.workdirs else "study-base-svda" for v in variants]
    for ax, name in zip(axes[0], names, strict=True):
        values = np.array([comparison.values(v, QUANTITIES[name]) for v in variants])
        several = values.shape[1] > 1
        mean, deviation = np.nanmean(values, 1), np.nanstd(values, 1, ddof=several)
        style = {"color": COLORS["svda"], "marker": "o", "markersize": 4, "capsize": 2}
        ax.errorbar(RATES, mean, deviation, label=NAMES["svda"], **style)
        softmax = comparison.values("study-base-softmax", QUANTITIES[name])
        ax.axhspan(
            np.nanmin(softmax),
            np.nanmax(softmax),
            color=COLORS["softmax"],
            alpha=0.25,
            lw=0,
            label=NAMES["softmax"],
        )
        ax.set_xscale("log")
        ax.set_xticks(RATES, [str(scale) for scale in RATES])
        ax.minorticks_off()
        title = name if "%" in name else f"effective rank of\n{name}"
        label_axes(ax, title, "learning rate of sigma, times", "")
    note = f"{_BARS}; band: lowest to highest seed"
    legend_above(figure, axes[0, 0], note)
    return figure


def draw_ranks(comparison, tables):
    """Accuracy over the score's effective rank: under pressure, and by size."""
    parts = [part for part in ("pressure", "size") if part in tables]
    figure, axes = subplots(1, len(parts), width=4.5 * len(parts), height=4.6)
    accuracy, rank = QUANTITIES["accuracy (%)"], QUANTITIES["score by data"]
    for ax, part in zip(axes[0], parts, strict=True):
        rows = [
            (variant, label.rpartition(",")[0], variant.rpartition("-")[-1])
            for variant, label, _ in tables["base"] + tables[part]
        ]
        rows = [row for row in rows if row[-1] in NAMES]
        changes = dict.fromkeys(change for _, change, _ in rows)
        markers = dict(zip(changes, _MARKERS, strict=False))
        for variant, change, attention in rows:
            x, y = (
                comparison.values(f"study-{variant}", read) for read in (rank, accuracy)
            )
            several = len(x) > 1
            ax.errorbar(
                np.nanmean(x),
                np.nanmean(y),
                xerr=np.nanstd(x, ddof=several),
                yerr=np.nanstd(y, ddof=several),
                color=COLORS[attention],
                marker=markers[change],
                markersize=5,
                lw=0.6,
            )
        keys = [
            ax.plot([], [], m, color="0.4", markersize=5)[0] for m in markers.values()
        ]
        label_axes(
            ax, PARTS[part], "effective rank of the score by data", "accuracy (%)"
        )
        legend_below(ax, keys, markers)
    for attention, name in NAMES.items():
        axes[0, 0].fill_between([], [], color=COLORS[attention], label=name)
    legend_above(figure, axes[0, 0], _BARS)
    return figure


def _page(comparison, tables, figures, command):
    seeds = len(comparison.workdirs["study-base-softmax"])
    lines = [
        f"# What decides the spectra, {comparison.name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        f"Mean and standard deviation over seeds 0 to {seeds - 1}, last evaluation; "
        "differences in accuracy (percentage points) are to the config as it is with "
        "the same attention, paired by seed, with their 95 % confidence interval "
        "(Student's t). Effective ranks are means over layers and heads, of the "
        "spectrum of sigma (of softmax attention: the singular values of W_q W_k^T), "
        "and of the score's own by weights and by data. "
        "The `.nc` files are the histories.",
    ]
    for workdir, message in comparison.failures.items():
        lines += ["", f"**{workdir.name} failed** and is in no mean: {message}."]
    for name in figures:
        lines += ["", f"![accuracy and effective ranks]({name}.png)"]
    accuracy = QUANTITIES["accuracy (%)"]
    for part in [part for part in PARTS if part in tables]:
        lines += ["", f"## {PARTS[part]}", ""]
        rows = tables["base"] + tables[part]
        lines.append(f"| | accuracy - that of base | {' | '.join(QUANTITIES)} |")
        lines.append("|---" * (2 + len(QUANTITIES)) + "|")
        for variant, label, options in rows:
            name, base = f"study-{variant}", f"study-base-{options['model.attention']}"
            difference = comparison.values(name, accuracy)
            difference = difference - comparison.values(base, accuracy)
            cells = [
                "" if name == base else mean_and_interval(difference, 2),
                *(
                    mean_and_spread(comparison.values(name, read), 2)
                    for read in QUANTITIES.values()
                ),
            ]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

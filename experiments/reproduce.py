"""Trains SVDA and softmax attention over seeds and writes down what came out.

    python -m experiments.reproduce --config=configs/digits.py --seeds=3

Options of the config follow as for svda_jax.main. Runs lie under --runs, by default
runs/; those that are finished are not trained again, those that were stopped go on. The
results go to --out, by default experiments/results/<config>.
"""

import argparse
import importlib.metadata
import pathlib
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import scipy.stats
from absl import flags
from flax import nnx

from svda_jax import UserError, figures, runs
from svda_jax.checkpoint import quiet_orbax
from svda_jax.huge_pages import use_huge_pages
from svda_jax.indicators import INDICATORS
from svda_jax.main import parse
from svda_jax.report import write_report
from svda_jax.train import train_and_evaluate

ATTENTIONS = ("softmax", "svda")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def main(argv):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each attention")
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    parser.add_argument("--out", help="folder of the results")
    args, rest = parser.parse_known_args(argv[1:])
    quiet_orbax()
    command = shlex.join(["python", "-m", "experiments.reproduce", *argv[1:]])
    try:
        if args.seeds < 1:
            raise UserError(f"--seeds={args.seeds} must be positive")
        workdirs = train(rest, args.seeds, pathlib.Path(args.runs))
        name = next(iter(workdirs)).name.rsplit("-", 2)[0]
        out = pathlib.Path(args.out or pathlib.Path("experiments/results", name))
        write_results(workdirs, out, command)
    except (UserError, FloatingPointError, flags.Error) as error:
        sys.exit(f"error: {error}")
    print(f"\nresults are in {out}")


def train(argv, num_seeds, folder):
    """Trains every run that is not finished; returns their workdirs in order."""
    workdirs = []
    for seed in range(num_seeds):
        for attention in ATTENTIONS:
            options = [f"--config.seed={seed}", f"--config.model.attention={attention}"]
            config, workdir, _ = parse(["reproduce", *argv, *options])
            workdir = folder / workdir.name
            total = num_seeds * len(ATTENTIONS)
            print(f"\nrun {len(workdirs) + 1} of {total}: {workdir}", flush=True)
            train_and_evaluate(config, workdir)
            workdirs.append(workdir)
    return workdirs


def write_results(workdirs, out, command):
    """Writes the table, the histories, heat maps and one report of the runs.

    Args:
      workdirs: of runs of both attentions, softmax and SVDA of each seed in turn.
      out: folder for the results; what is in it is replaced.
      command: that makes them again.
    """
    out.mkdir(parents=True, exist_ok=True)
    histories = {attention: [] for attention in ATTENTIONS}
    for workdir in workdirs:
        config = runs.load_config(workdir)
        history = runs.read_history(workdir)
        histories[config.model.attention].append(history)
        shutil.copyfile(runs.history_path(workdir), out / f"{workdir.name}.nc")
    shutil.copyfile(runs.config_path(workdirs[1]), out / "config.json")
    for attention in ATTENTIONS:
        last = [history["indicators"].values[-1] for history in histories[attention]]
        picture = figures.to_png(figures.heat_maps(np.mean(last, axis=0)))
        (out / f"heat_maps_{attention}.png").write_bytes(picture)
    write_report(workdirs[1], compare=workdirs[0], out=out / "report.html")
    lines = [*_head(workdirs, histories, command), "", *_table(workdirs, histories)]
    (out / "README.md").write_text("\n".join(lines) + "\n")


def _head(workdirs, histories, command):
    name = workdirs[0].name.rsplit("-", 2)[0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    where = ", ".join(histories["svda"][0].attrs.values())
    return [
        f"# {name}",
        "",
        f"Written at commit {commit or 'unknown'}; {where}; {versions}.",
        "",
        f"    {command}",
        "",
        "Mean and standard deviation over seeds, of the last evaluation of each run; "
        "the difference is paired by seed, with its 95 % confidence interval "
        "(Student's t). Indicators are means over layers and heads. `report.html` "
        "shows the runs of seed 0 side by side, the pictures the mean over seeds; the "
        "`.nc` files are the histories.",
        "",
        "Softmax attention, its spectrum that of W_q W_k^T:",
        "",
        "![heat maps of the six indicators, softmax attention](heat_maps_softmax.png)",
        "",
        "SVDA:",
        "",
        "![heat maps of the six indicators, SVDA](heat_maps_svda.png)",
    ]


def _table(workdirs, histories):
    """The Markdown table, line by line."""
    rows = {
        "accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
        "cross-entropy (nats)": lambda h: h["eval_loss"][-1],
        **{
            f"{figures.LABELS[name][0]}": lambda h, name=name: (
                h["indicators"].sel(indicator=name)[-1].mean()
            )
            for name in INDICATORS
        },
        "retained rank (90 % of energy)": lambda h: h["retained_rank"][-1].mean(),
        "orthonormality penalty": lambda h: h["orthonormality"][-1],
    }
    lines = ["| | softmax | SVDA | SVDA - softmax |", "|---|---|---|---|"]
    counts = [_count_parameters(workdir) for workdir in workdirs[:2]]
    lines.append(
        f"| parameters | {counts[0]:,} | {counts[1]:,} | {counts[1] - counts[0]:,} |"
    )
    for name, read in rows.items():
        values = {
            attention: np.array([float(read(h)) for h in histories[attention]])
            for attention in ATTENTIONS
        }
        cells = [_mean_and_spread(values[attention]) for attention in ATTENTIONS]
        difference = _difference(values["svda"] - values["softmax"])
        lines.append(f"| {name} | {' | '.join(cells)} | {difference} |")
    lines += ["", "| seed | softmax | SVDA |", "|---|---|---|"]
    for seed, pair in enumerate(zip(*histories.values(), strict=True)):
        cells = [f"{100 * float(h['eval_accuracy'][-1]):.2f} %" for h in pair]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return lines


def _mean_and_spread(values):
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _difference(values):
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{values.mean():+.3f} ± {half:.3f}"


def _count_parameters(workdir):
    params = nnx.state(runs.load(workdir).model, nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    use_huge_pages()
    main(sys.argv)

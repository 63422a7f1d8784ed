"""A run, or several compared, as one HTML page that needs no network.

Every number and picture in it is read off the runs' histories or computed by their
models here.
"""

import json
import os
import sys

import jinja2
import numpy as np
from absl import logging
from markupsafe import Markup

from svda_jax import UserError, is_address, local_path, place
from svda_jax.commands import parse
from svda_jax.config import flatten
from svda_jax.look import figures, samples, style, verdict
from svda_jax.look.evaluate import MAX_SHOWN, by_class, draw_confusion
from svda_jax.models.indicators import INDICATORS, of_score
from svda_jax.run import runs
from svda_jax.run.mirror import reading

# The rows of the page's table: name, label, meaning, and the indicator whose range and
# unit they have.
OF_SCORE = {
    "score_entropy": (
        "spectral entropy of the score",
        "How evenly the score's own spectrum is spread, in nats: one ruler for both "
        "attentions, as are the next four.",
        "spectral_entropy",
    ),
    "score_rank": (
        "effective rank of the score",
        "Directions that queries and keys tell apart over the evaluation split.",
        "effective_rank",
    ),
    "score_sparsity": (
        "spectral sparsity of the score",
        "How few of them hold it.",
        "spectral_sparsity",
    ),
    "score_retained_rank": (
        "retained rank of the score (90 % of energy)",
        "Fewest directions that hold 90 % of its energy (sum of squares).",
        "effective_rank",
    ),
    "score_strength": (
        "strength of the score (logits)",
        "How far a score is from the mean of its row, root mean square over queries "
        "and keys drawn independently.",
        None,
    ),
}
_RETAINED = (
    "retained rank",
    "Fewest directions that hold 90 % of a head's energy (sum of squares).",
    "effective_rank",
)


def write_report(workdir, *, compare=(), out=None):
    """Writes the report of a run, finished or not.

    Args:
      workdir: the run's folder or address.
      compare: folders or addresses of runs to put beside it.
      out: path of the page; None is report.html in workdir.

    Returns:
      The path of the page.

    Raises:
      UserError: a folder holds no run, or one without an evaluation, or a damaged
        history; or the page cannot be written.
    """
    workdirs = [place(path) for path in (workdir, *compare)]
    if out is not None and not (out := local_path(out)).parent.is_dir():
        raise UserError(f"cannot write {out}: its folder does not exist")
    out = out or workdirs[0] / "report.html"
    described = []
    for path in workdirs:
        with reading(path) as folder:
            described.append(_describe(folder))
        described[-1]["atlas"] = _link(path / "atlas.html", out)
    if len({run["name"] for run in described}) < len(described):
        for run, path in zip(described, workdirs, strict=True):
            run["name"] = str(path if is_address(path) else path.resolve())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svda_jax.look", "."), autoescape=True
    )
    page = environment.get_template("report.html").render(
        runs=described,
        verdict=_judge(described),
        figures=_draw(described),
        table=_rows(described),
        differing=_differing(described),
        **samples.to_page(described),
    )
    if is_address(out):
        runs.write_atomically(out, page.encode())
        return out
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return out


def _describe(workdir):
    """All that the page shows of one run, but for figures that runs share."""
    config = runs.load_config(workdir)
    history = runs.read_history(workdir)
    last = history.isel(step=-1)
    heads = dict(zip(INDICATORS, last["indicators"].values, strict=True))  # [L, H]
    heads["retained_rank"] = last["retained_rank"].values
    score = {}  # of a run of an older version, or one that has diverged
    if "score_spectrum" in last and np.isfinite(last["score_spectrum"]).any():
        score = of_score(last["score_spectrum"].values)
    images = samples.look_at_images(workdir, config)
    accuracy, interval = float(last["eval_accuracy"]), None
    if not isinstance(images, str):
        accuracy, interval = images.right.mean(), verdict.interval(images.right)
    return {
        "name": workdir.resolve().name,
        "config": config,
        "attention": config.model.attention,
        "options": flatten(config),
        "history": history,
        "last": {
            name: float(last[name]) for name in last.data_vars if not last[name].dims
        },
        "epoch": float(last["epoch"]),
        "directions": last.sizes["direction"],
        "table": {name: _spread(one) for name, one in (heads | score).items()},
        "score": {name: _spread(one) for name, one in score.items()},
        "accuracy": accuracy,
        "interval": interval,
        "speed": _speed(history),
        "classes": _describe_classes(history),
        "pruned": _describe_pruning(workdir),
        "images": images,
    }


def _spread(values):
    return values.mean(), values.std(), values.min(), values.max()


def _rows(described):
    """The rows of the table of indicators, which all runs share."""
    own = {name: (i.label, i.meaning, name) for name, i in INDICATORS.items()}
    own |= {"retained_rank": _RETAINED}
    if any(run["score"] for run in described):
        own |= OF_SCORE
    sizes = [run["directions"] for run in described]
    for name, (label, meaning, like) in own.items():
        said = "0 and more"
        if like:
            low, high = INDICATORS[like].range
            ranges = [f"{low(k):.3g} to {high(k):.3g}" for k in sizes]
            said = "; ".join(dict.fromkeys(ranges))
        decimals = 2 if like == "effective_rank" else 3
        yield {
            "name": name,
            "label": label,
            "meaning": meaning,
            "range": said,
            "decimals": decimals,
        }


def _describe_classes(history):
    """The last evaluation class by class; None where the matrix is not kept."""
    if "confusion" not in history:
        return None
    return by_class(
        history["confusion"].values, [str(name) for name in history["true"].values]
    )


def _speed(history):
    """Images/s and seconds an epoch, over all of a run's training, or NaN."""
    history = history.assign(
        steps=history.step.diff("step").combine_first(history.step)
    )
    history = history.where(np.isfinite(history.images_per_second), drop=True)
    seconds = (history.steps / history.images_per_second).sum()  # over batch size
    rate = float(history.steps.sum() / seconds) if seconds else np.nan
    num_images = history.images_per_second * history.epoch_seconds
    return rate, float(num_images.mean()) / rate


def _describe_pruning(workdir):
    """What was taken from a pruned run, or None."""
    path = runs.pruning_path(workdir)
    if not path.exists():
        return None
    try:
        took = json.loads(path.read_text())
        figure = figures.kept_directions(took["spectrum"], took["keep"])
        # Before there were rules each head kept rho of the energy of its sigma.
        took = {"rule": f"--rho={took.get('rho')} --basis=sigma"} | took
        title = f"directions kept of {took['workdir']}"
        return {**took, "picture": _svg(figure, title)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _judge(described):
    """The verdict, a list of sentences."""
    looked = [run for run in described if not isinstance(run["images"], str)]
    sentences = []
    first, *others = looked or [None]
    for run in others:
        if _same_images(first, run):
            one, other = ((r["name"], r["images"].right) for r in (first, run))
            sentences.append(verdict.compare_on_images(one, other))
    by_seed = [
        (
            run["attention"],
            run["config"].seed,
            {
                "points of accuracy": 100 * run["last"]["eval_accuracy"],
                "directions of the score's effective rank": (
                    run["score"]["score_rank"][0] if run["score"] else np.nan
                ),
            },
        )
        for run in described
        if _setting(run) == _setting(described[0])
    ]
    return verdict.compare_by_seed(by_seed) + sentences


def _setting(run):
    """What a run has in common with those of other seeds and attentions."""
    other = {*runs.MAY_DIFFER, "model.attention", "seed"} - {"num_epochs"}
    return {key: value for key, value in run["options"].items() if key not in other}


def _same_images(one, other):
    """Whether two runs were evaluated on the same images, in one order."""
    names = ("name", "eval_split", "holdout", "train_split", "class_list")
    return np.array_equal(one["images"].labels, other["images"].labels) and all(
        one["config"].dataset[name] == other["config"].dataset[name] for name in names
    )


def _draw(described):
    """The figures in which runs lie in the same panels, and those of each run."""
    drawn = [
        figures.Drawn(
            run["name"], run["attention"], run["history"], run["config"].num_epochs
        )
        for run in described
    ]
    scored = [run for run in drawn if "score_spectrum" in run.history]
    names = ", ".join(run.label for run in drawn)
    found = {
        "curves": figures.curves(drawn),
        "indicators by epoch": figures.indicators_by_epoch(drawn),
        "indicators by layer": figures.indicators_by_layer(drawn),
        "spectra": figures.spectra(drawn),
    }
    if scored:
        found["spectra of the score"] = figures.score_spectra(scored)
    found = {what: _svg(figure, f"{what}: {names}") for what, figure in found.items()}
    for run in drawn:
        values = run.history["indicators"][-1].values
        figure = figures.heat_maps(values, run.history.sizes["direction"])
        found[f"heat maps {run.label}"] = _svg(figure, f"heat maps: {run.label}")
        if "confusion" in run.history and run.history.sizes["true"] <= MAX_SHOWN:
            matrix = run.history["confusion"].values
            figure = draw_confusion(
                matrix, [str(n) for n in run.history["true"].values]
            )
            title = f"confusion matrix: {run.label}"
            found[f"confusion {run.label}"] = _svg(figure, title)
    return found


def _differing(described):
    """The options in which the runs differ, by key."""
    first, *others = (run["options"] for run in described)
    return {
        key: [run["options"].get(key) for run in described]
        for key in first
        if any(other.get(key) != first[key] for other in others)
    }


def _link(path, page):
    """The address of a local file for a page, or None where there is no such file."""
    if is_address(path) or is_address(page) or not path.exists():
        return None
    return os.path.relpath(path.resolve(), page.resolve().parent)


def _svg(figure, title):
    return Markup(style.to_svg(figure, title))


def main(argv=None):
    """Runs the command line."""
    args = parse("report", argv)
    logging.set_verbosity(logging.ERROR)
    try:
        print(write_report(args.workdir, compare=args.compare, out=args.out))
    except UserError as error:
        sys.exit(f"error: {error}")

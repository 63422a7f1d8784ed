"""A run as one HTML page that needs no network: pictures inside, nothing executed.

    svda report --workdir RUN --compare RUN

Every number and picture in it is read off the runs' histories or computed by their
models here.
"""

import base64
import dataclasses
import json
import pathlib
import sys

import jax
import jinja2
import numpy as np
from absl import logging
from flax import nnx
from markupsafe import Markup

from svda_jax import UserError, command_line, local_path
from svda_jax.config import flatten
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.look import figures, pictures, style
from svda_jax.look.evaluate import MAX_SHOWN, by_class, draw_confusion
from svda_jax.look.maps import look
from svda_jax.models.indicators import INDICATORS, of_score
from svda_jax.run import runs
from svda_jax.run.predict import predict

NUM_PICTURED = 4  # images that attention is shown over
NUM_WORST = 12
_BATCH = 256
# What is drawn of each run's history, and its description.
_FIGURES = {
    "by_epoch": "six indicators by epoch",
    "by_layer": "six indicators by layer",
    "heat_maps": "indicators, layer by head",
    "spectra": "spectra",
    "score_spectra": "spectra of the score",
    "confusion": "confusion matrix",
}
# What the page says of `of_score`'s values.
OF_SCORE = {
    "score_entropy": (
        "spectral entropy of the score",
        "How evenly the score's own spectrum is spread, in nats: one ruler for both "
        "attentions, as are the next four.",
    ),
    "score_rank": (
        "effective rank of the score",
        "Directions that queries and keys tell apart over the evaluation split.",
    ),
    "score_sparsity": ("spectral sparsity of the score", "How few of them hold it."),
    "score_retained_rank": (
        "retained rank of the score (90 % of energy)",
        "Fewest directions that hold 90 % of its energy (sum of squares).",
    ),
    "score_strength": (
        "strength of the score (logits)",
        "How far a score is from the mean of its row, root mean square over queries "
        "and keys drawn independently.",
    ),
}


@dataclasses.dataclass(frozen=True)
class _Images:
    """What a model says of the evaluation split."""

    drawn: list  # rollout, worst-classified images, attention image by image
    num_wrong: int
    num_images: int


def write_report(workdir, *, compare=None, out=None):
    """Writes the report of a run, finished or not.

    Args:
      workdir: of the run.
      compare: workdir of a run to put beside it, or None.
      out: path of the page; None is report.html in workdir.

    Returns:
      The path of the page.

    Raises:
      UserError: a workdir holds no run, or one without an evaluation, or a damaged
        history; or the page cannot be written.
    """
    workdirs = [local_path(path) for path in (workdir, compare) if path is not None]
    if out is not None and not (out := local_path(out)).parent.is_dir():
        raise UserError(f"cannot write {out}: its folder does not exist")
    described = [_describe(path) for path in workdirs]
    if len({run["name"] for run in described}) < len(described):
        for run, path in zip(described, workdirs, strict=True):
            run["name"] = str(path.resolve())
    for run in described:
        for name, what in _FIGURES.items():
            run[name] = run[name] and _picture(run[name], what)
        if isinstance(run["images"], _Images):
            run["images"].drawn[:] = [_picture(*one) for one in run["images"].drawn]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svda_jax.look", "."), autoescape=True
    )
    drawn = [
        figures.Drawn(run["name"], run["attention"], run["history"])
        for run in described
    ]
    page = environment.get_template("report.html").render(
        runs=described,
        curves=_picture(figures.curves(drawn), "loss and accuracy over epochs"),
        indicators=INDICATORS,
        of_score=OF_SCORE,
        differing=_differing(described),
    )
    out = pathlib.Path(out or workdirs[0] / "report.html")
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return out


def _describe(workdir):
    """All that the page shows of one run."""
    config = runs.load_config(workdir)
    history = runs.read_history(workdir)
    last = history.isel(step=-1)
    values = last["indicators"].values  # [6, L, H]
    drawn = figures.Drawn(workdir.name, config.model.attention, history)
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
        "table": {
            name: (one.mean(), one.std(), one.min(), one.max())
            for name, one in zip(INDICATORS, values, strict=True)
        },
        "retained": (
            float(last["retained_rank"].mean()),
            last.sizes["direction"],
        ),
        **_describe_score(last, drawn),
        "speed": _speed(history),
        **_describe_classes(history),
        "by_epoch": figures.indicators_by_epoch([drawn]),
        "by_layer": figures.indicators_by_layer([drawn]),
        "heat_maps": figures.heat_maps(values, last.sizes["direction"]),
        "spectra": figures.spectra([drawn]),
        "pruned": _describe_pruning(workdir),
        "images": _look_at_images(workdir, config),
    }


def _describe_classes(history):
    """The last evaluation class by class; None where the matrix is not kept."""
    if "confusion" not in history:
        return {"classes": None, "confusion": None}
    confusion = history["confusion"].values
    names = [str(name) for name in history["true"].values]
    drawn = len(names) <= MAX_SHOWN and draw_confusion(confusion, names)
    return {"classes": by_class(confusion, names), "confusion": drawn or None}


def _describe_score(last, drawn):
    """The score's own spectrum; None where a run did not measure it."""
    if "score_spectrum" not in last:
        return {"score": None, "score_spectra": None}
    spectrum = last["score_spectrum"].values
    heads = of_score(spectrum)
    return {
        "score": {k: (v.mean(), v.std(), v.min(), v.max()) for k, v in heads.items()},
        "score_spectra": figures.score_spectra([drawn]),
    }


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
        return {**took, "picture": _picture(figure, "directions kept")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _look_at_images(workdir, config):
    """Attention and mistakes on the evaluation split, or why there are none."""
    try:
        run = runs.load(workdir)
        data = datasets.load(
            config.dataset,
            "eval",
            batch_size=_BATCH,
            mesh=parallel.create_mesh([parallel.local_device()]),
            obtain=False,
        )
        logits, labels, places = predict(run.model, data)
    except UserError as error:
        return str(error)
    probabilities = np.asarray(jax.nn.softmax(logits))
    predicted = probabilities.argmax(-1)

    def title(i):
        share = probabilities[i, predicted[i]]
        true, best = data.class_names[labels[i]], data.class_names[predicted[i]]
        return f"true: {true}\n{best} ({share:.0%})"

    shown = range(min(NUM_PICTURED, len(labels)))
    images, _ = data.get(places[: len(shown)])
    graphdef, params = nnx.split(run.model, nnx.Param)
    _, maps, rollout = jax.device_get(look(params, images, graphdef=graphdef))
    titles = [title(i) for i in shown]
    # Worst first: the least probability given to the true class.
    given = probabilities[np.arange(len(labels)), labels]
    worst = np.argsort(given, kind="stable")[:NUM_WORST]
    return _Images(
        drawn=[
            (pictures.rollouts(images, rollout, titles), "attention rollout"),
            (
                pictures.gallery(data.get(places[worst])[0], [title(i) for i in worst]),
                "worst-classified images",
            ),
            *(
                (pictures.attention_grid(images[i], maps[i], titles[i]), titles[i])
                for i in shown
            ),
        ],
        num_wrong=int(np.sum(predicted != labels)),
        num_images=len(labels),
    )


def _differing(described):
    """The options in which the runs differ, by key."""
    first, *others = (run["options"] for run in described)
    return {
        key: [run["options"].get(key) for run in described]
        for key in first
        if any(other.get(key) != first[key] for other in others)
    }


def _picture(figure, description):
    """A figure as an img element with the picture inside."""
    data = base64.b64encode(style.to_png(figure, dpi=110)).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(
        description, Markup(data)
    )


def main(argv=None):
    """Runs the command line."""
    parser = command_line("report", __doc__)
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--compare", metavar="RUN", help="a run to put beside it")
    parser.add_argument("--out", help="the page (default: report.html in workdir)")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    try:
        print(write_report(args.workdir, compare=args.compare, out=args.out))
    except UserError as error:
        sys.exit(f"error: {error}")

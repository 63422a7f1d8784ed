"""How well a run classifies a split or a folder of class folders, class by class."""

import collections
import sys

import numpy as np
from matplotlib.figure import Figure

from svda_jax import UserError, local_path
from svda_jax.commands import parse
from svda_jax.data import datasets
from svda_jax.data.image_folder import describe_left_out, find_classes, name_classes
from svda_jax.devices import parallel
from svda_jax.look.style import shorten
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.run.console import align, to_json
from svda_jax.run.predict import predict, predict_images, read_images

MAX_SHOWN = 20  # classes of a matrix that a person can read
_BATCH = 256
_UNREADABLE = "no image"  # a reason to leave a file out


def summarize(logits, labels, names):
    """What an evaluation says, as JSON has it.

    Args:
      logits: `[n, C]`.
      labels: `[n]`.
      names: of the C classes.

    Returns:
      A dict of "images", their number; "top_1" and "top_5", the fraction whose class is
      the most probable one or among five; "loss", the cross-entropy in nats; "classes",
      from `by_class`; and "confusion", `[true][predicted]` numbers of images.
    """
    logits = np.asarray(logits, np.float64)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5] == labels[:, None]
    highest = logits.max(-1)
    norms = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, logits.argmax(-1)), 1)
    return {
        "images": len(labels),
        "top_1": float(best[:, 0].mean()),
        "top_5": float(best.any(-1).mean()),
        "loss": float((norms - logits[np.arange(len(labels)), labels]).mean()),
        "classes": by_class(confusion, names),
        "confusion": confusion.tolist(),
    }


def by_class(confusion, names):
    """A dict a class: "name"; "images"; "accuracy", None without images; "taken_for",
    the class that its images are wrongly given most often, or None, and "times"."""
    rows = []
    for label, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        wrong = np.where(np.arange(len(counts)) == label, 0, counts)
        total, other = int(counts.sum()), int(wrong.argmax())
        rows.append(
            {
                "name": str(name),
                "images": total,
                "accuracy": float(counts[label] / total) if total else None,
                "taken_for": str(names[other]) if wrong[other] else None,
                "times": int(wrong[other]),
            }
        )
    return rows


def draw_confusion(confusion, names):
    """The confusion matrix `[C, C]`: a row a true class, numbers in its cells."""
    names = [shorten(name, 24) for name in names]
    longest = max(map(len, names))
    side = 1.2 + 0.4 * len(names) + 0.08 * longest  # inches
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    ax = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(-1, keepdims=True), 1)
    picture = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        # Black would be the page's ink, which is light on a dark page.
        color = "#1a1a1a" if shares[row, column] > 0.5 else "white"
        if count:
            ax.text(column, row, count, ha="center", va="center", color=color, size=7)
    for axis in (ax.xaxis, ax.yaxis):
        for text in axis.set_ticks(range(len(names)), names, fontsize=8):
            text.label1.set_parse_math(False)
    ax.tick_params(axis="x", rotation=90 if longest > 3 else 0)
    ax.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=ax, shrink=0.8).set_label("fraction of the true class")
    return figure


def evaluate_split(run, split=""):
    """`summarize` of a split in TFDS's notation; "" is the one that the run evaluates.

    Raises:
      UserError: there is no such split, or its data set is missing.
    """
    dataset = run.config.dataset.copy_and_resolve_references()
    if split:
        with dataset.unlocked():
            dataset.eval_split, dataset.holdout = split, 0.0
    mesh = parallel.create_mesh([parallel.local_device()])
    data = datasets.load(dataset, "eval", batch_size=_BATCH, mesh=mesh)
    logits, labels, _ = predict(run.model, data)
    if not len(labels):
        raise UserError(f"{dataset.name} {dataset.eval_split} has no image to evaluate")
    return summarize(logits, labels, data.class_names)


def evaluate_folder(run, folder):
    """`summarize` of a folder of class folders, and what of it is not taken, by reason.

    Raises:
      UserError: it is no folder, a class folder is none of the run's classes, or there
        is no image.
    """
    folder, left_out = local_path(folder), collections.defaultdict(list)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    names = run.names
    found = dict(sorted(find_classes([folder], left_out).items()))
    logits, labels = [], []
    for name, below in zip(found, name_classes(folder, list(found)), strict=True):
        if below not in names:
            more = ", ..." if len(names) > 5 else ""
            raise UserError(
                f"{folder / name} is none of the run's classes, which are "
                f"{', '.join(names[:5])}{more}"
            )
        paths = found[name]
        for start in range(0, len(paths), _BATCH):
            images = _read(paths[start : start + _BATCH], run.config, left_out)
            if images:
                logits.append(predict_images(run.model, np.stack(images)))
                labels += [names.index(below)] * len(images)
    if not labels:
        raise UserError(f"{folder} has no images in class folders that can be read")
    return summarize(np.concatenate(logits), np.array(labels), names), left_out


def _read(paths, config, left_out):
    images = []
    for path in paths:
        try:
            images.append(read_images(path, config)[0])
        except UserError as error:
            left_out[_UNREADABLE].append(str(error))
    return images


def main(argv=None):
    """Runs the command line."""
    args = parse("evaluate", argv)
    quiet_orbax()
    run, left_out = runs.load(args.workdir), {}
    if args.folder:
        found, left_out = evaluate_folder(run, args.folder)
    else:
        found = evaluate_split(run, args.split)
    dataset = run.config.dataset
    held_out = f"held-out {dataset.holdout:g} of {dataset.train_split}"
    own = held_out if dataset.holdout else dataset.eval_split
    found = {"workdir": args.workdir, "step": run.step} | found
    found["data"] = args.folder or f"{dataset.name} {args.split or own}"
    for line in describe_left_out(left_out):
        print(line, file=sys.stderr)
    print(to_json(found) if args.json else _describe(found))
    if _UNREADABLE in left_out:
        sys.exit(1)


def _describe(found):
    """What a person reads of `summarize`."""
    names = [row["name"] for row in found["classes"]]
    top_5 = f"top-5 {found['top_5']:.2%}, " if len(names) > 5 else ""
    rows = [("class", "images", "accuracy", "most often taken for")]
    for row in found["classes"]:
        share = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        other = f"{row['taken_for']} ({row['times']})" if row["times"] else ""
        rows.append((row["name"], f"{row['images']:,}", share, other))
    parts = [
        f"{found['workdir']}, step {found['step']:,}, on {found['data']}: "
        f"{found['images']:,} images",
        f"top-1 {found['top_1']:.2%}, {top_5}loss {found['loss']:.4f} nats",
        "\n" + align(rows),
    ]
    if len(names) <= MAX_SHOWN:
        matrix = [("true, predicted:", *map(str, range(len(names))))]
        matrix += [
            (f"{label} {name}", *map(str, counts))
            for label, (name, counts) in enumerate(
                zip(names, found["confusion"], strict=True)
            )
        ]
        parts.append("\n" + align(matrix))
    return "\n".join(parts)

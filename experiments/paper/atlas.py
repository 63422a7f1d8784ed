"""Does what an atlas says of directions hold on images that it did not see?

    python -m experiments.paper.atlas --config=configs/fashion_mnist_small.py --seeds=3

Options of the config follow as for svda_jax.main. SVDA runs of experiments.paper under
--runs, by default runs/, are used, what is missing is trained. The atlas of each is
made from the first half of the evaluation split; then the directions that cost most
there are taken away one at a time, and the second half is classified. The table and the
atlas of seed 0 go to atlas/<config>/ under --out, by default experiments/results.
"""

import json
import shutil
import sys

import numpy as np
import optax

from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import (
    create_parser,
    run_command,
    train_for,
    writing,
)
from svda_jax.atlas.measure import measure_atlas
from svda_jax.atlas.page import draw
from svda_jax.devices.memory import keep_memory
from svda_jax.prune.measure import measure_moments
from svda_jax.prune.model import mask, split
from svda_jax.run import runs
from svda_jax.run.predict import predict
from svda_jax.train.derive import load_data

NUM_DIRECTIONS = 3  # of each run that are taken away
NUM_REMOVED = 1000  # images that the atlas takes directions away for


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.atlas", __doc__)
    parser.add_argument("--config", required=True)
    run_command(parser, argv, check_atlases)


def check_atlases(args, rest, command):
    """All that the command line asks for."""
    out, comparison = train_for("atlas", args, rest, ["svda"])
    workdirs = comparison.workdirs["svda"]
    studies = []
    for seed, workdir in enumerate(workdirs):
        run = runs.load(workdir)
        _, _, data = load_data(run.config)
        half = data.num_images // 2
        atlas = measure_atlas(
            run.model, data, num_images=half, num_removed=min(NUM_REMOVED, half)
        )
        studies.append(study(run, data, atlas, half))
        if seed == 0:
            page, numbers = draw(workdir.name, run, data, atlas), atlas
    with writing(out):
        shutil.copyfile(runs.config_path(workdirs[0]), out / "config.json")
        (out / "atlas.html").write_text(page)
        (out / "atlas.nc").write_bytes(numbers.to_netcdf(engine="scipy"))
        (out / "numbers.json").write_text(json.dumps(studies) + "\n")
        text = "\n".join(_page(comparison.name, studies, command))
        (out / "README.md").write_text(text + "\n")
    print(f"\nresults are in {out}")


def study(run, data, atlas, half):
    """What the largest costs in an atlas come to on the images after those it saw.

    Args:
      run: the `Run`.
      data: its evaluation split.
      atlas: from `measure_atlas`, over the first half of it.
      half: images in that half.

    Returns:
      A dict for each of the dearest directions, of layers and heads counted from 1:
      what the atlas says ("strength", "foreseen" and its standard error, nats), and of
      the other half "added" with its error, and of the class that the atlas says it
      costs most ("class") the accuracy "before" and "after", and what its images are
      then most often taken for, "mistaken".
    """
    moments, _ = measure_moments(run.model, data)
    directions = split(run.model, "score", moments)
    costs = atlas["added_loss"].values

    def classify(model):
        logits, labels, places = predict(model, data)
        unseen = places >= half
        logits, labels = logits[unseen], labels[unseen]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return np.asarray(loss), logits.argmax(-1), labels

    loss, predicted, labels = classify(run.model)
    found = []
    for place in np.argsort(-costs, axis=None)[:NUM_DIRECTIONS]:
        layer, head, direction = np.unravel_index(place, costs.shape)
        keep = [np.ones(one.size.shape, bool) for one in directions]
        keep[layer][head, direction] = False
        without, taken_for, _ = classify(mask(run.model, directions, keep))
        one = atlas.isel(layer=layer, head=head, direction=direction)
        label = int(np.nanargmax(one["class_added_loss"]))
        own = labels == label
        wrong = taken_for[own & (taken_for != label)]
        mistaken = run.names[np.bincount(wrong).argmax()] if wrong.size else ""
        added = without - loss
        found.append(
            {
                "layer": int(layer) + 1,
                "head": int(head) + 1,
                "direction": int(direction) + 1,
                "strength": float(one["strength"]),
                "foreseen": [float(one["added_loss"]), float(one["added_loss_error"])],
                "added": [float(added.mean()), float(added.std() / len(added) ** 0.5)],
                "class": run.names[label],
                "before": float((predicted[own] == label).mean()),
                "after": float((taken_for[own] == label).mean()),
                "mistaken": mistaken,
            }
        )
    return found


def _page(name, studies, command):
    lines = [
        f"# What directions are for, {name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        "[The atlas](atlas.html) of seed 0 shows the directions of each head, from the "
        "first half of the evaluation split (the metric of the data, which needs no "
        "labels, from all of it); `atlas.nc` has its numbers. Below are the "
        f"{NUM_DIRECTIONS} directions of each run that cost most there when they are "
        "taken away, one at a time, and what came of it on the second half, which the "
        "atlas did not see: loss in nats with its standard error over images, and how "
        "many of the class that the atlas says it costs most are recognised.",
        "",
        "| seed | layer | head | direction | strength (logits) | added loss, atlas | "
        "added loss, other half | class | recognised (%) | without it (%) | then most "
        "often taken for |",
        "|---" * 11 + "|",
    ]
    for seed, found in enumerate(studies):
        for one in found:
            foreseen, added = (
                f"{value:+.3f} ± {error:.3f}"
                for value, error in (one["foreseen"], one["added"])
            )
            lines.append(
                f"| {seed} | {one['layer']} | {one['head']} | {one['direction']} | "
                f"{one['strength']:.2f} | {foreseen} | {added} | {one['class']} | "
                f"{100 * one['before']:.1f} | {100 * one['after']:.1f} | "
                f"{one['mistaken']} |"
            )
    return lines


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

"""What directions of the score matter: pruning by several rules, and one by one.

    python -m experiments.paper.prune --config=configs/digits.py --seeds=3

Options of the config follow as for svda_jax.main. Runs lie under --runs, by default
runs/; those of experiments.paper are used, what is missing is trained. The results
go to prune/<config>/ under --out, by default experiments/results.
"""

import json
import shutil
import sys

import jax
import numpy as np
import optax

from experiments.paper import prune_page
from experiments.paper.comparison import (
    ATTENTIONS,
    create_parser,
    run_command,
    train_for,
    writing,
)
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.devices.memory import keep_memory
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.prune.measure import measure_moments, measure_movement
from svda_jax.prune.model import BASES, choose, foresee, mask, shrink, split
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.run.predict import predict_images

# Directions that a head keeps, those below what it has.
RANKS = (1, 2, 3, 4, 6, 8, 10, 12, 14)
# Rules of `svda_jax prune`: the follow-up's (arXiv 2609.24370), and ours.
RULES = {
    "--basis=sigma --rho=0.9": ("sigma", {"rho": 0.9}),
    "--basis=score --rho=0.99": ("score", {"rho": 0.99}),
    "--basis=score --rho=0.95": ("score", {"rho": 0.95}),
    "--basis=score --bound=0.3": ("score", {"bound": 0.3}),
}
NUM_DRAWS = 5
# Images that each direction, and each head, is pruned for alone.
NUM_ALONE = 2000
# What a head may move the class logits by, over their root mean square, at its limit.
LIMIT = 0.01
# What `svda_jax prune` is run for, seed 0: what is kept of 16 directions.
PRUNED_RANK = 6


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.prune", __doc__)
    parser.add_argument("--config", required=True)
    run_command(parser, argv, compare_rules)


def compare_rules(args, rest, command):
    """All that the command line asks for."""
    out, comparison = train_for("prune", args, rest, list(ATTENTIONS))
    studies = {attention: [] for attention in ATTENTIONS}
    for attention, workdirs in comparison.workdirs.items():
        for workdir in workdirs:
            print(f"pruning {workdir}", flush=True)
            studies[attention].append(study(workdir))
    write_results(comparison, studies, out, command)
    print(f"\nresults are in {out}")


class Split:
    """The evaluation split, and what a model makes of it."""

    def __init__(self, data):
        self.images, self.labels = data.get(range(data.num_images))

    def predict(self, model, num_images=None):
        """Logits `[n, C]` of the first images, by default of all."""
        return predict_images(model, self.images[:num_images], batch_size=500)

    def accuracy(self, model):
        """The share of all images that the model is right about."""
        return np.mean(self.predict(model).argmax(-1) == self.labels)

    def loss(self, logits):
        """Cross-entropy (nats) of logits of the first images."""
        labels = self.labels[: len(logits)]
        return float(
            optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        )


def _rms(values):
    return np.sqrt(np.mean(np.square(values)))


def study(workdir):
    """All measurements on a run.

    Returns:
      A dict of
        "original" accuracy,
        "spectrum" `[L, H, K]`, the score's by the training images,
        "ranks" `[R]`, those of `RANKS` below K,
        "accuracy" `[R]` masked, by what goes: the least of each basis of `BASES`; the
          least over all heads together ("pooled"); at random, in the basis "score";
          and of SVDA shrunk with its lengths and without what goes ("shrunk", "short"),
        "parameters" and "macs" `[R]`, of the model "shrunk" over the original's,
        "moved" and "foreseen" `[R, L, H]`, see `measure_movement`, in basis "score",
        "alone" by basis: "size" `[L, H, K]`, and the root mean square change of the
          class logits and the added loss (nats) without each direction,
        "limit" `[L, H]`, the fewest directions each head can keep, see `LIMIT`,
        "rules": by rule of `RULES` "removed", "masked", "shrunk", "short",
          "parameters" and "macs".
    """
    run = runs.load(workdir)
    model, mesh = run.model, parallel.create_mesh(jax.devices()[:1])
    training, data = (
        datasets.load(run.config.dataset, kind, batch_size=250, mesh=mesh)
        for kind in ("train", "eval")
    )
    images, rng = Split(data), np.random.default_rng(run.config.seed)
    moments, lengths = measure_moments(model, training)
    is_svda = run.config.model.attention == "svda"
    directions = {
        basis: split(model, basis, moments)
        for basis in (BASES if is_svda else BASES[:2])
    }
    score = directions["score"]
    spectrum = np.stack([one.size for one in score])
    ranks = [rank for rank in RANKS if rank < spectrum.shape[-1]]
    names = [*directions, "pooled", "random", *(["shrunk", "short"] if is_svda else [])]
    found = {
        "original": images.accuracy(model),
        "spectrum": spectrum,
        "ranks": ranks,
        "accuracy": {name: [] for name in names},
        **{name: [] for name in ("parameters", "macs", "moved", "foreseen")},
    }
    for rank in ranks:
        masked, narrow = {}, {}
        for basis, one in directions.items():
            keep = choose([layer.size for layer in one], rank=rank)
            masked[basis] = mask(model, one, keep)
        pooled = choose(spectrum, rank=rank, pooled=True)
        masked["pooled"] = mask(model, score, pooled)
        keep = choose(spectrum, rank=rank)
        narrow["shrunk"] = shrink(model, score, keep, lengths)
        if is_svda:
            narrow["short"] = shrink(model, score, keep, lengths, norm_columns=None)
            masked |= narrow
        for name, one in masked.items():
            found["accuracy"][name].append(images.accuracy(one))
        draws = [
            images.accuracy(
                mask(model, score, [rng.permuted(k, axis=-1) for k in keep])
            )
            for _ in range(NUM_DRAWS)
        ]
        found["accuracy"]["random"].append(np.mean(draws))
        for name, ratio in _sizes(narrow["shrunk"], model).items():
            found[name].append(ratio)
        gone = [one.add_up(~kept) for one, kept in zip(score, keep, strict=True)]
        found["moved"].append(measure_movement(model, gone, data))
        found["foreseen"].append(foresee(spectrum, np.stack(keep)))
    found["alone"] = {
        basis: _switch_off(model, one, images) for basis, one in directions.items()
    }
    found["limit"] = _find_limits(model, score, images)
    found["rules"] = {
        rule: _apply(model, directions[basis], lengths, images, **options)
        for rule, (basis, options) in RULES.items()
        if basis in directions
    }
    return found


def _sizes(shrunk, model):
    counts = [[count_parameters(m), count_macs(m.config)] for m in (shrunk, model)]
    return dict(zip(("parameters", "macs"), np.divide(*counts), strict=True))


def _apply(model, directions, lengths, images, **options):
    """What a rule removes and what that does."""
    keep = choose([one.size for one in directions], **options)
    shrunk = shrink(model, directions, keep, lengths)
    short = shrink(model, directions, keep, lengths, norm_columns=None)
    return {
        "removed": 1 - np.mean(np.concatenate(keep)),
        "masked": images.accuracy(mask(model, directions, keep)),
        "shrunk": images.accuracy(shrunk),
        "short": images.accuracy(short),
        **_sizes(shrunk, model),
    }


def _switch_off(model, directions, images):
    """Size of each direction, and what the class logits and the loss do without it."""
    size = np.stack([one.size for one in directions])
    whole = images.predict(model, NUM_ALONE)
    moved, added = np.empty(size.shape), np.empty(size.shape)
    for place in np.ndindex(size.shape):
        keep = np.ones(size.shape, bool)
        keep[place] = False
        logits = images.predict(mask(model, directions, keep), NUM_ALONE)
        moved[place] = _rms(logits - whole)
        added[place] = images.loss(logits) - images.loss(whole)
    return {"size": size, "moved": moved, "added": added}


def _find_limits(model, directions, images):
    """The fewest directions that each head can keep when it alone is pruned."""
    size = np.stack([one.size for one in directions])
    whole = images.predict(model, NUM_ALONE)
    allowed = LIMIT * _rms(whole)
    limits = np.full(size.shape[:2], size.shape[-1])
    for head in np.ndindex(limits.shape):
        for rank in range(1, size.shape[-1]):
            keep = np.ones(size.shape, bool)
            keep[head][rank:] = False
            logits = images.predict(mask(model, directions, keep), NUM_ALONE)
            if _rms(logits - whole) <= allowed:
                limits[head] = rank
                break
    return limits


def write_results(comparison, studies, out, command):
    """Writes tables, figures, numbers, and what `svda_jax prune` said of seed 0.

    Raises:
      UserError: out cannot be written.
    """
    pages = {}
    for attention in ATTENTIONS:
        first = comparison.workdirs[attention][0]
        pruned = first.with_name(f"{first.name}-pruned-rank-{PRUNED_RANK}")
        if not pruned.exists():
            prune_run(first, pruned, rank=PRUNED_RANK)
        pages[attention] = pruned / "prune.md"
    with writing(out):
        shutil.copyfile(runs.config_path(first), out / "config.json")
        for attention, page in pages.items():
            shutil.copyfile(page, out / f"pruned_{attention}_seed_0.md")
        numbers = jax.tree.map(lambda x: np.round(np.float64(x), 6).tolist(), studies)
        (out / "numbers.json").write_text(json.dumps(numbers) + "\n")
        prune_page.write(comparison, studies, out, command)


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

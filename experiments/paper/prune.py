"""What spectral energy retention removes, against what else could be removed.

    python -m experiments.paper.prune --config=configs/digits.py --seeds=3

Options of the config follow as for svda_jax.main. Runs lie under --runs, by default
runs/; those of experiments.paper are used, what is missing is trained. The results
go to prune/<config>/ under --out, by default experiments/results.
"""

import functools
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.table import describe_machine
from experiments.paper import prune_figures
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
from experiments.paper.figures import save
from svda_jax import UserError
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.devices.memory import keep_memory
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.prune.model import choose, factorise, mask, shrink
from svda_jax.prune.run import finetune, prune_run
from svda_jax.run import runs

RHOS = (0.99, 0.95, 0.90, 0.80, 0.70, 0.50)
TUNED = (0.90, 0.70, 0.50)
NUM_DRAWS = 5
# Images that each direction is switched off for.
NUM_ABLATED = 2000
CRITERIA = {
    "energy": "least energy of its head (SVDA)",
    "layer": "smallest |sigma| of the layer",
    "random": "at random",
    "largest": "most energy of its head",
    "shrunk": "least energy, norms without it",
    "softmax": "softmax attention, by SVD",
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.prune", __doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--finetune_epochs", type=int, default=10)
    run_command(parser, argv, compare_criteria)


def compare_criteria(args, rest, command):
    """All that the command line asks for."""
    epochs = args.finetune_epochs
    if epochs < 1:
        raise UserError(f"--finetune_epochs={epochs} must be positive")
    (name,) = read_configs([args.config], rest)
    out = pathlib.Path(args.out, "prune", name)
    runs.check_workdir(configure(args.config, rest, ATTENTIONS["svda"], 0), out)
    comparison = train(
        args.config,
        rest,
        ATTENTIONS,
        num_seeds=args.seeds,
        folder=args.runs,
    )
    if comparison.failures:
        raise UserError(f"{next(iter(comparison.failures))} failed")
    studies = []
    for softmax, svda in zip(
        *(comparison.workdirs[a] for a in ATTENTIONS), strict=True
    ):
        print(f"pruning {svda} and {softmax}", flush=True)
        studies.append(study(svda, softmax, epochs))
    write_results(comparison, studies, out, command, epochs)
    print(f"\nresults are in {out}")


class Split:
    """The evaluation split, and what a model makes of it."""

    def __init__(self, config):
        data = datasets.load(
            config.dataset, "eval", batch_size=250, mesh=parallel.create_mesh()
        )
        self.images, self.labels = data.get(range(data.num_images))

    def evaluate(self, model, num_images=None):
        """Accuracy and cross-entropy (nats) on the first images, by default on all."""
        graphdef, params = nnx.split(model, nnx.Param)
        params = nnx.to_pure_dict(params)
        images, labels = self.images[:num_images], self.labels[:num_images]
        totals = np.zeros(2)
        for start in range(0, len(labels), 500):
            some = slice(start, start + 500)
            totals += jax.device_get(
                _sums(params, images[some], labels[some], graphdef=graphdef)
            )
        return totals / len(labels)


@functools.partial(jax.jit, static_argnames="graphdef")
def _sums(params, images, labels, *, graphdef):
    """How many are right, and the sum of the cross-entropies."""
    logits, _ = nnx.merge(graphdef, params)(images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.stack([jnp.sum(jnp.argmax(logits, -1) == labels), jnp.sum(losses)])


def study(svda_dir, softmax_dir, finetune_epochs):
    """All measurements on the two runs of a seed.

    Returns:
      A dict of
        "original" accuracy of SVDA and of softmax attention,
        "removed" `[rho]`, share of directions that energy retention removes, and
          "removed_softmax" likewise,
        "accuracy" `[rho]` by criterion of `CRITERIA`,
        "parameters" and "macs" `[rho]`, of the shrunk model over the original's,
        "energy" and "added_loss" `[L, H, K]`, of each direction alone,
        "tuned" accuracies of the shrunk model after training, by `TUNED`.
    """
    svda, softmax = runs.load(svda_dir), runs.load(softmax_dir)
    split = Split(svda.config)
    rng = np.random.default_rng(svda.config.seed)
    spectra = [np.asarray(block.attention.spectrum) for block in svda.model.blocks]
    singular = factorise(softmax.model)
    found = {name: [] for name in ("removed", "removed_softmax", "parameters", "macs")}
    accuracy = {criterion: [] for criterion in CRITERIA}
    for rho in RHOS:
        keep = [choose(spectrum, rho) for spectrum in spectra]
        shrunk = shrink(svda.model, keep)
        found["removed"].append(1 - np.mean(np.concatenate(keep)))
        found["parameters"].append(
            count_parameters(shrunk) / count_parameters(svda.model)
        )
        macs = [count_macs(m.config) for m in (shrunk, svda.model)]
        found["macs"].append(macs[0] / macs[1])
        masked = {
            "energy": mask(svda.model, keep),
            "layer": mask(svda.model, [*map(_across_layer, spectra, keep)]),
            "largest": mask(svda.model, [*map(_largest_first, spectra, keep)]),
            "shrunk": shrunk,
        }
        for criterion, model in masked.items():
            accuracy[criterion].append(split.evaluate(model)[0])
        draws = [
            split.evaluate(mask(svda.model, [_at_random(k, rng) for k in keep]))[0]
            for _ in range(NUM_DRAWS)
        ]
        accuracy["random"].append(np.mean(draws))
        keep = [choose(block.attention.spectrum, rho) for block in singular.blocks]
        found["removed_softmax"].append(1 - np.mean(np.concatenate(keep)))
        accuracy["softmax"].append(split.evaluate(mask(singular, keep))[0])
    energy = np.square(np.stack(spectra))
    return {
        **{name: np.array(values) for name, values in found.items()},
        "accuracy": {name: np.array(values) for name, values in accuracy.items()},
        "original": split.evaluate(svda.model)[0],
        "original_softmax": split.evaluate(softmax.model)[0],
        "energy": energy / energy.sum(-1, keepdims=True),
        "added_loss": _switch_off(svda.model, split, energy.shape),
        "tuned": [_finetune(svda_dir, rho, finetune_epochs) for rho in TUNED],
    }


def _across_layer(spectrum, keep):
    """As many of the layer as keep has, the largest |sigma| whatever the head."""
    order = np.argsort(-np.abs(spectrum).ravel(), kind="stable")[: keep.sum()]
    return np.isin(np.arange(keep.size), order).reshape(keep.shape)


def _largest_first(spectrum, keep):
    """As many of each head as keep has, those of least energy."""
    ranks = np.argsort(np.argsort(np.abs(spectrum), axis=-1, kind="stable"), axis=-1)
    return ranks < keep.sum(-1, keepdims=True)


def _at_random(keep, rng):
    """As many of each head as keep has."""
    return rng.permuted(keep, axis=-1)


def _switch_off(model, split, shape):
    """Loss that each direction adds when it alone is switched off: `[L, H, K]` nats."""
    whole = split.evaluate(model, NUM_ABLATED)[1]
    added = np.empty(shape)
    for place in np.ndindex(shape):
        keep = np.ones(shape, bool)
        keep[place] = False
        added[place] = split.evaluate(mask(model, keep), NUM_ABLATED)[1] - whole
    return added


def _finetune(workdir, rho, epochs):
    """Accuracy of the shrunk model after so many epochs at a tenth of the rate."""
    pruned = workdir.with_name(f"{workdir.name}-pruned-{rho:g}")
    tuned = workdir.with_name(f"{pruned.name}-{epochs}-epochs")
    if not pruned.exists():
        prune_run(workdir, pruned, rho=rho)
    if not runs.is_finished(tuned):
        finetune(pruned, tuned, epochs=epochs)
    return float(runs.read_history(tuned)["eval_accuracy"][-1])


def write_results(comparison, studies, out, command, epochs):
    """Writes tables, figures, numbers, and what `svda_jax prune` said of seed 0.

    Raises:
      UserError: out cannot be written.
    """
    with writing(out):
        first = comparison.workdirs["svda"][0]
        shutil.copyfile(runs.config_path(first), out / "config.json")
        for rho in TUNED:
            pruned = first.with_name(f"{first.name}-pruned-{rho:g}")
            shutil.copyfile(pruned / "prune.md", out / f"pruned_{rho:g}_seed_0.md")
        numbers = [jax.tree.map(lambda x: np.asarray(x).tolist(), s) for s in studies]
        (out / "numbers.json").write_text(json.dumps(numbers) + "\n")
        for name, figure in {
            "figure_removed": prune_figures.removed(studies, CRITERIA),
            "figure_directions": prune_figures.directions(studies),
            "figure_finetuned": prune_figures.finetuned(studies, RHOS, TUNED, epochs),
        }.items():
            save(figure, out / name)
        page = "\n".join(_page(comparison.name, studies, command, epochs))
        (out / "README.md").write_text(page + "\n")


def _page(name, studies, command, epochs):
    original = 100 * np.array([s["original"] for s in studies])
    softmax = 100 * np.array([s["original_softmax"] for s in studies])
    lines = [
        f"# Pruning {name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        f"Seeds 0 to {len(studies) - 1}, whole evaluation split. SVDA before: "
        f"{mean_and_spread(original, 2)} %, softmax attention: "
        f"{mean_and_spread(softmax, 2)} %. Differences in accuracy (percentage "
        "points) are to the same seed before, mean with 95 % confidence interval "
        "(Student's t). Every criterion removes as many directions as energy "
        f"retention does, random ones in {NUM_DRAWS} draws; softmax attention loses "
        "the singular directions of W_q W_k^T that hold the rest of its own energy. "
        "All but the shrunk model are masked. `numbers.json` has every number, "
        "`pruned_*.md` what `python -m svda_jax prune` says of seed 0.",
        "",
        "![accuracy over directions removed](figure_removed.png)",
        "",
        "| rho | removed (%) | energy, masked | smallest of layer | random | largest | "
        "energy, shrunk | parameters (%) | MACs (%) | softmax: removed (%) | softmax |",
        "|---" * 11 + "|",
    ]
    for i, rho in enumerate(RHOS):

        def share(key, i=i):
            return mean_and_spread(100 * np.array([s[key][i] for s in studies]), 1)

        def change(criterion, before, i=i):
            after = [100 * s["accuracy"][criterion][i] for s in studies]
            return mean_and_interval(np.array(after) - before, 2)

        cells = [
            f"{rho:.2f}",
            share("removed"),
            *(change(c, original) for c in ("energy", "layer", "random", "largest")),
            change("shrunk", original),
            share("parameters"),
            share("macs"),
            share("removed_softmax"),
            change("softmax", softmax),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    correlation = np.array([prune_figures.rank_correlations(s) for s in studies])
    num_layers = correlation.shape[1]
    lines += [
        "",
        "Each direction switched off alone, the loss that adds against its share of "
        "its head's energy, and their rank correlation (Spearman):",
        "",
        "![loss added against energy](figure_directions.png)",
        "",
        f"| {' | '.join(f'layer {i + 1}' for i in range(num_layers))} |",
        "|---" * num_layers + "|",
        f"| {' | '.join(mean_and_spread(c, 2) for c in correlation.T)} |",
        "",
        f"The shrunk model trained for {epochs} more epochs at a tenth of the learning "
        "rate, difference to the original:",
        "",
        "![fine-tuning](figure_finetuned.png)",
        "",
        "| rho | shrunk | then trained |",
        "|---|---|---|",
    ]
    for i, rho in enumerate(TUNED):
        shrunk = [100 * s["accuracy"]["shrunk"][RHOS.index(rho)] for s in studies]
        tuned = [100 * s["tuned"][i] for s in studies]
        cells = (mean_and_interval(np.array(x) - original, 2) for x in (shrunk, tuned))
        lines.append(f"| {rho:.2f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

"""What each part of a recipe gives, by images held out of training.

    python -m experiments.paper.recipe --config=configs/fashion_mnist.py

The learning rate halved and doubled, with both attentions; then each part of the recipe
switched off alone, with softmax attention, so that a choice by it favours the baseline.
Accuracy is that of a tenth of the training images, which are not trained on: the test
split is not read. Options of the config follow as for svda_jax.main, such as a shorter
training, or another share with --config.dataset.holdout. Runs lie under --runs, by
default runs/; those that are finished are not trained again, those that were stopped go
on. The results go to recipe/<config>/ under --out, by default experiments/results.
"""

import pathlib
import shutil
import sys

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
from experiments.paper.figures import NAMES
from svda_jax import UserError
from svda_jax.config import flatten
from svda_jax.devices.memory import keep_memory
from svda_jax.run import runs

# Options whose falsy value leaves a part of the recipe out.
PARTS = (
    "augment.crop_padding",
    "augment.flip",
    "augment.affine",
    "augment.rand_augment",
    "augment.erase",
    "augment.mixup",
    "augment.cutmix",
    "label_smoothing",
    "model.drop_path",
    "weight_decay",
    "ema_decay",
)
QUANTITIES = {
    "held-out accuracy (%)": lambda h: 100 * h["eval_accuracy"][-1],
    "training accuracy (%)": lambda h: 100 * h["train_accuracy"][-1],
    "held-out loss": lambda h: h["eval_loss"][-1],
}


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.recipe", __doc__)
    parser.set_defaults(seeds=1)
    parser.add_argument("--config", required=True)
    run_command(parser, argv, compare_recipes)


def compare_recipes(args, rest, command):
    """All that the command line asks for."""
    rest = ["--config.dataset.holdout=0.1", *rest]
    (name,) = read_configs([args.config], rest)
    out = pathlib.Path(args.out, "recipe", name)
    config = configure(args.config, rest, ATTENTIONS["svda"], 0)
    if not config.dataset.holdout:
        raise UserError("dataset.holdout=0 would choose a recipe by the test split")
    runs.check_workdir(config, out)
    variants = settings(config)
    comparison = train(
        args.config,
        rest,
        {variant: options for variant, (_, options) in variants.items()},
        num_seeds=args.seeds,
        folder=args.runs,
    )
    with writing(out):
        comparison.copy_histories(out)
        first = comparison.workdirs["recipe-svda"][0]
        shutil.copyfile(runs.config_path(first), out / "config.json")
        page = "\n".join(_page(comparison, variants, config, command))
        (out / "README.md").write_text(page + "\n")
    print(f"\nresults are in {out}")


def settings(config):
    """What is compared: of each variant a label and its options.

    Args:
      config: with the whole recipe.
    """
    variants = {}
    for name, attention in ATTENTIONS.items():
        variants[f"recipe-{name}"] = f"the recipe, {NAMES[name]}", attention
        for factor in (0.5, 2):
            rate = factor * config.learning_rate
            variants[f"recipe-rate-{factor:g}-{name}"] = (
                f"learning rate {rate:g}, {NAMES[name]}",
                attention | {"learning_rate": rate},
            )
    whole = flatten(config)
    parts = {part: type(whole[part])() for part in PARTS if whole[part]}
    for part, nothing in parts.items():
        label = f"`{part}={nothing}` for {whole[part]}"
        variants[f"recipe-no-{part}"] = label, ATTENTIONS["softmax"] | {part: nothing}
    variants["recipe-plain"] = "none of these parts", ATTENTIONS["softmax"] | parts
    return variants


def _page(comparison, variants, config, command):
    seeds = len(comparison.workdirs["recipe-softmax"])
    accuracy = QUANTITIES["held-out accuracy (%)"]
    lines = [
        f"# What each part of the recipe gives, {comparison.name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        f"{config.num_epochs:g} epochs, seeds 0 to {seeds - 1}, last evaluation, of "
        f"{config.dataset.holdout:.0%} of the training images, which were held out. "
        "Parts are left out one at a time, with softmax attention. Differences are to "
        "the recipe with the same attention, in percentage points, paired by seed, "
        "with their 95 % confidence interval where there are several seeds. "
        "The `.nc` files are the histories.",
    ]
    for workdir, message in comparison.failures.items():
        lines += ["", f"**{workdir.name} failed** and is in no mean: {message}."]
    lines += ["", f"| | {' | '.join(QUANTITIES)} | - that of the recipe |"]
    lines.append("|---" * (2 + len(QUANTITIES)) + "|")
    for variant, (label, options) in variants.items():
        base = f"recipe-{options['model.attention']}"
        values = comparison.values(variant, accuracy)
        difference = values - comparison.values(base, accuracy)
        cells = [
            mean_and_spread(comparison.values(variant, read), 2)
            for read in QUANTITIES.values()
        ]
        cells.append("" if variant == base else mean_and_interval(difference, 2))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

"""The picture of README.md: where heads look in a photograph, and their spectra.

    python -m experiments.paper.picture

Cuts square pieces out of the photographs that come with scikit-image and scikit-learn,
imports them as a data set, trains a small model with each attention to say which
photograph a piece is of, and draws. Pieces overlap: the accuracy says that the models
have learned, not that they generalise. Data and runs lie under --runs, by default
runs/; what is there is used. The picture and what it is go to picture/ under --out, by
default experiments/results. It takes half an hour on a processor core.
"""

import pathlib
import sys

import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_images

from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import (
    ATTENTIONS,
    configure,
    create_parser,
    run_command,
    writing,
)
from experiments.paper.figures import NAMES
from svda_jax import UserError
from svda_jax.data.prepare import import_files
from svda_jax.devices.memory import keep_memory
from svda_jax.look.explain import head_effects
from svda_jax.look.pictures import color_bar, overlay
from svda_jax.look.style import COLORS, label_axes
from svda_jax.models.attention import attention_weights
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "hubble_deep_field",
)
NUM_PIECES = {"train": 100, "val": 8}  # of each photograph
SIDE = 128
OPTIONS = {
    "dataset.image_size": SIDE,
    "model.patch_size": 8,
    "model.depth": 3,
    "model.width": 64,
    "model.mlp_dim": 128,
    "model.num_heads": 4,
    "batch_size": 32,
    "num_epochs": 24,
    "eval_every_epochs": 4,
    "checkpoint.every_epochs": 4,
    "learning_rate": 2e-3,
}
NUM_HEADS = 3  # of each attention
# Of the cat: the piece that is drawn, and the patch whose attention is, by row, column.
BOX, QUERY = (70, 0, 370, 300), (5, 5)


def main(argv):
    """Runs the command line."""
    parser = create_parser("paper.picture", __doc__)
    parser.set_defaults(seeds=1)
    run_command(parser, argv, make)


def make(args, rest, command):
    """All that the command line asks for."""
    if args.seeds != 1:
        raise UserError(f"--seeds={args.seeds}: the picture is of a run of each kind")
    folder, out = pathlib.Path(args.runs), pathlib.Path(args.out, "picture")
    photographs = read_photographs()
    data_dir = folder / "tfds"
    if not (data_dir / "photographs").exists():
        cut(photographs, folder / "photographs")
        import_files("photographs", str(folder / "photographs"), str(data_dir))
    piece = Image.fromarray(photographs["chelsea"]).crop(BOX)
    image = np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    found, said = {}, []
    for name, attention in reversed(ATTENTIONS.items()):
        options = {**OPTIONS, **attention, "dataset.data_dir": str(data_dir.absolute())}
        config = configure("configs/folder.py:photographs", rest, options, 0)
        workdir = folder / f"photographs-{name}-0"
        if not runs.is_finished(workdir, config):
            train_and_evaluate(config, workdir)
        run = runs.load(workdir)
        found[name] = look(run, image)
        last = run.history.isel(step=-1)
        accuracy, epoch = float(last.eval_accuracy), int(last.epoch)
        said.append(f"{NAMES[name]} {accuracy:.1%} after {epoch}")
    with writing(out):
        figure = draw(image, piece, found)
        figure.savefig(out / "attention.jpg", dpi=150, pil_kwargs={"quality": 88})
        (out / "README.md").write_text(_page(", ".join(said), command))
    print(f"the picture is in {out}")


def read_photographs():
    """`[height, width, 3]` uint8 by name.

    Raises:
      UserError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            "the photographs are scikit-image's: pip install scikit-image"
        ) from None
    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    return found | {name: getattr(data, name)() for name in PHOTOGRAPHS}


def cut(photographs, folder):
    """Writes pieces as folder/<split>/<photograph>/<number>.png.

    Args:
      photographs: from `read_photographs`.
      folder: that need not exist.
    """
    rng = np.random.default_rng(0)
    for name, photograph in photographs.items():
        for split, count in NUM_PIECES.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                side = round(rng.uniform(0.35, 1) * min(photograph.shape[:2]))
                top, left = (rng.integers(n - side + 1) for n in photograph.shape[:2])
                piece = Image.fromarray(
                    photograph[top : top + side, left : left + side]
                )
                piece = piece.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                piece.save(folder / split / name / f"{i}.png")


def look(run, image):
    """Where heads look from the patch `QUERY`, and their spectra.

    Args:
      run: from `runs.load`.
      image: `[S, S, 3]` uint8.

    Returns:
      The `NUM_HEADS` heads, as (layer, head), without which the model would be least
      sure of its answer; their attention `[g, g]`, 1 where it is uniform; and the
      spectrum of every score over the evaluation split, `[L, H, K]` in logits.
    """
    logits, traces = run.model(image[None])
    graphdef, params = nnx.split(run.model, nnx.Param)
    params = nnx.to_pure_dict(params)
    effects = head_effects(params, image, int(logits.argmax()), graphdef=graphdef)
    order = np.argsort(-np.asarray(effects), axis=None)[:NUM_HEADS]
    heads = [tuple(map(int, np.unravel_index(i, effects.shape))) for i in order]
    grid = run.model.config.grid
    query = QUERY[0] * grid + QUERY[1]
    attention = []
    for layer, head in heads:
        t = traces[layer]
        weights = attention_weights(t.query, t.key, t.sigma, scale=t.scale)
        row = np.asarray(weights[0, head, query])  # [N]
        attention.append(len(row) * row.reshape(grid, grid))
    return heads, attention, run.history["score_spectrum"].values[-1]


def draw(image, piece, found):
    """The picture.

    Args:
      image: as to `look`.
      piece: the same as it is shown, a PIL image.
      found: what `look` gives, by attention.
    """
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    axes = figure.subplot_mosaic(
        [["image", *(f"{a} {i}" for i in range(NUM_HEADS)), "spectra"] for a in found],
        width_ratios=[2.05, *[1] * NUM_HEADS, 1.3],
    )
    side = piece.width / len(found["svda"][1][0])
    spectra = axes["spectra"]
    for attention, (heads, maps, spectrum) in found.items():
        color = COLORS[attention]
        for i, ((layer, head), one) in enumerate(zip(heads, maps, strict=True)):
            ax = axes[f"{attention} {i}"]
            ax.imshow(overlay(image, one, piece.width))
            _mark(ax, side)
            where = f"layer {layer + 1}, head {head + 1}"
            ax.set_title(f"{NAMES[attention]}, {where}", fontsize=10, color=color)
        sizes = -np.sort(-spectrum, axis=-1)
        x = np.arange(1, 1 + sizes.shape[-1])
        for place in np.ndindex(sizes.shape[:2]):
            lw, alpha = (2, 1) if place in heads else (0.8, 0.3)
            spectra.semilogy(x, sizes[place], color=color, lw=lw, alpha=alpha)
        spectra.plot([], [], color=color, lw=2, label=f"{NAMES[attention]}, shown")
    axes["image"].imshow(piece)
    _mark(axes["image"], side)
    axes["image"].set_title("Where does this patch look?", fontsize=12)
    label_axes(spectra, "", "direction, by size", "")
    spectra.set_title("spectra of the scores (logits)", fontsize=10)
    spectra.spines[["top", "right"]].set_visible(False)
    spectra.legend(frameon=False, fontsize=10)
    color_bar(figure, [axes[f"{a} {i}"] for a in found for i in range(NUM_HEADS)])
    return figure


def _mark(ax, side):
    """A frame around the patch, whose sides are that many pixels."""
    corner = (QUERY[1] * side - 0.5, QUERY[0] * side - 0.5)
    for color, width in (("black", 3), ("white", 1.5)):
        frame = Rectangle(corner, side, side, fill=False, edgecolor=color, lw=width)
        ax.add_patch(frame)
    ax.set_axis_off()


def _page(said, command):
    return f"""# A photograph, and where heads look in it

{describe_machine()}

    {command}

![a cat, and the patches that one patch of it looks at, by head](attention.jpg)

A frame is around the patch that looks. Green patches get more than their share of its
attention, purple ones less. Shown are the {NUM_HEADS} heads of each model without which
it would be least sure that this is the cat, strongest first.

Data: {NUM_PIECES["train"]} pieces of each of {len(PHOTOGRAPHS) + 2} photographs to
train on and {NUM_PIECES["val"]} to evaluate, {SIDE} x {SIDE} pixels in 8 x 8 patches:
of scikit-image {", ".join(PHOTOGRAPHS)}, of scikit-learn china and flower. They
overlap, and that of the picture is of a photograph that was trained on: accuracy
({said} epochs) says that the models have learned, not that they generalise. Models:
{OPTIONS["model.depth"]} layers of width {OPTIONS["model.width"]},
{OPTIONS["model.num_heads"]} heads.
"""


if __name__ == "__main__":
    keep_memory()
    main(sys.argv)

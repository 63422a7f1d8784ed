"""What a run says of image files, and where it looked."""

import collections
import functools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from svda_jax import UserError, local_path
from svda_jax.commands import parse
from svda_jax.data.image_folder import describe_left_out, walk
from svda_jax.look.maps import look
from svda_jax.look.pictures import color_bar, overlay, show
from svda_jax.look.style import keep_text, to_png
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.run.console import to_json
from svda_jax.run.predict import read_images

NUM_HEADS = 3  # that a picture shows
_BATCH = 64


@functools.partial(jax.jit, static_argnames="graphdef")
def head_effects(params, image, label, *, graphdef):
    """What each head does for a class: the logit of the class, less that without it.

    Args:
      params: the model's parameters.
      image: `[S, S, channels]`, 0 to 255.
      label: of the class.
      graphdef: from `vit.create_graphdef`.

    Returns:
      `[L, H]` float32: positive where the model is less sure without the head.
    """
    blocks = params["blocks"]
    num_heads = blocks[0]["attention"]["out"]["kernel"].shape[0]
    shape = len(blocks), num_heads

    def logit(keep):
        """Of the model whose heads are multiplied by `[L, H]`."""
        kept = {}
        for layer, weights in enumerate(keep):
            attention = blocks[layer]["attention"]
            kernel = attention["out"]["kernel"] * weights[:, None, None]
            out = attention["out"] | {"kernel": kernel}
            kept[layer] = blocks[layer] | {"attention": attention | {"out": out}}
        return nnx.merge(graphdef, params | {"blocks": kept})(image[None])[0][0, label]

    without = 1 - jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
    effects = logit(jnp.ones(shape)) - jax.lax.map(logit, without)
    return effects.reshape(shape)


def draw(image, rollout, maps, effects, title):
    """An image, its attention rollout over it, and the attention of the main heads.

    Args:
      image: `[S, S, channels]` uint8.
      rollout: `[g, g]`, 1 where attention is uniform.
      maps: `[L, H, g, g]`, likewise.
      effects: from `head_effects`.
      title: of the image.
    """
    order = np.argsort(-effects, axis=None)[:NUM_HEADS]
    heads = [np.unravel_index(place, effects.shape) for place in order]
    panels = [(rollout, "attention, all layers")] + [
        (
            maps[layer, head],
            f"layer {layer + 1}, head {head + 1}\n"
            f"worth {effects[layer, head]:+.2f} logits",
        )
        for layer, head in heads
    ]
    count = 1 + len(panels)
    figure = Figure(figsize=(2.2 * count, 2.6), layout="constrained")
    axes = figure.subplots(1, count)
    show(axes[0], image)
    keep_text([axes[0].set_title(title, fontsize=9)])
    for ax, (attention, said) in zip(axes[1:], panels, strict=True):
        ax.imshow(overlay(image, attention, max(len(attention), 320)))
        ax.set_title(said, fontsize=9)
        ax.set_axis_off()
    color_bar(figure, axes[1:])
    return figure


def find_files(names):
    """What names stand for: files, folders of images, and "-" for lines of names.

    Returns:
      The files; a `UserError` for each name that stands for none; and the paths of what
      folders hold beside images, by reason.
    """
    files, failed, left_out = [], [], collections.defaultdict(list)
    for name in names:
        for one in _read_names() if name == "-" else [name]:
            try:
                path = local_path(one)
                found = sorted(walk(path, left_out)) if path.is_dir() else [path]
                if not found:
                    raise UserError(f"{one} has no images")
                files += found
            except UserError as error:
                failed.append(error)
    return files, failed, left_out


def _read_names():
    """The lines of standard input, in whatever encoding names of files are."""
    lines = (os.fsdecode(line).strip("\r\n") for line in sys.stdin.buffer)
    return filter(None, lines)


def main(argv=None):
    """Runs the command line."""
    args = parse("predict", argv)
    quiet_orbax()
    if args.top < 1:
        raise UserError(f"--top={args.top} must be positive")
    out = local_path(args.out) if args.explain else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; give another --out")
    files, failed, left_out = find_files(args.images)
    run = runs.load(args.workdir)
    for start in range(0, len(files), _BATCH):
        failed += _say(run, files[start : start + _BATCH], args, out)
    for line in describe_left_out(left_out):
        print(line, file=sys.stderr)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def _say(run, files, args, out):
    """Prints a line for each file that can be read; what was wrong with the others."""
    readable, failed = [], []
    for file in files:
        try:
            readable.append((file, read_images(file, run.config)[0]))
        except UserError as error:
            failed.append(error)
    if not readable:
        return failed
    images = np.stack([image for _, image in readable])
    for (file, image), found in zip(readable, run.classify(images), strict=True):
        best = dict(list(found.items())[: args.top])
        picture = out and _explain(run, file, image, next(iter(best.items())), out)
        if args.json:
            said = {"file": str(file), "classes": best}
            said |= {"picture": str(picture)} if picture else {}
            print(to_json(said), flush=True)
        else:
            classes = "  ".join(f"{share:6.1%} {name}" for name, share in best.items())
            print(
                f"{file}  {classes}" + (f"  {picture}" if picture else ""), flush=True
            )
    return failed


def _explain(run, file, image, best, out):
    """Writes the picture of a file; its path."""
    name, share = best
    label = run.names.index(name)
    graphdef, params = nnx.split(run.model, nnx.Param)
    params = nnx.to_pure_dict(params)
    _, maps, rollout = jax.device_get(look(params, image[None], graphdef=graphdef))
    effects = np.asarray(head_effects(params, image, label, graphdef=graphdef))
    figure = draw(image, rollout[0], maps[0], effects, f"{name} ({share:.0%})")
    out.mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, [file.parent.name, file.stem]))
    path, number = out / f"{name}.png", 1
    while path.exists():
        number += 1
        path = out / f"{name}-{number}.png"
    runs.write_atomically(path, to_png(figure, dpi=110))
    return path

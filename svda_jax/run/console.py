"""What a person sees on the screen while a run goes on."""

import json
import math
import re
import shlex

import jax
from clu import parameter_overview
from tqdm import tqdm

from svda_jax.run import runs


def progress_bar(num_steps, step, batch_size, *, hidden=False):
    """A bar over all images of a run, with images/s and the time left."""
    return tqdm(
        total=num_steps * batch_size,
        initial=step * batch_size,
        unit=" images",
        unit_scale=True,
        disable=hidden or None,  # None: where the output is not a terminal
        leave=False,
    )


def align(rows):
    """Rows of texts as a table: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [
        all(re.fullmatch(r"[-\d.,%]*", text) for text in column)
        for column in zip(*rows[1:], strict=True)
    ] or [False] * len(widths)
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def to_json(value, **options):
    """JSON for any program: numbers that are not finite are null.

    Args:
      value: of dicts, lists, tuples, texts and numbers.
      options: of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_start(config, workdir, mesh, params, train_data, eval_data):
    """Prints what is trained, on what, where to."""
    model, dataset = config.model, config.dataset
    # All blocks look alike, so their leaves are shown stacked: [L, ...].
    blocks = jax.tree.map(
        lambda *leaves: jax.ShapeDtypeStruct(
            (len(leaves), *leaves[0].shape), leaves[0].dtype
        ),
        *params["blocks"].values(),
    )
    overview = parameter_overview.get_parameter_overview(
        {**params, "blocks": blocks}, include_stats=False
    )
    side = dataset.image_size
    print(overview)
    if config.note:
        print(f"chosen   {config.note}")
    print(
        f"model    {model.attention} attention, {model.depth} blocks of width "
        f"{model.width}, {model.num_heads} heads, {model.patch_size} x "
        f"{model.patch_size} patches\n"
        f"data     {dataset.name}: {train_data.num_images:,} images to train on, "
        f"{eval_data.num_images:,} to evaluate; {side} x {side} x {dataset.channels}, "
        f"{dataset.num_classes} classes\n"
        f"devices  {', '.join(describe_devices(mesh).values())}\n"
        f"workdir  {workdir}",
        flush=True,
    )


def describe_devices(mesh):
    """What a run goes on: number and kind of the devices, version of JAX."""
    return {
        "devices": f"{mesh.size} x {mesh.devices[0].device_kind}",
        "jax": f"JAX {jax.__version__}",
    }


def evaluation_line(step, epoch, values):
    """One line for an evaluation, of 80 characters at most.

    Training loss, evaluation loss and accuracy, images/s of training; the arguments are
    those of `History.append`.
    """
    rate = values["images_per_second"]
    return (
        f"epoch {epoch:6.1f}  step {step:6,}  "
        f"loss {values['train_loss']:.4f}  "
        f"eval {values['eval_loss']:.4f}, {values['eval_accuracy']:.2%}"
        + (f"  {rate:,.0f} images/s" if math.isfinite(rate) else "")
    )


def say_end(workdir, train_data, eval_data):
    """Prints what was left out, and where to look next."""
    for name, data in (("training", train_data), ("evaluation", eval_data)):
        if data.skipped:
            print(f"{len(data.skipped)} corrupt images of {name} were skipped")
    print(
        f"\ndone. Look at it with\n"
        f"  python -m svda_jax report --workdir {shlex.quote(str(workdir))}\n"
        f"  tensorboard --logdir {shlex.quote(str(workdir))}\n"
        f"and at {runs.history_path(workdir)}, which xarray opens"
    )


def say_finished(workdir):
    """Prints that there is nothing left to do, and how to start another run."""
    print(
        f"{workdir} holds this run, finished. Start another with another --workdir or "
        f"--config.seed, or look at this one with\n"
        f"  python -m svda_jax report --workdir {shlex.quote(str(workdir))}\n"
        f"  tensorboard --logdir {shlex.quote(str(workdir))}"
    )

"""The atlas of a run: one HTML page that needs no network, and its numbers.

What the page shows of a head it makes when the head is opened, so that many heads cost
no more than a few.
"""

import base64
import io
import json

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from svda_jax import UserError, local_path, place
from svda_jax.atlas.measure import measure_atlas
from svda_jax.commands import parse
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.look.style import COLORS
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax

_BATCH = 256
_THUMBNAIL = 96  # pixels at most along a side


def write_atlas(
    workdir, *, out=None, num_directions=4, num_images=2000, num_removed=256
):
    """Writes the atlas of a run.

    Args:
      workdir: the run's folder or address.
      out: path of the page, which ends in .html and must not exist; None is atlas.html
        in workdir, made anew. The numbers of `measure.VARIABLES` go beside it, as an
        xarray data set with the suffix .nc.
      num_directions: shown of each head.
      num_images: of the evaluation split that are looked through.
      num_removed: of these, that each direction is taken away for.

    Returns:
      The path of the page.

    Raises:
      UserError: workdir holds no run with a checkpoint, its data set is not here, its
        model has numbers that are not finite, or the page cannot be written.
    """
    workdir = place(workdir)
    if out:
        out = local_path(out)
        if out.suffix != ".html":
            raise UserError(f"--out={out} must end in .html; the numbers go beside it")
        for path in (out, out.with_suffix(".nc")):
            if path.exists():
                raise UserError(f"{path} exists; give another --out or remove it")
        if not out.parent.is_dir():
            raise UserError(f"cannot write {out}: its folder does not exist")
    out = out or workdir / "atlas.html"
    run = runs.load(workdir)
    mesh = parallel.create_mesh([parallel.local_device()])
    data = datasets.load(
        run.config.dataset, "eval", batch_size=_BATCH, mesh=mesh, obtain=False
    )
    atlas = measure_atlas(
        run.model,
        data,
        num_directions=num_directions,
        num_images=num_images,
        num_removed=num_removed,
    )
    page = draw(workdir.resolve().name, run, data, atlas)
    runs.write_atomically(out.with_suffix(".nc"), atlas.to_netcdf(engine="scipy"))
    runs.write_atomically(out, page.encode())
    return out


def draw(name, run, data, atlas):
    """The page.

    Args:
      name: of the run.
      run: the `Run`.
      data: its evaluation split, from `datasets.load`.
      atlas: from `measure_atlas`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("svda_jax.atlas", "."), autoescape=True
    )
    found = _to_json(run, data, atlas)
    return environment.get_template("atlas.html").render(
        name=name,
        config=run.config,
        color=COLORS[run.config.model.attention],
        accuracy=float(run.history["eval_accuracy"][-1]),
        num_images=atlas.attrs["num_images"],
        # No text of the data can end the script or begin a tag.
        atlas=Markup(json.dumps(found).replace("<", "\\u003c")),
    )


def _to_json(run, data, atlas):
    """What the page draws: numbers rounded, and thumbnails of the images it shows."""
    used, image = np.unique(atlas["image"].values, return_inverse=True)
    pictures, labels = data.get(used)
    numbers = {
        name: _round(atlas[name].values).tolist()
        for name in atlas.data_vars
        if name != "image"
    }
    return numbers | {
        "image": image.reshape(atlas["image"].shape).tolist(),
        "grid": run.model.config.grid,
        "classes": list(run.names),
        "labels": [run.names[label] for label in labels],
        "pictures": [_thumbnail(picture) for picture in pictures],
    }


def _round(values):
    """Numbers of four decimals, None for NaN, which JSON does not have."""
    values = np.round(np.float64(values), 4)
    return np.where(np.isnan(values), None, values)


def _thumbnail(picture):
    """`[S, S, channels]` uint8 as the address of a PNG or JPEG that it holds."""
    image = Image.fromarray(np.asarray(picture).squeeze())
    small = image.width <= _THUMBNAIL
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    kind = "png" if small and image.width <= 64 else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def main(argv=None):
    """Runs the command line."""
    args = parse("atlas", argv)
    quiet_orbax()
    for name in ("directions", "images", "removed"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be positive")
    path = write_atlas(
        args.workdir,
        out=args.out,
        num_directions=args.directions,
        num_images=args.images,
        num_removed=args.removed,
    )
    print(path)

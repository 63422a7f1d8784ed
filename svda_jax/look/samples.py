"""What a model says of the evaluation split, for the report: attention and mistakes."""

import base64
import dataclasses
import io
import itertools
from typing import Any

import jax
import numpy as np
from flax import nnx
from markupsafe import Markup
from PIL import Image

from svda_jax import UserError
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.look import pictures, style
from svda_jax.look.maps import look, look_by_query
from svda_jax.run import runs
from svda_jax.run.predict import predict

NUM_SHOWN = 4  # images that attention is shown over
NUM_WORST = 12
_BATCH = 256

# Of the maps of one image, which base64 makes a third larger. Larger grids are shown
# in squares of patches.
_MAX_BYTES = 400_000
_SIDE = 224  # pixels at most, of an image in the page


@dataclasses.dataclass(frozen=True)
class Images:
    """What a model says of the evaluation split.

    Attributes:
      labels: `[n]` of its images.
      right: `[n]` bool, whether each is classified rightly.
      shown: the first images: "uri", "maps" for the page's script, "true", "predicted".
      pictures: the figures of the page, by name.
    """

    labels: np.ndarray
    right: np.ndarray
    shown: list[dict[str, Any]]
    pictures: dict[str, Markup]


def look_at_images(workdir, config):
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
    names = data.class_names

    def say(i, length=None):
        name = names[predicted[i]]
        name = style.shorten(name, length) if length else name
        return f"{name} ({probabilities[i, predicted[i]]:.0%})"

    def title(i):
        """As much as stands over an image without touching the next one's."""
        return f"true: {style.shorten(names[labels[i]], 16)}\n{say(i, 16)}"

    shown = range(min(NUM_SHOWN, len(labels)))
    images, _ = data.get(places[: len(shown)])
    graphdef, params = nnx.split(run.model, nnx.Param)
    _, _, rollout = jax.device_get(look(params, images, graphdef=graphdef))
    maps = jax.device_get(look_by_query(params, images, graphdef=graphdef))
    wrong = np.flatnonzero(predicted != labels)
    # Worst first: the least probability given to the true class.
    worst = wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")]
    worst = worst[:NUM_WORST]
    name = workdir.resolve().name
    mistakes = ""
    if len(worst):
        found = pictures.gallery(data.get(places[worst])[0], list(map(title, worst)))
        mistakes = Markup(style.to_svg(found, f"misclassified images, {name}"))
    return Images(
        labels=labels,
        right=predicted == labels,
        shown=[
            {
                "uri": _to_uri(images[i]),
                "maps": describe(maps[i], config.model.pool),
                "true": names[labels[i]],
                "predicted": say(i),
            }
            for i in shown
        ],
        pictures={
            "rollouts": Markup(
                style.to_svg(
                    pictures.rollouts(images, rollout, [title(i) for i in shown]),
                    f"attention rollout, {name}",
                )
            ),
            "worst": mistakes,
        },
    )


def to_page(described):
    """Attention by query: what the page's script reads, and where each view stands."""
    images, maps, views = [], [], []
    for run in described:
        if isinstance(run["images"], str):
            continue
        for number, shown in enumerate(run["images"].shown):
            if shown["uri"] not in images:
                images.append(shown["uri"])
            view = {"image": images.index(shown["uri"]), "maps": len(maps)}
            views.append({"run": run["name"], "number": number, **shown, **view})
            maps.append(shown["maps"])

    def key(view):
        return view["number"], view["image"], view["true"]

    views = itertools.groupby(sorted(views, key=key), key)
    palette = pictures.colors()
    return {
        # Number and class of an image, and the runs that it is shown of.
        "views": [(number, label, list(shown)) for (number, _, label), shown in views],
        "data": {
            "images": images,
            "maps": maps,
            "palette": base64.b64encode(palette.tobytes()).decode(),
            "octaves": pictures.OCTAVES,
        },
        "scale_colors": [f"rgb({r} {g} {b})" for r, g, b in palette[::15]],
    }


def pool(maps):
    """Maps of each query on a coarser grid, where they are too large for a page.

    Args:
      maps: `[L, H, 1 + g g, g, g]`, see `maps.look_by_query`.

    Returns:
      The same for the largest grid that divides g and fits: means over squares of
      patches as keys and as queries, the first map likewise.
    """
    num_layers, num_heads, _, grid, _ = maps.shape
    for factor in range(1, grid + 1):
        coarse = grid // factor
        size = num_layers * num_heads * (1 + coarse**2) * coarse**2
        if grid % factor == 0 and size <= _MAX_BYTES:
            break
    squares = (coarse, factor, coarse, factor)
    keys = maps.reshape(*maps.shape[:3], *squares).mean((-3, -1))
    queries = keys[:, :, 1:].reshape(num_layers, num_heads, *squares, coarse, coarse)
    queries = queries.mean((3, 5)).reshape(num_layers, num_heads, -1, coarse, coarse)
    return np.concatenate([keys[:, :, :1], queries], axis=2)


def describe(maps, pool_name):
    """Maps of an image as the page's script reads them: a dict for JSON.

    Args:
      maps: `[L, H, 1 + g g, g, g]`, see `maps.look_by_query`.
      pool_name: of the model, which says what the first map is.
    """
    maps = pool(maps)
    num_layers, num_heads, _, grid, _ = maps.shape
    return {
        "layers": num_layers,
        "heads": num_heads,
        "grid": grid,
        "levels": base64.b64encode(pictures.to_levels(maps).tobytes()).decode(),
        "all": "From the class token" if pool_name == "cls" else "All patches' mean",
    }


def _to_uri(image):
    """An image `[S, S, channels]`, 0 to 255, as a PNG in a data URI."""
    pixels = np.asarray(image).astype(np.uint8)
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

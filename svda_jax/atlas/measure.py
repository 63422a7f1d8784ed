"""Directions of the score by the patches, classes and losses that depend on them.

In the metric of the data a head's score is a sum of directions (`models.score`),

    score_ij - mean_j score_ij = sum_k s_k alpha_ik beta_jk
    alpha_ik = x_i^T a_k,  beta_jk = (y_j - mean y)^T b_k

x and y queries and keys as they are scored, alpha and beta of mean square 1 over the
data. A query far along a_k looks at keys far along b_k, and away from those far along
its other end; the two ends swap when both signs do, and are called so that the mean of
alpha is not negative.

Axes: B images, N tokens, L layers, H heads, K directions, R of them that are shown.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from flax import nnx

from svda_jax.prune.measure import measure_moments, scores, vectors
from svda_jax.prune.model import split

SIDES = ("query", "key")
SIGNS = ("+", "-")

# What is measured of each direction: axes beside layer, head, direction; unit; meaning.
VARIABLES = {
    "strength": ((), "logits", "s, root mean square of what it adds to a score"),
    "share": ((), "1", "s^2 over that of all directions of the head"),
    "moved_attention": (
        (),
        "1",
        "half the sum of |A - A'| over a row, A' the head's weights without it, mean",
    ),
    "moved_logits": (
        (),
        "logits",
        "root mean square change of the centred class logits without it",
    ),
    "added_loss": ((), "nats", "mean cross-entropy without it, less that with it"),
    "added_loss_error": ((), "nats", "standard error of that mean over images"),
    "class_added_loss": (("class",), "nats", "the same over the images of a class"),
    "place": (("side", "patch"), "1", "mean of alpha or beta there, row by row"),
    "place_share": (
        ("side",),
        "1",
        "share of the mean square over patches that the place alone explains",
    ),
    "class_strength": (("class",), "logits", "s over the images of a class"),
    "value": (("side", "sign", "rank"), "1", "alpha or beta of the furthest patches"),
    "image": (("side", "sign", "rank"), "1", "its image's place in the split"),
    "at": (("side", "sign", "rank"), "1", "the patch, row by row"),
}


def measure_atlas(
    model, data, *, num_directions=4, num_patches=6, num_images=2000, num_removed=256
):
    """The directions of a model over a split, largest first.

    Args:
      model: a `ViT`.
      data: the split, from `datasets.load`.
      num_directions: R, or all that a head has.
      num_patches: shown at each end, each of another image.
      num_images: that patches and classes are sought in, the first of the split.
      num_removed: of these, that each direction is taken away for, one at a time.

    Returns:
      `xarray.Dataset` of `VARIABLES` over "layer", "head", "direction", and "spectrum"
      `[layer, head, size]` with all sizes, NaN beyond those a pruned layer has. Its
      attribute "num_images" says how many there were.
    """
    moments, _ = measure_moments(model, data)
    directions = split(model, "score", moments)
    sizes = [one.size for one in directions]
    number = min(num_directions, *(size.shape[-1] for size in sizes))
    forms = [
        tuple(jnp.float32(x[..., :number]) for x in (one.query, one.size, one.key))
        for one in directions
    ]
    images = _first(data, num_images)
    graphdef, params = nnx.split(model, nnx.Param)
    seen = [
        jax.device_get(_project(params, forms, batch, graphdef=graphdef))
        for batch, _, _ in images
    ]
    seen = jax.tree.map(lambda *x: np.concatenate(x), *seen)
    _, labels, places = (np.concatenate(x) for x in zip(*images, strict=True))
    turned = np.where(seen["mean"].mean(0) < 0, -1, 1)  # [L, H, R]
    place = seen["place"].sum(0) / len(labels)  # [L, H, R, 2, patches]
    found = _furthest(seen, turned, num_patches)
    found["image"] = places[found["image"]]
    strength = np.array([size[..., :number] for size in sizes])
    total = np.array([np.square(size).sum(-1, keepdims=True) for size in sizes])
    count = model.config.num_classes
    energy = np.moveaxis(seen["energy"], 0, -1)  # [L, H, R, n]
    found |= {
        "strength": strength,
        "share": np.square(strength) / total,
        "place": place * turned[..., None, None],
        "place_share": np.square(place).mean(-1) / seen["square"].mean(0),
        "class_strength": np.sqrt(_by_class(energy, labels, count)),
        **_remove(params, forms, images, num_removed, count, graphdef),
    }
    axes = ("layer", "head", "direction")
    atlas = xr.Dataset(
        {
            name: ((*axes, *more), found[name], {"units": unit, "long_name": meaning})
            for name, (more, unit, meaning) in VARIABLES.items()
        },
        coords={"side": list(SIDES), "sign": list(SIGNS)},
        attrs={"num_images": len(labels)},
    )
    most = max(size.shape[-1] for size in sizes)
    atlas["spectrum"] = (
        ("layer", "head", "size"),
        np.stack(
            [
                np.pad(x, ((0, 0), (0, most - x.shape[-1])), constant_values=np.nan)
                for x in sizes
            ]
        ),
        {"units": "logits", "long_name": "s of every direction"},
    )
    return atlas


def _first(data, number):
    """Images, labels and places of a split's first batches, without what fills up."""
    found, start = [], 0
    for batch in data.eval_batches():
        (there,) = np.nonzero(np.asarray(batch["mask"]))
        there = there[:number]
        some = (np.asarray(batch[name])[there] for name in ("image", "label"))
        found.append((*some, start + there))
        start, number = start + len(batch["mask"]), number - len(there)
        if number <= 0:
            break
    return found


def _coordinates(trace, form):
    """alpha and beta, `[B, N, H, R]` float32, of a layer's trace."""
    query, key = vectors(trace)
    multiply = functools.partial(jnp.einsum, "bihk,hkr->bihr", precision="highest")
    return multiply(query, form[0]), multiply(key, form[2])


@functools.partial(jax.jit, static_argnames="graphdef")
def _project(params, forms, images, *, graphdef):
    """What `_furthest` and the classes need of each image, `[B, L, H, R, ...]`."""
    model = nnx.merge(graphdef, params)
    _, traces = model(images)
    first = int(model.config.pool == "cls")  # a class token is no patch
    layers = []
    for trace, form in zip(traces, forms, strict=True):
        ends = jnp.stack(_coordinates(trace, form), axis=-1)  # [B, N, H, R, 2]
        energy = jnp.prod(jnp.mean(jnp.square(ends), axis=1), axis=-1)  # [B, H, R]
        patches = ends[:, first:]
        both = jnp.stack([patches, -patches], axis=-1)
        layers.append(
            {
                "mean": jnp.mean(ends[..., 0], axis=1),
                "energy": jnp.square(form[1]) * energy,
                "square": jnp.mean(jnp.square(patches), axis=1),  # [B, H, R, 2]
                "place": jnp.moveaxis(jnp.sum(patches, 0, keepdims=True), 1, -1),
                "value": jnp.max(both, axis=1),  # [B, H, R, 2, 2]
                "at": jnp.argmax(both, axis=1),
            }
        )
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *layers)


def _furthest(seen, turned, number):
    """The patches furthest along each direction's ends, `[L, H, R, 2, 2, number]`."""
    value, at = (
        np.where((turned < 0)[..., None, None], x[..., ::-1], x)
        for x in (seen["value"], seen["at"])
    )  # [n, L, H, R, 2, 2]
    image = np.argsort(-value, axis=0, kind="stable")[:number]
    found = {
        "value": np.take_along_axis(value, image, axis=0),
        "at": np.take_along_axis(at, image, axis=0),
        "image": image,
    }
    return {name: np.moveaxis(x, 0, -1) for name, x in found.items()}


def _remove(params, forms, images, number, num_classes, graphdef):
    """What changes without each direction alone, `[L, H, R]`, over some images."""
    some, labels, _ = (np.concatenate(x)[:number] for x in zip(*images, strict=True))
    shape = len(forms), *forms[0][1].shape
    changes = jax.device_get(
        _change(params, forms, some, labels, shape=shape, graphdef=graphdef)
    )
    found = {name: x.reshape(*shape, *x.shape[1:]) for name, x in changes.items()}
    added = found.pop("added")  # [L, H, R, n]
    return found | {
        "added_loss": added.mean(-1),
        "added_loss_error": added.std(-1) / np.sqrt(len(labels)),
        "class_added_loss": _by_class(added, labels, num_classes),
    }


def _by_class(values, labels, num_classes):
    """Means over the images of each class, `[..., n]` -> `[..., C]`, NaN for none."""
    means = np.full((*values.shape[:-1], num_classes), np.nan)
    for label in np.unique(labels):
        means[..., label] = values[..., labels == label].mean(-1)
    return means


@functools.partial(jax.jit, static_argnames=("shape", "graphdef"))
def _change(params, forms, images, labels, *, shape, graphdef):
    """`_remove`, one direction after the other."""
    model = nnx.merge(graphdef, params)

    def without(gone):
        """Logits, and how far each head's weights moved, without those marked."""

        def attend(layer, trace, value, ops):
            query, key = _coordinates(trace, forms[layer])
            size = forms[layer][1] * gone[layer]
            removed = jnp.einsum("bihr,hr,bjhr->bhij", query, size, key)
            whole = scores(trace)
            before, after = jax.nn.softmax(whole), jax.nn.softmax(whole - removed)
            out = jnp.einsum("bhij,bjhv->bihv", after, value.astype(jnp.float32))
            moved = 0.5 * jnp.mean(jnp.sum(jnp.abs(after - before), -1), (0, 2))
            return out.astype(value.dtype), {"indicators": {"moved": moved}}

        logits, traces = model(images, measure=attend)
        return logits, jnp.stack([trace.indicators["moved"] for trace in traces])

    def loss(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def centred(logits):
        return logits - jnp.mean(logits, axis=-1, keepdims=True)

    whole, _ = without(jnp.zeros(shape))

    def change(place):
        gone = jnp.zeros(shape).ravel().at[place].set(1).reshape(shape)
        logits, moved = without(gone)
        return {
            "moved_attention": moved.ravel()[place // shape[-1]],
            "moved_logits": jnp.sqrt(
                jnp.mean(jnp.square(centred(logits) - centred(whole)))
            ),
            "added": loss(logits) - loss(whole),
        }

    return jax.lax.map(change, jnp.arange(np.prod(shape)))

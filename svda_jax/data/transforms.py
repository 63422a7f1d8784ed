"""Random changes of one image, pure functions of the image and a PRNG key.

Images are `[S, S, C]` uint8, S the side, C channels, and stay it; `jax.vmap` makes a
batch of them. No pixel is looked up by a computed index, which is a slow path of TPUs:
pixels move by products with matrices of weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# What `random_affine` does at most, each way.
MAX_DEGREES = 10.0
MAX_SHEAR = 0.2
MAX_ZOOM = 0.1

# What `random_erase` covers: fractions of the image, and the longest shape of the box.
MIN_ERASED = 0.02
MAX_ERASED = 1 / 3
MAX_ASPECT = 10 / 3


def random_affine(image, key, probability):
    """Turns, slants and zooms an image a little, about its centre.

    Angle, horizontal shear and the two zooms are uniform up to `MAX_DEGREES`,
    `MAX_SHEAR` and 1 +- `MAX_ZOOM`.

    Args:
      image: `[S, S, C]` uint8.
      key: PRNG key.
      probability: with which it happens; otherwise the image stays as it is.
    """
    keep_key, map_key = jax.random.split(key)
    turn, slant, *zooms = jax.random.uniform(map_key, (4,), minval=-1, maxval=1)
    shear = jnp.array([[1.0, 0.0], [MAX_SHEAR * slant, 1.0]])
    zoom = jnp.diag(1 + MAX_ZOOM * jnp.stack(zooms))
    matrix = rotation(MAX_DEGREES * turn) @ shear @ zoom
    happens = jax.random.bernoulli(keep_key, probability)
    matrix = jnp.where(happens, matrix, jnp.eye(2))
    return warp(image, matrix)


def random_crop(image, key, padding):
    """Pads an image with zeros and cuts an S x S window out at random.

    Each shift from -padding to padding pixels is as likely, along each axis.
    """
    shift = jax.random.randint(key, (2,), -padding, padding + 1)
    steps = jnp.arange(image.shape[0])
    # [S, S] each, 1 where a pixel comes from.
    rows, columns = (steps == steps[:, None] + by for by in shift)
    cut = _multiply("ri,ijc->rjc", rows, image)
    return _to_uint8(_multiply("cj,rjd->rcd", columns, cut))


def random_flip(image, key):
    """Mirrors an image left to right, half of the time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_erase(image, key, probability):
    """Fills a box of an image with noise, every pixel value as likely.

    The box covers a uniform share of the image, from `MIN_ERASED` to `MAX_ERASED`, its
    height over its width is log-uniform up to `MAX_ASPECT` either way, and every place
    inside the image is as likely.

    Args:
      image: `[S, S, C]` uint8.
      key: PRNG key.
      probability: with which it happens.

    Source: Zhong et al. 2020, RE-R. Differs: a box too long for the image is cut to its
    side, where the source draws again.
    """
    box_key, noise_key = jax.random.split(key)
    happens, share, aspect, *place = jax.random.uniform(box_key, (5,))
    area = (MIN_ERASED + (MAX_ERASED - MIN_ERASED) * share) * image.shape[0] ** 2
    aspect = MAX_ASPECT ** (2 * aspect - 1)
    sides = jnp.round(jnp.sqrt(area * jnp.stack([aspect, 1 / aspect])))
    sides = jnp.clip(sides, 1, image.shape[0])  # height, width
    start = jnp.floor(jnp.stack(place) * (image.shape[0] - sides + 1))
    box = box_mask(image.shape[0], start, start + sides)
    side, _, channels = image.shape
    four = jax.random.bits(noise_key, (side, side, 1), jnp.uint32)  # bytes each
    noise = (four >> 8 * jnp.arange(channels, dtype=jnp.uint32)).astype(jnp.uint8)
    return jnp.where(box & (happens < probability), noise, image)


def rand_augment(image, key, *, num_operations, magnitude):
    """Applies operations drawn from 14, one after the other.

    They are those of `OPERATIONS`: identity, five of geometry, eight of colour. What
    comes in from outside the image is 0.

    Args:
      image: `[S, S, C]` uint8, of 1 or 3 channels.
      key: PRNG key.
      num_operations: drawn with replacement.
      magnitude: from 0 to 10, the strength of each at which 10 is its strongest.

    Source: Cubuk et al. 2020; the strengths at 10 as in torchvision. Differs: geometry
    interpolates linearly (see `warp`).
    """
    for operation_key in jax.random.split(key, num_operations):
        choice_key, sign_key = jax.random.split(operation_key)
        choice = jax.random.randint(choice_key, (), 0, len(OPERATIONS))
        sign = jax.random.rademacher(sign_key, (), jnp.float32)
        image = apply_operation(image, choice, sign, magnitude / 10)
    return image


def apply_operation(image, choice, sign, strength):
    """Operation number choice of `OPERATIONS`.

    Args:
      image: `[S, S, C]` uint8, of 1 or 3 channels.
      choice: int32.
      sign: 1.0 or -1.0: which way, for those that have two.
      strength: from 0 to 1, known when this is compiled.
    """
    # All three are done, of which two change nothing.
    image = _equalize_where(choice == OPERATIONS.index("equalize"), image)
    image = _move(image, choice, sign, strength)
    return _recolour(image, choice, sign, strength)


def _move(image, choice, sign, strength):
    """Operation number choice of `_GEOMETRY`; beyond, none."""
    side = image.shape[0]
    with jax.ensure_compile_time_eval():  # either way of each, and no move
        ways = [move(way * strength) for move in _GEOMETRY.values() for way in (1, -1)]
        ways.append((np.eye(2), np.zeros(2)))
        passes = [_find_places(matrix, shift * side, side) for matrix, shift in ways]
    drawn = jnp.minimum(2 * choice + (sign < 0), len(ways) - 1)
    for axis, places in enumerate(zip(*passes, strict=True)):
        # Many ways are alike in one of the axes.
        maps, which = np.unique(places, axis=0, return_inverse=True)
        chosen = jnp.asarray(which)[drawn] == jnp.arange(len(maps))
        image = _resample(image, maps, chosen, axis)
    return image


def rotation(degrees):
    """The matrix of (row, column) that turns an image by that angle, `[2, 2]`."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def warp(image, matrix, shift=(0.0, 0.0)):
    """Moves an image about its centre, by linear interpolation.

        out[p] = image[matrix (p - centre) + centre + shift],  p = (row, column)

    First along the rows, then along the columns, so that each time a pixel is a sum of
    two; what comes in from outside is 0.

    Args:
      image: `[S, S, C]` uint8.
      matrix: `[2, 2]`, its first entry not 0.
      shift: in pixels, of row and column.

    Differs from interpolation of four pixels at once where the matrix turns: by 0.9 of
    255 in the mean, 12 at most, in the middle of a photograph of 48 x 48 turned by 15
    degrees.

    Source: Catmull and Smith 1980, 3-D transformations of images in scanline order.
    """
    for axis, places in enumerate(_find_places(matrix, shift, image.shape[0])):
        image = _resample(image, places[None], jnp.ones(1), axis)
    return image


def _find_places(matrix, shift, side):
    """Where pixels come from, `[S, S]` each: first along the row, then the column.

    For (r', c') = matrix (r, c) + shift about the centre, the first has c' of (r', c),
    the second r' of (r, c).
    """
    (a, b), (c, d) = matrix
    centre = (side - 1) / 2
    steps = np.arange(side, dtype=np.float32) - centre
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    along = c / a * (rows - shift[0]) + (d - b * c / a) * columns + shift[1]
    down = a * rows + b * columns + shift[0]
    return along + centre, down + centre


def _resample(image, maps, chosen, axis):
    """Interpolates every row (axis 0) or column (1) of an image by itself.

    Places count to 1/256 of a pixel, so that products of bfloat16 are exact.

    Args:
      image: `[S, S, C]` uint8.
      maps: `[M, S, S]`, the place in its row or column that a pixel comes from.
      chosen: `[M]`, 1 for one of the maps and 0 for the others.
      axis: 0 or 1.
    """
    steps = jnp.arange(image.shape[0])
    maps = jnp.round(256 * maps) / 256
    weights = jnp.maximum(1 - jnp.abs(maps[..., None] - steps), 0)  # [M, S, S, S]
    choices = chosen[:, None, None, None] * image  # [M, S, S, C]
    product = ("mrci,mrid->rcd", "mrci,micd->rcd")[axis]
    return _to_uint8(_multiply(product, weights, choices))


def _multiply(product, a, b):
    """`jnp.einsum` of what bfloat16 holds, so exact on TPUs too."""
    return jnp.einsum(product, a.astype(jnp.float32), b.astype(jnp.float32))


def _to_uint8(image):
    return jnp.round(image).astype(jnp.uint8)


def box_mask(side, start, stop):
    """Where row and column are from start to before stop: `[S, S, 1]` bool."""
    steps = jnp.arange(side)[:, None]
    rows, columns = ((steps >= start) & (steps < stop)).T  # [S], [S]
    return rows[:, None, None] & columns[None, :, None]


def _recolour(image, choice, sign, strength):
    """All operations of colour but equalize, as one of chosen coefficients.

        y = base + f (s(x) - pivot), cut off to a whole number of 0 to 255
        s(x) = x & mask below the threshold, else 255 - x

    Others leave the image as it is. Source: Pillow, of which all roundings are.
    """

    def drew(name):
        return choice == OPERATIONS.index(name)

    x = image & jnp.where(drew("posterize"), 256 - 2 ** round(4 * strength), 255)
    # Pixels of 255 are inverted even at strength 0.
    threshold = jnp.where(drew("solarize"), 255 * (1 - strength), 256)
    x = jnp.where(x < threshold, x, 255 - x).astype(jnp.float32)

    # Brightness, colour, contrast and sharpness: towards another image, or away.
    grey = _grey(x)
    pivot = jnp.where(drew("colour"), grey, 0)
    pivot = jnp.where(drew("contrast"), jnp.floor(jnp.mean(grey) + 0.5), pivot)
    pivot = jnp.where(drew("sharpness"), _smooth(x), pivot)
    blends = ("brightness", "colour", "contrast", "sharpness")
    blended = functools.reduce(jnp.logical_or, map(drew, blends))
    factor = jnp.where(blended, 1 + 0.9 * sign * strength, 1.0)
    base = pivot

    # Each channel from 0 to 255.
    low, high = x.min((0, 1)), x.max((0, 1))  # [C]
    stretched = drew("autocontrast") & (high > low)
    factor = jnp.where(stretched, 255 / jnp.maximum(high - low, 1), factor)
    pivot = jnp.where(stretched, low, pivot)
    base = jnp.where(stretched, 1e-3, base)  # the highest becomes 255, not 254.99
    return jnp.clip(base + factor * (x - pivot), 0, 255).astype(jnp.uint8)


def _grey(x):
    """Luma of whole numbers, rounded: `[S, S, 1]`."""
    if x.shape[-1] == 1:
        return x
    red, green, blue = jnp.split(x, 3, axis=-1)
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 2**15) / 2**16)


def _smooth(x):
    """The mean of 3 x 3 pixels, the middle one counted 5 times; the border stays."""
    box = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    inside = box_mask(x.shape[0], jnp.ones(2), jnp.full(2, x.shape[0] - 1))
    return jnp.where(inside, jnp.round((box + 4 * x) / 13), x)


def _equalize(image):
    """Makes every value about as frequent, channel by channel, as Pillow does."""
    # A value is 16 times one digit and another; both as one-hot vectors count values,
    # and look them up in a table, by products.
    digits = (image[..., None] // 16, image[..., None] % 16)
    high, low = (digit == jnp.arange(16) for digit in digits)  # [S, S, C, 16]
    counts = _multiply("rcdh,rcdl->dhl", high, low).reshape(-1, 256).astype(jnp.int32)
    before = jnp.cumsum(counts, axis=1) - counts
    last = jnp.max(jnp.where(counts > 0, before, 0), axis=1, keepdims=True)
    step = last // 255  # `last` are the pixels below the largest value
    table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, table, jnp.arange(256)).reshape(-1, 16, 16)
    equal = _multiply("rcdh,dhl->rcdl", high, table)
    return jnp.sum(equal * low, -1).astype(jnp.uint8)


@jax.custom_batching.custom_vmap
def _equalize_where(drawn, image):
    """`_equalize` where drawn.

    It costs more than all others together, so of a batch those that drew it are taken
    out, an eighth of the batch at a time: mostly once.
    """
    return jnp.where(drawn, _equalize(image), image)


@_equalize_where.def_vmap
def _equalize_batch(size, batched, drawn, images):
    drawn, images = (
        x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        for x, is_batched in zip((drawn, images), batched, strict=True)
    )
    number = jnp.cumsum(drawn)  # of those that drew it, from 1
    many = -(-size // 8)

    def work(turn, images):
        numbers = turn * many + 1 + jnp.arange(many)
        taken = (numbers[:, None] == number) & drawn  # [many, B]
        some = _to_uint8(_multiply("mb,brcd->mrcd", taken, images))
        back = _multiply("mb,mrcd->brcd", taken, jax.vmap(_equalize)(some))
        keep = ~taken.any(0)[:, None, None, None]
        return jnp.where(keep, images, _to_uint8(back))

    turns = -(-number[-1] // many)
    return jax.lax.fori_loop(0, turns, work, images), True


# (signed strength) -> (matrix, shift as a fraction of the side); see `warp`.
_GEOMETRY = {
    "shear_x": lambda s: (np.array([[1, 0], [0.3 * s, 1]]), np.zeros(2)),
    "shear_y": lambda s: (np.array([[1, 0.3 * s], [0, 1]]), np.zeros(2)),
    "translate_x": lambda s: (np.eye(2), 150 / 331 * s * np.array([0, 1])),
    "translate_y": lambda s: (np.eye(2), 150 / 331 * s * np.array([1, 0])),
    "rotate": lambda s: (rotation(30.0 * s), np.zeros(2)),
}

# The names of RandAugment's operations, in the order of `apply_operation`.
OPERATIONS = (
    *_GEOMETRY,
    "identity",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)

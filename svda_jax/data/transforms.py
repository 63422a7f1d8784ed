"""Random changes of one image, pure functions of the image and a PRNG key.

Images are `[S, S, C]` of 0 to 255, S the side, C channels; `jax.vmap` makes a batch of
them. Unless said otherwise results are float32.
"""

import dm_pix
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

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
      image: of any dtype.
      key: PRNG key.
      probability: with which it happens; otherwise the image stays as it is.
    """
    keep_key, map_key = jax.random.split(key)
    turn, slant, *zooms = jax.random.uniform(map_key, (4,), minval=-1, maxval=1)
    shear = jnp.array([[1.0, 0.0], [MAX_SHEAR * slant, 1.0]])
    zoom = jnp.diag(1 + MAX_ZOOM * jnp.stack(zooms))
    mapped = warp(image, rotation(MAX_DEGREES * turn) @ shear @ zoom)
    image = image.astype(jnp.float32)
    return jnp.where(jax.random.bernoulli(keep_key, probability), mapped, image)


def random_crop(image, key, padding):
    """Pads an image with zeros and cuts an S x S window out at random.

    Each shift from -padding to padding pixels is as likely, along each axis. The dtype
    stays.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_flip(image, key):
    """Mirrors an image left to right, half of the time. The dtype stays."""
    return jnp.where(jax.random.bernoulli(key), dm_pix.flip_left_right(image), image)


def random_erase(image, key, probability):
    """Fills a box of an image with noise, every pixel value as likely.

    The box covers a uniform share of the image, from `MIN_ERASED` to `MAX_ERASED`, its
    height over its width is log-uniform up to `MAX_ASPECT` either way, and every place
    inside the image is as likely.

    Args:
      image: of any dtype, which stays.
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
    noise = jax.random.bits(noise_key, image.shape, jnp.uint8)
    return jnp.where(box & (happens < probability), noise, image).astype(image.dtype)


def rand_augment(image, key, *, num_operations, magnitude):
    """Applies operations drawn from 14, one after the other.

    They are those of `OPERATIONS`: identity, five of geometry, eight of colour. What
    comes in from outside the image is 0.

    Args:
      image: of 1 or 3 channels, any dtype.
      key: PRNG key.
      num_operations: drawn with replacement.
      magnitude: from 0 to 10, the strength of each at which 10 is its strongest.

    Source: Cubuk et al. 2020; the strengths at 10 as in torchvision. Differs: geometry
    interpolates linearly.
    """
    image = image.astype(jnp.float32)
    for operation_key in jax.random.split(key, num_operations):
        choice_key, sign_key = jax.random.split(operation_key)
        choice = jax.random.randint(choice_key, (), 0, len(OPERATIONS))
        sign = jax.random.rademacher(sign_key, (), jnp.float32)
        image = apply_operation(image, choice, sign, magnitude / 10)
    return image


def apply_operation(image, choice, sign, strength):
    """Operation number choice of `OPERATIONS`, for an image `[S, S, C]` float32.

    Args:
      image: of 1 or 3 channels.
      choice: int32.
      sign: 1.0 or -1.0: which way, for those that have two.
      strength: from 0 to 1.
    """
    # All geometry is one interpolation: only its matrix and shift are chosen.
    matrix, shift = jax.lax.switch(
        jnp.minimum(choice, len(_GEOMETRY)),
        [*_GEOMETRY.values(), lambda _: (jnp.eye(2), jnp.zeros(2))],
        sign * strength,
    )
    moved = warp(image, matrix, shift * image.shape[0])
    first = len(_GEOMETRY)
    coloured = jax.lax.switch(
        jnp.maximum(choice - first, 0), list(_COLOUR.values()), image, sign, strength
    )
    return jnp.where(choice < first, moved, coloured)


def rotation(degrees):
    """The matrix of (row, column) that turns an image by that angle, `[2, 2]`."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def warp(image, matrix, shift=(0.0, 0.0)):
    """Moves an image about its centre, by linear interpolation.

        out[p] = image[matrix (p - centre) + centre + shift],  p = (row, column)

    What comes in from outside is 0.

    Args:
      image: of any dtype.
      matrix: `[2, 2]`.
      shift: in pixels, of row and column.

    Differs from `dm_pix.affine_transform`, which interpolates between channels too: 30
    times as fast on two CPU cores (32 x 32 x 3, JAX 0.10).
    """
    image = image.astype(jnp.float32)
    centre = (image.shape[0] - 1) / 2
    steps = jnp.arange(image.shape[0]) - centre
    grid = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"))  # [2, S, S]
    places = jnp.einsum("ij,jrc->irc", matrix, grid) + centre  # [2, S, S]
    places += jnp.asarray(shift)[:, None, None]

    def channel(values):
        return map_coordinates(values, list(places), order=1, mode="constant")

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def box_mask(side, start, stop):
    """Where row and column are from start to before stop: `[S, S, 1]` bool."""
    steps = jnp.arange(side)[:, None]
    rows, columns = ((steps >= start) & (steps < stop)).T  # [S], [S]
    return rows[:, None, None] & columns[None, :, None]


def _blend(image, other, sign, strength):
    """other + f (image - other), f = 1 +- 0.9 strength: towards other or away."""
    return jnp.clip(other + (1 + 0.9 * sign * strength) * (image - other), 0, 255)


def _grey(image):
    if image.shape[-1] == 1:
        return image
    return jnp.round(dm_pix.rgb_to_grayscale(image, keep_dims=True))


def _brightness(image, sign, strength):
    return _blend(image, jnp.zeros_like(image), sign, strength)


def _saturation(image, sign, strength):
    return _blend(image, _grey(image), sign, strength)


def _contrast(image, sign, strength):
    return _blend(image, jnp.round(jnp.mean(_grey(image))), sign, strength)


def _sharpness(image, sign, strength):
    kernel = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    rows = jnp.stack([image[:-2], image[1:-1], image[2:]])  # [3, S - 2, S, C]
    windows = jnp.stack([rows[:, :, :-2], rows[:, :, 1:-1], rows[:, :, 2:]], axis=1)
    smooth = jnp.einsum("ij,ijrcd->rcd", kernel, windows)  # [S - 2, S - 2, C]
    smooth = image.at[1:-1, 1:-1].set(jnp.round(smooth))  # the border stays
    return _blend(image, smooth, sign, strength)


def _posterize(image, sign, strength):
    step = 2 ** jnp.round(4 * strength)  # keeps 8 to 4 bits
    return jnp.floor(image / step) * step


def _solarize(image, sign, strength):
    # Pixels below the threshold stay; those of 255 are inverted even at strength 0.
    return 255 * dm_pix.solarize(image / 255, 1 - strength)


def _autocontrast(image, sign, strength):
    low, high = image.min((0, 1)), image.max((0, 1))  # [C]
    scale = 255 / jnp.maximum(high - low, 1)
    stretched = jnp.clip((image - low) * scale, 0, 255)
    return jnp.where(high > low, stretched, image)


def _equalize(image, sign, strength):
    """Makes every value about as frequent, channel by channel, as Pillow does."""

    def channel(values):
        values = jnp.round(values).astype(jnp.int32).ravel()
        counts = jnp.bincount(values, length=256)
        last = counts[jnp.max(values)]
        step = (len(values) - last) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
        equal = jnp.where(step > 0, table[values], values)
        return equal.reshape(image.shape[:2]).astype(jnp.float32)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


# (signed strength) -> (matrix, shift as a fraction of the side); see `warp`.
_GEOMETRY = {
    "shear_x": lambda s: (jnp.eye(2).at[1, 0].set(0.3 * s), jnp.zeros(2)),
    "shear_y": lambda s: (jnp.eye(2).at[0, 1].set(0.3 * s), jnp.zeros(2)),
    "translate_x": lambda s: (jnp.eye(2), 150 / 331 * s * jnp.array([0.0, 1.0])),
    "translate_y": lambda s: (jnp.eye(2), 150 / 331 * s * jnp.array([1.0, 0.0])),
    "rotate": lambda s: (rotation(30.0 * s), jnp.zeros(2)),
}

# (image float32, sign, strength) -> image.
_COLOUR = {
    "identity": lambda image, sign, strength: image,
    "brightness": _brightness,
    "colour": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

# The names of RandAugment's operations, in the order of `apply_operation`.
OPERATIONS = (*_GEOMETRY, *_COLOUR)

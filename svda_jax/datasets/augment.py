"""Augmentation, compiled, on the images as they are stored.

Axes: B images, S side, C channels.
"""

import dm_pix
import jax
import jax.numpy as jnp


def create_augment(config):
    """The augmentation that the `augment` section of a config describes.

    Returns:
      A function (images `[B, S, S, C]` uint8, targets `[B, classes]`, `[B]` PRNG keys)
      -> (images of 0 to 255, targets). What happens to an image depends on its own key
      and, under mixup, on its partner and the key of the first of them.
    """

    def change(image, key):
        affine_key, crop_key, flip_key = jax.random.split(key, 3)
        if config.affine:
            image = random_affine(image, affine_key, config.affine)
        if config.crop_padding:
            image = random_crop(image, crop_key, config.crop_padding)
        if config.flip:
            image = random_flip(image, flip_key)
        return image

    def augment(images, targets, keys):
        change_keys, mix_keys = jax.vmap(jax.random.split)(keys).T  # [B], [B]
        images = jax.vmap(change)(images, change_keys)
        if config.mixup:
            images, targets = mixup(images, targets, mix_keys, config.mixup)
        return images, targets

    return augment


# What `random_affine` does at most, each way.
MAX_DEGREES = 10.0
MAX_SHEAR = 0.2
MAX_ZOOM = 0.1


def random_affine(image, key, probability):
    """Turns, slants and zooms an image `[S, S, C]` a little, about its centre.

    Angle, horizontal shear and the two zooms are uniform up to `MAX_DEGREES`,
    `MAX_SHEAR` and 1 +- `MAX_ZOOM`. Pixels are interpolated, those from outside are 0.

    Args:
      image: of any dtype.
      key: PRNG key.
      probability: with which it happens; otherwise the image stays as it is.

    Returns:
      `[S, S, C]` float32.
    """
    keep_key, map_key = jax.random.split(key)
    turn, slant, *zooms = jax.random.uniform(map_key, (4,), minval=-1, maxval=1)
    angle = jnp.deg2rad(MAX_DEGREES) * turn
    rotation = jnp.array(
        [[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]]
    )
    shear = jnp.array([[1.0, 0.0], [MAX_SHEAR * slant, 1.0]])
    matrix = rotation @ shear @ jnp.diag(1 + MAX_ZOOM * jnp.stack(zooms))
    matrix = jnp.eye(3).at[:2, :2].set(matrix)  # rows, columns, channels
    centre = (jnp.array(image.shape) - 1.0) / 2
    image = image.astype(jnp.float32)
    mapped = dm_pix.affine_transform(
        image, matrix, offset=centre - matrix @ centre, order=1, mode="constant"
    )
    return jnp.where(jax.random.bernoulli(keep_key, probability), mapped, image)


def random_crop(image, key, padding):
    """Pads an image `[S, S, C]` with zeros and cuts an S x S window out at random.

    Each shift from -padding to padding pixels is as likely, along each axis.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_flip(image, key):
    """Mirrors an image `[S, S, C]` left to right, half of the time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def mixup(images, targets, keys, alpha):
    """Blends each image, and its target, with its neighbour's.

        x_i <- w x_i + (1 - w) x_j,  y_i <- w y_i + (1 - w) y_j,
        w = max(u, 1 - u), u ~ Beta(alpha, alpha), for the pairs (i, j) = (0, 1), (2, 3)

    Partners stand next to each other, so that they stay together however the batch is
    split over devices.

    Args:
      images: `[B, S, S, C]`, B even.
      targets: `[B, classes]`.
      keys: `[B]` PRNG keys; the first of each pair is used.
      alpha: of the Beta distribution, positive: towards 0 pairs are hardly blended.

    Returns:
      images float32 and targets, of the same shapes.

    Source: Zhang et al. 2018. Differs: an image keeps the larger weight in its own
    blend, which only says which of a pair's two blends is whose.
    """
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[::2])
    weight = jnp.repeat(jnp.maximum(share, 1 - share), 2)  # [B]

    def blend(x):
        partner = x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
        own = weight.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * partner

    return blend(images.astype(jnp.float32)), blend(targets)

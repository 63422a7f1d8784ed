"""Augmentation, compiled, on the images as they are stored.

Axes: B images, S side, C channels.
"""

import jax
import jax.numpy as jnp


def create_augment(config):
    """The augmentation that the `augment` section of a config describes.

    Returns:
      A function (`[B, S, S, C]`, `[B]` PRNG keys) -> `[B, S, S, C]`, same dtype. What
      happens to an image depends on its own key alone.
    """

    def augment(image, key):
        crop_key, flip_key = jax.random.split(key)
        if config.crop_padding:
            image = random_crop(image, crop_key, config.crop_padding)
        if config.flip:
            image = random_flip(image, flip_key)
        return image

    return jax.vmap(augment)


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

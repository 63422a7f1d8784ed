"""Augmentation of a batch, compiled, on the images as they are stored.

Axes: B images, S side, C channels.
"""

import jax
import jax.numpy as jnp

from svda_jax.data.transforms import (
    box_mask,
    rand_augment,
    random_affine,
    random_crop,
    random_erase,
    random_flip,
)


def create_augment(config):
    """The augmentation that the `augment` section of a config describes.

    Returns:
      A function (images `[B, S, S, C]` uint8, targets `[B, classes]`, `[B]` PRNG keys)
      -> (images of 0 to 255, targets). What happens to an image depends on its own key
      and, under mixup and cutmix, on its partner and the key of the first of them.
    """

    def change(image, key):
        keys = jax.random.split(key, 5)
        if config.affine:
            image = random_affine(image, keys[0], config.affine)
        if config.crop_padding:
            image = random_crop(image, keys[1], config.crop_padding)
        if config.flip:
            image = random_flip(image, keys[2])
        if config.rand_augment:
            image = rand_augment(
                image,
                keys[3],
                num_operations=config.rand_augment,
                magnitude=config.magnitude,
            )
        if config.erase:
            image = random_erase(image, keys[4], config.erase)
        return image

    def share(key, side):
        mixup_key, cutmix_key, coin_key = jax.random.split(key, 3)
        if not config.cutmix:
            return mixup_share(mixup_key, side, config.mixup)
        if not config.mixup:
            return cutmix_share(cutmix_key, side, config.cutmix)
        return jnp.where(
            jax.random.bernoulli(coin_key),
            mixup_share(mixup_key, side, config.mixup),
            cutmix_share(cutmix_key, side, config.cutmix),
        )

    def augment(images, targets, keys):
        change_keys, mix_keys = jax.vmap(jax.random.split)(keys).T  # [B], [B]
        images = jax.vmap(change)(images, change_keys)
        if config.mixup or config.cutmix:
            side = images.shape[1]
            shares = jax.vmap(share, (0, None))(mix_keys[::2], side)
            images, targets = mix_pairs(images, targets, shares)
        return images, targets

    return augment


def mix_pairs(images, targets, shares):
    """Mixes the images of each pair of neighbours, and their targets alike.

        x_i <- w x_i + (1 - w) x_j,  y_i <- m y_i + (1 - m) y_j,  m = mean of w,
        for the pairs (i, j) = (0, 1), (1, 0), (2, 3), (3, 2), ...

    Partners stand next to each other, so that they stay together however the batch is
    split over devices.

    Args:
      images: `[B, S, S, C]`, B even.
      targets: `[B, classes]`.
      shares: `[B / 2, S, S, 1]`, w of each pair, what of a pixel is an image's own.

    Returns:
      images float32 and targets, of the same shapes.
    """
    own = jnp.repeat(shares, 2, axis=0)  # [B, S, S, 1]

    numbers = jnp.arange(len(images))
    swap = (numbers[:, None] == numbers ^ 1).astype(jnp.float32)  # [B, B]

    def mix(x, own, precision=None):
        partner = jnp.einsum(
            "ab,b...->a...", swap, x.astype(jnp.float32), precision=precision
        )
        return own * x + (1 - own) * partner

    return mix(images, own), mix(targets, own.mean((1, 2)), "highest")


def mixup_share(key, side, alpha):
    """What of a pixel stays an image's own under mixup, alike for all: `[S, S, 1]`.

        w = max(u, 1 - u), u ~ Beta(alpha, alpha)

    Args:
      key: PRNG key.
      side: S.
      alpha: positive; towards 0 pairs are hardly mixed.

    Source: Zhang et al. 2018. Differs: an image keeps the larger weight in its own
    mixture, which only says which of a pair's two is whose.
    """
    u = jax.random.beta(key, alpha, alpha)
    return jnp.full((side, side, 1), jnp.maximum(u, 1 - u))


def cutmix_share(key, side, alpha):
    """What of a pixel stays an image's own under cutmix: `[S, S, 1]`, 0 or 1.

    It is 0 in a square of area u S^2, u ~ Beta(alpha, alpha), whose centre is anywhere
    and which ends with the image.

    Args:
      key: PRNG key.
      side: S.
      alpha: positive.

    Source: Yun et al. 2019.
    """
    area_key, centre_key = jax.random.split(key)
    half = side * jnp.sqrt(jax.random.beta(area_key, alpha, alpha)) / 2
    centre = jax.random.uniform(centre_key, (2,), maxval=side)
    box = box_mask(side, jnp.round(centre - half), jnp.round(centre + half))
    return 1.0 - box

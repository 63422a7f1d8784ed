"""The augmentation of a batch: what a config turns on, and mixing."""

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from svda_jax.data.augment import (
    create_augment,
    cutmix_share,
    mix_pairs,
    mixup_share,
)
from svda_jax.data.transforms import OPERATIONS, apply_operation

S, C, NUM_KEYS = 5, 3, 400


@pytest.fixture
def image(rng):
    return rng.integers(1, 256, size=(S, S, C)).astype(np.uint8)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(0), NUM_KEYS)


def make_augment(**options):
    defaults = {
        "affine": 0.0,
        "crop_padding": 0,
        "flip": False,
        "rand_augment": 0,
        "magnitude": 9.0,
        "erase": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }
    return create_augment(ConfigDict({**defaults, **options}))


@pytest.mark.parametrize(
    ("crop_padding", "flip"), [(0, False), (1, False), (0, True), (1, True)]
)
def test_config_turns_each_on(image, keys, crop_padding, flip):
    change = make_augment(crop_padding=crop_padding, flip=flip)
    images, targets = change(np.stack([image] * NUM_KEYS), "targets", keys)
    assert targets == "targets"
    images = np.asarray(images).reshape(NUM_KEYS, -1)
    distinct = len(np.unique(images, axis=0))
    assert distinct == (1 + 2 * crop_padding) ** 2 * (1 + flip)


@pytest.mark.parametrize("options", [{"rand_augment": 2}, {"erase": 1.0}])
def test_config_turns_others_on(image, keys, options):
    change = make_augment(**options)
    images, _ = jax.jit(change)(np.stack([image] * 20), np.eye(20), keys[:20])
    assert np.asarray(images).min() >= 0
    assert np.asarray(images).max() <= 255
    changed = (np.asarray(images) != image).any((1, 2, 3))
    assert changed.sum() >= 12  # RandAugment may draw identity or clip to it


def test_an_images_fate_is_its_keys_alone(image, keys):
    change = jax.jit(
        make_augment(affine=0.5, crop_padding=1, flip=True, rand_augment=1, erase=0.5)
    )
    images = np.stack([image] * 30)
    np.testing.assert_array_equal(
        change(images[:7], 0, keys[3:10])[0], change(images, 0, keys[:30])[0][3:10]
    )


def test_mixup_blends_pairs_and_their_targets_alike(rng, keys):
    images = rng.integers(0, 256, size=(NUM_KEYS, S, S, C)).astype(np.uint8)
    targets = np.float32(np.eye(NUM_KEYS))
    mixed, shares = make_augment(mixup=0.7)(images, targets, keys)
    mixed, shares = np.asarray(mixed), np.asarray(shares)
    pairs = np.arange(NUM_KEYS).reshape(-1, 2)
    for i, j in [*pairs, *pairs[:, ::-1]]:
        weight = shares[i, i]
        assert 0.5 <= weight <= 1
        assert shares[i, j] == pytest.approx(1 - weight, abs=1e-6)
        expected = weight * images[i] + (1 - weight) * images[j].astype(float)
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    # E max(u, 1 - u) of u ~ Beta(0.7, 0.7), by NumPy; 200 draws of deviation 0.15.
    u = rng.beta(0.7, 0.7, size=100_000)
    expected = np.maximum(u, 1 - u).mean()
    assert np.diag(shares).mean() == pytest.approx(expected, abs=0.04)


def test_cutmix_swaps_a_box_and_weighs_targets_by_pixels(rng, keys):
    side = 16
    # Each image is flat in a value of its own, so that pixels can be counted.
    values = np.arange(NUM_KEYS) % 256
    images = np.broadcast_to(
        values[:, None, None, None], (NUM_KEYS, side, side, C)
    ).astype(np.uint8)
    targets = np.float32(np.eye(NUM_KEYS))
    mixed, shares = make_augment(cutmix=1.0)(images, targets, keys)
    mixed, shares = np.asarray(mixed), np.asarray(shares)
    pairs = np.arange(NUM_KEYS).reshape(-1, 2)
    for i, j in [*pairs, *pairs[:, ::-1]]:
        foreign = mixed[i, ..., 0] == values[j]
        assert (foreign | (mixed[i, ..., 0] == values[i])).all()
        rows, columns = foreign.any(1), foreign.any(0)
        np.testing.assert_array_equal(foreign, rows[:, None] & columns)
        assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
        assert np.diff(np.flatnonzero(columns)).max(initial=1) == 1
        assert shares[i, j] == pytest.approx(foreign.mean(), abs=1e-6)
        assert shares[i, i] == pytest.approx(1 - foreign.mean(), abs=1e-6)
    # Squares of uniform area around uniform centres, cut at the border, by NumPy; 200
    # draws of deviation 0.25.
    half = np.sqrt(rng.random((100_000, 1))) / 2
    centre = rng.random((100_000, 2))
    sides = np.minimum(centre + half, 1) - np.maximum(centre - half, 0)
    foreign = 1 - np.diag(shares)
    assert foreign.mean() == pytest.approx(sides.prod(1).mean(), abs=0.07)


def test_with_both_a_pair_meets_one_of_them(keys):
    images = np.zeros((NUM_KEYS, 8, 8, 1), np.uint8)
    images[::2] = 255
    mixed, _ = make_augment(mixup=1.0, cutmix=1.0)(
        images, np.float32(np.eye(NUM_KEYS)), keys
    )
    mixed = np.asarray(mixed)[::2]
    flat = np.ptp(mixed, axis=(1, 2, 3)) == 0
    blended = flat & (mixed[:, 0, 0, 0] < 255) & (mixed[:, 0, 0, 0] > 0)
    assert blended.mean() == pytest.approx(0.5, abs=0.14)  # 4 standard errors
    boxes = mixed[~flat]
    assert set(np.unique(boxes)) == {0, 255}


def test_mixing_keeps_what_the_shares_say(rng):
    images = rng.integers(0, 256, size=(2, 3, 3, 1)).astype(np.uint8)
    shares = rng.random(size=(1, 3, 3, 1))
    mixed, targets = mix_pairs(images, np.float32(np.eye(2)), shares)
    expected = shares[0] * images[0] + (1 - shares[0]) * images[1]
    np.testing.assert_allclose(mixed[0], expected, rtol=1e-5)
    expected = shares[0] * images[1] + (1 - shares[0]) * images[0]
    np.testing.assert_allclose(mixed[1], expected, rtol=1e-5)
    assert targets[0, 0] == pytest.approx(shares.mean(), abs=1e-6)


def test_mixing_does_not_see_how_the_batch_is_split(rng, keys):
    images = rng.integers(0, 256, size=(8, S, S, C)).astype(np.uint8)
    targets = np.float32(np.eye(8))
    augment = make_augment(mixup=0.5, cutmix=1.0, crop_padding=1)
    augment = jax.jit(augment)
    whole = augment(images, targets, keys[:8])
    part = augment(images[2:6], targets[2:6], keys[2:6])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[2:6], b, rtol=0, atol=1e-4)


def test_contact_sheet(output_dir, keys):
    """What each change does to two photographs, for a person to look at."""
    from sklearn.datasets import load_sample_images

    photographs = np.stack(
        [
            np.asarray(Image.fromarray(one[:427, 100:527]).resize((96, 96)))
            for one in load_sample_images().images
        ]
    )
    four = np.concatenate([photographs] * 2)
    operate = jax.jit(
        jax.vmap(functools.partial(apply_operation, strength=0.9), (0, None, 0))
    )
    signs = np.float32([1, 1, -1, -1])
    rows = {
        f"RandAugment: {name}": operate(four, choice, signs)
        for choice, name in enumerate(OPERATIONS)
    }
    for options in (
        {"affine": 1.0},
        {"crop_padding": 12},
        {"flip": True},
        {"rand_augment": 2},
        {"erase": 1.0},
        {"mixup": 0.8},
        {"cutmix": 1.0},
    ):
        images, _ = jax.jit(make_augment(**options))(four, np.eye(4), keys[:4])
        rows[", ".join(options)] = images
    figure, axes = plt.subplots(len(rows), 4, figsize=(6, 1.5 * len(rows)))
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for one, axis in zip(np.asarray(images), line, strict=True):
            assert one.min() >= 0
            assert one.max() < 255.01  # the rounding of a sum of weights
            axis.imshow(one.astype(np.uint8))
            axis.axis("off")
        line[0].set_title(name, loc="left", fontsize=8)
    figure.savefig(output_dir / "augment.png", dpi=60, bbox_inches="tight")
    plt.close(figure)


@pytest.mark.parametrize("share", [mixup_share, cutmix_share])
def test_shares_are_fractions(share, keys):
    shares = np.asarray(jax.vmap(lambda key: share(key, 6, 1.0))(keys))
    assert shares.shape == (NUM_KEYS, 6, 6, 1)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert len(np.unique(shares.mean((1, 2, 3)))) > 10

"""Random crop and flip against what NumPy cuts out."""

import jax
import numpy as np
import pytest
import scipy.ndimage
from ml_collections import ConfigDict

from svda_jax.datasets import augment
from svda_jax.datasets.augment import (
    create_augment,
    mixup,
    random_affine,
    random_crop,
    random_flip,
)

S, C, NUM_KEYS = 5, 3, 400


@pytest.fixture
def image(rng):
    return rng.integers(1, 256, size=(S, S, C)).astype(np.uint8)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(0), NUM_KEYS)


def test_crops_are_all_shifts_alike(image, keys):
    padding = 2
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {
        padded[row : row + S, column : column + S].tobytes(): 0
        for row in range(5)
        for column in range(5)
    }
    crops = jax.vmap(lambda key: random_crop(image, key, padding))(keys)
    assert crops.dtype == np.uint8
    for crop in np.asarray(crops):
        windows[crop.tobytes()] += 1  # a KeyError is a crop that is no window
    # 400 draws on 25 windows: 16 each, standard deviation 4.
    assert min(windows.values()) > 0
    assert max(windows.values()) < 40


def test_flips_are_mirror_images_half_of_the_time(image, keys):
    flips = np.asarray(jax.vmap(lambda key: random_flip(image, key))(keys))
    mirrored = (flips == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flips == image).all((1, 2, 3))).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)  # 4 standard errors


def test_affine_map_equals_scipys(image, monkeypatch):
    """Its matrix, read off scipy's interpolation of the same image."""
    for name, value in (("MAX_SHEAR", 0.0), ("MAX_ZOOM", 0.0)):
        monkeypatch.setattr(augment, name, value)
    key = jax.random.key(3)
    turned = np.asarray(random_affine(image, key, 1.0))
    turn = jax.random.uniform(jax.random.split(key)[1], (4,), minval=-1, maxval=1)[0]
    expected = scipy.ndimage.rotate(
        np.float64(image), 10.0 * float(turn), reshape=False, order=1
    )
    # Beyond the border scipy blends with 0, dm-pix cuts off: compare inside.
    np.testing.assert_allclose(turned[1:-1, 1:-1], expected[1:-1, 1:-1], atol=0.5)


def test_affine_maps_differ_and_come_with_their_probability(image, keys):
    mapped = np.asarray(jax.vmap(lambda key: random_affine(image, key, 0.3))(keys))
    same = (mapped == image).all((1, 2, 3))
    assert same.mean() == pytest.approx(0.7, abs=0.1)  # 4 standard errors
    changed = mapped[~same].reshape(-1, image.size)
    assert len(np.unique(changed, axis=0)) == len(changed)
    assert mapped.min() >= 0
    assert mapped.max() <= image.max()


def make_augment(**options):
    return create_augment(
        ConfigDict(
            {"affine": 0.0, "crop_padding": 0, "flip": False, "mixup": 0.0, **options}
        )
    )


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


def test_an_images_fate_is_its_keys_alone(image, keys):
    change = make_augment(affine=0.5, crop_padding=1, flip=True)
    images = np.stack([image] * NUM_KEYS)
    np.testing.assert_allclose(
        change(images[:7], None, keys[3:10])[0],
        change(images, None, keys)[0][3:10],
        atol=1e-3,
    )


def test_mixup_blends_pairs_and_their_targets_alike(rng, keys):
    images = rng.integers(0, 256, size=(NUM_KEYS, S, S, C)).astype(np.uint8)
    targets = np.float32(np.eye(NUM_KEYS))
    mixed, shares = (np.asarray(x) for x in mixup(images, targets, keys, 0.7))
    pairs = np.arange(NUM_KEYS).reshape(-1, 2)
    for i, j in [*pairs, *pairs[:, ::-1]]:
        weight = shares[i, i]
        assert 0.5 <= weight <= 1
        assert shares[i, j] == pytest.approx(1 - weight, abs=1e-6)
        expected = weight * images[i] + (1 - weight) * images[j].astype(float)
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    # E max(u, 1 - u) of u ~ Beta(0.7, 0.7), by NumPy; 200 draws of deviation 0.15.
    u = rng.beta(0.7, 0.7, size=100_000)
    expected = np.maximum(u, 1 - u).mean()
    assert np.diag(shares).mean() == pytest.approx(expected, abs=0.04)


def test_mixup_does_not_see_how_the_batch_is_split(rng, keys):
    images = rng.integers(0, 256, size=(8, S, S, C)).astype(np.uint8)
    targets = np.float32(np.eye(8))
    whole = make_augment(mixup=0.5, crop_padding=1)(images, targets, keys[:8])
    part = make_augment(mixup=0.5, crop_padding=1)(images[2:6], targets[2:6], keys[2:6])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[2:6], b, rtol=0, atol=1e-4)

"""Random crop and flip against what NumPy cuts out."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from svda_jax.datasets.augment import create_augment, random_crop, random_flip

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


@pytest.mark.parametrize(
    ("crop_padding", "flip"), [(0, False), (1, False), (0, True), (1, True)]
)
def test_config_turns_each_on(image, keys, crop_padding, flip):
    augment = create_augment(ConfigDict({"crop_padding": crop_padding, "flip": flip}))
    images = np.asarray(augment(np.stack([image] * NUM_KEYS), keys))
    distinct = len(np.unique(images.reshape(NUM_KEYS, -1), axis=0))
    assert distinct == (1 + 2 * crop_padding) ** 2 * (1 + flip)


def test_an_images_fate_is_its_keys_alone(image, keys):
    augment = create_augment(ConfigDict({"crop_padding": 1, "flip": True}))
    images = np.stack([image] * NUM_KEYS)
    np.testing.assert_array_equal(
        augment(images[:7], keys[3:10]), augment(images, keys)[3:10]
    )

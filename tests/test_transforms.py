"""Random changes of an image against NumPy, SciPy and Pillow."""

import jax
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from svda_jax.data import transforms
from svda_jax.data.transforms import (
    OPERATIONS,
    apply_operation,
    rand_augment,
    random_affine,
    random_crop,
    random_erase,
    random_flip,
    warp,
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


def test_warp_equals_scipys(rng):
    image = rng.integers(0, 256, size=(7, 7, 2)).astype(np.uint8)
    matrix, shift = np.array([[0.9, 0.3], [-0.2, 1.1]]), np.array([0.6, -1.3])
    centre = 3.0
    for channel in range(2):
        expected = scipy.ndimage.affine_transform(
            np.float64(image[..., channel]),
            matrix,
            offset=centre - matrix @ [centre, centre] + shift,
            order=1,
            mode="grid-constant",
        )
        warped = warp(image, matrix, shift)[..., channel]
        # Places in float32, times differences of up to 255.
        np.testing.assert_allclose(warped, expected, atol=1e-2)


def test_affine_map_turns_by_its_angle(image, monkeypatch):
    for name, value in (("MAX_SHEAR", 0.0), ("MAX_ZOOM", 0.0)):
        monkeypatch.setattr(transforms, name, value)
    key = jax.random.key(3)
    turned = np.asarray(random_affine(image, key, 1.0))
    turn = jax.random.uniform(jax.random.split(key)[1], (4,), minval=-1, maxval=1)[0]
    expected = scipy.ndimage.rotate(
        np.float64(image),
        10.0 * float(turn),
        reshape=False,
        order=1,
        mode="grid-constant",
    )
    np.testing.assert_allclose(turned, expected, atol=0.01)


def test_affine_maps_differ_and_come_with_their_probability(image, keys):
    mapped = np.asarray(jax.vmap(lambda key: random_affine(image, key, 0.3))(keys))
    same = (mapped == image).all((1, 2, 3))
    assert same.mean() == pytest.approx(0.7, abs=0.1)  # 4 standard errors
    changed = mapped[~same].reshape(-1, image.size)
    assert len(np.unique(changed, axis=0)) == len(changed)
    assert mapped.min() >= 0
    assert mapped.max() <= image.max()


def test_erased_boxes_are_boxes_of_noise(keys):
    side = 16
    image = np.full((side, side, C), 7, np.uint8)
    erased = jax.vmap(lambda key: random_erase(image, key, 0.5))(keys)
    assert erased.dtype == np.uint8
    shares, noise = [], []
    for one in np.asarray(erased):
        changed = (one != 7).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if len(rows) == 0:
            continue
        box = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box != 7).any(-1).all()  # one box, filled: 3 equal bytes, 1 in 2^24
        shares.append(box.size / image.size)
        noise.append(box.ravel())
    assert len(shares) / NUM_KEYS == pytest.approx(0.5, abs=0.1)  # 4 standard errors
    assert min(shares) >= 0.01  # sides are rounded to pixels
    assert max(shares) <= 0.40
    assert np.mean(shares) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    noise = np.concatenate(noise)
    assert noise.mean() == pytest.approx(127.5, abs=2)
    assert noise.std() == pytest.approx(73.9, abs=2)


def operate(image, name, sign=1.0, strength=1.0):
    image = image.astype(np.float32)
    return np.asarray(apply_operation(image, OPERATIONS.index(name), sign, strength))


def pillow(image, name, sign, strength):
    """The operation as Pillow does it."""
    picture = Image.fromarray(image)
    factor = 1 + 0.9 * sign * strength
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](picture).enhance(factor)
    return {
        "identity": lambda: picture,
        "posterize": lambda: ImageOps.posterize(picture, 8 - round(4 * strength)),
        "solarize": lambda: ImageOps.solarize(picture, 255 * (1 - strength)),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    }[name]()


@pytest.fixture(scope="module")
def photograph():
    """A photograph of 48 x 48 with the full range of colours."""
    from sklearn.datasets import load_sample_images

    picture = Image.fromarray(load_sample_images().images[1])
    return np.asarray(picture.resize((48, 48)))


@pytest.mark.parametrize("name", OPERATIONS[5:])
@pytest.mark.parametrize(("sign", "strength"), [(1.0, 0.9), (-1.0, 0.5), (1.0, 0.0)])
def test_colours_equal_pillows(photograph, name, sign, strength):
    expected = np.asarray(pillow(photograph, name, sign, strength), np.float32)
    # Pillow cuts fractions off, of the result and of what it blends with (its luma by
    # 1 for some colours, which counts up to 0.9 times more).
    np.testing.assert_allclose(
        operate(photograph, name, sign, strength), expected, atol=2.0
    )


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_flat_image_stays(name):
    image = np.full((S, S, C), 9, np.uint8)
    np.testing.assert_array_equal(operate(image, name), image)


@pytest.mark.parametrize(
    ("name", "coefficients"),
    [
        ("shear_x", lambda f: (1, 0.3 * f, -0.3 * f * 24, 0, 1, 0)),
        ("shear_y", lambda f: (1, 0, 0, 0.3 * f, 1, -0.3 * f * 24)),
        ("translate_x", lambda f: (1, 0, 150 / 331 * 48 * f, 0, 1, 0)),
        ("translate_y", lambda f: (1, 0, 0, 0, 1, 150 / 331 * 48 * f)),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_geometry_equals_pillows(photograph, name, coefficients, sign):
    photograph = np.maximum(photograph, 1)  # so that 0 is what came in from outside
    picture = Image.fromarray(photograph)
    expected = picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients(0.5 * sign), Image.BILINEAR
    )
    moved = operate(photograph, name, sign, 0.5)
    inside = (np.asarray(expected) > 0).all(-1) & (moved > 0).all(-1)
    inside = scipy.ndimage.binary_erosion(inside)  # what blends with 0
    assert inside.mean() > 0.5
    np.testing.assert_allclose(
        moved[inside], np.asarray(expected)[inside], atol=1.01
    )  # Pillow cuts fractions off


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rotation_equals_pillows(photograph, sign):
    expected = np.asarray(Image.fromarray(photograph).rotate(15 * sign, Image.BILINEAR))
    moved = operate(photograph, "rotate", sign, 0.5)
    centre = slice(12, 36)
    np.testing.assert_allclose(
        moved[centre, centre], expected[centre, centre], atol=1.01
    )


def test_rand_augment_draws_every_operation_alike(image, keys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        transforms, "apply_operation", lambda image, choice, *_: image + choice
    )
    flat = np.zeros((S, S, C), np.float32)
    for key in keys:
        sums = rand_augment(flat, key, num_operations=1, magnitude=9.0)
        seen.append(int(sums[0, 0, 0]))
    counts = np.bincount(seen, minlength=len(OPERATIONS))
    # 400 draws on 14: 29 each, standard deviation 5.
    assert counts.min() > 8
    assert counts.max() < 50
    assert counts.sum() == NUM_KEYS


def test_rand_augment_is_its_operations_in_turn(photograph):
    key = jax.random.key(8)
    expected = np.float32(photograph)
    for operation_key in jax.random.split(key, 3):
        choice_key, sign_key = jax.random.split(operation_key)
        choice = int(jax.random.randint(choice_key, (), 0, len(OPERATIONS)))
        sign = float(jax.random.rademacher(sign_key, (), np.float32))
        expected = operate(expected, OPERATIONS[choice], sign, 0.7)
    result = jax.jit(
        lambda image: rand_augment(image, key, num_operations=3, magnitude=7.0)
    )(photograph)
    # Compiled sums round otherwise; at an edge of posterize that is a step.
    assert np.mean(np.abs(result - expected) < 0.01) > 0.99

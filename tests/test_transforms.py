"""Random changes of an image against NumPy, SciPy and Pillow."""

import functools

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


@pytest.fixture(scope="module")
def photograph():
    """A photograph of 48 x 48 with the full range of colours."""
    from sklearn.datasets import load_sample_images

    picture = Image.fromarray(load_sample_images().images[1])
    return np.asarray(picture.resize((48, 48)))


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


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stretch_along_one_axis_equals_scipys(rng, axis):
    image = rng.integers(0, 256, size=(7, 7, 2)).astype(np.uint8)
    matrix, shift = np.eye(2), np.zeros(2)
    matrix[axis], shift[axis] = [[1.125, 0.25], [0.25, 0.875]][axis], -1.25
    centre = 3.0
    warped = np.asarray(warp(image, matrix, shift))
    for channel in range(2):
        expected = scipy.ndimage.affine_transform(
            np.float64(image[..., channel]),
            matrix,
            offset=centre - matrix @ [centre, centre] + shift,
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_array_equal(warped[..., channel], np.round(expected))


def test_affine_map_turns_by_its_angle(photograph, monkeypatch):
    for name, value in (("MAX_SHEAR", 0.0), ("MAX_ZOOM", 0.0)):
        monkeypatch.setattr(transforms, name, value)
    key = jax.random.key(3)
    turned = np.asarray(random_affine(photograph, key, 1.0), np.float32)
    turn = jax.random.uniform(jax.random.split(key)[1], (4,), minval=-1, maxval=1)[0]
    expected = scipy.ndimage.rotate(
        np.float64(photograph),
        10.0 * float(turn),
        reshape=False,
        order=1,
        mode="grid-constant",
    )
    # Two pixels twice are not four at once. A tenth of a degree less is off by 1.
    difference = np.abs(turned - expected)
    assert difference.mean() < 0.75
    assert difference.max() < 12


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
    changed = apply_operation(image, OPERATIONS.index(name), sign, strength)
    assert changed.dtype == np.uint8
    return np.asarray(changed, np.float32)


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


@pytest.mark.parametrize("name", OPERATIONS[5:])
@pytest.mark.parametrize(("sign", "strength"), [(1.0, 0.9), (-1.0, 0.5), (1.0, 0.0)])
def test_colours_equal_pillows(photograph, name, sign, strength):
    expected = np.asarray(pillow(photograph, name, sign, strength), np.float32)
    changed = operate(photograph, name, sign, strength)
    if name == "autocontrast":  # its table is in float64, and cuts 254.9999 to 254
        np.testing.assert_allclose(changed, expected, atol=1)
        assert (changed != expected).mean() < 0.03
    else:
        np.testing.assert_array_equal(changed, expected)


def test_contrast_is_about_a_mean_rounded_up_where_it_is_between_two():
    image = np.uint8([[4, 5], [4, 5]])
    changed = operate(image[..., None], "contrast", -1.0)
    np.testing.assert_array_equal(changed[..., 0], pillow(image, "contrast", -1.0, 1.0))


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
def test_rotation_is_near_pillows(photograph, sign):
    expected = np.asarray(Image.fromarray(photograph).rotate(15 * sign, Image.BILINEAR))
    centre = slice(12, 36)
    difference = operate(photograph, "rotate", sign, 0.5) - np.float32(expected)
    difference = np.abs(difference[centre, centre])
    # Pillow takes four pixels at once. A degree more or less is off by 4 in the mean.
    assert difference.mean() < 1.25
    assert difference.max() < 12


def test_rand_augment_draws_every_operation_alike(image, keys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        transforms, "apply_operation", lambda image, choice, *_: image + choice
    )
    flat = np.zeros((S, S, C), np.uint8)
    for key in keys:
        sums = rand_augment(flat, key, num_operations=1, magnitude=9.0)
        seen.append(int(sums[0, 0, 0]))
    counts = np.bincount(seen, minlength=len(OPERATIONS))
    # 400 draws on 14: 29 each, standard deviation 5.
    assert counts.min() > 8
    assert counts.max() < 50
    assert counts.sum() == NUM_KEYS


def test_rand_augment_is_its_operations_in_turn(photograph):
    """Of each image of a batch, however many of them drew one operation."""
    augment = functools.partial(rand_augment, num_operations=3, magnitude=7.0)
    for num_images in (1, 24):
        keys = jax.random.split(jax.random.key(8), num_images)
        images = jax.jit(jax.vmap(augment, (None, 0)))(photograph, keys)
        for key, image in zip(keys, images, strict=True):
            expected = photograph
            for operation_key in jax.random.split(key, 3):
                choice_key, sign_key = jax.random.split(operation_key)
                choice = int(jax.random.randint(choice_key, (), 0, len(OPERATIONS)))
                sign = float(jax.random.rademacher(sign_key, (), np.float32))
                expected = operate(np.uint8(expected), OPERATIONS[choice], sign, 0.7)
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("number", [0, 1, 3, 16])
def test_equalize_is_of_those_that_drew_it(photograph, number, rng):
    drawn = rng.permutation(np.arange(16) < number)
    images = jax.vmap(apply_operation, (None, 0, None, None))(
        photograph, np.where(drawn, OPERATIONS.index("equalize"), 5), 1.0, 0.5
    )
    equal = pillow(photograph, "equalize", 1.0, 0.5)
    for one, equalized in zip(images, drawn, strict=True):
        np.testing.assert_array_equal(one, equal if equalized else photograph)

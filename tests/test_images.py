"""Decoding against Pillow, and crops against what Pillow cuts out."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from svda_jax.data import images
from svda_jax.data.images import (
    CorruptImageError,
    center_crop,
    decode,
    random_resized_crop,
)


@pytest.fixture(scope="module")
def picture():
    """A photograph of 640 x 427."""
    return Image.fromarray(load_sample_images().images[0])


def encode(picture, file_format, **options):
    data = io.BytesIO()
    picture.save(data, file_format, **options)
    return data.getvalue()


def assert_about_equal(pixels, expected, mean):
    difference = np.abs(np.float64(pixels) - np.float64(expected))
    assert difference.mean() < mean


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_lossless_formats_equal_pillows_pixels(picture, file_format, channels, mode):
    pixels = decode(encode(picture, file_format), channels=channels)
    expected = np.asarray(picture.convert(mode)).reshape(427, 640, channels)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_each_mode(picture, mode):
    data = encode(picture.convert(mode), "JPEG", quality=95)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    # Two builds of one decoder may smooth colours at edges in their own ways.
    assert_about_equal(decode(data, channels=3), expected, mean=1.0)
    grey = decode(data, channels=1)
    assert_about_equal(grey[..., 0], expected.convert("L"), mean=1.0)


def test_palette_grey_and_16_bits(picture):
    palette = picture.quantize(64)
    np.testing.assert_array_equal(
        decode(encode(palette, "PNG"), channels=3), np.asarray(palette.convert("RGB"))
    )
    grey = np.asarray(picture.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 17)
    np.testing.assert_array_equal(decode(encode(deep, "PNG"), channels=1)[..., 0], grey)
    bits = picture.convert("1")
    np.testing.assert_array_equal(
        decode(encode(bits, "PNG"), channels=1)[..., 0], np.asarray(bits) * 255
    )


def test_transparent_pixels_show_white(picture):
    picture = picture.copy()
    alpha = np.full((427, 640), 255, np.uint8)
    alpha[:100] = 0
    alpha[100:200] = 128
    picture.putalpha(Image.fromarray(alpha))
    pixels = decode(encode(picture, "PNG"), channels=3)
    original = np.asarray(picture)[..., :3]
    assert (pixels[:100] == 255).all()
    np.testing.assert_array_equal(pixels[200:], original[200:])
    half = 255 - (255 - original[100:200].astype(float)) * 128 / 255
    np.testing.assert_allclose(pixels[100:200], half, atol=1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_truncated_files_are_corrupt(picture, file_format, share):
    data = encode(picture, file_format)
    with pytest.raises(CorruptImageError):
        decode(data[: int(share * len(data))], channels=3)


def test_jpeg_without_its_last_byte_is_corrupt(picture):
    data = encode(picture, "JPEG")
    for crop in (
        lambda: decode(data[:-1], channels=3),
        lambda: center_crop(data[:-1], size=32, channels=3, fraction=0.9),
    ):
        with pytest.raises(CorruptImageError, match="Premature end"):
            crop()


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_corrupt(data):
    with pytest.raises(CorruptImageError):
        decode(data, channels=3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("size", "mean"), [(20, 7.0), (60, 4.0), (150, 4.0), (300, 4.0), (427, 2.5)]
)
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_center_crop_equals_pillows(picture, file_format, size, mean, fraction):
    data = encode(picture, file_format, quality=95)
    side = round(fraction * 427)
    top, left = (427 - side) // 2, (640 - side) // 2
    expected = picture.resize(
        (size, size), Image.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = center_crop(data, size=size, channels=3, fraction=fraction)
    assert pixels.shape == (size, size, 3)
    # Pillow averages over more pixels when it scales down, and JPEG has its losses;
    # one pixel to the side would make 9 to 15.
    assert_about_equal(pixels, expected, mean=mean)


def test_a_crop_of_the_images_own_size_is_the_image(picture):
    picture = picture.crop((0, 0, 64, 64))
    pixels = center_crop(encode(picture, "PNG"), size=64, channels=3, fraction=1.0)
    np.testing.assert_array_equal(pixels, np.asarray(picture))


def coordinates(height, width):
    """A PNG whose first channel says the column and second the row."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    return encode(Image.fromarray(image), "PNG")


def test_random_boxes_have_the_areas_and_shapes_promised(monkeypatch, rng):
    height, width = 200, 150
    monkeypatch.setattr(images, "_crop", lambda data, box, **_: box(height, width))
    boxes = [
        random_resized_crop(b"", rng, size=7, channels=3, min_area=0.2)
        for _ in range(300)
    ]
    top, left, h, w = np.array(boxes).T
    area, aspect = h * w / (height * width), w / h
    assert area.min() > 0.19  # sides are rounded to pixels
    assert area.max() <= 1
    assert np.abs(np.log(aspect)).max() < np.log(4 / 3) + 0.03
    assert np.log(aspect).min() < -0.2
    assert np.log(aspect).max() > 0.2
    # Larger boxes fit less often, so the mean stays below 0.6.
    assert 0.4 < area.mean() < 0.6
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    assert top.min() == 0
    assert top.max() > 60
    assert len(set(boxes)) > 290


def test_an_image_no_box_fits_is_cut_from_its_centre(rng):
    data = coordinates(20, 200)
    crop = random_resized_crop(data, rng, size=20, channels=3, min_area=1.0)
    columns = crop[10, :, 0].astype(int)
    assert columns[0] == pytest.approx(86, abs=2)  # 27 columns around 100
    assert columns[-1] == pytest.approx(113, abs=2)


def test_crops_are_a_function_of_the_generator(picture):
    data = encode(picture, "JPEG")
    crops = [
        random_resized_crop(
            data, np.random.default_rng(seed), size=32, channels=3, min_area=0.08
        )
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any()

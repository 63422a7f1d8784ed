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


RAMP = np.linspace(0, 65535, 16 * 9).reshape(16, 9)


def ramp_png():
    return encode(Image.fromarray(RAMP.astype(np.uint16)), "PNG")


def ramp_tiff():
    return encode(Image.fromarray(RAMP.astype(np.uint16)), "TIFF")


def ramp_tiff_of_12_bits():
    """Two pixels of 12 bits in three bytes, which Pillow reads but does not write."""
    data = bytearray(encode(Image.fromarray((RAMP / 16).astype(np.uint16)), "TIFF"))
    bits = data.index(np.array([258, 3, 1, 0, 16], "<u2").tobytes())
    data[bits + 8] = 12
    values = np.pad((RAMP / 16).astype(int), ((0, 0), (0, 1)))  # an even number a row
    first, second = values[:, ::2], values[:, 1::2]
    packed = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    packed = np.stack(packed, -1).astype(np.uint8).reshape(16, 15)[:, :14]
    place = data.index((RAMP / 16).astype("<u2").tobytes())
    data[place : place + packed.size] = packed.tobytes()
    return bytes(data)


def ramp_tiff_where_0_is_white():
    data = bytearray(encode(Image.fromarray((65535 - RAMP).astype(np.uint16)), "TIFF"))
    place = data.index(np.array([262, 3, 1, 0, 1], "<u2").tobytes())
    data[place + 8] = 0
    return bytes(data)


def ramp_pgm():
    return b"P5 9 16 65535\n" + RAMP.astype(">u2").tobytes()


def ramp_pgm_up_to_1000():
    return b"P5 9 16 1000\n" + (RAMP * 1000 / 65535).astype(">u2").tobytes()


@pytest.mark.parametrize(
    "write",
    [
        ramp_png,
        ramp_tiff,
        ramp_tiff_of_12_bits,
        ramp_tiff_where_0_is_white,
        ramp_pgm,
        ramp_pgm_up_to_1000,
    ],
)
def test_more_than_eight_bits_are_scaled_by_their_range(write):
    pixels = decode(write(), channels=3)
    # Depths are cut off, not rounded, to the file's own and then to eight bits.
    np.testing.assert_allclose(pixels[..., 1], RAMP / 65535 * 255, atol=1.3)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, "floats"), (np.int32, "integers")]
)
def test_32_bits_are_refused_by_name(dtype, kind):
    data = encode(Image.fromarray((RAMP / 65535).astype(dtype)), "TIFF")
    with pytest.raises(CorruptImageError, match=f"pixels are {kind} of 32 bits"):
        decode(data, channels=3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_upright(file_format, orientation):
    """As a viewer shows it: the corners of a picture in which each has its grey."""
    corners = np.array([[0, 80], [160, 240]], np.uint8)
    image = np.kron(corners, np.ones((16, 24), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if file_format != "WEBP" else {"lossless": True}
    if file_format in ("TIFF", "PNG"):
        options = {}
    data = encode(
        Image.fromarray(image).convert("RGB"), file_format, exif=exif, **options
    )
    rotations = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
    expected = np.rot90(image, rotations[orientation])
    if orientation in (2, 4, 5, 7):
        expected = expected[:, ::-1]
    found = decode(data, channels=1)[..., 0]
    assert found.shape == expected.shape
    assert_about_equal(found, expected, mean=4)
    crop = center_crop(data, size=8, channels=1, fraction=1.0)[..., 0]
    side = min(expected.shape)
    top, left = (np.array(expected.shape) - side) // 2
    square = expected[top : top + side, left : left + side]
    small = np.asarray(Image.fromarray(square).resize((8, 8), Image.BILINEAR))
    # Pillow averages over more pixels; a corner in another's place would make 20.
    assert_about_equal(crop, small, mean=8)


def test_bytes_between_the_parts_of_a_jpeg_lose_no_pixel(picture):
    data = encode(picture, "JPEG", quality=90)
    expected = decode(data, channels=3)
    before_the_end = data[:-2] + bytes(5) + data[-2:]
    np.testing.assert_array_equal(decode(before_the_end, channels=3), expected)
    crops = [
        center_crop(one, size=48, channels=3, fraction=0.9)
        for one in (data, before_the_end)
    ]
    np.testing.assert_array_equal(*crops)
    for cut in (before_the_end[:-1], data[:9000] + bytes(5) + data[9000:-4000]):
        with pytest.raises(CorruptImageError):
            decode(cut, channels=3)


@pytest.mark.parametrize("shape", [(7, 40), (3, 500), (1, 1), (40, 7), (8, 100)])
@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_thin_jpegs_are_cropped_where_they_should(shape, size):
    columns = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8), shape)
    data = encode(Image.fromarray(np.ascontiguousarray(columns)), "JPEG", quality=100)
    crop = center_crop(data, size=size, channels=1, fraction=1.0)[..., 0]
    side = min(shape)
    left = (shape[1] - side) // 2
    expected = columns[:side, left : left + side].astype(float)
    assert crop.mean() == pytest.approx(expected.mean(), abs=6)  # of 42 a pixel
    random_resized_crop(
        data, np.random.default_rng(0), size=size, channels=3, min_area=0.08
    )


def test_images_too_large_for_pillow_are_refused(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for file_format in ("JPEG", "PNG"):
        with pytest.raises(CorruptImageError, match="exceeds limit"):
            decode(encode(picture, file_format), channels=3)

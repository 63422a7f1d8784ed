"""Decoding of image files, and the crop of one that becomes a model's input.

What comes out is uint8 `[height, width, channels]`, one channel for grey and three for
RGB, whatever the file's mode. Orientation tags are not applied, as is the custom for
ImageNet.
"""

import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Crops are taken from many threads already.
cv2.setNumThreads(1)

# Of the crop's width over its height, before it is scaled to a square.
MAX_ASPECT = 4 / 3


class CorruptImageError(ValueError):
    """An image that cannot be decoded to its end."""


def decode(data, *, channels):
    """The whole image of a file of any format that Pillow reads.

    Args:
      data: bytes of the file.
      channels: 1 or 3. RGB becomes grey by ITU-R 601 luma; what is transparent shows
        white.

    Raises:
      CorruptImageError: the data is truncated, damaged or no image.
    """
    if _is_plain_jpeg(data):
        return _decode_jpeg(data, channels)
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        if picture.mode.startswith("I;16"):  # which Pillow would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError:
        raise CorruptImageError("not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImageError(str(error)) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def random_resized_crop(data, rng, *, size, channels, min_area):
    """A random box of an image, scaled to a square: what training sees.

    Its area is a uniform share of the image's, from min_area to 1, its width over its
    height log-uniform up to `MAX_ASPECT` either way, every place as likely. After ten
    boxes that do not fit it is the largest in the centre that keeps to that shape.

    Args:
      data: bytes of the file.
      rng: `numpy.random.Generator`.
      size: side of the square.
      channels: 1 or 3.
      min_area: in (0, 1].

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      CorruptImageError: see `decode`.

    Source: Szegedy et al. 2015, with the fall-back that torchvision has.
    """

    def box(height, width):
        for _ in range(10):
            area = rng.uniform(min_area, 1) * height * width
            aspect = MAX_ASPECT ** rng.uniform(-1, 1)
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return top, left, h, w
        h = min(height, round(width * MAX_ASPECT))
        w = min(width, round(height * MAX_ASPECT))
        return (height - h) // 2, (width - w) // 2, h, w

    return _crop(data, box, size=size, channels=channels)


def center_crop(data, *, size, channels, fraction):
    """The centre of an image, scaled to a square: what evaluation sees.

    Args:
      data: bytes of the file.
      size: side of the square.
      channels: 1 or 3.
      fraction: of the image's shorter side that the square's side is.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      CorruptImageError: see `decode`.
    """

    def box(height, width):
        side = max(round(fraction * min(height, width)), 1)
        return (height - side) // 2, (width - side) // 2, side, side

    return _crop(data, box, size=size, channels=channels)


def _crop(data, box, *, size, channels):
    """Decodes an image, no larger than the crop needs, and scales the box linearly.

    The image is halved once or more first, as long as the box stays at least as large
    as the result; of a JPEG that happens while it is decoded and saves work.
    """
    if _is_plain_jpeg(data):
        height, width = _jpeg_header(data)[:2]
        pixels = None
    else:
        pixels = decode(data, channels=channels)
        height, width = pixels.shape[:2]
    top, left, h, w = box(height, width)
    shrink = 2 ** int(np.clip(math.log2(min(h, w) / size), 0, 3))
    if pixels is None:
        pixels = _decode_jpeg(data, channels, math.ceil(height / shrink))
    elif shrink > 1:
        small = (math.ceil(width / shrink), math.ceil(height / shrink))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    if shrink == 1:
        scaled = cv2.resize(pixels[top : top + h, left : left + w], (size, size))
    else:  # the box need not begin with a pixel: three times slower
        # Pixel x of the result covers left + x scale to left + (x + 1) scale.
        scale = np.array([w, h]) / shrink / size
        start = np.array([left, top]) / shrink + scale / 2 - 0.5
        scaled = cv2.warpAffine(
            pixels,
            np.column_stack([np.diag(scale), start]),
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return scaled.reshape(size, size, channels)


def _is_plain_jpeg(data):
    """Whether the data is a JPEG of grey or YCbCr, not of CMYK."""
    if not data.startswith(b"\xff\xd8"):
        return False
    return _jpeg_header(data)[2] in ("Gray", "YCbCr", "RGB")


def _jpeg_header(data):
    """Height, width and colour space."""
    try:
        return simplejpeg.decode_jpeg_header(data)[:3]
    except ValueError as error:
        raise CorruptImageError(str(error)) from None


def _decode_jpeg(data, channels, min_height=0):
    """Decodes a JPEG, at the smallest scale of the format that has that height."""
    try:
        return simplejpeg.decode_jpeg(
            data, "GRAY" if channels == 1 else "RGB", min_height=min_height
        )
    except ValueError as error:
        raise CorruptImageError(str(error)) from None

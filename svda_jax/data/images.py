"""Decoding of image files, and the crop of one that becomes a model's input.

What comes out is uint8 `[height, width, channels]`, one channel for grey and three for
RGB, whatever the file's mode, upright as its EXIF orientation says. Import, streaming
and prediction all decode here.
"""

import io
import math
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

# Crops are taken from many threads already.
cv2.setNumThreads(1)
# Remarks on metadata say nothing of pixels; an image too large for Pillow is an error.
warnings.filterwarnings("ignore", module=r"PIL\b")
warnings.simplefilter("error", Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # EXIF's tag
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262

# Of the crop's width over its height, before it is scaled to a square.
MAX_ASPECT = 4 / 3


class CorruptImageError(ValueError):
    """An image whose pixels cannot all be decoded, or mean nothing as 0 to 255."""


def decode(data, *, channels):
    """The whole image of a file of any format that Pillow reads.

    Grey of 16 bits is divided by 256, as Pillow does with colours of 16 bits; RGB
    becomes grey by ITU-R 601 luma; what is transparent shows white; of an animation
    the first picture is taken.

    Args:
      data: bytes of the file.
      channels: 1 or 3.

    Raises:
      CorruptImageError: the data is truncated, damaged or no image, or its pixels are
        floats or integers of 32 bits, of which nothing says which is white.
    """
    if _plain_jpeg_size(data):
        return _decode_jpeg(data, channels)
    try:
        picture = Image.open(io.BytesIO(data))
        tags = dict(getattr(picture, "tag_v2", ()))  # loading forgets them
        picture.load()
        picture = ImageOps.exif_transpose(_to_8_bits(picture, tags))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError:
        raise CorruptImageError("not an image") from None
    except Exception as error:  # Pillow raises whatever a damaged byte leads to
        said = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImageError(said) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_8_bits(picture, tags):
    """A picture of modes that Pillow converts well; others it clips at 255."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):
        kind = "floats" if picture.mode == "F" else "integers"
        raise CorruptImageError(
            f"pixels are {kind} of 32 bits, of which none is white; save 8 or 16 bits"
        )
    if not picture.mode.startswith("I"):
        return picture
    pixels = np.array(picture).astype(np.int32)  # a PGM's maximum is scaled to 65535
    bits = tags.get(_TIFF_BITS, (16,))[0]
    if "transparency" in picture.info:
        pixels[pixels == picture.info["transparency"]] = 2**bits - 1
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white
        pixels = 2**bits - 1 - pixels
    eight = Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    eight.getexif()[_ORIENTATION] = picture.getexif().get(_ORIENTATION, 1)
    return eight


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
    pixels = None
    height, width = _plain_jpeg_size(data) or (0, 0)
    if height < 8:  # or it can be too small: 7/8 of 7 rows are 7
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


def _plain_jpeg_size(data):
    """Height and width of an upright JPEG of grey, YCbCr or RGB; others are None."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours = simplejpeg.decode_jpeg_header(data)[:3]
        if b"Exif\0\0" in data:
            exif = Image.open(io.BytesIO(data)).getexif()
            if exif.get(_ORIENTATION, 1) != 1:
                return None
    except Exception:  # Pillow may make something of it, or will say what is wrong
        return None
    small = height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
    return (height, width) if small and colours in ("Gray", "YCbCr", "RGB") else None


def _decode_jpeg(data, channels, min_height=0):
    """Decodes a JPEG, at the smallest scale of the format that has that height.

    Bytes between its parts lose no pixel: such a file is whole if Pillow finds its end.
    """
    options = {
        "colorspace": "GRAY" if channels == 1 else "RGB",
        "min_height": min_height,
    }
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        if "extraneous bytes before marker" not in str(error):
            raise CorruptImageError(str(error)) from None
    try:
        Image.open(io.BytesIO(data)).load()
        return simplejpeg.decode_jpeg(data, **options, strict=False)
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(str(error)) from None

"""Images and options drawn at random: right pixels and values, or one line."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from svda_jax import UserError
from svda_jax.config import check, flatten, load, to_json, validate
from svda_jax.data import datasets, prepare
from svda_jax.data.images import CorruptImageError, center_crop, decode
from svda_jax.devices import parallel
from svda_jax.options import OPTIONS
from svda_jax.run.predict import read_images

# What Pillow remarks on damaged metadata is no matter of pixels.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
COUNTS = pytest.mark.parametrize(
    "count", [25, pytest.param(1000, marks=pytest.mark.slow)]
)

FORMATS = {
    "AVIF": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "GIF": ["1", "L", "P"],
    "JPEG": ["L", "RGB", "CMYK"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"],
    "PCX": ["1", "L", "P", "RGB"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "PPM": ["1", "L", "RGB", "I", "F"],
    "QOI": ["RGB", "RGBA"],
    "SGI": ["L", "RGB", "RGBA"],
    "TGA": ["L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"],
    "WEBP": ["RGB", "RGBA"],
}
LOSSY = {"AVIF", "JPEG", "JPEG2000"}
WITH_EXIF = {"AVIF", "JPEG", "PNG", "TIFF", "WEBP"}
# By orientation: quarter turns to the left, then whether left and right are swapped.
TURNS = [(0, 0), (0, 0), (0, 1), (2, 0), (2, 1), (3, 1), (3, 0), (1, 1), (1, 0)]


@st.composite
def files(draw):
    """Bytes of an image file, whole or damaged, and its format."""
    file_format = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[file_format]))
    width, height = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 4)).astype(np.uint8), "RGBA")
    smooth = small.resize((width, height), Image.BILINEAR)
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(smooth.convert("L")).astype(np.float64)
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray(
            (grey * (1 / 255 if mode == "F" else 257)).astype(dtype)
        )
    elif mode == "P":
        picture = smooth.convert("RGB").quantize(16)
    elif mode in ("LA", "RGBA"):
        picture = smooth.convert(mode)
    else:
        picture = smooth.convert("RGB").convert(mode)
    options = {}
    if file_format in WITH_EXIF and draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        options["exif"] = exif
    if file_format in ("JPEG", "AVIF"):
        options["quality"] = 95
    if file_format == "WEBP":
        options |= {"lossless": True, "exact": True}
    data = io.BytesIO()
    picture.save(data, file_format, **options)
    data = bytearray(data.getvalue())
    damage = draw(st.sampled_from(["none", "none", "cut", "flip"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif damage == "flip":
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data), file_format, mode, damage


def expected_pixels(data):
    """What Pillow reads, upright and over white, `[H, W, 3]` float64 of 0 to 255."""
    picture = Image.open(io.BytesIO(data))
    orientation = picture.getexif().get(0x0112, 1)
    if picture.format == "TIFF" or orientation not in range(9):  # it turns TIFF itself
        orientation = 1
    picture.load()
    if picture.mode.startswith("I"):
        pixels = np.asarray(picture).astype(np.float64)[..., None].repeat(3, -1) / 257
    else:
        rgba = np.asarray(picture.convert("RGBA")).astype(np.float64)
        alpha = rgba[..., 3:] / 255
        pixels = rgba[..., :3] * alpha + 255 * (1 - alpha)
        if picture.mode == "CMYK":
            pixels = np.asarray(picture.convert("RGB")).astype(np.float64)
    turns, mirrored = TURNS[orientation]
    pixels = np.rot90(pixels, turns)
    return pixels[:, ::-1] if mirrored else pixels


def one_line(function, *args, **kwargs):
    """The result, or None: refused, by an error of one line."""
    try:
        return function(*args, **kwargs)
    except (UserError, CorruptImageError) as error:
        said = str(error)
    assert said.strip()
    assert "\n" not in said


def check_decoded(data, file_format, mode, damage):
    """The pixels of a file after they are compared, or None: refused in one line."""
    refused = mode == "F" or (mode == "I" and file_format == "TIFF")
    if refused and damage == "none":
        with pytest.raises(CorruptImageError, match="of 32 bits"):
            decode(data, channels=3)
        return None
    pixels = one_line(decode, data, channels=3)
    if pixels is None:
        assert damage != "none"
        return None
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    expected = None
    # Where metadata are damaged Pillow may refuse pixels that are whole.
    with contextlib.suppress(Exception if file_format == "JPEG" else ()):
        expected = expected_pixels(data)
    if expected is None:
        return pixels
    assert pixels.shape == expected.shape
    difference = np.abs(pixels - expected)
    if file_format == "JPEG":  # two builds of one decoder smooth colours otherwise
        assert difference.mean() < 2
    else:
        assert difference.max() < 1.6  # cut off, or rounded twice
    grey = decode(data, channels=1)[..., 0]
    luma = pixels @ [0.299, 0.587, 0.114]
    # A JPEG has its grey, of which its colours are made and clipped.
    assert np.abs(grey - luma).mean() < (1.6 if file_format != "JPEG" else 25)
    return pixels


@COUNTS
def test_images_through_import_streaming_and_prediction(
    count, tmp_path, make_dataset_config, make_config, capsys
):
    drawn = {}

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(file=files())
    def draw(file):
        pixels = check_decoded(*file)
        drawn[f"{len(drawn)}.{file[1].lower()}"] = file[0], pixels

    draw()
    assert len(drawn) >= count
    folder, data_dir = tmp_path / "images", str(tmp_path / "tfds")
    files_of = {name: folder / "ab"[i % 2] / name for i, name in enumerate(drawn)}
    for name, file in files_of.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(drawn[name][0])
    prepare.main(["fuzz", "--from", str(folder), "--data_dir", data_dir])
    out = capsys.readouterr().out
    good = {name for name, (_, pixels) in drawn.items() if pixels is not None}
    left_out = [line for line in out.splitlines() if line.startswith("left out ")]
    numbers = [int(line.split()[2].strip(",").replace(",", "")) for line in left_out]
    assert sum(numbers) == len(drawn) - len(good)

    changes = {"name": "fuzz", "data_dir": data_dir, "num_classes": 2, "channels": 3}
    config = make_dataset_config(**changes, image_size=8, streaming=True)
    mesh = parallel.create_mesh(jax.devices()[:1])
    data = datasets.load(config, "train", batch_size=16, mesh=mesh)
    names = [data._split.source[i]["file_name"].decode() for i in range(len(good))]
    names = [name.split("/")[1] for name in names]
    assert set(names) == good
    seen = np.concatenate([np.asarray(b["image"]) for b in data.eval_batches()])
    options = {"size": 8, "channels": 3, "fraction": config.eval_crop}
    for name, image in zip(names, seen, strict=False):
        pixels = drawn[name][1]
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        expected = center_crop(png.getvalue(), **options)
        tolerance = 6 if name.endswith(".jpeg") else 0  # it is halved while decoded
        assert np.abs(image - expected.astype(float)).mean() <= tolerance, name
    for batch, _ in zip(
        data.train_batches(jax.random.key(0), 0), range(9), strict=False
    ):
        assert batch["image"].shape == (16, 8, 8, 3)
    assert not data.skipped

    run_config = make_config(
        **{f"dataset__{key}": value for key, value in changes.items()},
        dataset__image_size=8,
        dataset__streaming=True,
        dataset__mean=(0.5,) * 3,
        dataset__std=(0.5,) * 3,
    )
    paths = [files_of[name] for name in names]
    np.testing.assert_array_equal(read_images(paths, run_config), seen[: len(names)])
    for name in drawn.keys() - good:
        with pytest.raises(UserError, match=r"cannot be read as an image: .") as error:
            read_images([files_of[name]], run_config)
        assert "\n" not in str(error.value)


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 600),
        st.integers(),
        st.floats(),
        st.text(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
KEYS = st.sampled_from(sorted(OPTIONS)) | st.text(max_size=12)
RIGHT = st.sampled_from([1, 4, 0.5, True, "svda", "ones", (0.5,), ()])
BASE = flatten(load("configs/digits.py"))


def is_right(config, said):
    """Every value that was given is there, of its option's type and rule."""
    for key, value in flatten(config).items():
        option = OPTIONS[key]
        kind = (
            option.default if isinstance(option.default, type) else type(option.default)
        )
        assert type(value) is kind, key
        assert not option.rule or option.rule[1](value), key
        if key in said:
            given = tuple(said[key]) if kind is tuple else said[key]
            assert value == given or (value != value and given != given), key
    assert flatten(check(json.loads(to_json(config)))) == flatten(config)


@COUNTS
def test_configs_and_options(count, tmp_path):
    accepted = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(changes=st.dictionaries(KEYS, ANYTHING | RIGHT, min_size=1, max_size=3))
    def objects(changes):
        config = one_line(check, BASE | changes)
        if config is not None:
            is_right(config, changes)
            one_line(validate, config, num_devices=1)
            accepted.append(changes)
        try:
            text = json.dumps(changes)
        except (TypeError, ValueError):
            return
        (tmp_path / "mine.json").write_text(json.dumps(BASE | json.loads(text)))
        again = one_line(load, tmp_path / "mine.json")
        assert (again is None) == (config is None)

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(
        key=KEYS,
        text=st.one_of(
            st.text(max_size=12),
            ANYTHING.map(str),
            ANYTHING.map(repr),
            RIGHT.map(str),
            st.text("()[]{}-+*,.e0123456789_ jx'", max_size=12),
        ),
    )
    def texts(key, text):
        config = one_line(load, "configs/digits.py", [(key, text)])
        if config is not None:
            is_right(config, {})
            accepted.append(text)

    objects()
    texts()
    assert accepted

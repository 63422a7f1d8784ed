"""The emoji data set, from packages of three vendors and two classes, without npm."""

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from experiments.emoji import __main__ as command
from experiments.emoji import packages, pictures
from svda_jax import UserError
from svda_jax.data.image_folder import find_images

SIDES = {"1f415": 12, "1f408": 20, "2600": 28, "1f468-200d-1f52c": 9}
UNICODE = [
    ("1F415", "dog", "Animals & Nature", "animal-mammal"),
    ("1F408", "cat", "Animals & Nature", "animal-mammal"),
    ("2600 FE0F", "sun", "Travel & Places", "sky & weather"),
    ("2600", "sun", "Travel & Places", "sky & weather"),
    ("1F468 200D 1F52C", "man scientist", "People & Body", "person-role"),
    ("1F415 1F3FB", "dog: light skin tone", "Animals & Nature", "animal-mammal"),
    ("1F1E6 1F1E8", "flag: Ascension Island", "Flags", "country-flag"),
    ("1F3FB", "light skin tone", "Component", "skin-tone"),
]


def draw(side, grey=0):
    """The body of an icon: a square."""
    colour = f"rgb({grey},{grey},{grey})"
    return {"body": f'<rect width="{side}" height="{side}" fill="{colour}"/>'}


def render(svg, size):
    """What `pictures.render` makes of `draw`, without resvg."""
    side = int(svg.split('<rect width="')[1].split('"')[0])
    pixels = np.full((size, size), 255, np.uint8)
    pixels[:side, : 2 * side] = 0
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def pack(cache, package, version, **files):
    """A package as `npm pack` leaves it."""
    path = cache / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Packages of three vendors: one by codes, one by names, one by aliases."""
    names = ("twemoji", "openmoji", "fluent-emoji")
    sets = {name: packages.SETS[name] for name in names}
    monkeypatch.setattr(packages, "SETS", sets)
    monkeypatch.setattr("experiments.emoji.page.SETS", sets)
    keys = ("codes", "name", "group", "subgroup")
    rows = [dict(zip(keys, row, strict=True)) for row in UNICODE]
    folder = tmp_path / "cache"
    folder.mkdir()
    pack(folder, *packages.UNICODE, emoji=rows)
    icons = {"dog": draw(12), "cat": draw(20), "sun-1": draw(28), "blob": draw(5)}
    flag, tone = {"flag-ascension": draw(7)}, {"dog-light-skin-tone": draw(12)}
    coded = {"1f415": "dog", "1f408": "cat", "2600-fe0f": "sun-1"}
    coded |= {"1f1e6-1f1e8": "flag-ascension", "1f415-1f3fb": "dog-light-skin-tone"}
    old = {"sunny": {"parent": "sun-1"}, "god": {"parent": "dog", "hFlip": True}}
    scientist = {"man-scientist": draw(9)}, {"1f468-200d-1f52c": "man-scientist"}
    named = {"sunny": draw(29), "god": draw(4), "Black Sun with Rays": draw(27)}
    for name, chars, extra, aliases in (
        ("twemoji", coded | scientist[1], flag | tone | scientist[0], old),
        ("openmoji", coded, flag | tone, {}),
        ("fluent-emoji", {}, named, {}),
    ):
        data = {"width": 32, "height": 32, "icons": icons | extra, "aliases": aliases}
        package, version = f"@iconify-json/{name}", sets[name].version
        pack(folder, package, version, icons=data, chars=chars)
    return folder


def prepare(cache, **options):
    """The tree and the page that a cache gives."""
    out, page = cache.parent / "tree", cache.parent / "page.md"
    options = {"size": 64, "render": render, **options}
    command.prepare(out, cache=cache, page=page, **options)
    return out, page.read_text()


def test_every_set_has_a_vendor_in_one_split_and_each_split_has_some():
    vendors = {s.vendor for s in packages.SETS.values()}
    assert pictures.SPLITS.keys() <= vendors
    assert sorted(pictures.SPLITS.values()) == ["test", "validation"]
    assert len(vendors) >= 5


def test_drawings_are_named_by_codes_names_aliases_and_old_names(cache):
    drawings, emoji = packages.read_drawings(cache)
    assert sorted(emoji) == sorted(SIDES)
    found = {d.icon: d.codes for d in drawings if d.set == "fluent-emoji"}
    assert found == {
        **{"dog": "1f415", "cat": "1f408", "sun-1": "2600"},
        **{"sunny": "2600", "Black Sun with Rays": "2600"},
    }


def test_tones_of_skin_flags_and_icons_that_are_no_emoji_are_left_out(cache):
    drawings, _ = packages.read_drawings(cache)
    icons = {d.icon for d in drawings}
    assert not icons & {"dog-light-skin-tone", "flag-ascension", "blob", "god"}


def test_the_tree_is_imported_with_a_vendor_in_each_split(cache):
    out, page = prepare(cache)
    files, classes, left_out = find_images(out)
    assert classes == ["animal-mammal", "sky & weather"]  # no scientist in two splits
    assert not left_out
    sets = {s: {p.name.rsplit("-", 2)[0] for p, _ in f} for s, f in files.items()}
    sets = {
        split: {name.split("-")[0] for name in found} for split, found in sets.items()
    }
    assert sets == {
        "train": {"twemoji"},
        "validation": {"fluent"},
        "test": {"openmoji"},
    }
    with Image.open(files["train"][0][0]) as image:
        assert image.size == (64, 64)
    assert "person-role" in page.split("classes that a split lacks")[1][:40]


def test_the_page_counts_drawings_and_near_duplicates(cache):
    _, page = prepare(cache)
    assert "| sky & weather | 1 | 1 | 1 | 3 |" in page
    assert "3 in train, 3 in test, 5 in validation" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| openmoji |"))
    assert row.split("|")[2].strip() == "100.0"  # drawn just as twitter's


def test_near_duplicates_are_those_of_few_bits():
    hashes = np.sign(np.random.default_rng(0).normal(size=(7, 63)))
    others = hashes.copy()
    others[0, : pictures.NEAR] *= -1
    others[1, : pictures.NEAR + 1] *= -1
    assert np.diag(pictures.near(hashes, others)).tolist() == [True, False] + 5 * [True]


def test_a_hash_does_not_change_with_brightness_but_with_the_picture():
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 200, (8, 8)), 8, 0), 8, 1)
    first, brighter, other = (
        pictures.hash_picture(encode(p)) for p in (pixels, pixels + 40, pixels.T)
    )
    assert pictures.near(first[None], brighter[None]).all()
    assert not pictures.near(first[None], other[None]).any()


def encode(pixels):
    """PNG of grey pixels."""
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_what_is_there_is_neither_overwritten_nor_fetched(cache, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    out, _ = prepare(cache)
    with pytest.raises(UserError, match="is there already; remove it"):
        prepare(cache)
    assert not out.with_name("tree.incomplete").exists()


def test_what_a_stopped_run_left_does_not_get_into_the_tree(cache):
    stale = cache.parent / "tree.incomplete" / "train" / "old" / "x.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    out, _ = prepare(cache)
    assert not (out / "train" / "old").exists()


@pytest.mark.parametrize("kind", ["cut", "empty", "other"])
def test_a_damaged_package_is_named(cache, kind):
    (path,) = cache.glob("*twemoji*")
    if kind == "other":
        pack(cache, "@iconify-json/twemoji", packages.SETS["twemoji"].version, info=1)
    else:
        path.write_bytes(path.read_bytes()[: 100 if kind == "cut" else 0])
    with pytest.raises(UserError, match=r"twemoji.*\.tgz is damaged .*; remove it"):
        prepare(cache)


def test_a_missing_package_without_npm_is_one_line(cache, monkeypatch):
    next(cache.glob("*twemoji*")).unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"npm is not installed, and .* lacks @iconify"):
        prepare(cache)


def test_what_npm_says_is_passed_on(cache, monkeypatch):
    next(cache.glob("*twemoji*")).unlink()
    npm = cache.parent / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error 404 no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(cache.parent))
    with pytest.raises(UserError, match=r"npm pack failed: npm error 404"):
        prepare(cache)


@pytest.mark.parametrize("size", [0, -1, 31])
def test_a_picture_is_not_smaller_than_what_is_hashed(cache, size):
    with pytest.raises(UserError, match=f"--size={size} must be at least 32"):
        prepare(cache, size=size)


@pytest.mark.slow
def test_drawings_are_rendered_on_white_centred_and_as_large_as_fits():
    pytest.importorskip("resvg_py")
    body = '<rect width="20" height="40"/>'
    svg = packages._svg({"body": body, "width": 20, "height": 40}, 40, 40)
    with Image.open(io.BytesIO(pictures.render(svg, 64))) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.shape == (64, 64)
    assert (grey[:, 18:46] == 0).all()
    assert (grey[:, [*range(14), *range(50, 64)]] == 255).all()

"""Import of folders of images: layouts, modes, what is counted, what it prints."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from folders import read, run, truncate, write_images
from PIL import Image

from svda_jax.data import prepare
from svda_jax.data.image_folder import find_images
from svda_jax.data.images import decode


def test_files_are_kept_byte_for_byte(folder, tmp_path, capsys):
    builder = run(folder, tmp_path)
    assert builder.info.features["label"].names == ["ant", "bee", "cat"]
    for split, place, count in (("train", "train", 6), ("validation", "val", 3)):
        examples = read(builder, split)
        assert len(examples) == count
        for name, example in examples.items():
            assert example["image"] == (folder / name).read_bytes()
            assert name.startswith(place)
            assert ["ant", "bee", "cat"][example["label"]] in name
    out = capsys.readouterr().out
    assert "3 classes, 6 in train, 3 in validation" in out
    assert builder.name in out.splitlines()[-1]


def test_imagenet100_as_it_is_handed_round(tmp_path):
    folder = tmp_path / "images"
    write_images(folder / "train.X1", ["n01", "n02"])
    write_images(folder / "train.X2", ["n03"])
    write_images(folder / "train.X4", ["n04", "n01"], seed=4)
    write_images(folder / "val.X", ["n01", "n02", "n03", "n04"], num_images=1)
    words = {"n01": "tench, Tinca tinca", "n02": "goldfish", "n03": "ray", "n04": "owl"}
    (folder / "Labels.json").write_text(json.dumps(words))
    builder = run(folder, tmp_path)
    assert builder.info.features["label"].names == ["tench", "goldfish", "ray", "owl"]
    labels = [example["label"] for example in read(builder, "train").values()]
    assert sorted(labels) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert len(read(builder, "validation")) == 4


def test_class_folders_alone_are_a_training_split(folder, tmp_path):
    builder = run(folder / "train", tmp_path)
    assert list(builder.info.splits) == ["train"]


def test_words_for_classes_must_tell_them_apart(folder, tmp_path):
    words = {"ant": "crane, bird", "bee": "crane, machine"}
    (folder / "Labels.json").write_text(json.dumps(words))
    builder = prepare.ImageFolder(name="insects", source=folder, data_dir=tmp_path)
    assert builder.class_names == ["ant", "bee", "cat"]


def test_other_formats_and_modes(folder, tmp_path):
    shutil.rmtree(folder / "val")
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(folder / "train/ant/x.bmp")
    picture.convert("L").save(folder / "train/ant/y.png")
    picture.convert("CMYK").save(folder / "train/bee/z.jpg", quality=100)
    transparent = picture.convert("RGBA")
    transparent.putalpha(0)
    transparent.save(folder / "train/cat/w.webp", lossless=True)
    examples = read(run(folder, tmp_path), "train")

    def pixels_of(name):
        data = examples[name]["image"]
        assert Image.open(io.BytesIO(data)).format in ("PNG", "JPEG")
        return decode(data, channels=3)

    np.testing.assert_array_equal(pixels_of("train/ant/x.bmp"), pixels)
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(pixels_of("train/ant/y.png")[..., 1], grey)
    assert np.abs(pixels_of("train/bee/z.jpg") - pixels.astype(float)).mean() < 12
    assert (pixels_of("train/cat/w.webp") == 255).all()


def test_a_program_that_reads_what_is_printed_sees_no_progress_bar(folder, tmp_path):
    line = [sys.executable, "-m", "svda_jax", "prepare", "bees", "--from", str(folder)]
    done = subprocess.run([*line, "--data_dir", tmp_path / "out"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_not_taken_is_counted_and_named_or_refused(folder, tmp_path, capsys):
    truncate(folder)
    (folder / "train/ant/note.jpg").write_text("hello")
    (folder / "train/ant/note.txt").write_text("hello")
    (folder / "train/cat/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "train/cat/loop").symlink_to(folder / "train")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "train/cat/f.tiff")
    write_images(folder, ["extra"], num_images=1)
    shutil.copy(folder / "train/cat/cat_00.png", folder / "train/lone.png")
    with pytest.raises(SystemExit, match=r" is not taken: .*; mend or remove it"):
        run(folder, tmp_path, "--strict")
    assert not list(tmp_path.glob("tfds/insects"))
    builder = run(folder, tmp_path)
    assert builder.info.splits["train"].num_examples == 5
    out = capsys.readouterr().out
    for line in (
        r"left out 1, .*truncated.*: .*/train/bee/bee_00.png",
        r"left out 2, not an image: .*/ant/note.txt, .*/ant/note.jpg",
        r"left out 1, a broken link: .*/cat/gone.png",
        r"left out 1, a link to a folder above: .*/cat/loop",
        r"left out 1, its folder is no split: .*/extra/extra_00.png",
        r"left out 1, outside of a class's folder: .*/train/lone.png",
        r"left out 1, pixels are floats of 32 bits, .*: .*/cat/f.tiff",
    ):
        assert re.search(line, out), line


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", "Val", "Testing"),
        ("train", "valid", "test"),
        ("TRAIN", "dev", "TEST"),
        ("training_set", "validation", "test_set"),
    ],
)
def test_splits_in_usual_spellings(tmp_path, train, validation, test):
    for seed, name in enumerate((train, validation, test)):
        write_images(tmp_path / name, ["a", "b"], num_images=1, seed=seed)
    files, classes, left_out = find_images(tmp_path)
    assert {split: len(paths) for split, paths in files.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert classes == ["a", "b"]
    assert not left_out


def test_nested_folders_any_suffix_and_what_systems_leave(tmp_path):
    folder = tmp_path / "images"
    write_images(folder, ["a", "b"], num_images=1)
    (folder / "notes.txt").write_text("hello")
    _, _, left_out = find_images(folder)
    assert left_out == {"not an image": [str(folder / "notes.txt")]}  # once
    (folder / "notes.txt").unlink()
    picture = Image.open(folder / "a/a_00.png")
    (folder / "a/2024/album.jpg").mkdir(parents=True)
    names = ["2024/album.jpg/x.jfif", "y.pgm", "z.avif", "w.jp2", "v.jpe", "u.qoi"]
    for name in names:
        picture.convert("L" if name == "y.pgm" else "RGB").save(folder / "a" / name)
    picture.save(folder / "a/none", "PNG")
    for name in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "a" / name).write_text("hello")
    for name in ("@eaDir", "__MACOSX", ".thumbnails"):
        write_images(folder / "b", [name], num_images=1)
        write_images(folder, [name], num_images=1)
    files, classes, left_out = find_images(folder)
    assert classes == ["a", "b"]
    assert not left_out
    found = {str(path.relative_to(folder / "a")) for path, n in files["train"] if not n}
    assert found == {*names, "none", "a_00.png"}
    assert sum(label for _, label in files["train"]) == 1
    builder = run(folder, tmp_path)
    assert builder.info.splits["train"].num_examples == 9


def test_latin_1_names_are_taken(tmp_path, capsys):
    folder = tmp_path / "images"
    write_images(folder, ["a", "b"], num_images=1)
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        shutil.copy(folder / "a/a_00.png", os.fsencode(folder / "a") + b"/" + name)
    os.rename(folder / "b", os.fsencode(folder) + b"/b\xe9")
    builder = run(folder, tmp_path)
    assert builder.info.features["label"].names == ["a", r"b\xe9"]
    assert r"a/caf\xe9.png" in read(builder, "train")
    capsys.readouterr().out.encode()


def test_deep_and_turned_images_are_stored_as_they_are_decoded(tmp_path):
    ramp = np.linspace(0, 65535, 12 * 7).reshape(12, 7).astype(np.uint16)
    (tmp_path / "images/a").mkdir(parents=True)
    write_images(tmp_path / "images", ["b"], num_images=1)
    Image.fromarray(ramp).save(tmp_path / "images/a/x.tiff")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save(tmp_path / "images/a/y.png", exif=exif)
    Image.fromarray(ramp >> 8).convert("L").save(
        tmp_path / "images/a/z.webp", exif=exif, lossless=True
    )
    examples = read(run(tmp_path / "images", tmp_path), "train")
    for name, pixels in (
        ("x.tiff", ramp >> 8),
        ("y.png", np.rot90(ramp >> 8, -1)),
        ("z.webp", np.rot90(ramp >> 8, -1)),
    ):
        found = decode(examples[f"a/{name}"]["image"], channels=1)[..., 0]
        np.testing.assert_allclose(found.astype(float), pixels, atol=1)

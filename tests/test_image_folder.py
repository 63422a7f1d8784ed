"""Import of folders of images: layouts, modes, and what can be wrong."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax import UserError
from svda_jax.data import prepare
from svda_jax.data.image_folder import find_images
from svda_jax.data.images import decode


def write_images(folder, classes, num_images=2, size=(9, 7), seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(num_images):
            pixels = rng.integers(0, 256, size=(*size, 3)).astype(np.uint8)
            suffix = "JPEG" if i % 2 else "png"
            Image.fromarray(pixels).save(folder / name / f"{name}_{seed}{i}.{suffix}")


@pytest.fixture
def folder(tmp_path):
    """Three classes, two images of each to train on, one to evaluate."""
    path = tmp_path / "images"
    write_images(path / "train", ["ant", "bee", "cat"])
    write_images(path / "val", ["ant", "bee", "cat"], num_images=1, seed=1)
    return path


def run(folder, tmp_path, *options, name="insects"):
    prepare.main(
        [name, "--from", str(folder), "--data_dir", str(tmp_path / "tfds"), *options]
    )
    return tfds.builder(name, data_dir=str(tmp_path / "tfds"))


def read(builder, split):
    source = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {example["file_name"].decode(): example for example in source}


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
    assert "--config.dataset.name=insects --config.dataset.num_classes=3" in out
    assert "--config.dataset.eval_split=validation" in out


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


def test_class_folders_alone_are_a_training_split(folder, tmp_path, capsys):
    builder = run(folder / "train", tmp_path)
    assert list(builder.info.splits) == ["train"]
    assert "--config.dataset.holdout=0.1" in capsys.readouterr().out


def test_words_for_classes_must_tell_them_apart(folder):
    words = {"ant": "crane, bird", "bee": "crane, machine"}
    (folder / "Labels.json").write_text(json.dumps(words))
    assert find_images(folder)[1] == ["ant", "bee", "cat"]


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


def empty_class(folder):
    for path in (folder / "val/bee").iterdir():
        path.unlink()


def missing_class(folder):
    shutil.rmtree(folder / "val/cat")


def extra_class(folder):
    write_images(folder / "val", ["dog"])


def truncate(folder):
    path = folder / "train/bee/bee_00.png"
    path.write_bytes(path.read_bytes()[:-60])


def write_text(folder):
    (folder / "train/ant/note.jpg").write_text("hello")


def no_train(folder):
    shutil.rmtree(folder / "train")


def no_folders(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_images(folder):
    no_folders(folder)
    (folder / "a/b/c").mkdir(parents=True)


def bad_words(folder):
    (folder / "Labels.json").write_text("[1]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, r"class bee has no images in validation \(.*val/bee\)"),
        (missing_class, r"class cat has no images in validation \(.*val/cat\)"),
        (extra_class, "class dog is in validation but not in train"),
        (truncate, "train/bee/bee_00.png cannot be decoded: .*truncated"),
        (write_text, "train/ant/note.jpg cannot be decoded: not an image; mend or"),
        (no_train, "has val/ but no train/"),
        (no_folders, "no folders of images, one for each class"),
        (no_images, "class a has no images in train"),
        (shutil.rmtree, "is not a folder"),
        (bad_words, "Labels.json is no table of class names"),
    ],
)
def test_bad_folders_leave_nothing(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(SystemExit, match=message) as exit_:
        run(folder, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not list(tmp_path.glob("tfds/insects/*"))


def test_corrupt_images_can_be_left_out(folder, tmp_path, capsys):
    truncate(folder)
    builder = run(folder, tmp_path, "--skip_corrupt")
    assert builder.info.splits["train"].num_examples == 5
    out = capsys.readouterr().out
    assert "left out" in out
    assert "bee_00.png" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Set", "My-Set: a name has lower-case letters, digits, underscores"),
        ("food101", "food101 is a data set of TFDS; choose another name"),
    ],
)
def test_bad_names(folder, tmp_path, name, message):
    with pytest.raises(SystemExit, match=message):
        run(folder, tmp_path, name=name)


def test_a_data_set_that_is_there_is_not_overwritten(folder, tmp_path):
    run(folder, tmp_path)
    with pytest.raises(SystemExit, match="is there already"):
        run(folder, tmp_path)


def test_unwritable_data_dir(folder, tmp_path):
    (tmp_path / "tfds").touch()
    with pytest.raises(UserError, match="cannot write"):
        prepare.import_files("insects", str(folder), str(tmp_path / "tfds"))

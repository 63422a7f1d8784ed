"""Food-101 from its archive: import, a run, and what can be wrong."""

import json
import tarfile

import pytest
import tensorflow_datasets as tfds
from archive_files import FOODS, food_files, train_once, write
from tensorflow_datasets.core.hashing import Hasher

from svda_jax.data import prepare

TRAIN = "food-101/meta/train.txt"
IMAGE = "food-101/images/pho/0.jpg"


@pytest.fixture(scope="module")
def good():
    return food_files()


def run(source, tmp_path, *options):
    data_dir = str(tmp_path / "tfds")
    prepare.main(["food101", "--from", str(source), "--data_dir", data_dir, *options])
    return tfds.builder("food101", data_dir=data_dir)


@pytest.fixture(scope="module")
def imported(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("food101")
    write(folder / "food-101.tar.gz", good)
    return run(folder, folder)


def read(builder, split):
    raw = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split=split, decoders=raw))


def test_import_is_what_tfds_itself_would_make(imported, good, tmp_path):
    theirs = tfds.builder_cls("food101")(data_dir=str(tmp_path))
    assert imported.version == theirs.version
    assert imported.info.features.to_json() == theirs.info.features.to_json()
    assert imported.info.features["label"].names == FOODS
    for split, name in (("train", "train"), ("validation", "test")):
        lines = good[f"food-101/meta/{name}.txt"].decode().split()
        lists = {food: [n for n in lines if n.startswith(f"{food}/")] for food in FOODS}
        (tmp_path / "list.json").write_text(json.dumps(lists))
        examples = theirs._generate_examples(tmp_path / "list.json", "food-101/images")
        on_disk = sorted(examples, key=lambda e: Hasher(split).hash_key(e[0]))
        expected = [(good[e["image"]], FOODS.index(e["label"])) for _, e in on_disk]
        assert [(e["image"], e["label"]) for e in read(imported, split)] == expected


def test_a_run_from_archive_to_evaluation(imported, tmp_path):
    config, data_dir = "configs/food101.py", imported.data_dir_root
    accuracy = train_once(config, tmp_path / "run", data_dir)
    assert 0 <= accuracy[-1] <= 1


def test_an_image_that_does_not_decode_is_left_out_and_named(good, tmp_path, capsys):
    files = good | {IMAGE: good[IMAGE][:-40]}
    path = write(tmp_path / "food-101.tar.gz", files)
    with pytest.raises(SystemExit, match=r"pho/0 is not taken: .*"):
        run(path, tmp_path, "--strict")
    assert not (tmp_path / "tfds/food101").exists()
    builder = run(path, tmp_path)
    assert builder.info.splits["train"].num_examples == 2 * 101 - 1
    said = capsys.readouterr().out
    assert "left out 1, " in said
    assert "pho/0" in said


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def without(files, *names):
    return {name: data for name, data in files.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: without(f, TRAIN),
            f"has no {TRAIN}; it is damaged or another archive",
        ),
        (lambda f: without(f, IMAGE), "train.txt has pho/0, but there is no image"),
        (lambda f: f | {TRAIN: f[TRAIN] + b"\ncar/1"}, "has car/1, which is no class"),
        (
            lambda f: f | {TRAIN: f[TRAIN].replace(b"pho/0\npho/1\n", b"")},
            "train.txt has no image of pho",
        ),
        (lambda f: [*f.items(), (IMAGE, b"x")], f"{IMAGE} comes twice"),
        (lambda f: f | {"../evil.jpg": b"x"}, r"\.\./evil.jpg leads out of"),
        (lambda f: f | {"/evil.jpg": b"x"}, r": /evil.jpg leads out of"),
        (lambda f: f | {IMAGE: link(IMAGE)}, f"{IMAGE} is a link or a device"),
        (lambda f: f | {"x": link("x", tarfile.LNKTYPE)}, "x is a link or a device"),
        (lambda f: f | {"x": link("x", tarfile.CHRTYPE)}, "x is a link or a device"),
    ],
)
def test_a_wrong_archive_is_one_line(good, tmp_path, change, message):
    path = write(tmp_path / "food-101.tar.gz", change(good))
    with pytest.raises(SystemExit, match=message) as exit_:
        run(path, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "tfds/food101").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "Compressed file ended"),
        (lambda data: data[:-8], "Compressed file ended"),
        (lambda data: data[:-8] + bytes(8), "CRC check failed"),
        (lambda data: b"<html>not found</html>", "no tar archive"),
        (lambda data: b"", "no tar archive"),
    ],
)
def test_a_damaged_archive_is_one_line(good, tmp_path, damage, message):
    path = write(tmp_path / "food-101.tar.gz", good)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SystemExit, match=f"cannot read {path}: .*{message}") as exit_:
        run(tmp_path, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "tfds/food101").exists()


def test_a_folder_without_the_archive_says_what_it_needs(tmp_path):
    with pytest.raises(SystemExit, match=r"is not food-101\.tar\.gz, nor a folder"):
        run(tmp_path, tmp_path)

"""CIFAR-10 and CIFAR-100 from their published files: import, and what can be wrong."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from cifar_files import PER_CLASS, pack, write_binary, write_files, write_pickle

from svda_jax.data import cifar, prepare

KINDS = [(name, kind) for name in PER_CLASS for kind in ("python", "binary")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cifar, "PER_CLASS", PER_CLASS)


def run(name, source, tmp_path):
    prepare.main([name, "--from", str(source), "--data_dir", str(tmp_path / "tfds")])


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("form", ["archive", "folder", "above", "beside archive"])
def test_import_is_what_tfds_opens(name, kind, form, tmp_path, monkeypatch, capsys):
    source = write_files(tmp_path / "files", name, kind)
    if form == "above":
        source = source.parent
    elif "archive" in form:
        archive = pack(source, monkeypatch, name, kind)
        source.rename(tmp_path / "away")
        source = archive if form == "archive" else archive.parent
    run(name, source, tmp_path)
    assert f"configs/{name}.py" in capsys.readouterr().out
    builder = tfds.builder(name, data_dir=str(tmp_path / "tfds"))
    assert str(builder.version) == "3.0.2"
    assert builder.info.features["label"].int2str(9) == "label_9"
    for split, per_class in PER_CLASS[name].items():
        examples = list(builder.as_data_source(split=split))
        labels = [example["label"] for example in examples]
        assert set(np.bincount(labels)) == {per_class}
        assert len({example["id"] for example in examples}) == len(examples)
        for example in examples:
            assert example["image"][2, 3, 1] == example["label"]
            assert example["image"].sum() == example["label"]
            if name == "cifar100":
                assert example["coarse_label"] == example["label"] % 20


def truncate(folder):
    path = next(folder.glob("test*"))
    path.write_bytes(path.read_bytes()[:-100])


def remove(folder):
    next(folder.glob("test*")).unlink()


def write_text(folder):
    next(folder.glob("test*")).write_text("hello")


def swap_splits(folder):
    first, test = sorted(folder.glob("[dt]*_*"))[::5][:2]
    data = first.read_bytes()
    first.write_bytes(test.read_bytes())
    test.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("python", truncate, "test_batch: not taken as a pickle"),
        ("python", remove, "cannot read .*test_batch: No such file"),
        ("python", write_text, "test_batch: not taken as a pickle"),
        ("python", swap_splits, "data_batch_1: pixels of shape .10, 3072."),
        ("binary", truncate, "test_batch.bin: 30,630 bytes, expected 30,730"),
        ("binary", remove, "cannot read .*test_batch.bin: No such file"),
        ("binary", write_text, "test_batch.bin: 5 bytes, expected 30,730"),
    ],
)
def test_damaged_files_are_named_in_one_line(tmp_path, kind, damage, message):
    folder = write_files(tmp_path / "files", "cifar10", kind)
    damage(folder)
    with pytest.raises(SystemExit, match=message) as exit_:
        run("cifar10", folder, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "tfds/cifar10").exists()


@pytest.mark.parametrize(
    ("label", "message"),
    [(10, "label 10 in test, expected 0 to 9"), (3, "test has 0 to 2 images")],
)
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_labels_are_checked(tmp_path, kind, label, message):
    folder = write_files(tmp_path / "files", "cifar10", kind)
    labels = [label, *range(1, 10)]
    pixels = np.zeros((10, 3072), np.uint8)
    if kind == "binary":
        write_binary(folder / "test_batch.bin", [labels, pixels])
    else:
        content = {b"data": pixels, b"labels": labels}
        write_pickle(folder / "test_batch", content)
    with pytest.raises(SystemExit, match=message):
        run("cifar10", folder, tmp_path)


class Call:
    """A pickle that calls something when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [open, eval, np.load])
def test_nothing_that_a_pickle_names_is_called(tmp_path, function):
    folder = write_files(tmp_path / "files", "cifar10", "python")
    mark = tmp_path / "called"
    args = {open: (str(mark), "w"), eval: (f"open({str(mark)!r}, 'w')",)}
    call = Call(function, *args.get(function, (str(mark),)))
    write_pickle(folder / "test_batch", {b"data": call})
    with pytest.raises(SystemExit, match=r"it names .*, which is not called"):
        run("cifar10", folder, tmp_path)
    assert not mark.exists()


def test_arrays_by_column_are_read_as_they_are(tmp_path):
    folder = write_files(tmp_path / "files", "cifar10", "python")
    pixels = np.zeros((10, 3, 32, 32), np.uint8)
    pixels[:, 1, 2, 3] = np.arange(10)
    pixels = np.asfortranarray(pixels.reshape(10, -1))
    write_pickle(folder / "test_batch", {b"data": pixels, b"labels": [*range(10)]})
    run("cifar10", folder, tmp_path)
    builder = tfds.builder("cifar10", data_dir=str(tmp_path / "tfds"))
    for example in builder.as_data_source(split="test"):
        assert example["image"][2, 3, 1] == example["label"] == example["image"].sum()


@pytest.mark.parametrize("names", [None, [b"a"] * 10, [*range(10)], [*"abcdefghij"]])
def test_names_that_are_none_are_one_line(tmp_path, names):
    folder = write_files(tmp_path / "files", "cifar10", "python")
    write_pickle(folder / "batches.meta", {b"label_names": names})
    with pytest.raises(SystemExit, match="has no list of the names of 10 classes"):
        run("cifar10", folder, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {b"data": 1, b"labels": [1]},
        {b"data": np.zeros(3), b"labels": [1]},
        {b"data": np.zeros((10, 3072), np.uint8), b"labels": None},
        {b"data": np.zeros((10, 3072), np.uint8), b"labels": ["x"] * 10},
        {b"data": np.zeros((10, 3072), np.uint8), b"labels": [2**70] * 10},
        {b"data": np.zeros((10, 3072), np.uint8), b"labels": [[1]] * 10},
        {b"data": np.dtype("u1"), b"labels": [1]},
    ],
)
def test_other_pickles_are_one_line(tmp_path, content):
    folder = write_files(tmp_path / "files", "cifar10", "python")
    write_pickle(folder / "test_batch", content)
    with pytest.raises(SystemExit, match="test_batch: "):
        run("cifar10", folder, tmp_path)


def test_an_archive_must_be_the_published_one(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "files", "cifar10", "python")
    path = pack(folder, monkeypatch, "cifar10", "python")
    with pytest.raises(SystemExit, match=r"is cifar-10-python.tar.gz, not cifar-100"):
        run("cifar100", path, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=r"a file of MD5 \w{32}, not cifar-10-python"):
        run("cifar10", path, tmp_path)
    with pytest.raises(SystemExit, match=r"is not cifar-10-python.tar.gz or"):
        run("cifar10", tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="there is no"):
        run("cifar10", tmp_path / "nowhere", tmp_path)

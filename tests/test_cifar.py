"""CIFAR-10 and CIFAR-100 from their published files: import, and what can be wrong."""

import hashlib
import pickle
import struct
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from svda_jax.data import cifar, prepare

# Of each class: 15 and 1 images of CIFAR-10, 1 and 2 of CIFAR-100.
PER_CLASS = {
    "cifar10": {"train": 15, "test": 1},
    "cifar100": {"train": 1, "test": 2},
}
KINDS = [(name, kind) for name in PER_CLASS for kind in ("python", "binary")]


class OldPickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its texts, which CIFAR's files hold."""

    def save_text(self, data):
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch = pickle._Pickler.dispatch | {bytes: save_text}


def write_pickle(path, content):
    with open(path, "wb") as file:
        OldPickler(file, protocol=2).dump(content)


def write_binary(path, columns):
    path.write_bytes(np.column_stack(columns).astype(np.uint8).tobytes())


def write_files(root, name, kind):
    """A small data set in the layout of one version; its pixels tell the label."""
    version = cifar.VERSIONS[name][kind == "binary"]
    folder = root / version.folder
    folder.mkdir(parents=True)
    classes = {label: cifar.CLASSES[name][label] for label in version.names}
    words = {
        label: [f"{label}_{i}".encode() for i in range(count)]
        for label, count in classes.items()
    }
    for split, files in version.files.items():
        n = cifar.PER_CLASS[name][split] * classes["label"] // len(files)
        for file in files:
            rows = {label: np.arange(n) % count for label, count in classes.items()}
            pixels = np.zeros((n, 3, 32, 32), np.uint8)
            pixels[:, 1, 2, 3] = rows["label"]
            pixels = pixels.reshape(n, -1)
            if kind == "binary":
                write_binary(folder / file, [*rows.values(), pixels])
            else:
                content = {version.keys[k][0]: v.tolist() for k, v in rows.items()}
                write_pickle(folder / file, {b"data": pixels, **content})
    if kind == "binary":
        for label, file in version.names.items():
            (folder / file).write_bytes(b"\n".join(words[label]) + b"\n\n")
    else:
        names = {version.keys[label][1]: words[label] for label in classes}
        write_pickle(folder / next(iter(version.names.values())), names)
    return folder


def pack(folder, monkeypatch, name, kind):
    """The archive of a folder, which then counts as the one that is published."""
    versions = list(cifar.VERSIONS[name])
    version = versions[kind == "binary"]
    path = folder.parent / version.archive
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    versions[kind == "binary"] = version._replace(md5=md5)
    monkeypatch.setitem(cifar.VERSIONS, name, versions)
    return path


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

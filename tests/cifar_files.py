"""CIFAR's files in small, for tests that import or download them."""

import hashlib
import pickle
import struct
import tarfile

import numpy as np

from svda_jax.data import cifar

# Of each class: 15 and 1 images of CIFAR-10, 1 and 2 of CIFAR-100.
PER_CLASS = {
    "cifar10": {"train": 15, "test": 1},
    "cifar100": {"train": 1, "test": 2},
}


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

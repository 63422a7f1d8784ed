"""FashionMNIST from IDX files: import, download, and what can be wrong."""

import gzip
import http.server
import shutil
import struct
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from svda_jax.data import datasets, fashion_mnist, prepare
from svda_jax.data.fashion_mnist import FashionMnist, read_idx

# A FashionMNIST of 13 and 7 images.
FILES = {"train": ("train", 13), "test": ("t10k", 7)}


@pytest.fixture
def idx_folder(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "FILES", FILES)
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, num_images in FILES.values():
        images = rng.integers(0, 256, size=(num_images, 28, 28)).astype(np.uint8)
        images[:, 0, 0] = np.arange(num_images)
        labels = (np.arange(num_images) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(
                f">{array.ndim}I", *array.shape
            )
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def check_fashion_mnist(data_dir, folder):
    """What TFDS itself opens there equals the files."""
    builder = tfds.builder("fashion_mnist", data_dir=str(data_dir))
    assert str(builder.version) == "3.0.1"
    assert builder.info.features["label"].int2str(9) == "Ankle boot"
    for split, (prefix, num_images) in FILES.items():
        images = read_idx(
            folder / f"{prefix}-images-idx3-ubyte.gz", (num_images, 28, 28)
        )
        source = builder.as_data_source(split=split)
        assert len(source) == num_images
        for example in source.__getitems__(range(num_images)):
            image = example["image"][..., 0]
            np.testing.assert_array_equal(image, images[image[0, 0]])
            assert example["label"] == image[0, 0] % 10


def test_import_of_fashion_mnist(idx_folder, tmp_path, capsys):
    data_dir = tmp_path / "tfds"
    prepare.main(
        ["fashion_mnist", "--from", str(idx_folder), "--data_dir", str(data_dir)]
    )
    assert "configs/fashion_mnist.py" in capsys.readouterr().out
    check_fashion_mnist(data_dir, idx_folder)
    with pytest.raises(SystemExit, match="is there already"):
        prepare.main(
            ["fashion_mnist", "--from", str(idx_folder), "--data_dir", str(data_dir)]
        )


def test_files_need_not_be_gzipped(idx_folder, tmp_path):
    for path in list(idx_folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    prepare.import_files("fashion_mnist", str(idx_folder), str(tmp_path / "tfds"))
    assert (tmp_path / "tfds/fashion_mnist/3.0.1/dataset_info.json").exists()


def test_fashion_mnist_is_downloaded_where_there_is_a_network(
    idx_folder, tmp_path, monkeypatch, capsys
):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(idx_folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            FashionMnist, "URL", f"http://127.0.0.1:{server.server_port}/"
        )
        datasets.open_builder("fashion_mnist", str(tmp_path / "tfds"))
        server.shutdown()
    check_fashion_mnist(tmp_path / "tfds", idx_folder)


def truncate(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_inside(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:-100]))


def swap_kinds(folder):
    images, labels = (
        folder / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    )
    images.rename(folder / "x")
    labels.rename(images)
    (folder / "x").rename(labels)


def swap_splits(folder):
    for kind in ("images-idx3", "labels-idx1"):
        train, test = (folder / f"{p}-{kind}-ubyte.gz" for p in ("train", "t10k"))
        train.rename(folder / "x")
        test.rename(train)
        (folder / "x").rename(test)


def remove(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def write_text(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_text("hello")


def write_large_label(folder):
    path = folder / "t10k-labels-idx1-ubyte.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:-1] + bytes([11])))


def empty(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "train-images.*damaged gzip file"),
        (truncate_inside, "train-images.*10092 bytes of data, expected 10192"),
        (swap_kinds, r"train-images.*shape \(13,\), expected \(13, 28, 28\)"),
        (swap_splits, r"train-images.*shape \(7, 28, 28\), expected \(13, 28, 28\)"),
        (remove, "neither t10k-labels-idx1-ubyte nor"),
        (write_text, "t10k-labels.*not an IDX file"),
        (write_large_label, "t10k-labels.*label 11, expected 0 to 9"),
        (empty, "t10k-labels.*not an IDX file"),
        (shutil.rmtree, "there is no"),
    ],
)
def test_damaged_idx_files(idx_folder, tmp_path, damage, message):
    damage(idx_folder)
    with pytest.raises(SystemExit, match=message) as exit_:
        prepare.main(
            ["fashion_mnist", "--from", str(idx_folder), "--data_dir", str(tmp_path)]
        )
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "fashion_mnist").exists()

"""TFDS data sets: digits, splits, labels, classes, and what can be wrong."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from svda_jax import UserError
from svda_jax.data import datasets, prepare
from svda_jax.data.fashion_mnist import FashionMnist
from svda_jax.devices import parallel


@pytest.fixture
def load(make_dataset_config, data_dir):
    """Loads a split of the digits, with changes to the dataset section."""

    def load(kind="train", **changes):
        config = make_dataset_config(**{"data_dir": data_dir, **changes})
        mesh = parallel.create_mesh(jax.devices()[:1])
        return datasets.load(config, kind, batch_size=8, mesh=mesh)

    return load


def test_digits_are_those_of_scikit_learn(load):
    digits = load_digits()
    for kind, start, stop in (("train", 0, 1437), ("eval", 1437, 1797)):
        data = load(kind)
        assert data.num_images == stop - start
        images, labels = data.get(range(stop - start))
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(
            (images[..., 0] * (16 / 255)).round(), digits.images[start:stop]
        )
        np.testing.assert_array_equal(labels, digits.target[start:stop])
        assert data.class_names == tuple("0123456789")


def test_splits_can_be_sliced(load):
    assert load(train_split="train[:90%]").num_images == 1293
    assert load("eval", eval_split="train[90%:]").num_images == 144


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_part_is_the_end_of_the_training_split(load, streaming):
    options = {"holdout": 0.25, "train_split": "train[:101]", "streaming": streaming}
    labels = load_digits().target
    for kind, expected in (("train", labels[:76]), ("eval", labels[76:101])):
        data = load(kind, **options)
        assert data.num_images == len(expected)
        _, found = data.get(range(data.num_images))
        np.testing.assert_array_equal(found, expected)


def write_class_list(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_class_list_restricts_and_numbers_the_classes(load, tmp_path, streaming):
    path = write_class_list(tmp_path / "list", ["7  seven", "", "0", "3"])
    data = load(class_list=path, num_classes=3, streaming=streaming)
    assert data.class_names == ("7", "0", "3")
    target = load_digits().target[:1437]
    expected = [[7, 0, 3].index(t) for t in target if t in (7, 0, 3)]
    assert data.num_images == len(expected)
    _, labels = data.get(range(len(expected)))
    np.testing.assert_array_equal(labels, expected)
    # The labels are read once and kept.
    again = load(class_list=path, num_classes=3, streaming=streaming)
    assert again.num_images == len(expected)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["7", "0"], "list has 2 classes; dataset.num_classes=3 must be that"),
        (["7", "0", "n01440764"], "line 3: n01440764 is no class of digits, which has"),
        (["7", "0", "7"], "line 3: 7 comes twice"),
        ([], "list has 0 classes; dataset.num_classes=3"),
    ],
)
def test_bad_class_list(load, tmp_path, lines, message):
    path = write_class_list(tmp_path / "list", lines)
    with pytest.raises(UserError, match=message):
        load(class_list=path, num_classes=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "digit"}, "dataset.name=digit is neither a TFDS data set nor one of"),
        ({"train_split": "training"}, "dataset.train_split=training is no split of"),
        ({"train_split": "train[:0]"}, "dataset.train_split=.* is no split of digits"),
        (
            {"train_split": "train[2000:]"},
            r"which has train \(1,437 images\), test \(360",
        ),
        ({"name": "huggingface:digits"}, "huggingface:digits is neither a TFDS data"),
        ({"image_size": 9}, "example 0: the image is 8 x 8; dataset.image_size=9 must"),
        ({"num_classes": 9}, "digits has 10 classes; dataset.num_classes=9 must be"),
        ({"class_list": "/nowhere"}, "class_list=/nowhere cannot be read: .*No such"),
        ({"holdout": 0.0001}, "holdout=0.0001 leaves nothing to train on or nothing"),
    ],
)
def test_a_config_that_the_data_contradicts(load, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_kept_labels_are_those_of_the_split(load, tmp_path, data_dir, streaming):
    """Two splits of one length and nearly one name."""
    path = write_class_list(tmp_path / "list", "0123456789")
    target = load_digits().target
    for split, expected in (
        ("train[:700]", target[:700]),
        ("train[-700:]", target[737:1437]),
        ("test[:50%]", target[1437:1617]),
        ("test[50%:]", target[1617:]),
    ):
        for _ in range(2):  # read, then kept
            data = load(class_list=path, train_split=split, streaming=streaming)
            _, labels = data.get(range(len(expected)))
            np.testing.assert_array_equal(labels, expected)


def test_class_list_by_ids_words_and_whole_lines(tmp_path, make_dataset_config):
    folder = tmp_path / "images"
    words = {
        "n00000001": "golden, a colour",
        "n00000002": "golden retriever, dog",
        "n00000003": "Ankle boot",
    }
    for name in words:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "x.png")
    (folder / "Labels.json").write_text(json.dumps(words))
    prepare.import_files("words", str(folder), str(tmp_path / "tfds"))

    def names(*lines):
        path = tmp_path / "list"
        path.write_text("\ufeff" + "\n".join(lines), "utf-8")
        config = make_dataset_config(
            name="words",
            data_dir=str(tmp_path / "tfds"),
            class_list=str(path),
            num_classes=len(lines),
            channels=3,
            image_size=4,
        )
        mesh = parallel.create_mesh(jax.devices()[:1])
        data = datasets.load(config, "train", batch_size=1, mesh=mesh)
        return data.class_names

    expected = ("golden retriever", "Ankle boot")
    assert names("golden retriever", "Ankle boot") == expected
    assert names("n00000002", "n00000003 some boot") == expected
    assert names("golden retriever, dog", "Ankle boot  # shoe") == expected
    assert names("golden") == ("golden",)
    with pytest.raises(UserError, match="line 1: golden hamster is no class of words"):
        names("golden hamster")


class Unlabelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose features are given; of test labels, one is not known."""

    name = "unlabelled"
    VERSION = tfds.core.Version("1.0.0")
    label = tfds.features.ClassLabel(num_classes=3)
    nested = False

    def _info(self):
        features = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": self.label}
        if self.nested:
            features = {"img": features}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            image = Image.fromarray(np.full((2, 2), i, np.uint8))
            example = {"image": image, "label": i % 3 if i < 4 else -1}
            yield i, {"img": example} if self.nested else example


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_labels_that_are_not_known_are_refused(load, tmp_path, streaming, listed):
    Unlabelled(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    path = write_class_list(tmp_path / "list", "012")
    options = {"data_dir": str(tmp_path), "num_classes": 3, "image_size": 2}
    options |= {"class_list": path if listed else "", "skip_corrupt": True}

    def read():
        data = load("eval", name="unlabelled", streaming=streaming, **options)
        list(data.eval_batches())

    with pytest.raises(UserError, match=r"example .: its label is none of the classes"):
        read()


@pytest.mark.parametrize("nested", [False, True])
def test_features_that_are_not_image_and_class_are_named(
    load, tmp_path, monkeypatch, nested
):
    monkeypatch.setattr(Unlabelled, "nested", nested)
    if not nested:
        monkeypatch.setattr(Unlabelled, "label", tfds.features.Scalar(dtype=np.int64))
    Unlabelled(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="=unlabelled has no image and label of") as e:
        load("eval", name="unlabelled", data_dir=str(tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("Fashion-MNIST", "fashion_mnist"),
        ("food-101", "food101"),
        ("digit", "digits"),
        ("", "digits"),
        ("../x", ""),
        ("mnist:9.9.9", "mnist"),
        ("a:b", ""),
    ],
)
def test_wrong_names_get_the_nearest_right_one(tmp_path, name, nearest):
    with pytest.raises(UserError, match=f"did you mean {nearest}") as error:
        datasets.open_builder(name, str(tmp_path))
    assert "\n" not in str(error.value)


def test_data_dir_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot (read|write) .*file"):
        datasets.open_builder("digits", str(tmp_path / "file"))


def test_several_processes_prepare_once(tmp_path):
    code = (
        "import sys; from svda_jax.data.datasets import open_builder\n"
        "b = open_builder('digits', sys.argv[1]); print(b.info.splits['test'])"
    )
    left = tmp_path / "digits/incomplete.X_1.0.0"
    left.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate()[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert all("num_examples=360" in text for text in said)
    assert not left.exists()


def test_missing_data_set_without_network_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMnist, "URL", "http://127.0.0.1:1/")  # nobody listens
    start = time.monotonic()
    with pytest.raises(
        UserError,
        match="no network to get it; import its files with python -m svda_jax prepare "
        r"fashion_mnist --from DIR$",
    ):
        datasets.open_builder("fashion_mnist", str(tmp_path))
    assert time.monotonic() - start < 30  # TFDS alone retries for minutes
    assert not list(tmp_path.iterdir())

"""TFDS data sets that only TensorFlow can prepare, which does it in a process apart."""

import importlib

import pytest

from svda_jax import UserError
from svda_jax.data import datasets


def test_data_set_that_only_tensorflow_can_prepare_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs: pip install tensorflow"):
        datasets.open_builder("mnist", str(tmp_path))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A TFDS data set that stands for those which TensorFlow must prepare."""
    (tmp_path / "toy_remote.py").write_text(TOY_REMOTE)
    # What a started Python imports first, and so knows.
    (tmp_path / "sitecustomize.py").write_text(
        "import toy_remote\n"
        "from svda_jax.data import datasets\n"
        "datasets.check_obtainable = lambda builder: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("toy_remote")
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(datasets, "_is_reachable", lambda url: True)
    return tmp_path


TOY_REMOTE = """
import io, os
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class ToyRemote(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(2, 2, 1)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        if os.path.exists(os.path.join(os.path.dirname(__file__), "fail")):
            raise RuntimeError("as ordered")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        for i in range(5):
            data = io.BytesIO()
            Image.fromarray(np.full((2, 2), i, np.uint8)).save(data, "PNG")
            data.seek(0)
            yield i, {"image": data, "label": i % 3}
"""


def test_data_set_of_tfds_is_prepared_in_a_process_of_its_own(remote, capfd):
    data_dir = str(remote / "tfds")
    (remote / "fail").touch()
    with pytest.raises(UserError, match="preparing toy_remote failed; what it said"):
        datasets.open_builder("toy_remote", data_dir)
    assert "as ordered" in capfd.readouterr().err
    (remote / "fail").unlink()
    builder = datasets.open_builder("toy_remote", data_dir)
    assert builder.info.splits["train"].num_examples == 5
    assert "3 classes, 5 in train" in capfd.readouterr().out
    assert builder.as_data_source(split="train")[0]["image"].shape == (2, 2, 1)


def test_data_set_with_files_to_get_by_hand_says_which(remote):
    with pytest.raises(
        UserError, match=r"must be put into .*tfds/downloads/manual by hand: .*OneDrive"
    ) as error:
        datasets.open_builder("resisc45", str(remote / "tfds"))
    assert "\n" not in str(error.value)

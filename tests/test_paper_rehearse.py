"""Rehearsals: their files, their pages, and what is kept."""

import json

import pytest

from experiments.paper import __main__ as paper
from experiments.paper import rehearse, rehearse_cost, rehearse_page
from svda_jax.config import recipe
from svda_jax.data import cifar, prepare

STEP = {"bound": "memory", "cycles": 3, "bytes": 5, "held": 2e9, "compiling": 7}
ESTIMATES = {
    "v5e": {
        "where": "there",
        "softmax": STEP | {"seconds": 0.001},
        "svda": STEP | {"seconds": 0.002},
    }
}


def test_device_hours_are_of_all_devices_and_epochs():
    config = recipe("cifar10")  # 300 epochs, batches of 128
    hours = rehearse_cost.device_hours({"seconds": 0.36}, config, "v5e", 128_000, 3)
    assert hours == pytest.approx(8 * 3 * 300 * 1000 * 0.36 / 3600)


def page(estimates, **more):
    config = recipe("cifar10")
    found = {"config": json.loads(config.to_json()), "estimates": estimates, **more}
    images = rehearse.NUM_IMAGES
    return rehearse_page.write_page(
        "cifar10", "configs/cifar10.py", config, found, images
    )


def test_a_page_says_what_is_not_at_hand_and_what_does_not_fit():
    text = page(ESTIMATES)
    assert "| 1 x NVIDIA H100 SXM | not at hand" in text
    # 300 epochs of 390.6 steps of 1 and 2 ms on eight devices, three times.
    assert "2.3 device hours on 8 x TPU v5e" in text
    assert "not yet rehearsed" in text
    refused = {"v5e": ESTIMATES["v5e"] | {"svda": {"refused": "too large"}}}
    assert "| 8 x TPU v5e | svda | does not fit" in page(refused)
    assert "device hours on" not in page(refused)


def test_the_table_to_fill_has_no_figures():
    text = page(
        {},
        where="here",
        input={"seconds to open": 1.0, "images a second": 1e3},
        stages={"prepare": {"seconds": 1.0, "files": []}},
        rows=["accuracy (%)"],
    )
    assert "| accuracy (%) | not yet run | not yet run | not yet run |" in text


def test_estimates_of_the_same_config_are_kept(tmp_path):
    path = tmp_path / "cifar10.json"
    assert rehearse._read_kept(path, {"a": 1}) == {}
    path.write_text(json.dumps({"config": {"a": 1}, "estimates": ESTIMATES}))
    assert rehearse._read_kept(path, {"a": 1}) == ESTIMATES
    assert rehearse._read_kept(path, {"a": 2}) == {}
    path.write_text("{")
    assert rehearse._read_kept(path, {"a": 1}) == {}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_made_up_files_are_imported_as_the_real_ones(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cifar, "PER_CLASS", {name: {"train": 5, "test": 1}})
    rehearse._write_files(name, tmp_path / "files")
    builder = prepare.import_files(name, tmp_path / "files", str(tmp_path / "tfds"))
    assert builder.info.splits["train"].num_examples == 5 * cifar.CLASSES[name]["label"]


def test_a_data_set_that_cannot_be_made_up_is_one_line(tmp_path):
    argv = ["paper", "--rehearse", "--config=configs/digits.py", f"--out={tmp_path}"]
    with pytest.raises(SystemExit, match=r"dataset\.name=digits cannot be made up"):
        paper.main(argv)

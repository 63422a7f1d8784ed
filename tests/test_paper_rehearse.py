"""Rehearsals: their files, their pages, what broke, and what is kept."""

import json
import sys

import pytest

from experiments.paper import __main__ as paper
from experiments.paper import (
    rehearse,
    rehearse_cost,
    rehearse_files,
    rehearse_page,
)
from svda_jax.config import recipe
from svda_jax.data import cifar, prepare

STEP = {"bound": "memory", "cycles": 3, "bytes": 5, "held": 2e9, "compiling": 7}
ESTIMATES = {
    "v5e": {
        "where": "there",
        "commit": "abc",
        "softmax": STEP | {"seconds": 0.001},
        "svda": STEP | {"seconds": 0.002},
    }
}
HERE = {
    "where": "here",
    "input": {
        "seconds to open": 1.0,
        "images a second": 1e3,
        "images a second of a core": 500.0,
        "kilobytes": 50.0,
    },
    "seconds": {"prepare": 1.0},
    "stages": {"data set": "", "prune": "OSError: no space", "atlas": None},
    "table": ["| | softmax | SVDA | p |", "accuracy (%)"],
}


def find(name="cifar10", estimates=ESTIMATES, **more):
    config = recipe(name)
    return {
        "options": f"--config=configs/{name}.py",
        "config": json.loads(config.to_json()),
        "estimates": estimates,
        **more,
    }


def test_device_hours_are_of_all_devices_and_epochs():
    config = recipe("cifar10")  # 300 epochs, batches of 128
    hours = rehearse_cost.device_hours({"seconds": 0.36}, config, "v5e", 128_000)
    assert hours == pytest.approx(8 * 300 * 1000 * 0.36 / 3600)


def test_a_page_says_what_is_not_at_hand_and_what_does_not_fit():
    text = rehearse_page.write_page("cifar10", find())
    assert "| 1 x NVIDIA H100 SXM | not at hand" in text
    # 300 epochs of 390.6 steps of 1 and 2 ms on eight devices, three times.
    assert "2.34 device hours on 8 x TPU v5e, 0.29 by the clock" in text
    assert "not yet rehearsed" in text
    refused = {"v5e": ESTIMATES["v5e"] | {"svda": {"refused": "too large"}}}
    text = rehearse_page.write_page("cifar10", find(estimates=refused))
    assert "| 8 x TPU v5e | svda | does not fit" in text
    assert "device hours on" not in text


def test_the_table_to_fill_has_no_figures_and_the_line_that_fills_it():
    text = rehearse_page.write_page("cifar10", find(**HERE))
    assert "\n| accuracy (%) | not yet run | not yet run | not yet run |\n" in text
    assert "\n    python -m experiments.paper --config=configs/cifar10.py\n" in text


def test_every_stage_is_ok_or_says_of_what_it_broke():
    text = rehearse_page.write_page("cifar10", find(**HERE))
    assert "| data set | OK |" in text
    assert "| prune | broke: OSError: no space |" in text
    assert "| atlas | not yet rehearsed |" in text


def test_cores_are_those_that_the_fastest_step_needs():
    text = rehearse_page.write_page("food101", find("food101", **HERE))
    # 512 images in 1 ms, of which a core gives 500 a second.
    assert "| 8 x TPU v5e | 512,000 | 1,024 |" in text
    assert "waits for no file" not in text
    broke = rehearse_page.write_page("food101", find("food101", **HERE | {"input": {}}))
    assert "No figure" in broke


def test_the_index_has_a_line_for_every_rehearsal():
    text = rehearse_page.write_index({"b": find(**HERE), "a": find("food101")})
    first, second = text.splitlines()[-2:]
    assert first.startswith("| [a](a.md) ")
    assert first.endswith("| not yet |")
    assert second.endswith("| 2.34 | not at hand | 1 of 3 |")
    assert "`python -m experiments.paper --config=configs/cifar10.py`" in second


def test_estimates_of_the_same_config_are_kept(tmp_path):
    path = tmp_path / "cifar10.json"
    assert rehearse._read_kept(path, {"a": 1}) == {}
    path.write_text(json.dumps({"config": {"a": 1}, "estimates": ESTIMATES}))
    assert rehearse._read_kept(path, {"a": 1}) == ESTIMATES
    assert rehearse._read_kept(path, {"a": 2}) == {}
    path.write_text("{")
    assert rehearse._read_kept(path, {"a": 1}) == {}


def test_what_broke_is_one_line():
    def break_down():
        raise ValueError("first\nsecond")

    assert rehearse._attempt(lambda: None) == ""
    assert rehearse._attempt(break_down) == "ValueError: first"
    assert rehearse._attempt(lambda: sys.exit("error: no data")) == "no data"


def test_an_interruption_ends_the_rehearsal():
    def interrupted():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit("interrupted")

    with pytest.raises(SystemExit):
        rehearse._attempt(interrupted)


def test_a_stage_is_judged_by_what_it_left(tmp_path):
    (tmp_path / "full").write_text("1")
    (tmp_path / "empty").touch()
    assert rehearse._judge(tmp_path, ["f*"], "broke later") == ""
    assert rehearse._judge(tmp_path, ["full", "empty"], "") == "left no empty"
    assert rehearse._judge(tmp_path, ["none"], "no space") == "no space"
    assert rehearse._judge(tmp_path, [], "no space") == "no space"
    assert rehearse._judge(tmp_path, ["full"], None) is None


def test_of_the_first_table_of_a_page_no_figure_is_kept(tmp_path):
    page = tmp_path / "README.md"
    assert rehearse._read_table(page) == []
    page.write_text("# name\n\n| | a |\n|---|---|\n| b | 9 |\n\n| c |\n")
    assert rehearse._read_table(page) == ["| | a |", "b"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_made_up_files_are_imported_as_the_real_ones(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cifar, "PER_CLASS", {name: {"train": 5, "test": 1}})
    rehearse_files.write_files(name, tmp_path / "files")
    builder = prepare.import_files(name, tmp_path / "files", str(tmp_path / "tfds"))
    assert builder.info.splits["train"].num_examples == 5 * cifar.CLASSES[name]["label"]


def test_data_sets_are_as_the_configs_say():
    for name, data in rehearse_files.DATA.items():
        config = recipe(name).dataset
        assert config.name == name
        assert config.num_classes == data.num_classes
        assert config.streaming == (data.size is not None)


def test_a_data_set_that_cannot_be_made_up_is_one_line(tmp_path):
    argv = ["paper", "--rehearse", "--config=configs/digits.py", f"--out={tmp_path}"]
    with pytest.raises(SystemExit, match=r"dataset\.name=digits cannot be made up"):
        paper.main(argv)

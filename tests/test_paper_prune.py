"""The study of pruning at toy size, from the command to tables and figures."""

import functools
import json
import re

import numpy as np
import pytest

from experiments.paper import prune
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.run.runs import read_history


def cells(line):
    """The numbers of a table's row, cell by cell."""
    return [re.findall(r"-?[\d.]+", cell) for cell in line.split("|")[2:-1]]


def test_study_of_pruning(tmp_path, arguments, two_devices, monkeypatch):
    monkeypatch.setattr(prune, "RANKS", (1, 5, 99))
    monkeypatch.setattr(prune, "NUM_DRAWS", 2)
    monkeypatch.setattr(prune, "PRUNED_RANK", 5)
    rule = "--basis=score --rho=0.95"
    monkeypatch.setattr(prune, "RULES", {rule: prune.RULES[rule]})
    monkeypatch.setattr(prune, "prune_run", functools.partial(prune_run, repeats=1))
    argv = arguments("--seeds=1", num_epochs=1)
    prune.main(["prune", "--config=configs/digits.py", *argv])
    out = tmp_path / "out" / "prune" / "digits"
    page = (out / "README.md").read_text()
    numbers = json.loads((out / "numbers.json").read_text())
    for attention, (study,) in numbers.items():
        workdir = tmp_path / "runs" / f"digits-{attention}-0"
        original = float(read_history(workdir)["eval_accuracy"][-1])
        assert study["original"] == pytest.approx(original, abs=1e-6)
        assert study["ranks"] == [1, 5]
        assert np.shape(study["limit"]) == (2, 2)
        assert np.all(np.diff(study["foreseen"], axis=0) < 0)
        for alone in study["alone"].values():
            assert np.shape(alone["moved"]) == (2, 2, 8)
        # The command does the same to the same run.
        pruned = runs.load(workdir.with_name(f"{workdir.name}-pruned-rank-5"))
        accuracy = float(pruned.history["eval_accuracy"][-1])
        found = study["accuracy"]["shrunk" if attention == "svda" else "score"][1]
        assert found == pytest.approx(accuracy, abs=1e-6)
        assert (out / f"pruned_{attention}_seed_0.md").exists()
    (study,) = numbers["svda"]
    change = 100 * (study["accuracy"]["score"][0] - study["original"])
    (first, removed), *_ = (
        (cells(line)[1], cells(line)[0])
        for line in page.splitlines()
        if line.startswith("| 1 |")
    )
    assert float(removed[0]) == 87.5
    assert float(first[0]) == pytest.approx(change, abs=0.01)
    for name in ("figure_removed", "figure_directions", "figure_spectra"):
        assert (out / f"{name}.svg").exists()
        assert f"({name}.png)" in page

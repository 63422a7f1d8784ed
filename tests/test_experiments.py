"""The comparison at toy size, from the command to the table."""

import re

import numpy as np
import pytest

from experiments import reproduce
from svda_jax.runs import read_history


def test_bad_input_ends_in_one_line():
    for argv, message in (
        (["--config=configs/digits.py", "--seeds=0"], "--seeds=0 must be positive"),
        (["--config=nope.py"], "there is no config file nope.py"),
    ):
        with pytest.raises(SystemExit, match=message):
            reproduce.main(["reproduce", *argv])


def test_mean_spread_and_paired_difference():
    values = np.array([1.0, 2.0, 6.0])
    assert reproduce._mean_and_spread(values) == "3.000 ± 2.646"
    # Student's t of 2 degrees of freedom: 4.303 standard errors of 2.646 / sqrt(3).
    assert reproduce._difference(values) == "+3.000 ± 6.572"
    assert reproduce._difference(values[:1]) == "+1.000"


@pytest.mark.slow
def test_comparison_from_command_to_table(tmp_path, data_dir):
    options = {
        "num_epochs": 1,
        "model.depth": 1,
        "model.width": 16,
        "model.mlp_dim": 16,
        "dataset.data_dir": data_dir,
    }
    argv = ["reproduce", "--config=configs/digits.py", "--seeds=2"]
    argv += [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    argv += [f"--config.{key}={value}" for key, value in options.items()]
    reproduce.main(argv)
    page = (tmp_path / "out" / "README.md").read_text()
    for attention, column in (("softmax", 2), ("svda", 3)):
        histories = [
            read_history(tmp_path / "runs" / f"digits-{attention}-{seed}")
            for seed in range(2)
        ]
        accuracies = [100 * float(h["eval_accuracy"][-1]) for h in histories]
        row = next(line for line in page.splitlines() if "| accuracy" in line)
        mean, spread = re.findall(r"[\d.]+", row.split("|")[column])
        assert float(mean) == pytest.approx(np.mean(accuracies), abs=1e-3)
        assert float(spread) == pytest.approx(np.std(accuracies, ddof=1), abs=1e-3)
    for name in (
        "config.json",
        "report.html",
        "heat_maps_svda.png",
        "digits-svda-1.nc",
    ):
        assert (tmp_path / "out" / name).exists()

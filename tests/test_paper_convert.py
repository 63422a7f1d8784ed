"""The study of conversion at toy size, from the command to the table."""

import json

import pytest

from experiments.paper import convert
from svda_jax.run import runs


def test_study_of_conversion(tmp_path, arguments, two_devices, capsys):
    argv = ["convert", "--config=configs/digits.py", "--epochs=1"]
    argv += arguments("--seeds=1", num_epochs=1)
    convert.main(argv)
    out = tmp_path / "out" / "convert" / "digits"
    (study,) = json.loads((out / "numbers.json").read_text())
    page = (out / "README.md").read_text().splitlines()
    assert study["softmax"]["before"]["logits"] == 0
    for name, label in convert.LABELS.items():
        for when, ending in (("before", ""), ("after", "-1-epochs")):
            part = "" if name == "softmax" else f"-{name}"
            run = runs.load(tmp_path / "runs" / f"digits-softmax-0{part}{ending}")
            accuracy = float(run.history["eval_accuracy"][-1])
            assert study[name][when]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
            trained = ", 1 epoch on" * (when == "after")
            (line,) = (one for one in page if one.startswith(f"| {label}{trained} |"))
            assert line.startswith(f"| {label}{trained} | {100 * accuracy:.2f} |")
    far, near = (study[name]["before"]["logits"] for name in convert.CONSTANTS)
    assert far > near > 0
    assert (out / "converted_seed_0.md").exists()
    # The same line finds everything there.
    before = (out / "numbers.json").read_bytes()
    convert.main(argv)
    assert "converting" not in capsys.readouterr().out.split("results are in")[1]
    assert (out / "numbers.json").read_bytes() == before

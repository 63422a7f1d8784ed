"""Softmax attention made SVDA: the run."""

import dataclasses
import shutil

import numpy as np
import pytest

from svda_jax import UserError, main
from svda_jax.prune import run as pruning_run
from svda_jax.prune.convert_run import convert_run
from svda_jax.prune.convert_run import main as convert_main
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.run.predict import predict
from svda_jax.train.derive import go_on_from, load_data
from svda_jax.train.loop import train_and_evaluate

L, H, K = 2, 2, 8


@pytest.fixture(scope="module")
def keep_run():
    return {}


@pytest.fixture
def trained(keep_run, make_config, tmp_path_factory, tmp_path, two_devices):
    """A softmax run of these tests' own, trained once for this module."""
    if not keep_run:
        keep_run["softmax"] = tmp_path_factory.mktemp("runs") / "softmax"
        train_and_evaluate(make_config(model__attention="softmax"), keep_run["softmax"])
    shutil.copytree(keep_run["softmax"], tmp_path / "softmax")
    return tmp_path / "softmax"


@pytest.fixture
def no_times(monkeypatch):
    """Pruning times nothing, which compiles two training steps."""
    times = {"original": np.ones(1), "shrunk": np.ones(1)}
    what = ("inference", "training step")
    monkeypatch.setattr(
        pruning_run, "_measure", lambda *args: dict.fromkeys(what, times)
    )


def test_converted_run_is_a_plain_svda_run(trained, no_times, capsys, tmp_path):
    convert_main(["--workdir", str(trained), "--finetune_epochs=1"])
    out = trained.with_name("softmax-converted")
    page = (out / "convert.md").read_text()
    said = capsys.readouterr().out
    assert page in said
    assert page.startswith("# softmax, converted to SVDA\n")
    run, original = runs.load(out), runs.load(trained)
    assert run.model.config == dataclasses.replace(
        original.model.config, attention="svda"
    )
    assert run.model.blocks[0].attention.sigma.shape == (H, K)
    assert run.step == original.step
    assert run.class_names == original.class_names
    # What its history says is so.
    _, _, data = load_data(run.config)
    logits, labels = predict(run.model, data)[0], data.get(range(data.num_images))[1]
    accuracy = float(run.history["eval_accuracy"][-1])
    assert np.mean(logits.argmax(-1) == labels) == pytest.approx(accuracy, abs=1e-6)
    cells = [100 * float(x.history["eval_accuracy"][-1]) for x in (original, run)]
    assert "| accuracy (%) | {:.2f} | {:.2f} |".format(*cells) in page
    # It was trained further, from its own parameters.
    tuned = runs.load(out.with_name("softmax-converted-finetuned"))
    assert tuned.config.init_from == str(out)
    assert tuned.step == 4
    assert f"--config.init_from={out}-finetuned" in said.splitlines()[-1]
    assert f"--workdir={out}-finetuned-finetuned" in said.splitlines()[-1]
    rate = original.config.learning_rate / 10
    assert tuned.config.learning_rate == pytest.approx(rate)
    assert f"--config.learning_rate={rate:g}" in go_on_from(out, finetuned=False)
    before, after = (x.model.blocks[0].attention.sigma for x in (run, tuned))
    assert 0 < np.abs(before - after).max() < 0.2 * np.abs(before).max()
    # It goes on where the softmax run ended.
    main.main(["main", f"--config={out}/config.json", f"--workdir={out}"])
    assert "holds this run, finished" in capsys.readouterr().out
    longer = ["--config.num_epochs=3", f"--workdir={out}"]
    main.main(["main", f"--config={out}/config.json", *longer])
    assert runs.load(out).step == original.step * 3 // 2
    # It is pruned like any other.
    prune_run(out, tmp_path / "pruned", rank=2)
    assert runs.load(tmp_path / "pruned").model.config.qk_dim == (6, 6)


def test_a_constant_brings_the_run_nearer_to_softmax(trained, tmp_path):
    pages = [
        convert_run(trained, tmp_path / f"out-{c}", constant=c) for c in (0.0, 4.0)
    ]
    assert pages[1].startswith("# softmax, converted to SVDA --constant=4\n")
    losses = [
        float(runs.read_history(folder)["eval_loss"][-1])
        for folder in (trained, tmp_path / "out-0.0", tmp_path / "out-4.0")
    ]
    assert abs(losses[2] - losses[0]) < abs(losses[1] - losses[0])


def test_bad_input_ends_in_one_line_and_nothing_is_written(trained, no_times, tmp_path):
    svda, empty, single = (tmp_path / name for name in ("svda", "empty", "single"))
    convert_run(trained, svda)
    empty.mkdir()
    shutil.copyfile(trained / "config.json", empty / "config.json")
    prune_run(trained, single, rank=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for argv, message in (
        ([f"--workdir={svda}"], "svda has svda attention; only a run with softmax att"),
        ([f"--workdir={empty}"], "empty has no checkpoint yet"),
        (["--workdir=nowhere"], "nowhere holds no run"),
        (["--workdir=/"], "/ holds no run"),
        (["--workdir=hdfs://bucket/run"], "hdfs:// is not supported; gs://BUCKET"),
        ([f"--out={empty}"], "empty exists; give another --out or remove it"),
        ([f"--out={trained}"], "softmax exists; give another --out or remove it"),
        ([f"--out={tmp_path}/a\\b"], r"a path with \\ or not in UTF-8"),
        (["--finetune_epochs=-1"], "--finetune_epochs=-1 must not be negative"),
        (["--constant=-1"], "--constant=-1 must be from 0 to 100"),
        (["--constant=nan"], "--constant=nan must be from 0 to 100"),
        (["--constant=inf"], "--constant=inf must be from 0 to 100"),
        ([f"--workdir={single}", "--constant=2"], "place of a direction, and heads of"),
    ):
        argv = [f"--workdir={trained}", f"--out={tmp_path / 'out'}", *argv]
        with pytest.raises(UserError, match=message):
            convert_main(argv)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

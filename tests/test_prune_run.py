"""Pruning by spectral energy: the run it makes."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError, main
from svda_jax.devices import processes
from svda_jax.look.report import write_report
from svda_jax.models.vit import count_macs
from svda_jax.prune import run as pruning_run
from svda_jax.prune.model import choose, shrink
from svda_jax.prune.run import main as prune_main
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

L, H, K = 2, 3, 5


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_same_arrays(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def keep_run():
    return {}


@pytest.fixture
def trained(keep_run, make_config, tmp_path_factory, tmp_path, two_devices):
    """A copy of a run of that attention, trained once for this module."""

    def trained(attention):
        if attention not in keep_run:
            keep_run[attention] = tmp_path_factory.mktemp("runs") / attention
            config = make_config(model__attention=attention, ema_decay=0.9)
            train_and_evaluate(config, keep_run[attention])
        shutil.copytree(keep_run[attention], tmp_path / attention)
        return tmp_path / attention

    return trained


@pytest.fixture
def no_times(monkeypatch):
    """Nothing is timed, which compiles two training steps."""
    times = {"original": np.ones(1), "shrunk": np.ones(1)}
    what = ("inference", "training step")
    monkeypatch.setattr(
        pruning_run, "_measure", lambda *args: dict.fromkeys(what, times)
    )


def test_pruned_run_is_a_run(trained, tmp_path, capsys, no_report_pictures):
    workdir = trained("svda")
    argv = ["--workdir", str(workdir), "--rho=0.8", "--finetune_epochs=1"]
    prune_main(argv)
    out = workdir.with_name("svda-pruned-0.8")
    page = (out / "prune.md").read_text()
    assert page in capsys.readouterr().out
    run = runs.load(out)
    original = runs.load(workdir)
    keep = [choose(b.attention.spectrum, 0.8) for b in original.model.blocks]
    assert_same_arrays(params_of(run.model), params_of(shrink(original.model, keep)))
    assert f"{100 * float(run.history['eval_accuracy'][-1]):.2f} |" in page
    assert f"{count_macs(run.model.config):,} |" in page
    for layer, kept in enumerate(keep, start=1):
        counts = " | ".join(map(str, kept.sum(-1)))
        assert (
            f"| {layer} | {run.model.config.qk_dim[layer - 1]} of 8 | {counts}" in page
        )
    # The others open it.
    page = write_report(out, compare=workdir).read_text()
    assert page.count("<h2>Pruned</h2>") == 1
    assert page.count('alt="directions kept"') == 1
    runs.pruning_path(out).write_text("{}")
    with pytest.raises(UserError, match=r"pruning\.json is damaged"):
        write_report(out)
    main.main(["main", f"--config={out}/config.json"])
    assert "holds this run, finished" in capsys.readouterr().out
    # It was trained further, from its own parameters.
    tuned = runs.load(out.with_name("svda-pruned-0.8-finetuned"))
    assert tuned.config.init_from == str(out)
    assert tuned.model.config.qk_dim == run.model.config.qk_dim
    assert tuned.step == 4
    difference = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))),
        params_of(tuned.model),
        params_of(run.model),
    )
    # Four steps of Adam, each of about the learning rate, 2e-4, and 30 times for sigma.
    assert 0 < max(jax.tree.leaves(difference)) < 0.03


def test_softmax_run_is_pruned_where_asked(trained, no_times):
    workdir = trained("softmax")
    out = workdir.with_name("out")
    with pytest.raises(UserError, match="softmax attention; --low_rank"):
        prune_run(workdir, out, rho=0.9)
    assert not out.exists()
    prune_run(workdir, out, rho=0.5, low_rank=True)
    assert max(runs.load(out).model.config.qk_dim) < 8


def test_a_run_is_pruned_in_its_own_folder(trained, no_times, monkeypatch):
    workdir = trained("svda")
    monkeypatch.chdir(workdir)
    prune_main(["--workdir=."])
    assert runs.load(workdir.with_name("svda-pruned-0.9")).config.model.qk_dim


def test_bad_input_ends_in_one_line_and_nothing_is_written(trained, tmp_path):
    workdir = trained("svda")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copyfile(workdir / "config.json", empty / "config.json")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for argv, message in (
        (["--rho=0"], "--rho=0.0 must be more than 0 and at most 1"),
        (["--rho=1.5"], "--rho=1.5 must be more than 0 and at most 1"),
        (["--rho=nan"], "--rho=nan must be"),
        (["--multiple=0"], "--multiple=0 must be positive"),
        (["--finetune_epochs=-1"], "--finetune_epochs=-1 must not be negative"),
        ([f"--out={empty}"], "empty exists; give another --out or remove it"),
        ([f"--out={tmp_path}/a\\\\b"], r"a path with \\ or not in UTF-8"),
        (["--workdir=nowhere"], "nowhere holds no run"),
        (["--workdir=/"], "/ holds no run"),
        ([f"--workdir={empty}"], "has no checkpoint yet"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            prune_main(["--workdir", str(workdir), *argv])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_starts_from_anothers_parameters(trained, make_config, tmp_path):
    workdir = trained("svda")
    config = make_config(init_from=str(workdir), learning_rate=1e-12, ema_decay=0.9)
    train_and_evaluate(config, tmp_path / "next")
    one, two = (params_of(runs.load(w).model) for w in (workdir, tmp_path / "next"))
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_pruned_run_trains_stops_and_resumes(
    trained, make_config, tmp_path, monkeypatch, no_times
):
    workdir = trained("svda")
    prune_run(workdir, tmp_path / "pruned", rho=0.7)
    qk_dim = runs.load(tmp_path / "pruned").model.config.qk_dim
    options = {"init_from": str(tmp_path / "pruned"), "model__qk_dim": qk_dim}
    config = make_config(**options, ema_decay=0.9)
    train_and_evaluate(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(processes.StopSignal, "reached", lambda self, step: step == 5)
        train_and_evaluate(config, tmp_path / "stopped")
    assert not runs.is_finished(tmp_path / "stopped")
    shutil.rmtree(tmp_path / "pruned")  # which a run that has begun needs no more
    train_and_evaluate(config, tmp_path / "stopped")
    whole, stopped = (runs.load(tmp_path / name) for name in ("whole", "stopped"))
    assert stopped.step == whole.step
    assert_same_arrays(params_of(stopped.model), params_of(whole.model))


def test_another_model_is_no_start(trained, make_config, tmp_path):
    workdir = trained("svda")
    for changes, message in (
        ({"model__width": 32}, r"has shape \(.*\), not \("),
        ({"model__attention": "softmax"}, r"relative_sigma has shape .*, not None"),
    ):
        config = make_config(init_from=str(workdir), **changes)
        with pytest.raises(
            UserError, match=f"init_from=.* of another model: .*{message}"
        ):
            train_and_evaluate(config, tmp_path / "next")
    with pytest.raises(UserError, match="init_from=nowhere: nowhere holds no run"):
        train_and_evaluate(make_config(init_from="nowhere"), tmp_path / "next")
    assert not (tmp_path / "next").exists()

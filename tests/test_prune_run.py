"""Pruning: the run it makes of a run."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError, main
from svda_jax.data import datasets
from svda_jax.devices import parallel, processes, timing
from svda_jax.look.report import write_report
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.prune import run as pruning_run
from svda_jax.prune.measure import measure_moments, measure_movement
from svda_jax.prune.model import choose, shrink, split
from svda_jax.prune.run import main as prune_main
from svda_jax.prune.run import prune_run
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

L, H, K = 2, 2, 8


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


def load_split(config, kind):
    mesh = parallel.create_mesh(jax.devices()[:1])
    return datasets.load(config.dataset, kind, batch_size=config.batch_size, mesh=mesh)


def read_kept(out):
    """`[L, H]`, directions kept, as pruning.json has them."""
    keep = json.loads(runs.pruning_path(out).read_text())["keep"]
    return np.sum(keep, axis=-1)


def read_movement(page):
    """`[L, H, 2]` of prune.md: how far scores move, and what was foreseen."""
    pairs = re.findall(r"(\S+) \((\S+)\) \|", page.split("How far scores move")[1])
    return np.array(pairs, float).reshape(L, H, 2)


def test_pruned_run_is_a_run(trained, monkeypatch, capsys, no_report_pictures):
    workdir = trained("svda")
    monkeypatch.setattr(pruning_run, "measure", lambda x, repeats: timing.measure(x, 2))
    options = ["--rho=0.8", "--norm_columns=1", "--finetune_epochs=1"]
    prune_main(["--workdir", str(workdir), *options])
    out = workdir.with_name("svda-pruned-0.8")
    page = (out / "prune.md").read_text()
    assert page in capsys.readouterr().out
    run, original = runs.load(out), runs.load(workdir)
    moments, lengths = measure_moments(original.model, load_split(run.config, "train"))
    directions = split(original.model, "score", moments)
    sizes = [one.size for one in directions]
    keep = choose(sizes, rho=0.8)
    expected = shrink(original.model, directions, keep, lengths, norm_columns=1)
    assert run.model.config == expected.config != original.model.config
    assert_same_arrays(params_of(run.model), params_of(expected))
    # The page has its numbers.
    rule = "--rho=0.8 --basis=score --norm_columns=1 --multiple=1"
    assert page.startswith(f"# svda, pruned with {rule}\n")
    gone = 1 - np.mean(keep)
    assert f"{gone:.1%} of the directions" in page
    assert f"{100 * float(run.history['eval_accuracy'][-1]):.2f} |" in page
    for model in (original.model, run.model):
        assert f" {count_macs(model.config):,} |" in page
        assert f" {count_parameters(model):,} |" in page
    forms = [one.add_up(~kept) for one, kept in zip(directions, keep, strict=True)]
    moved = measure_movement(original.model, forms, load_split(run.config, "eval"))
    foreseen = np.sqrt(np.sum(np.square(sizes) * ~np.array(keep), axis=-1))
    np.testing.assert_allclose(
        read_movement(page), np.stack([moved, foreseen], axis=-1), rtol=0.005
    )
    for layer, kept in enumerate(keep, start=1):
        counts = " | ".join(map(str, kept.sum(-1)))
        width = run.model.config.qk_dim[layer - 1]
        assert f"| {layer} | {width} of {K} | {counts} |" in page
    # The others open it.
    page = write_report(out, compare=[workdir]).read_text()
    assert page.count("Pruned</h2>") == 1
    assert page.count("<title>directions kept of ") == 1
    assert f"<code>{rule}</code>" in page
    took = json.loads(runs.pruning_path(out).read_text())
    del took["rule"]
    runs.pruning_path(out).write_text(json.dumps({**took, "rho": 0.7}))
    assert "<code>--rho=0.7 --basis=sigma</code>" in write_report(out).read_text()
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


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ([], "0.99"),
        (["--basis=sigma"], "sigma-0.99"),
        (["--basis=weights", "--rank=2", "--pooled"], "weights-rank-2-pooled"),
        (["--bound=0.5", "--pooled"], "bound-0.5-pooled"),
    ],
)
def test_folders_of_other_rules_have_other_names(
    options, ending, monkeypatch, tmp_path
):
    outs = []
    monkeypatch.setattr(
        pruning_run, "prune_run", lambda workdir, out, **options: outs.append(out)
    )
    monkeypatch.setattr(pruning_run, "go_on_from", lambda out, finetuned: "a line")
    prune_main([f"--workdir={tmp_path / 'run'}", *options])
    assert outs == [tmp_path / f"run-pruned-{ending}"]


def test_softmax_run_is_pruned_in_its_own_folder(
    trained, no_times, monkeypatch, tmp_path
):
    workdir = trained("softmax")
    with pytest.raises(UserError, match="softmax attention and no sigma; --basis=sco"):
        prune_run(workdir, tmp_path / "out", rank=4, basis="sigma")
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(workdir)
    prune_main(["--workdir=.", "--rank=4"])
    out = workdir.with_name("softmax-pruned-rank-4")
    assert runs.load(out).model.config.qk_dim == (4, 4)
    np.testing.assert_array_equal(read_kept(out), np.full((L, H), 4))
    assert "lengths" not in (out / "prune.md").read_text()  # which it has not


def test_options_decide_what_goes_and_what_stays_in_the_lengths(
    trained, no_times, tmp_path
):
    workdir = trained("svda")
    page = prune_run(workdir, tmp_path / "bound", bound=0.02)
    foreseen = read_movement(page)[..., 1]
    assert np.all(foreseen <= 0.02)
    assert np.any(foreseen > 0.01)
    options = {"rank": 5, "basis": "weights"}
    page = prune_run(workdir, tmp_path / "pooled", **options, pooled=True)
    assert "--rank=5 --basis=weights --pooled --norm_columns=3" in page
    assert "in brackets" not in page  # those sizes are no logits
    kept = read_kept(tmp_path / "pooled")
    assert kept.sum() == 5 * L * H
    assert kept.max() > 5
    prune_run(workdir, tmp_path / "sigma", rank=2, basis="sigma", norm_columns=0)
    assert runs.load(tmp_path / "sigma").model.config.qk_dim == (3, 3)


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
        (["--rank=0"], "--rank=0 must be positive"),
        (["--bound=-1"], "--bound=-1.0 must be 0 or more"),
        (["--bound=nan"], "--bound=nan must be 0 or more"),
        (["--rho=0.9", "--rank=4"], "one of --rho, --rank and --bound says how much"),
        (["--basis=x"], "--basis=x must be one of score, weights, sigma"),
        (["--bound=1", "--basis=weights"], "--bound=1.0 is in logits, which --basis=w"),
        (["--norm_columns=-1"], "--norm_columns=-1 must not be negative"),
        (["--multiple=0"], "--multiple=0 must be positive"),
        (["--finetune_epochs=-1"], "--finetune_epochs=-1 must not be negative"),
        ([f"--out={empty}"], "empty exists; give another --out or remove it"),
        ([f"--out={tmp_path}/a\\b"], r"a path with \\ or not in UTF-8"),
        (["--workdir=nowhere"], "nowhere holds no run"),
        (["--workdir=/"], "/ holds no run"),
        ([f"--workdir={empty}"], "has no checkpoint yet"),
    ):
        with pytest.raises(UserError, match=message):
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
    prune_run(workdir, tmp_path / "pruned", rank=2)
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
        ({"model__width": 32}, "model.width is 16 there and 32 here"),
        ({"model__attention": "softmax"}, "attention is svda there and softmax here"),
    ):
        config = make_config(init_from=str(workdir), **changes)
        with pytest.raises(
            UserError, match=f"init_from=.* of another model: .*{message}"
        ):
            train_and_evaluate(config, tmp_path / "next")
    with pytest.raises(UserError, match="init_from=nowhere: nowhere holds no run"):
        train_and_evaluate(make_config(init_from="nowhere"), tmp_path / "next")
    assert not (tmp_path / "next").exists()

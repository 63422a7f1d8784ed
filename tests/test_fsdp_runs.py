"""Runs whose state is split over devices: the same, resumed and read as any other."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax.devices import processes
from svda_jax.look.report import write_report
from svda_jax.prune.run import main as prune
from svda_jax.run import runs
from svda_jax.run.verify import main as verify
from svda_jax.train.loop import train_and_evaluate

# All that is random, and all that adds gradients up or averages parameters.
OPTIONS = {
    "num_epochs": 3,
    "accumulate_steps": 2,
    "clip_norm": 0.1,
    "ema_decay": 0.9,
    "augment__crop_padding": 1,
    "model__width": 64,
    "model__depth": 1,
    "model__mlp_dim": 64,
    "model__dropout": 0.1,
    "model__drop_path": 0.1,
}

# How a run is trained: on so many devices, with these options.
WHOLE = 2, {}
SPLIT = 4, {"fsdp": True}
FEWER = 2, {"fsdp": True}


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """A folder for what one test made, for the next."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def train(make_config, see_devices, monkeypatch):
    """Trains as one of the above says, to the end or to a step."""

    def train(workdir, how, stop=None):
        num_devices, changes = how
        see_devices(num_devices)
        with monkeypatch.context() as patch:
            patch.setattr(processes.StopSignal, "reached", lambda _, step: step == stop)
            train_and_evaluate(make_config(**OPTIONS, **changes), workdir)
        return workdir

    return train


@pytest.fixture
def trained(train, keep):
    """A run that was trained as one of the above says, once for this module."""

    def trained(name, how, stop=None):
        if not (keep / name).exists():
            train(keep / name, how, stop)
        return keep / name

    return trained


@pytest.fixture
def whole(trained):
    return trained("whole", WHOLE)


@pytest.fixture
def split(trained):
    return trained("split", SPLIT)


def load_params(workdir):
    return nnx.to_pure_dict(nnx.state(runs.load(workdir).model, nnx.Param))


def assert_same_run(workdir, other):
    """But for float32 sums in another order, through ten steps of Adam."""
    for name in ("train_loss", "eval_loss", "eval_accuracy", "indicators"):
        one, two = (runs.read_history(path)[name] for path in (workdir, other))
        np.testing.assert_allclose(one, two, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
        load_params(workdir),
        load_params(other),
    )


def test_a_split_run_is_that_of_devices_that_have_it_whole(split, whole):
    assert_same_run(split, whole)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(WHOLE, SPLIT, id="whole, split"),
        pytest.param(SPLIT, WHOLE, id="split, whole"),
        pytest.param(SPLIT, FEWER, id="split, split in fewer"),
    ],
)
def test_a_run_goes_on_on_other_devices(
    train, trained, whole, tmp_path, capsys, first, then
):
    stopped = trained("stopped" if first is SPLIT else "stopped whole", first, stop=5)
    workdir = shutil.copytree(stopped, tmp_path / "run")
    capsys.readouterr()
    train(workdir, then)
    out = capsys.readouterr().out
    assert "resuming at step 5 of 10" in out
    changed = "fsdp is {} from here on, it was {}"
    fsdp = "fsdp" in then[1], "fsdp" in first[1]
    assert (changed.format(*fsdp) in out) == (fsdp[0] != fsdp[1])
    assert_same_run(workdir, whole)


def test_a_split_run_goes_on_bit_for_bit(train, trained, split, tmp_path, caplog):
    workdir = shutil.copytree(trained("stopped", SPLIT, stop=5), tmp_path / "run")
    with jax.log_compiles():
        train(workdir, SPLIT)
    compiled = [m for m in caplog.messages if m.startswith("Compiling jit(train_step)")]
    assert not compiled  # its arrays are split as those of a run that begins
    jax.tree.map(
        np.testing.assert_array_equal, load_params(workdir), load_params(split)
    )
    timed = ["images_per_second", "epoch_seconds"]
    one, two = (runs.read_history(p).drop_vars(timed) for p in (workdir, split))
    assert one.identical(two)


def test_a_split_run_is_loaded_and_verified_as_any_other(split, whole, capsys):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    logits, _ = runs.load(split).model(images)
    # Of parameters that differ as above; they are of size 1.
    np.testing.assert_allclose(logits, runs.load(whole).model(images)[0], atol=1e-3)
    verify(["--workdir", str(split)])
    assert "a run would go on from step 10" in capsys.readouterr().out


def test_a_split_run_starts_from_another(train, split, whole, tmp_path):
    start = {"init_from": str(split)}
    for name, (num_devices, changes) in {"whole": WHOLE, "split": SPLIT}.items():
        train(tmp_path / name, (num_devices, changes | start))
    assert_same_run(tmp_path / "split", tmp_path / "whole")
    one, two = (runs.read_history(path) for path in (tmp_path / "split", whole))
    assert one["train_loss"][0] < two["train_loss"][0]


@pytest.mark.slow
def test_a_split_run_is_reported_pruned_and_trained_further(
    split, whole, see_devices, tmp_path, monkeypatch, no_report_pictures
):
    page = write_report(split, compare=[whole], out=tmp_path / "page.html").read_text()
    assert "of 77 images are classified wrongly" in page
    times = {"original": np.ones(1), "shrunk": np.ones(1)}
    measured = {"inference": times, "training step": times}
    monkeypatch.setattr("svda_jax.prune.run._measure", lambda *args: measured)
    see_devices(4)
    out = tmp_path / "pruned"
    prune([f"--workdir={split}", f"--out={out}", "--rho=0.5", "--finetune_epochs=1"])
    tuned = runs.load(tmp_path / "pruned-finetuned")
    assert tuned.config.fsdp
    assert tuned.step == 4

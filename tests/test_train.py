"""Training as a whole: what it leaves, resuming, stopping, refusing."""

import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.config import to_json, validate, vit_config
from svda_jax.data import datasets
from svda_jax.data.in_memory import InMemory
from svda_jax.devices import parallel
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.events import EventWriter
from svda_jax.run.runs import read_history
from svda_jax.run.start import load_start
from svda_jax.train import loop as train
from svda_jax.train.loop import train_and_evaluate
from svda_jax.train.optimizer import create_schedule

OPTIONS = {
    "num_epochs": 3,
    "model__dropout": 0.1,
    "model__drop_path": 0.1,
    "augment__crop_padding": 1,
    "ema_decay": 0.9,
    "log_every_steps": 4,
}

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture(scope="module")
def keep():
    """What one test made, for the next."""
    return {}


@pytest.fixture
def finished(keep, make_config, tmp_path_factory):
    """A workdir with a finished run, trained once for this module."""
    if "workdir" not in keep:
        keep["workdir"] = tmp_path_factory.mktemp("runs") / "whole"
        train_and_evaluate(make_config(**OPTIONS), keep["workdir"])
    return keep["workdir"]


def load_params(workdir):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(runs.load(workdir).model, nnx.Param))


def test_workdir_holds_config_history_events_and_checkpoints(finished, make_config):
    names = sorted(path.name.split(".")[0] for path in finished.iterdir())
    assert names == ["checkpoints", "classes", "config", "events", "history"]
    config = json.loads((finished / "config.json").read_text())
    assert config["model"]["width"] == make_config().model.width
    history = read_history(finished)
    # 100 images in batches of 32: an epoch is complete with steps 4, 7 and 10.
    np.testing.assert_array_equal(history["step"], [4, 7, 10])
    np.testing.assert_allclose(history["epoch"], np.array([4, 7, 10]) * 0.32)
    assert np.isfinite(history["train_loss"]).all()
    assert history["learning_rate"][-1] < history["learning_rate"][0]
    rate = history["images_per_second"]
    np.testing.assert_allclose(history["epoch_seconds"], 100 / rate, rtol=1e-6)
    # Numbers of steps 4 and 8; at the end there are those of the evaluation.
    (events,) = finished.glob("events*")
    for tag in (b"step/loss", b"step/gradient_norm", b"step/learning_rate"):
        assert events.read_bytes().count(tag) == 2
    # Of the newest checkpoints two are kept.
    steps = {path.name for path in (finished / "checkpoints").iterdir()}
    assert steps == {"7", "10"}


def test_run_can_be_loaded_and_looked_into(finished, make_config):
    run = runs.load(finished)
    assert run.step == 10
    assert vit_config(run.config) == vit_config(make_config(**OPTIONS))
    logits, traces = run.model(np.zeros((3, 8, 8, 1), np.uint8))
    assert logits.shape == (3, 10)
    assert len(traces) == len(run.model.blocks)
    spectra = np.stack([block.attention.spectrum for block in run.model.blocks])
    np.testing.assert_allclose(run.history["spectrum"][-1], spectra, rtol=1e-6)


def test_the_moving_average_is_what_is_evaluated(finished, tmp_path):
    checkpoints = Checkpoints(runs.checkpoints_path(finished))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(finished)
    with checkpoints:
        _, restored = checkpoints.restore_newest(
            {"params": params, "ema": params}, device
        )
    jax.tree.map(np.testing.assert_array_equal, params, restored["ema"])
    assert (params["head"]["kernel"] != restored["params"]["head"]["kernel"]).any()


def test_nothing_that_is_read_back_is_executed(finished, make_config, monkeypatch):
    """No pickle: not in config, history, checkpoints, data sets, nor in our code."""

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    mesh = parallel.create_mesh()
    config = make_config().dataset
    for streaming in (False, True):
        with config.unlocked():
            config.streaming = streaming
        data = datasets.load(config, "eval", batch_size=8, mesh=mesh)
        assert len(data.get(range(5))[1]) == 5
    assert runs.load(finished).step == 10
    for path in pathlib.Path(runs.__file__).parent.rglob("*.py"):
        assert "pickle" not in path.read_text().replace("allow_pickle=False", "")


def test_same_line_again_says_that_it_is_finished(finished, make_config, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train_and_evaluate(make_config(**OPTIONS), finished)
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_resumed_run_equals_the_uninterrupted_one(
    finished, make_config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "resumed"
    real = EventWriter.write

    def interrupt(self, step, values):
        real(self, step, values)
        if step == 7:  # evaluated and written, but not saved
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EventWriter, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(make_config(**OPTIONS), workdir)
    np.testing.assert_array_equal(read_history(workdir)["step"], [4, 7])
    capsys.readouterr()
    train_and_evaluate(make_config(**OPTIONS), workdir)
    assert "resuming at step 4 of 10" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, load_params(workdir), load_params(finished)
    )
    timed = ["images_per_second", "epoch_seconds"]
    resumed, whole = (
        read_history(path).drop_vars(timed) for path in (workdir, finished)
    )
    assert resumed.identical(whole)


def test_what_concerns_length_machine_and_output_may_change(
    finished, make_config, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    changes = {
        "num_epochs": 4,
        "eval_every_epochs": 2,
        "checkpoint__keep_last": 3,
        "dataset__skip_corrupt": True,
        "dataset__num_threads": 2,
        "model__scan": True,
        "model__remat": "nothing_saveable",
    }
    train_and_evaluate(make_config(**{**OPTIONS, **changes}), workdir)
    out = capsys.readouterr().out
    assert "resuming at step 10 of 13" in out
    assert "num_epochs is 4 from here on, it was 3" in out
    assert "dataset.skip_corrupt is True from here on, it was False" in out
    assert "model.scan is True from here on, it was False" in out
    assert runs.load_config(workdir).num_epochs == 4
    model = runs.load(workdir).model.config
    assert (model.scan, model.remat) == (False, "none")
    schedule = create_schedule(2e-3, num_steps=13, warmup_steps=1)
    rates = read_history(workdir)["learning_rate"]
    # Near its end the schedule is 1 + cos, whose rounding is that of 1.
    np.testing.assert_allclose(rates[-1], schedule(12), rtol=0, atol=2e-3 * 2**-23)
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"7", "10", "13"}
    (workdir / "history.nc").unlink()
    with pytest.raises(UserError, match=r"num_epochs=1 are 4 steps, .* has made 13"):
        train_and_evaluate(make_config(**{**OPTIONS, "num_epochs": 1}), workdir)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_what_cannot_be_read_ends_the_run_after_a_save(
    finished, make_config, tmp_path, monkeypatch, where
):
    workdir = tmp_path / "run"
    calls = 0

    def fail(real):
        def function(*args):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise UserError("corrupt image")
            return real(*args)

        return function

    with monkeypatch.context() as patch:
        if where == "evaluation":
            real = train.create_evaluate
            patch.setattr(train, "create_evaluate", lambda *a, **k: fail(real(*a, **k)))
        else:
            real = InMemory.train_batches

            def train_batches(self, *args):
                for i, batch in enumerate(real(self, *args)):
                    if i == 6:
                        raise UserError("corrupt image")
                    yield batch

            patch.setattr(InMemory, "train_batches", train_batches)
        with pytest.raises(UserError, match="corrupt image"):
            train_and_evaluate(make_config(**OPTIONS), workdir)
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved == {"training": 6, "evaluation": 7}[where]
    if where == "training":
        return
    train_and_evaluate(make_config(**OPTIONS), workdir)
    jax.tree.map(
        np.testing.assert_array_equal, load_params(workdir), load_params(finished)
    )
    history, whole = map(read_history, (workdir, finished))
    np.testing.assert_array_equal(history["train_loss"], whole["train_loss"])
    np.testing.assert_array_equal(history["eval_loss"], whole["eval_loss"])


def test_a_start_keeps_its_sigma_and_needs_no_evaluation(
    finished, make_config, tmp_path
):
    shutil.copytree(finished, tmp_path / "old")
    (tmp_path / "old" / "history.nc").unlink()
    changes = {"init_from": str(tmp_path / "old"), "model__spectrum_init": "ones"}
    config = make_config(**OPTIONS, **changes)
    start, lines = load_start(config, vit_config(config), tmp_path / "new")
    assert not lines
    block = runs.load(finished).model.blocks[1]
    np.testing.assert_allclose(
        start["blocks"][1]["attention"]["relative_sigma"], block.attention.sigma
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seed": 1, "learning_rate": 0.5},
            "run with learning_rate=0.002, not 0.5; with seed=0, not 1; give another",
        ),
        ({"model__width": 32}, "holds a run with model.width=16, not 32"),
        ({"model__attention": "softmax"}, "run with model.attention=svda, not softmax"),
        ({"learning_rate": 0.5}, "holds a run with learning_rate=0.002, not 0.5"),
        ({"seed": 1}, "holds a run with seed=0, not 1"),
    ],
)
def test_workdir_of_another_run_is_refused(finished, make_config, changes, message):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match=message):
        train_and_evaluate(make_config(**{**OPTIONS, **changes}), finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__width": 32}, r"another model: params/blocks/0/.*\[2, 8\] there and"),
        ({"model__attention": "softmax"}, "relative_sigma is .* there and absent here"),
    ],
)
def test_checkpoints_of_another_model_are_refused(
    finished, make_config, tmp_path, changes, message
):
    """Where config.json says nothing of it."""
    config = make_config(**OPTIONS, **changes)
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text(to_json(config))
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_training_step_moves_nothing_to_the_device(make_config):
    config = make_config()
    mesh = parallel.create_mesh(jax.devices()[:1])
    model_config = validate(config, num_devices=1)
    data = datasets.load(config.dataset, "train", batch_size=32, mesh=mesh)
    init, step = train.create_training(config, model_config, num_steps=9, mesh=mesh)
    key = jax.jit(lambda: jax.random.key(0), out_shardings=parallel.replicated(mesh))()
    batches = data.train_batches(key, 0)
    state, _ = step(init(key), next(batches), key)
    with jax.transfer_guard_host_to_device("disallow"):
        state, _ = step(state, next(batches), key)
    assert int(state.step) == 2

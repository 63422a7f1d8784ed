"""Metrics at trackers: a fake, and the true ones offline."""

import json
import threading

import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.models.indicators import INDICATORS
from svda_jax.run import runs, trackers
from svda_jax.run.events import SCALARS
from svda_jax.train.loop import train_and_evaluate

VALUES = {
    **dict.fromkeys(SCALARS.values(), np.float32(0.5)),
    "indicators": np.full((6, 2, 3), 0.25, np.float32),
}
NUM_SCALARS = len(SCALARS) + len(INDICATORS) * (1 + 2)


class Fake:
    """A tracker that keeps what it is sent, and fails when it is told to."""

    def __init__(self, workdir, config, id):
        self.id = id or "first"
        self.calls = []
        Fake.made.append(self)

    def log(self, step, scalars):
        if step in Fake.fails:
            raise ConnectionError("no network\nand more")
        self.calls.append((step, scalars))

    def log_pictures(self, step, pictures):
        self.calls.append((step, pictures))

    def close(self, failed):
        self.calls.append(failed)


@pytest.fixture
def fake(monkeypatch):
    Fake.made, Fake.fails = [], ()
    monkeypatch.setitem(trackers.SERVICES, "wandb", Fake)
    monkeypatch.setattr(trackers, "check", lambda name: None)
    return Fake


def send(workdir, config, *steps):
    """What is said while evaluations of these steps are sent."""
    said = []
    with trackers.Tracker(workdir, config, say=said.append) as tracker:
        for step in steps:
            tracker.write(step, VALUES)
            tracker.write_step(step, {"loss": 2.5, "rate": float("nan")})
            tracker.write_pictures(step, {"a": np.zeros((2, 2, 3), np.uint8)})
    return said


def test_a_tracker_is_sent_what_tensorboard_has(tmp_path, make_config, fake):
    assert send(tmp_path, make_config(tracker="wandb"), 3) == []
    (evaluation, one_step, pictures, failed) = fake.made[0].calls
    assert evaluation[0] == 3
    assert len(evaluation[1]) == NUM_SCALARS
    assert evaluation[1]["indicators/effective_rank/layer_2"] == 0.25
    assert one_step == (3, {"step/loss": 2.5})
    assert list(pictures[1]) == ["a"]
    assert not failed


def test_a_run_that_goes_on_has_the_same_id(tmp_path, make_config, fake):
    for _ in range(2):
        send(tmp_path, make_config(tracker="wandb"), 1)
    assert [one.id for one in fake.made] == ["first", "first"]
    assert json.loads((tmp_path / "tracker.json").read_text()) == {"wandb": "first"}


def test_a_failure_is_said_once_and_nothing_is_sent_after_it(
    tmp_path, make_config, fake
):
    fake.fails = (2,)
    said = send(tmp_path, make_config(tracker="wandb"), 1, 2, 3)
    what = "tracker=wandb is left out from here on: ConnectionError: no network"
    assert said == [what]
    assert {call[0] for call in fake.made[0].calls} == {1}


@pytest.mark.parametrize("damage", ["[", "3", "\x00"])
def test_damaged_ids_stop_no_run_and_are_kept(tmp_path, make_config, fake, damage):
    runs.tracker_path(tmp_path).write_text(damage)
    (line,) = send(tmp_path, make_config(tracker="wandb"), 1)
    assert "tracker=wandb is left out" in line
    assert runs.tracker_path(tmp_path).read_text() == damage


def test_a_tracker_that_hangs_is_left_behind(tmp_path, make_config, fake, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    monkeypatch.setattr(fake, "log", lambda *args: free.wait())
    assert send(tmp_path, make_config(tracker="wandb"), 1) == [
        "tracker=wandb did not take all within 0 s"
    ]
    free.set()


def test_a_package_that_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem("sys.modules", "wandb", raising=False)
    (tmp_path / "wandb").mkdir()  # as Weights & Biases leaves it
    with pytest.raises(UserError, match=r"tracker=wandb needs .*: pip install wandb"):
        trackers.check("wandb")
    with pytest.raises(UserError, match="pip install mlflow"):
        trackers.check("mlflow")
    trackers.check("")


@pytest.mark.usefixtures("two_devices")
def test_a_run_says_nothing_to_a_tracker_unless_told(tmp_path, make_config, fake):
    train_and_evaluate(make_config(num_epochs=1), tmp_path / "run")
    assert not fake.made
    config = make_config(num_epochs=2, tracker="wandb", log_every_steps=1)
    train_and_evaluate(config, tmp_path / "run")  # the run goes on, with a tracker
    *calls, failed = fake.made[0].calls
    tags = {tag for _, content in calls for tag in content}
    assert {"step/loss", "eval/accuracy", "attention/image_1"} <= tags
    assert not failed


# Warnings of MLflow and of Weights & Biases are theirs to mend.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite:///{}/mlflow.db", "{}/files"])
def test_mlflow_goes_on_in_the_same_run(tmp_path, make_config, monkeypatch, store):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = make_config(tracker="mlflow")
    for step in (1, 2):
        assert send(tmp_path, config, step) == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.attention"] == "svda"
    history = client.get_metric_history(run.info.run_id, "eval/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.5)]
    assert run.data.metrics["indicators/effective_rank/layer_2"] == 0.25
    files = client.list_artifacts(run.info.run_id, "a")
    assert {file.path for file in files} == {"a/step_1.png", "a/step_2.png"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_wandb_offline_goes_on_in_the_same_run(tmp_path, make_config, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        assert send(tmp_path, make_config(tracker="wandb"), step) == []
    name = json.loads((tmp_path / "tracker.json").read_text())["wandb"]
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert files
    assert {file.stem for file in files} == {f"run-{name}"}
    assert b"indicators/effective_rank/layer_2" in b"".join(
        file.read_bytes() for file in files
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_an_mlflow_that_cannot_be_reached_is_one_line(
    tmp_path, make_config, monkeypatch, capfd, caplog
):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (line,) = send(tmp_path, make_config(tracker="mlflow"), 1)
    assert "Retrying" not in caplog.text + capfd.readouterr().err
    assert line.startswith("tracker=mlflow is left out from here on: MlflowException")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_wandb_that_nobody_is_logged_in_to_is_one_line(
    tmp_path, make_config, monkeypatch, capfd
):
    pytest.importorskip("wandb").teardown()  # what it knows of the environment
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (line,) = send(tmp_path, make_config(tracker="wandb"), 1)
    assert capfd.readouterr() == ("", "")
    assert "nobody is logged in: `wandb login` does it" in line

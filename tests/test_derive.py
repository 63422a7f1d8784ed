"""A run that is made of another run's model: who is told, and what a bucket gets."""

import shlex

import pytest
from toy_runs import make_toy_run

from svda_jax import UserError, load, place
from svda_jax.__main__ import main
from svda_jax.config import validate
from svda_jax.data.bucket import Bucket
from svda_jax.run import lock, trackers
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.train.derive import evaluate, load_data, write_run

OUT = place("gs://b/runs/out")


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def write(kept, make_config, two_devices):
    """Writes a toy run's model as a run that has ended like it."""
    config = make_config(model__depth=1)
    run = make_toy_run(validate(config, num_devices=1), config)
    mesh, _, data = load_data(config)
    if not kept:
        kept.update(evaluate(config, {"values": run.model}, data, mesh))

    def write(out, **changes):
        derived = make_config(model__depth=1, **changes)
        write_run(run, derived, run.model, kept["values"], out, mesh, {"a.md": "text"})

    return write


def test_its_tracker_is_sent_its_evaluation(write, tmp_path, monkeypatch):
    sent = []

    class Service:
        id = "1"

        def __init__(self, *run):
            sent.append(run)

        def log(self, step, scalars):
            sent.append((step, set(scalars)))

        def close(self, failed):
            sent.append(failed)

    monkeypatch.setitem(trackers.SERVICES, "wandb", Service)
    write(tmp_path / "silent")
    assert not sent
    write(tmp_path / "out", tracker="wandb")
    (workdir, _, id), (step, tags), failed = sent
    assert (workdir, id, step, failed) == (tmp_path / "out", None, 5, False)
    assert {"eval/accuracy", "score/effective_rank"} <= tags
    assert trackers.tracker_path(workdir).exists()


def test_what_a_bucket_that_went_away_did_not_get_is_sent_by_the_line_that_is_said(
    write, fake_bucket, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "BEAT", 1e6)
    save = Checkpoints.save

    def go_away(*args):
        monkeypatch.setattr(fake_bucket, "error", OSError("503"))
        save(*args)

    monkeypatch.setattr(Checkpoints, "save", go_away)
    with pytest.raises(UserError, match="503; the run is kept in ") as raised:
        write(OUT)
    monkeypatch.setattr(fake_bucket, "error", None)
    monkeypatch.setattr("svda_jax.main.keep_memory", lambda: None)
    line = str(raised.value).partition(": python ")[2].partition(" sends it")[0]
    main(shlex.split(line)[2:])
    assert f"{OUT} holds this run, finished" in capsys.readouterr().out
    assert load(OUT).step == 5
    assert Bucket(OUT).read("a.md") == b"text"

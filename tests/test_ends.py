"""What ends a run: numbers that are not finite, and what it cannot begin with."""

import dataclasses
import os
import re

import jax
import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.runs import read_history
from svda_jax.train import loop as train
from svda_jax.train.loop import train_and_evaluate
from svda_jax.train.optimizer import create_schedule

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss of given steps not a number."""
    real = train.create_training

    def poison(*steps):
        def create_training(*args, **kwargs):
            init, step = real(*args, **kwargs)

            def poisoned(state, batch, key):
                number = int(state.step) + 1
                if number in steps:
                    nan = jax.tree.map(lambda x: x * np.nan, state.params)
                    held = jax.device_get(state.params)
                    state = dataclasses.replace(state, params=nan)
                    state, skipped = step(state, batch, key)
                    whole = state.step.sharding
                    return (
                        dataclasses.replace(state, params=jax.device_put(held, whole)),
                        skipped,
                    )
                return step(state, batch, key)

            poisoned.lower = step.lower
            return init, poisoned

        monkeypatch.setattr(train, "create_training", create_training)

    return poison


def test_steps_that_are_not_finite_are_skipped_said_and_counted(
    make_config, tmp_path, poison, capsys
):
    poison(2, 5, 6)
    train_and_evaluate(make_config(max_skipped_in_a_row=2), tmp_path / "run")
    out = capsys.readouterr().out
    for step in (2, 5, 6):
        assert f"step {step} skipped: loss or gradient is not finite" in out
    history = read_history(tmp_path / "run")
    np.testing.assert_array_equal(history["skipped_steps"], [1, 3])  # at 4 and 7
    assert np.isfinite(history["eval_loss"]).all()
    # The schedule counts batches: optimizer and history are where no skip would be.
    with Checkpoints(runs.checkpoints_path(tmp_path / "run")) as checkpoints:
        optimizer = checkpoints.read(7)["opt_state"]
    assert (optimizer[1]["count"], optimizer[3]["count"]) == (4, 7)
    schedule = create_schedule(2e-3, num_steps=7, warmup_steps=0)
    np.testing.assert_allclose(  # the rounding of 1 in 1 + cos
        history["learning_rate"], [schedule(3), schedule(6)], rtol=0, atol=2e-3 * 2**-23
    )


def test_too_many_in_a_row_stop_and_name_the_last_good_checkpoint(
    make_config, tmp_path, poison
):
    poison(5, 6, 7)
    with pytest.raises(FloatingPointError) as error:
        train_and_evaluate(make_config(max_skipped_in_a_row=2), tmp_path / "run")
    assert re.fullmatch(
        r"loss or gradient is not finite at step 7 \(learning rate \S+\), 3 in a row; "
        r"last good checkpoint: .*run/checkpoints/4",
        str(error.value),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"batch_size": 104}, "batch_size=104 must not exceed the 100 images"),
        ({"dataset__name": "digit"}, "dataset.name=digit"),
    ],
)
def test_bad_input_writes_nothing(make_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(make_config(**changes), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_unwritable_workdir(make_config, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(UserError, match="cannot write workdir"):
            train_and_evaluate(make_config(), path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_workdir(make_config, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write workdir"):
        train_and_evaluate(make_config(), tmp_path / "run")

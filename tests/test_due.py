"""When evaluations, pictures, checkpoints and numbers of a step are due."""

import pytest

from svda_jax import UserError
from svda_jax.train import due as due_module
from svda_jax.train.due import Due

NUM_IMAGES, LAST = 100, 22  # 7 epochs of 100 images in batches of 32


@pytest.fixture
def make_due(make_config):
    options = {"num_epochs": 7, "checkpoint__every_epochs": 0}
    return lambda **changes: Due(make_config(**{**options, **changes}), NUM_IMAGES)


def steps(function):
    return [step for step in range(1, LAST + 1) if function(step)]


def test_each_has_its_own_interval_and_the_end(make_due):
    due = make_due(eval_every_epochs=3, pictures_every_epochs=5, log_every_steps=8)
    assert due.num_steps == LAST
    assert steps(due.evaluation) == [10, 19, LAST]
    assert steps(due.pictures) == [16, LAST]
    assert steps(due.log) == [8, 16]
    assert steps(lambda step: due.checkpoint(step, stopping=False)) == [LAST]


def test_none_but_those_at_the_end(make_due):
    due = make_due(eval_every_epochs=9, pictures_every_epochs=0, log_every_steps=0)
    assert steps(due.evaluation) == steps(due.pictures) == [LAST]
    assert steps(due.log) == []


def test_checkpoints_by_epochs_steps_minutes_and_at_a_stop(make_due, monkeypatch):
    due = make_due(checkpoint__every_epochs=4, checkpoint__every_steps=9)
    at = steps(lambda step: due.checkpoint(step, stopping=step == 11))
    assert at == [9, 11, 13, 18, LAST]
    now = [0.0]
    monkeypatch.setattr(due_module.time, "monotonic", lambda: now[0])
    due = make_due(checkpoint__every_minutes=2.0)
    for step in range(1, 8):  # 50 seconds each
        now[0] += 50
        assert due.checkpoint(step, stopping=False) == (step in (3, 6))


def test_a_batch_larger_than_the_split_is_refused(make_due):
    with pytest.raises(UserError, match=r"batch_size=101 must not exceed the 100 "):
        make_due(batch_size=101)

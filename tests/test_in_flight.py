"""Started steps and the rate that is read off them, against a clock outside."""

from typing import NamedTuple

import numpy as np
import pytest

from svda_jax.train import in_flight
from svda_jax.train.in_flight import MAX_IN_FLIGHT, Clock, InFlight

BATCH = 32


class Time:
    """A clock that moves when it is told to, in seconds."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Result(NamedTuple):
    """An array that is computed at a time; to wait for it moves the clock there."""

    time: Time
    ready: float

    def is_ready(self):
        return self.time.now >= self.ready

    def block_until_ready(self):
        self.time.now = max(self.time.now, self.ready)


class Report:
    """What a step returns, of which one array is enough here."""

    def __init__(self, time, ready):
        self.skipped_in_a_row = Result(time, ready)

    def block_until_ready(self):
        self.skipped_in_a_row.block_until_ready()


@pytest.fixture
def time(monkeypatch):
    clock = Time()
    monkeypatch.setattr(in_flight, "time", clock)
    return clock


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("num_steps", [8, 23, 400])
def test_the_rate_is_that_of_a_clock_outside(time, num_steps, synchronous):
    """A step of 10 ms on the device; the first is compiled for 5 s."""
    durations = 0.01 * np.random.default_rng(0).uniform(0.8, 1.2, size=num_steps)
    clock, ends = Clock(BATCH), []
    queue = InFlight(lambda step, report, at: clock.tick(at))
    time.now = 5.0
    for step, seconds in enumerate(durations, start=1):
        time.now += 0.0003  # to give it out
        begins = max(time.now, ends[-1]) if ends else time.now
        ends.append(begins + seconds)
        if synchronous:
            time.now = ends[-1]
        queue.add(step, Report(time, ends[-1]))
    queue.wait()
    outside = (num_steps - 1) * BATCH / (ends[-1] - ends[0])
    assert clock.rate() == pytest.approx(outside, rel=0.03)


def test_steps_are_finished_in_order_and_at_most_so_many_wait(time):
    finished = []
    queue = InFlight(lambda step, report, at: finished.append((step, at)))
    for step in range(1, 31):
        queue.add(step, Report(time, float(step)))
        assert step - len(finished) <= MAX_IN_FLIGHT
    queue.wait()
    assert finished == [(step, float(step)) for step in range(1, 31)]


def test_a_single_step_has_no_rate(time):
    clock = Clock(BATCH)
    assert np.isnan(clock.rate())
    clock.tick(1.0)
    assert np.isnan(clock.rate())
    clock.tick(1.5)
    assert clock.rate() == 2 * BATCH
    clock.reset()
    assert np.isnan(clock.rate())

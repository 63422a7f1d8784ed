"""The profile of a run."""

import jax
import pytest

from svda_jax.train import loop as train
from svda_jax.train import profile as profiling


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda path: calls.append(f"start {path}")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def batches(calls):
    try:
        for i in range(50):
            calls.append(i)
            yield i
    finally:
        calls.append("closed")


def test_ten_steps_are_recorded_after_the_first_twenty(calls, capsys):
    assert list(profiling.profiled(batches(calls), "run")) == list(range(50))
    expected = [*range(21), "start run", *range(21, 31), "stop", *range(31, 50)]
    assert calls == [*expected, "closed"]
    assert "run/plugins/profile" in capsys.readouterr().out


@pytest.mark.parametrize(("taken", "stops"), [(5, 0), (25, 1)])
def test_a_run_that_ends_early_closes_all(calls, capsys, taken, stops):
    recorded = profiling.profiled(batches(calls), "run")
    for _ in range(taken):
        next(recorded)
    recorded.close()
    assert calls.count("stop") == stops
    assert calls[-1] == "closed"
    said = capsys.readouterr().out
    assert ("no profile" in said) == (not stops)


def test_a_run_writes_its_profile(make_config, tmp_path, monkeypatch, two_devices):
    monkeypatch.setattr(profiling, "FIRST", 2)
    monkeypatch.setattr(profiling, "NUM_STEPS", 2)
    train.train_and_evaluate(make_config(profile=True), tmp_path / "run")
    (profile,) = (tmp_path / "run/plugins/profile").glob("*/*.xplane.pb")
    recorded = profile.read_bytes()
    assert b"dot" in recorded  # operations by name
    assert b"step_num" in recorded  # where a step begins and ends

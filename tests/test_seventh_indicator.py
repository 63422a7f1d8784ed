"""A seventh indicator is one entry of the table, and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from svda_jax.look import report
from svda_jax.models.indicators import INDICATORS, Indicator
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate


@pytest.fixture(autouse=True)
def no_pictures():
    """The pictures of this run are drawn."""


@pytest.mark.usefixtures("two_devices")
def test_it_is_measured_written_drawn_and_explained(make_config, tmp_path, monkeypatch):
    entry = Indicator(
        lambda weights: jnp.max(weights, axis=-1),
        ("weights",),
        "largest weight",
        "fraction",
        (lambda K: 0, lambda K: 1),
        "no key stands out",
        "one key gets all",
        "this test",
    )
    monkeypatch.setitem(INDICATORS, "largest_weight", entry)
    workdir = tmp_path / "run"
    train_and_evaluate(make_config(num_epochs=1), workdir)
    measured = runs.read_history(workdir)["indicators"].sel(indicator="largest_weight")
    assert measured.shape == (1, 2, 2)  # evaluations, layers, heads
    assert ((measured > 1 / 4) & (measured <= 1)).all()  # of 4 tokens
    page = report.write_report(workdir).read_text()
    assert "largest weight" in page
    assert "one key gets all" in page
    (events,) = workdir.glob("events*")
    data = events.read_bytes()
    assert b"indicators/largest_weight/layer_2" in data
    assert b"indicators/largest_weight/heads" in data
    others = runs.read_history(workdir)["indicators"].sel(indicator=list(INDICATORS))
    assert np.isfinite(others).all()

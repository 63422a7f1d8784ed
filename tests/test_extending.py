"""docs/extending.md: its indicator and its attention, as they stand there."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax.look import report
from svda_jax.models import vit
from svda_jax.models.attention import Attention
from svda_jax.models.indicators import INDICATORS, Indicator
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
INDICATOR, ATTENTION = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def no_pictures():
    """The pictures of these runs are drawn."""


@pytest.mark.usefixtures("two_devices")
def test_an_indicator_is_measured_written_drawn_and_explained(
    make_config, tmp_path, monkeypatch
):
    names = {"INDICATORS": {}, "Indicator": Indicator, "jnp": jnp}
    exec(INDICATOR, names)
    monkeypatch.setitem(INDICATORS, *names["INDICATORS"].popitem())
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


@pytest.mark.usefixtures("two_devices")
def test_an_attention_trains_and_is_measured(make_config, tmp_path, monkeypatch):
    names = {"Attention": Attention, "jnp": jnp, "nnx": nnx}
    exec(ATTENTION, names)
    monkeypatch.setattr(vit, "Attention", names["CosineAttention"])
    # Models are made once for equal configs: no other test has this one.
    config = make_config(num_epochs=2, model__mlp_dim=11)
    train_and_evaluate(config, tmp_path / "run")
    model = runs.load(tmp_path / "run").model
    temperature = model.blocks[0].attention.relative_sigma[...]
    assert temperature.shape == (2, 1)  # a head
    assert (temperature != 1).all()
    last = runs.read_history(tmp_path / "run")["indicators"][-1]
    assert np.isfinite(last).all()
    rank = last.sel(indicator="effective_rank")  # of equal values: all directions
    np.testing.assert_allclose(rank, 8, rtol=1e-5)

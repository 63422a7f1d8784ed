"""What a run writes and says, and that only its first process does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svda_jax.data import datasets
from svda_jax.devices import parallel, processes
from svda_jax.run import runs
from svda_jax.run.session import Session
from svda_jax.train.loop import train_and_evaluate


@pytest.mark.parametrize("first", [True, False])
def test_a_process_that_is_not_the_first_is_silent(
    make_config, tmp_path, monkeypatch, capfd, first
):
    monkeypatch.setattr(processes, "is_primary", lambda: first)
    config, workdir = make_config(), tmp_path / "run"
    mesh = parallel.create_mesh(jax.devices()[:1])
    data = datasets.load(config.dataset, "eval", batch_size=32, mesh=mesh)
    params = {"blocks": {0: {"kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32)}}}
    with Session(config, workdir) as session:
        assert not session.is_finished()
        session.open(mesh, params, data, data, num_steps=7)
        session.begin(mesh, data.class_names, num_steps=7)
        session.say("a line")
        session.advance(32)
        session.log(1, {"loss": 2.5})
        session.picture(1, {"attention/image_1": np.zeros((2, 2, 3), np.uint8)})
        session.say_end(7, 7, data, data)
    said = "".join(capfd.readouterr())
    written = {path.name.split(".")[0] for path in workdir.rglob("*")}
    assert ("a line" in said) == first
    assert bool(said) == first
    assert written == ({"config", "classes", "events"} if first else set())


def test_the_folder_is_looked_at_before_data_are_loaded(
    make_config, tmp_path, monkeypatch
):
    config, workdir = make_config(seed=1), tmp_path / "run"
    runs.create_workdir(config, workdir)

    def load(*args, **kwargs):
        raise AssertionError("data are loaded")

    monkeypatch.setattr(datasets, "load", load)
    with pytest.raises(runs.UserError, match="seed"):
        train_and_evaluate(make_config(seed=2), workdir)
    monkeypatch.setattr(runs, "is_finished", lambda *args: True)
    train_and_evaluate(config, workdir)  # says so and returns

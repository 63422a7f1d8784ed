"""What a training step holds is said before it runs, and refused where it cannot be."""

import jax
import pytest

from svda_jax import UserError
from svda_jax.train import loop, memory
from svda_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("two_devices")


def test_a_step_is_compiled_once_and_says_what_it_holds(
    make_config, tmp_path, monkeypatch, capsys, caplog
):
    held = []
    real = memory.held_bytes

    def held_bytes(compiled):
        held.append(real(compiled))
        return held[-1]

    monkeypatch.setattr(memory, "held_bytes", held_bytes)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * 2**29)
    step = []
    real_create = loop.create_training

    def create_training(*args, **kwargs):
        step[:] = real_create(*args, **kwargs)
        return step

    monkeypatch.setattr(loop, "create_training", create_training)
    config = make_config(num_epochs=1, model__mlp_dim=19)
    with jax.log_compiles():
        train_and_evaluate(config, tmp_path / "run")
    compiled = [r for r in caplog.messages if r.startswith("Compiling jit(mapped)")]
    assert sum("uint8[32,8,8,1]" in r and "[16," in r for r in compiled) == 1
    # At least state and batch: AdamW's two moments and the parameters.
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(step[0]))
    said = f"a training step takes {held[0] / 2**30:.2f} of each device's 1.50 GiB"
    assert f"memory   {said}" in capsys.readouterr().out
    assert held[0] > parameters


def test_what_does_not_fit_is_refused_before_anything_is_written(
    make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**10)
    config = make_config(model__remat="nothing_saveable")
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, tmp_path / "run")
    assert str(error.value) == (
        "a training step needs 0.00 GiB of each device, which has 0.00 GiB; less is "
        "needed with a smaller batch_size, a larger accumulate_steps, "
        "model.dtype=bfloat16, a smaller model or smaller images"
    )
    assert not list(tmp_path.iterdir())

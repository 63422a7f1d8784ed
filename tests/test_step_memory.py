"""What a training step holds is said before it runs, and refused where it cannot be."""

import jax
import pytest

from svda_jax import UserError
from svda_jax.config import vit_config
from svda_jax.models.vit import abstract_params
from svda_jax.train import memory
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
    config = make_config(num_epochs=1, model__mlp_dim=19)
    with jax.log_compiles():
        train_and_evaluate(config, tmp_path / "run")
    start = "Compiling jit(mapped) with global shapes and types (ShapedArray(int32[])"
    assert sum(line.startswith(start) for line in caplog.messages) == 1
    said = f"a training step takes {held[0] / 2**30:.2f} of each device's 1.50 GiB"
    assert f"memory   {said}" in capsys.readouterr().out
    # At least parameters and AdamW's two moments, in float32, and half of the batch.
    params = abstract_params(vit_config(config))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held[0] > 3 * 4 * count + 16 * 8 * 8


def test_a_compiler_without_memory_ends_in_the_same_line(
    make_config, tmp_path, monkeypatch
):
    def held_bytes(compiled):  # as a TPU v5e's compiler says it
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (42.82G) exceeds available "
            "HBM (15.75G). HLO module: jit_mapped."
        )

    monkeypatch.setattr(memory, "held_bytes", held_bytes)
    with pytest.raises(UserError, match=r"needs 42\.82 GiB .* has 15\.75"):
        train_and_evaluate(make_config(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


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
        "model.dtype=bfloat16, fsdp=True, a smaller model or smaller images"
    )
    assert not list(tmp_path.iterdir())

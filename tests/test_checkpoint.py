"""Saving and restoring, and the refusal of another model's checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.checkpoint import Checkpoints

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def state(rng):
    return {
        "step": jnp.int32(7),
        "params": {
            "blocks": {0: {"kernel": jnp.float32(rng.normal(size=(3, 5)))}},
            "bias": jnp.bfloat16(rng.normal(size=5)),
        },
        "opt_state": (None, {"mu": jnp.float32(rng.normal(size=(3, 5)))}),
    }


@pytest.fixture
def saved(tmp_path, state):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state)
    return tmp_path / "checkpoints"


def restore(path, target):
    with Checkpoints(path) as checkpoints:
        return checkpoints.restore(7, jax.eval_shape(lambda: target), SHARDING)


def test_leaving_waits_for_the_save_and_restoring_gives_the_same(saved, state):
    restored = restore(saved, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored["params"]["bias"].dtype == jnp.bfloat16


def test_some_entries_can_be_restored_alone(saved, state):
    restored = restore(saved, {"params": state["params"]})
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": state["params"]})


def test_the_newest_are_kept(tmp_path, state):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
        assert checkpoints.latest_step() == 3
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_looking_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda params: params["blocks"][0].update(kernel=jnp.ones((3, 4))),
            r"params/blocks/0/kernel is float32\[3, 5\] there and float32\[3, 4\] here",
        ),
        (
            lambda params: params.update(bias=jnp.ones(5)),
            r"params/bias is bfloat16\[5\] there and float32\[5\] here",
        ),
        (
            lambda params: params["blocks"].update({1: {"kernel": jnp.ones((3, 5))}}),
            r"params/blocks/1/kernel is absent there and float32\[3, 5\] here",
        ),
        (
            lambda params: params.pop("bias"),
            r"params/bias is bfloat16\[5\] there and absent here",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(saved, state, change, message):
    change(state["params"])
    with pytest.raises(UserError, match=message):
        restore(saved, state)

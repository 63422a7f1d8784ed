"""Saving and restoring, and the refusal of another model's checkpoint."""

import collections
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.faults.programs import damage
from svda_jax import UserError
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.verify import main as verify

# What is left of Orbax's reads that failed complains when it is deleted. On the screen
# that is kept from a user; pytest has a hook of its own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

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
        return checkpoints.restore_newest(jax.eval_shape(lambda: target), SHARDING)[1]


def test_leaving_waits_for_the_save_and_restoring_gives_the_same(saved, state):
    restored = restore(saved, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored["params"]["bias"].dtype == jnp.bfloat16


def test_some_entries_can_be_restored_alone(saved, state):
    restored = restore(saved, {"params": state["params"]})
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": state["params"]})


def test_the_newest_and_each_multiple_are_kept(tmp_path, state):
    with Checkpoints(tmp_path, keep_last=2, keep_every_steps=4) as checkpoints:
        for step in range(1, 12):
            checkpoints.save(step, state)
        assert checkpoints.steps()[0] == 11
    assert {path.name for path in tmp_path.iterdir()} == {"4", "8", "10", "11"}


@pytest.mark.parametrize("name", ["a\\b", "a\udcff"])
def test_a_path_that_arrays_would_not_lie_under_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"a path with .* cannot be used"):
        Checkpoints(tmp_path / name / "checkpoints")


def test_looking_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore_newest({}, SHARDING) == (0, None)
    assert not list(tmp_path.iterdir())


def test_buffers_may_be_given_away_while_a_save_is_under_way(tmp_path):
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros((1000, 100))
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            array = bump(array)
            checkpoints.save(step, {"params": array})
            for _ in range(20):
                array = bump(array)
    restored = restore(tmp_path, {"params": array})["params"]
    assert (restored == 4 * 21 + 1).all()


@pytest.fixture
def two(tmp_path, state):
    """A folder with checkpoints 7 and 8, of other values."""
    other = jax.tree.map(lambda x: x + 1, state)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, other)
        checkpoints.save(8, state)
    return tmp_path / "checkpoints", {7: other, 8: state}


def test_a_flipped_bit_in_the_data_is_found_and_said(two, capfd):
    path, states = two
    # The arrays lie in the largest file of d/; tensorstore itself reads it happily.
    data = max((path / "8/state/d").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 16
    data.write_bytes(content)
    with Checkpoints(path) as checkpoints:
        step, restored = checkpoints.restore_newest(
            jax.eval_shape(lambda: states[8]), SHARDING
        )
        assert step == 7
        jax.tree.map(np.testing.assert_array_equal, restored, states[7])
        captured = capfd.readouterr()
        assert f"checkpoint {path / '8'} is damaged: " in captured.out
        assert f"{path / '8'} is now 8.damaged" in captured.out
        assert captured.err == ""
        checkpoints.save(8, states[8])  # its place is free again
    assert {p.name for p in path.iterdir()} == {"7", "8", "8.damaged"}


def test_nothing_is_set_aside_in_a_folder_that_is_refused(two):
    path, states = two
    (path / "8/manifest/metadata").write_text("{}")
    target = jax.eval_shape(lambda: {"params": {"other": states[8]["params"]}})
    with (
        Checkpoints(path) as checkpoints,
        pytest.raises(UserError, match="of another model"),
    ):
        checkpoints.restore_newest(target, SHARDING)
    assert {p.name for p in path.iterdir()} == {"7", "8"}


def test_readers_leave_a_damaged_checkpoint_where_it_is(two):
    path, states = two
    (path / "8/manifest/metadata").write_text("{}")
    with Checkpoints(path) as checkpoints:
        step, _ = checkpoints.restore_newest(
            jax.eval_shape(lambda: states[8]), SHARDING, set_aside=False
        )
    assert step == 7
    assert {p.name for p in path.iterdir()} == {"7", "8"}


@pytest.mark.parametrize("set_aside", [True, False])
def test_where_all_are_damaged_nothing_begins_anew(two, set_aside):
    path, states = two
    for step in (7, 8):
        (path / f"{step}/manifest/metadata").unlink()
    for _ in range(2):  # the second time they lie aside already
        with (
            Checkpoints(path) as checkpoints,
            pytest.raises(
                UserError, match=r"every checkpoint in .* is damaged; to begin"
            ),
        ):
            checkpoints.restore_newest(
                jax.eval_shape(lambda: states[8]), SHARDING, set_aside=set_aside
            )


@pytest.mark.parametrize(
    ("first", "count"), [(0, 30), pytest.param(30, 200, marks=pytest.mark.slow)]
)
def test_fuzz(two, tmp_path, capfd, first, count):
    """Whatever byte changes or is missing: exactly one of the saved states, or 7's."""
    path, states = two
    rng = random.Random(first)
    target = jax.eval_shape(lambda: states[8])
    found = collections.Counter()
    for i in range(count):
        folder = tmp_path / f"fuzz{i}"
        damage(path, folder, rng)
        with Checkpoints(folder) as checkpoints:
            step, restored = checkpoints.restore_newest(target, SHARDING)
        jax.tree.map(np.testing.assert_array_equal, restored, states[step])
        captured = capfd.readouterr()
        assert captured.err == ""
        assert captured.out.count(f"checkpoint {folder}") == (step == 7)
        found[step] += 1
    assert found[7]  # else it damages nothing


def test_verify_lists_and_names_what_a_run_goes_on_from(two, capsys):
    path, _ = two
    verify(["--workdir", str(path.parent)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["8", "7"]
    assert all(line.endswith("MB  good") for line in lines[:2])
    assert lines[2] == "a run would go on from step 8"
    (path / "8/manifest/metadata").unlink()
    verify(["--workdir", str(path.parent)])
    lines = capsys.readouterr().out.splitlines()
    assert "MB  damaged: " in lines[0]
    assert lines[2] == "a run would go on from step 7"
    verify(["--workdir", str(path.parent), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["goes_on_from"] == 7
    newest, older = found["checkpoints"]
    assert newest["damage"] in lines[0]
    assert older["damage"] is None
    verify(["--workdir", str(path.parent), "--quiet"])
    assert capsys.readouterr().out == ""
    (path / "7/manifest/metadata").unlink()
    for flags in ([], ["--quiet"], ["--json"]):
        with pytest.raises(SystemExit, match="no good checkpoint; a run would stop"):
            verify(["--workdir", str(path.parent), *flags])
    with pytest.raises(SystemExit, match="nowhere has no checkpoints"):
        verify(["--workdir", "nowhere"])


def test_a_checkpoint_that_a_run_removes_meanwhile_is_not_called_damaged(
    two, capsys, monkeypatch
):
    path, _ = two

    def remove(self, step):
        if step == 7:
            shutil.rmtree(path / "7")
            return "not found"
        return None

    monkeypatch.setattr(Checkpoints, "verify", remove)
    verify(["--workdir", str(path.parent)])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step         8 ")
    assert last == "a run would go on from step 8"


def test_a_folder_is_read_while_a_run_removes_what_is_listed(two, monkeypatch):
    path, states = two
    create = ocp.CheckpointManager

    def remove(*args, **kwargs):
        monkeypatch.undo()
        shutil.rmtree(path / "7")
        raise FileNotFoundError(2, "No such file or directory", str(path / "7"))

    monkeypatch.setattr(ocp, "CheckpointManager", remove)
    with Checkpoints(path) as checkpoints:
        assert checkpoints.steps() == [8]
    assert ocp.CheckpointManager is create
    jax.tree.map(np.testing.assert_array_equal, restore(path, states[8]), states[8])


def test_one_that_a_run_removes_is_no_damage_and_the_newest_then_is_read(
    two, monkeypatch, capsys
):
    path, states = two
    read = Checkpoints._restore

    def remove(self, step, *args):
        if step == 8:
            (path / "8").rename(path / "9")
        return read(self, step, *args)

    monkeypatch.setattr(Checkpoints, "_restore", remove)
    with Checkpoints(path) as checkpoints:
        target = jax.eval_shape(lambda: states[8])
        step, restored = checkpoints.restore_newest(target, SHARDING)
    assert step == 9
    jax.tree.map(np.testing.assert_array_equal, restored, states[8])
    assert capsys.readouterr().out == ""


MESSAGE = r"cannot write a checkpoint to .*; what was saved before stays, up to step 2"


@pytest.mark.parametrize("told_by", ["the next save", "leaving"])
def test_a_save_that_fails_is_said_and_earlier_ones_stay(
    tmp_path, state, full_disk, told_by
):
    def save(checkpoints):
        with full_disk():
            checkpoints.save(3, state)
            if told_by == "the next save":
                checkpoints.save(4, state)
            else:
                checkpoints.__exit__(None, None, None)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=MESSAGE):
        save(checkpoints)
    with Checkpoints(tmp_path) as checkpoints:
        step, _ = checkpoints.restore_newest(jax.eval_shape(lambda: state), SHARDING)
        assert step == 2


def test_folder_removed_under_the_run(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(1, state)
    checkpoints._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        checkpoints.save(2, state)


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

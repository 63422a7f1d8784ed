"""A state split over devices: the same training step, in a share of the memory."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svda_jax.config import validate
from svda_jax.devices import parallel
from svda_jax.devices.parallel import MIN_SPLIT_SIZE
from svda_jax.train.compiled import create_timed_step, create_training
from svda_jax.train.memory import abstract_arguments

NUM_DEVICES = 8


@pytest.fixture
def config(make_config):
    """Its matrices are just large enough to be split; every gradient is clipped."""
    return make_config(
        fsdp=True,
        clip_norm=0.1,
        warmup_fraction=0.0,
        ema_decay=0.9,
        model__width=64,
        model__depth=2,
        model__scan=True,
        model__remat="nothing_saveable",
        model__mlp_dim=64,
    )


@pytest.fixture
def mesh():
    return parallel.create_mesh(jax.devices()[:NUM_DEVICES])


@pytest.fixture
def compiled(config, mesh):
    """The training step, compiled for shapes."""
    model_config = validate(config, num_devices=mesh.size)
    init, step = create_training(config, model_config, num_steps=10**6, mesh=mesh)
    state = jax.eval_shape(init, jax.random.key(0))
    key = jax.device_put(jax.random.key(0), parallel.replicated(mesh))
    return step.lower(*abstract_arguments(state, config, mesh), key).compile()


def run(state, step, num_steps=5):
    """The state after some steps, and the report of each."""
    reports = []
    for _ in range(num_steps):
        state, report = step(state)
        reports.append(report)
    return state, reports


def split_sizes(tree, mesh):
    """Sizes of the arrays that are split, of all of a tree."""
    shardings = parallel.shard(tree, mesh, fsdp=True)
    leaves = zip(*map(jax.tree.leaves, (tree, shardings)), strict=True)
    return [leaf.size for leaf, s in leaves if not s.is_fully_replicated]


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ((64, 64), (8, 64)),
        ((64, 128), (64, 16)),
        ((3, 16, 128), (3, 16, 16)),
        ((7, 16, 1001), (7, 2, 1001)),  # 8 does not divide the largest
        ((63, 65), (63, 65)),  # one number too few
        ((4097,), (4097,)),
        ((), ()),
    ],
)
def test_a_large_array_is_split_along_its_largest_axis_that_can_be(mesh, shape, share):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert parallel.shard(leaf, mesh, fsdp=True).shard_shape(shape) == share
    assert parallel.shard(leaf, mesh, fsdp=False).is_fully_replicated


def assert_close(actual, expected):
    """Within float32 sums in another order, through five steps of Adam, which divides
    small gradients by their own size: a share of an array's largest entry."""
    limit = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def test_steps_are_those_of_one_device_that_has_it_whole(config, mesh):
    """AdamW's moments too: parameters alone hardly show how long a gradient is."""
    state, reports = run(*create_timed_step(config, mesh))
    with config.unlocked():
        config.fsdp = config.model.scan = False
        config.model.remat = "none"
    one = parallel.create_mesh(jax.devices()[:1])
    expected, expected_reports = run(*create_timed_step(config, one))
    for report, other in zip(reports, expected_reports, strict=True):
        assert report.gradient_norm > config.clip_norm
        np.testing.assert_allclose(report, other, rtol=1e-5)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(assert_close, getattr(state, name), getattr(expected, name))


def test_each_device_holds_its_share(config, mesh, compiled):
    state, step = create_timed_step(config, mesh)
    for _ in range(2):
        held = dict.fromkeys(mesh.devices.flat, 0)
        for leaf in jax.tree.leaves(state):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        # Parameters, two moments and an average; what is small is whole.
        count = 4 * sum(split_sizes(state.params, mesh))
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert count * 4 > 0.8 * total
        assert set(held.values()) == {total - count * 4 * 7 // 8}
        state, _ = step(state)
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 0.4 * total
    assert memory.alias_size_in_bytes > 0.95 * max(held.values())  # updated in place


def test_parameters_are_gathered_once_and_gradients_scattered(config, mesh, compiled):
    """Nothing else that is large goes between devices."""
    found = {}
    for shapes, name in re.findall(
        r"= (.*?) (all-\w+|reduce-scatter|collective-permute)\(", compiled.as_text()
    ):
        sizes = re.findall(r"\w\[([\d,]*)\]", shapes)
        found.setdefault(name, []).extend(
            math.prod(map(int, filter(None, s.split(",")))) for s in sizes
        )
    state, _ = create_timed_step(config, mesh)
    split = split_sizes(state.params, mesh)
    assert sorted(found.pop("all-gather")) == sorted(split)
    assert sorted(found.pop("reduce-scatter")) == sorted(s // 8 for s in split)
    assert max(found.pop("all-reduce")) < MIN_SPLIT_SIZE
    assert not found


def test_a_step_that_is_not_finite_leaves_every_share(config, mesh):
    state, step = create_timed_step(config, mesh)
    state, _ = step(state)
    kernel = state.params["blocks"][0]["mlp"]["out"]["kernel"]
    assert not kernel.is_fully_replicated
    state.params["blocks"][0]["mlp"]["out"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    before = jax.device_get(state)
    after, report = step(state)
    assert report.skipped_in_a_row == after.skipped == 1
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
        )

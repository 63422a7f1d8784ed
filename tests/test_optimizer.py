"""The schedule, AdamW with its masks, and the labels of sigma."""

import flax
import jax
import numpy as np
import optax
import pytest
import reference
from flax import nnx

from svda_jax.models.attention import Attention, label_sigma
from svda_jax.train.optimizer import create_optimizer, create_schedule


def test_schedule_warms_up_and_decays_along_a_cosine():
    schedule = create_schedule(0.5, num_steps=110, warmup_steps=10)
    assert schedule(0) == 0
    assert schedule(5) == pytest.approx(0.25)
    assert schedule(10) == pytest.approx(0.5)
    assert schedule(35) == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)) / 2)
    assert schedule(60) == pytest.approx(0.25)
    assert schedule(110) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 23])
def test_schedule_leaves_a_step_to_decay(num_steps):
    schedule = create_schedule(0.5, num_steps=num_steps, warmup_steps=num_steps)
    assert schedule(num_steps - 1) == pytest.approx(0.5)
    assert schedule(num_steps) == pytest.approx(0, abs=1e-7)


def run(
    params,
    grads,
    *,
    clip_norm=1e9,
    schedule=lambda step: 0.1,
    scale=10.0,
    sigma_decay=0.0,
):
    optimizer = create_optimizer(
        schedule,
        weight_decay=0.01,
        clip_norm=clip_norm,
        spectrum_lr_scale=scale,
        spectrum_weight_decay=sigma_decay,
    )
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture
def params(rng):
    shapes = {"kernel": (3, 5), "bias": (5,), "relative_sigma": (2, 3), "scale": (5,)}
    return {"layer": {k: np.float32(rng.normal(size=v)) for k, v in shapes.items()}}


@pytest.mark.parametrize("sigma_decay", [0.0, 0.3])
def test_equals_adamw_with_decays_and_faster_sigma(params, rng, sigma_decay):
    grads = [
        jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), params)
        for _ in range(4)
    ]
    out = run(
        params,
        grads,
        schedule=lambda step: 0.1 / (1 + step),
        sigma_decay=sigma_decay,
    )["layer"]
    decays = {"kernel": 0.01, "relative_sigma": sigma_decay}
    rates = [0.1 / (1 + step) for step in range(4)]
    for name, value in params["layer"].items():
        expected = reference.adamw(
            value,
            [grad["layer"][name] for grad in grads],
            learning_rates=[10 * r if name == "relative_sigma" else r for r in rates],
            decay=decays.get(name, 0.0),
        )
        # In float32 the first bias correction, 1 - 0.999, is off by 6e-5, its root by
        # half of that; the updates add up to at most 2.
        np.testing.assert_allclose(out[name], expected, rtol=0, atol=6e-5)


def test_scale_zero_freezes_sigma_alone(params):
    grads = jax.tree.map(np.ones_like, params)
    out = run(params, [grads], scale=0.0)["layer"]
    np.testing.assert_array_equal(
        out["relative_sigma"], params["layer"]["relative_sigma"]
    )
    assert not np.array_equal(out["kernel"], params["layer"]["kernel"])


def test_clipping_is_by_the_global_norm(params):
    # Adam undoes one scale for all steps, not one for each: clip only the second.
    small = jax.tree.map(lambda p: np.full_like(p, 0.001), params)
    large = jax.tree.map(lambda p: np.full_like(p, 100.0), params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    clipped = jax.tree.map(lambda p: np.full_like(p, 1 / np.sqrt(size)), params)
    actual = run(params, [small, large], clip_norm=1.0)
    expected = run(params, [small, clipped])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        actual,
        expected,
    )


TREES = {
    "dict": lambda params: {"blocks": [params, params], "head": {"kernel": np.ones(2)}},
    "linen": lambda params: flax.core.freeze({"Dense_0": params, "scale": np.ones(2)}),
    "nnx": lambda _: nnx.state(Attention(6, 2, spectrum_init="ones", rngs=nnx.Rngs(0))),
    "model": lambda _: Attention(6, 2, spectrum_init="ones", rngs=nnx.Rngs(0)),
    "leaf": lambda _: {"relative_sigma": np.ones((2, 3)), "sigma": np.ones(2)},
    "none": lambda _: {"kernel": np.ones((2, 3)), "relative_sigma_of": np.ones(2)},
}


@pytest.mark.parametrize("name", TREES)
def test_labels_give_sigma_its_rate_and_change_nothing_else(params, name):
    tree = TREES[name](params)
    rules = {"sigma": optax.adam(0.5), "rest": optax.adamw(0.1, weight_decay=0.2)}
    gradient = jax.tree.map(np.ones_like, tree)
    both, of_sigma, of_rest = (
        jax.tree.leaves(rule.update(gradient, rule.init(tree), tree)[0])
        for rule in (optax.multi_transform(rules, label_sigma), *rules.values())
    )
    labels = jax.tree.leaves(label_sigma(tree))
    assert ("sigma" in labels) == (name != "none")
    for label, one, *expected in zip(labels, both, of_sigma, of_rest, strict=True):
        assert label == "rest" or one.shape == (2, 3)
        # The last bit of an update of 0.5.
        np.testing.assert_allclose(one, expected[label == "rest"], rtol=0, atol=1e-7)

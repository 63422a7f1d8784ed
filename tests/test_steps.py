"""One training and one evaluation step, on one device and on several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx

from svda_jax.devices import parallel
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.train import steps
from svda_jax.train.optimizer import create_optimizer

B = 16


@pytest.fixture
def batch(rng):
    return {
        "image": rng.integers(0, 256, size=(B, 6, 6, 2)).astype(np.uint8),
        "label": rng.integers(0, 7, size=B).astype(np.int32),
    }


def schedule(step):
    return 1e-2


ADAMW = create_optimizer(
    schedule, weight_decay=0.05, clip_norm=1.0, spectrum_lr_scale=10.0
)


@functools.cache  # compiling takes seconds
def compile_step(
    config, *, optimizer=ADAMW, num_devices=1, augment=None, ema=False, **options
):
    """A function that makes fresh states, and the compiled step."""
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    step = functools.partial(
        steps.train_step,
        graphdef=create_graphdef(config, choose(mesh.devices.flat[0])),
        optimizer=optimizer,
        schedule=schedule,
        augment=augment or (lambda images, targets, keys: (images, targets)),
        **{
            "label_smoothing": 0.1,
            "orthonormality_weight": 0.0,
            "score_entropy_weight": 0.0,
            "accumulate_steps": 1,
            **options,
        },
    )
    init = functools.partial(steps.create_train_state, config, optimizer, ema=ema)
    state = jax.device_get(jax.jit(init)(jax.random.key(0)))
    return (
        lambda: jax.device_put(state, parallel.replicated(mesh)),
        parallel.pmap(step, mesh, split_argnums=(1,), donate_argnums=(0,)),
    )


@functools.cache
def compile_evaluate(config, num_devices=1):
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    graphdef = create_graphdef(config, choose(mesh.devices.flat[0]))
    evaluate = functools.partial(steps.eval_step, graphdef=graphdef, noise_scale=0.1)
    return parallel.pmap(evaluate, mesh, split_argnums=(1,))


def run(config, batch, num_steps=5, **options):
    """Parameters after some steps and the mean loss over them."""
    create, step = compile_step(config, **options)
    state = create()
    for _ in range(num_steps):
        state, report = step(state, batch, jax.random.key(1))
        assert report.skipped_in_a_row == 0
    assert step._cache_size() == 1
    return jax.device_get(state.params), float(state.metrics.compute()["loss"])


def initial_params(config):
    return jax.device_get(compile_step(config)[0]().params)


def assert_trees_close(a, b, tolerance):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), a, b
    )


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_loss_equals_reference(make_model_config, batch, randomize):
    """The loss that a step reports, with label smoothing."""
    config = make_model_config()
    create, step = compile_step(config, label_smoothing=0.3)
    params = jax.device_get(randomize(initial_params(config)))
    state = dataclasses.replace(create(), params=params)
    state, _ = step(state, batch, jax.random.key(1))
    model = nnx.merge(create_graphdef(config), params)
    logits = np.asarray(model(batch["image"])[0])
    expected = reference.cross_entropy(logits, batch["label"], 0.3).mean()
    assert state.metrics.compute()["loss"] == pytest.approx(expected, rel=1e-5)


def test_first_loss_is_that_of_a_zero_head(make_model_config, batch):
    _, loss = run(make_model_config(), batch, num_steps=1)
    assert loss == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_learns_a_batch_by_heart(make_model_config, batch, attention):
    config = make_model_config(attention=attention)
    params, _ = run(config, batch, num_steps=150)
    masked = {**batch, "mask": np.ones(B, bool)}
    metrics = compile_evaluate(config)(params, masked, jax.random.key(0)).compute()
    assert metrics["accuracy"] == 1
    assert metrics["loss"] < 0.2  # label smoothing keeps it from 0


def test_same_key_gives_identical_parameters(make_model_config, batch):
    config = make_model_config(dropout=0.3, drop_path=0.3)
    first, second = run(config, batch), run(config, batch)
    assert_trees_equal(first, second)


# Float32 sums in another order, through 5 Adam steps of size 0.01, which divide small
# gradients by their own size.
ORDER_TOLERANCE = 1e-4


@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_devices_do_not_matter(make_model_config, batch, num_devices):
    config = make_model_config(dropout=0.3, drop_path=0.3)
    params, loss = run(config, batch)
    params_, loss_ = run(config, batch, num_devices=num_devices)
    assert loss_ == pytest.approx(loss, rel=1e-6)
    assert_trees_close(params_, params, ORDER_TOLERANCE)


@pytest.mark.parametrize(("num_devices", "accumulate_steps"), [(1, 4), (2, 2)])
def test_accumulation_does_not_matter(
    make_model_config, batch, num_devices, accumulate_steps
):
    config = make_model_config(dropout=0.3, drop_path=0.3)
    # Devices split first: which images make a part differs, their sum does not.
    params, loss = run(config, batch)
    params_, loss_ = run(
        config, batch, num_devices=num_devices, accumulate_steps=accumulate_steps
    )
    assert loss_ == pytest.approx(loss, rel=1e-6)
    assert_trees_close(params_, params, ORDER_TOLERANCE)


def test_images_are_augmented_each_with_its_own_key(make_model_config, batch):
    seen = []

    def augment(images, targets, keys):
        jax.debug.callback(lambda data: seen.append(data), jax.random.key_data(keys))
        return images, targets

    run(make_model_config(), batch, num_steps=2, augment=augment)
    jax.effects_barrier()
    keys = np.concatenate(seen)
    assert len(np.unique(keys, axis=0)) == 2 * B


@pytest.mark.parametrize(
    ("option", "penalty"),
    [
        ("orthonormality_weight", ViT.orthonormality_penalty),
        ("score_entropy_weight", ViT.score_entropy),
    ],
)
def test_loss_gradient_includes_a_weighted_penalty(
    make_model_config, batch, option, penalty
):
    config = make_model_config()
    sgd = optax.sgd(1.0)
    plain, _ = run(config, batch, 1, optimizer=sgd)
    penalised, _ = run(config, batch, 1, optimizer=sgd, **{option: 0.7})
    initial = initial_params(config)
    graphdef = create_graphdef(config)
    grad = jax.jit(jax.grad(lambda p: penalty(nnx.merge(graphdef, p))))(initial)
    expected = jax.tree.map(lambda p, g: p - 0.7 * g, plain, grad)
    assert_trees_close(penalised, expected, 1e-5)


def test_moving_average_of_the_parameters(make_model_config, batch):
    create, step = compile_step(make_model_config(), ema=True, ema_decay=0.4)
    state = create()
    assert_trees_equal(state.ema, state.params)
    expected = jax.device_get(state.params)
    for number in range(6):
        state, _ = step(state, batch, jax.random.key(1))
        decay = min(0.4, (1 + number) / (10 + number))  # 0.1, 0.18, ... 0.4
        expected = jax.tree.map(
            lambda ema, new, decay=decay: decay * ema + (1 - decay) * new,
            expected,
            jax.device_get(state.params),
        )
    assert_trees_close(state.ema, expected, 1e-6)  # float32, six steps
    assert_trees_equal(state.eval_params, state.ema)
    plain, _ = run(make_model_config(), batch, num_steps=6)
    assert_trees_equal(state.params, plain)


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_model_config, batch):
    create, step = compile_step(make_model_config())
    state, report = step(create(), batch, jax.random.key(1))
    assert report.skipped_in_a_row == 0
    before = jax.device_get(state)
    poisoned = jax.tree.map(lambda x: x, before.params)
    poisoned["head"]["bias"] = poisoned["head"]["bias"] * np.nan
    poisoned = dataclasses.replace(before, params=poisoned)
    for count in (1, 2):
        after, report = step(poisoned, batch, jax.random.key(1))
        after = jax.device_get(after)
        assert (
            report.skipped_in_a_row == after.skipped_in_a_row == after.skipped == count
        )
        assert after.step == poisoned.step + 1
        for name in ("params", "opt_state", "metrics"):
            assert_trees_equal(getattr(after, name), getattr(poisoned, name))
        poisoned = after
    mended = dataclasses.replace(poisoned, params=before.params)
    after, report = step(mended, batch, jax.random.key(1))
    assert report.skipped_in_a_row == after.skipped_in_a_row == 0
    assert after.skipped == 2


@pytest.mark.parametrize("num_devices", [1, 4])
def test_evaluation_counts_masked_images_only(
    make_model_config, batch, randomize, num_devices
):
    config = make_model_config()
    graphdef = create_graphdef(config)
    params = randomize(initial_params(config))
    masked = {**batch, "mask": np.arange(B) < 11}
    metrics = compile_evaluate(config, num_devices)(params, masked, jax.random.key(0))
    logits = np.asarray(nnx.merge(graphdef, params)(batch["image"][:11])[0])
    labels = batch["label"][:11]
    assert metrics.accuracy.count == 11
    result = metrics.compute()
    assert result["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
    expected = reference.cross_entropy(logits, labels).mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_measured_spectrum(make_model_config, attention, randomize):
    config = make_model_config(attention=attention)
    params = randomize(initial_params(config))
    measured = jax.jit(
        functools.partial(steps.measure_parameters, graphdef=create_graphdef(config))
    )(params)
    for layer in range(2):
        block = params["blocks"][layer]["attention"]
        if attention == "svda":
            expected = 5 * block["relative_sigma"]  # matched start: c = K = 5
        else:
            expected = reference.singular_values(
                block["query"]["kernel"], block["key"]["kernel"]
            )
        np.testing.assert_allclose(
            measured["spectrum"][layer], expected, rtol=1e-4, atol=1e-6
        )
    penalties = [
        reference.orthonormality_penalty(np.asarray(block["attention"][name]["kernel"]))
        for block in params["blocks"].values()
        for name in ("query", "key")
    ]
    assert measured["orthonormality"] == pytest.approx(np.mean(penalties), rel=1e-4)
    assert measured["orthonormality"].dtype == jnp.float32

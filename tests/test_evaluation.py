"""Evaluation of a whole split: exact, whatever the batches and devices."""

import functools

import jax
import numpy as np
import pytest
import reference
from flax import nnx

from svda_jax.config import recipe
from svda_jax.data.in_memory import Examples, InMemory
from svda_jax.devices import parallel
from svda_jax.models import indicators as I
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.run.events import EventWriter
from svda_jax.train.compiled import _by_class, create_evaluate, draw_pictures
from svda_jax.train.metrics import Confusion


def assert_close(actual, expected):
    # Float32 sums over 23 images in another order, of values up to K = 5.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@functools.cache
def evaluation(config, batch_size, num_devices=1, num_images=23):
    """What an evaluation over random images measures, and those images."""
    rng = np.random.default_rng(0)
    examples = Examples(
        rng.integers(0, 256, size=(num_images, 6, 6, 2)).astype(np.uint8),
        rng.integers(0, 7, size=num_images).astype(np.int32),
        class_names=(),
        skipped={},
    )
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    data = InMemory(examples, batch_size=batch_size, mesh=mesh)
    evaluate = create_evaluate(
        data,
        create_graphdef(config),
        mesh,
        key=jax.device_put(jax.random.key(5), parallel.replicated(mesh)),
        noise_scale=0.1,
    )
    return evaluate, examples


@pytest.fixture
def make_params(randomize):
    def make(config):
        model = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0)))
        return randomize(nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    return make


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_evaluation_is_the_mean_over_single_images(
    make_model_config, make_params, attention
):
    config = make_model_config(attention=attention)
    params = make_params(config)
    evaluate, examples = evaluation(config, 8)
    measured = evaluate(params)
    assert measured["indicators"].shape == (6, 2, 3)
    model = nnx.merge(create_graphdef(config), params)
    one = jax.jit(
        lambda image: [
            I.measure(jax.random.key(5), 0.1, None, layer, trace, trace.key)[1][
                "indicators"
            ]
            | I.compute_indicators({"spectrum": model.blocks[layer].attention.spectrum})
            for layer, trace in enumerate(model(image[None])[1])
        ]
    )
    rows = [one(image) for image in examples.images]
    for i, name in enumerate(I.INDICATORS):
        for layer in range(2):
            values = np.stack([np.ravel(row[layer][name]) for row in rows])
            assert_close(measured["indicators"][i, layer], values.mean(0))
    again = evaluate(params)
    for name, value in measured.items():
        np.testing.assert_array_equal(value, again[name])


def test_evaluation_of_a_score_that_is_not_finite_says_nan(
    make_model_config, make_params, tmp_path
):
    params = make_params(make_model_config())
    bias = params["blocks"][1]["attention"]["query"]["bias"]
    params["blocks"][1]["attention"]["query"]["bias"] = bias.at[0].set(np.inf)
    measured = evaluation(make_model_config(), 8)[0](params)
    for name in ("score_spectrum", "score_entropy", "score_strength"):
        assert np.isfinite(measured[name][0]).all(), name
        assert np.isnan(measured[name][1, 0]).all(), name
        assert np.isfinite(measured[name][1, 1:]).all(), name
    of_none = measured | {"score_spectrum": np.full((2, 3, 5), np.nan)}
    assert np.isnan(I.of_score(of_none["score_spectrum"])["score_strength"]).all()
    draw_pictures([], [], [], "svda", of_none)
    with EventWriter(tmp_path, recipe("digits"), last_step=0) as events:
        events.write(1, of_none)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_spectrum_of_the_score_is_that_of_all_scores_of_the_split(
    make_model_config, make_params, attention
):
    config = make_model_config(attention=attention)
    params = make_params(config)
    evaluate, examples = evaluation(config, 8)
    measured = evaluate(params)
    model = nnx.merge(create_graphdef(config), params)
    for layer, trace in enumerate(model(examples.images)[1]):
        score = measured["score_spectrum"][layer]
        expected = reference.score_spectrum(trace.query, trace.key, trace.sigma)
        # Small ones are square roots of what float32 rounds.
        np.testing.assert_allclose(score, expected, atol=2e-3 * expected.max())
        np.testing.assert_allclose(
            measured["score_strength"][layer],
            np.sqrt(np.sum(expected**2, axis=-1)),
            rtol=1e-5,
        )
        for name, function in (
            ("score_entropy", reference.spectral_entropy),
            ("score_rank", reference.effective_rank),
            ("score_sparsity", reference.spectral_sparsity),
            ("score_retained_rank", lambda s: reference.retained_rank(s, 0.9)),
        ):
            values = np.apply_along_axis(function, -1, score)
            np.testing.assert_allclose(measured[name][layer], values, rtol=1e-5)


def test_directions_that_a_layer_does_not_have_are_missing(
    make_model_config, make_params
):
    config = make_model_config(qk_dim=(3, 2))
    measured = evaluation(config, 8)[0](make_params(config))
    for name in ("spectrum", "score_spectrum", "weight_spectrum"):
        there = np.isfinite(measured[name])
        assert there[0].all()
        assert there[1, :, :2].all()
        assert not there[1, :, 2:].any()
    assert np.isfinite(measured["score_rank"]).all()


def test_images_are_counted_by_true_and_predicted_class(
    make_model_config, make_params, monkeypatch
):
    config = make_model_config()
    params = make_params(config)
    evaluate, examples = evaluation(config, 8)
    logits = nnx.merge(create_graphdef(config), params)(examples.images)[0]
    expected = np.zeros((7, 7), int)
    for true, predicted in zip(examples.labels, logits.argmax(-1), strict=True):
        expected[true, predicted] += 1
    measured = evaluate(params)
    np.testing.assert_array_equal(measured["confusion"], expected)
    totals = zip(expected.diagonal(), expected.sum(-1), strict=True)
    right = [right / total if total else np.nan for right, total in totals]
    np.testing.assert_allclose(measured["class_accuracy"], right, rtol=1e-6)
    assert expected.trace() / 23 == pytest.approx(measured["eval_accuracy"])
    monkeypatch.setattr("svda_jax.train.metrics.MAX_CONFUSED", 6)
    output = {"logits": logits, "labels": examples.labels, "mask": np.arange(23) < 20}
    counts = Confusion.from_model_output(**output).compute()
    assert counts.shape == (7, 2)
    right = logits.argmax(-1) == examples.labels
    np.testing.assert_array_equal(counts[:, 1].sum(), right[:20].sum())
    of_classes = _by_class(np.asarray(counts))
    assert of_classes.keys() == {"class_accuracy"}
    for label, accuracy in enumerate(of_classes["class_accuracy"]):
        there = examples.labels[:20] == label
        expected = right[:20][there].mean() if there.any() else np.nan
        np.testing.assert_allclose(accuracy, expected)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(23, 1), (4, 1), (8, 4)])
def test_batches_and_devices_do_not_matter(
    make_model_config, make_params, batch_size, num_devices
):
    config = make_model_config()
    params = make_params(config)
    expected = evaluation(config, 8)[0](params)
    measured = evaluation(config, batch_size, num_devices)[0](params)
    for name, value in expected.items():
        assert_close(measured[name], value)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_logits_are_the_same_with_and_without(
    make_model_config, make_params, attention
):
    config = make_model_config(attention=attention)
    ops = choose(jax.devices()[0])
    graphdef, params = create_graphdef(config, ops), make_params(config)
    images = evaluation(config, 8)[1].images

    @jax.jit
    def alone(params, images):
        return nnx.merge(graphdef, params)(images)[0]

    @jax.jit
    def together(params, images):
        measure = functools.partial(I.measure, jax.random.key(0), 0.1, None)
        logits, traces = nnx.merge(graphdef, params)(images, measure=measure)
        return logits, [trace.indicators for trace in traces]

    np.testing.assert_array_equal(alone(params, images), together(params, images)[0])

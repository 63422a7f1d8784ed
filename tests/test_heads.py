"""Indicators of heads in one call: what an evaluation measures of the same layer."""

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.devices import parallel
from svda_jax.models.attention import singular_values
from svda_jax.models.heads import head_indicators
from svda_jax.models.indicators import INDICATORS
from svda_jax.models.vit import ViT
from svda_jax.train.compiled import create_evaluate

B, N, H, K = 3, 7, 4, 5
OF_SCORE = {
    *("score_entropy", "score_rank", "score_sparsity"),
    *("score_retained_rank", "score_strength", "score_spectrum"),
}


def assert_close(actual, expected):
    # Float32 sums over images in another order, of values up to K = 5.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def qk(rng):
    return np.float32(rng.normal(size=(2, B, N, H, K)))


@pytest.fixture
def sigma(rng):
    return np.float32(rng.normal(size=(H, K)) * K)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_they_equal_those_of_an_evaluation(
    make_model_config, randomize, data, images, attention
):
    model = ViT(make_model_config(attention=attention), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    params = randomize(nnx.to_pure_dict(params))
    mesh = parallel.create_mesh(jax.devices()[:1])
    key = jax.random.key(5)
    measured = create_evaluate(
        data,
        graphdef,
        mesh,
        key=jax.device_put(key, parallel.replicated(mesh)),
        noise_scale=0.2,
    )(params)
    model = nnx.merge(graphdef, params)
    for layer, trace in enumerate(jax.jit(lambda x: model(x)[1])(images)):
        block = model.blocks[layer].attention
        found = head_indicators(
            trace.query,
            trace.key,
            trace.sigma,
            spectrum=None if attention == "svda" else block.spectrum,
            rng=key,
            noise_scale=0.2,
            layer=layer,
        )
        assert found.keys() == INDICATORS.keys() | OF_SCORE
        for i, name in enumerate(INDICATORS):
            assert_close(found[name], measured["indicators"][i, layer])
        for name in OF_SCORE:
            assert_close(found[name], measured[name][layer])


def test_softmax_attention_has_those_of_the_spectrum_where_it_is_given(qk, rng):
    query, key = qk
    without = head_indicators(query, key)
    spectral = {"spectral_entropy", "effective_rank", "spectral_sparsity"}
    assert without.keys() == (INDICATORS.keys() | OF_SCORE) - spectral
    kernels = np.float32(rng.normal(size=(2, 23, H, K)))
    found = head_indicators(query, key, spectrum=singular_values(*kernels))
    assert found.keys() == without.keys() | spectral


def test_leading_axes_are_images_and_grouped_heads_repeated_ones(qk, sigma):
    query, key = qk
    expected = head_indicators(query, np.repeat(key[..., :2, :], 2, axis=-2), sigma)
    found = head_indicators(query[:, None], key[:, None, ..., :2, :], sigma)
    for name, value in expected.items():
        assert_close(found[name], value)
    single = [head_indicators(*one, sigma) for one in zip(*qk, strict=True)]
    for name in ("angular_alignment", "perturbation_robustness"):
        mean = np.mean([one[name] for one in single], axis=0)
        assert_close(mean, head_indicators(*qk, sigma)[name])


def test_two_calls_agree_and_noise_of_another_key_does_not(qk, sigma):
    one, same, other, none = (
        head_indicators(*qk, sigma, **options)["perturbation_robustness"]
        for options in (
            *({}, {"rng": jax.random.key(0)}, {"rng": jax.random.key(1)}),
            {"noise_scale": 0.0},
        )
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()
    np.testing.assert_array_equal(none, np.ones(H))


def test_mistakes_are_one_line(qk, sigma):
    query, key = qk
    with pytest.raises(UserError, match="sigma has shape"):
        head_indicators(query, key, sigma[0])
    with pytest.raises(UserError, match="spectrum has shape"):
        head_indicators(query, key, spectrum=sigma[0])
    with pytest.raises(UserError, match="7 tokens and key 6"):
        head_indicators(query, key[:, 1:], sigma)
    with pytest.raises(UserError, match="nothing to measure"):
        head_indicators(query[:0], key[:0], sigma)
    with pytest.raises(UserError, match="they take"):
        head_indicators(query[0, 0], key[0, 0], sigma)
    with pytest.raises(UserError, match="outside of jit"):
        jax.jit(head_indicators)(query, key, sigma)

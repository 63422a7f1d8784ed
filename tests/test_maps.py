"""Attention maps and rollout against loops over the reference weights."""

import jax
import numpy as np
import pytest
import reference
from flax import nnx

from svda_jax.look import maps
from svda_jax.models.attention import Trace
from svda_jax.models.vit import ViT, create_graphdef

B, H, K, L, G = 2, 3, 5, 3, 3


def make_traces(rng, num_tokens):
    query, key = np.float32(rng.normal(size=(2, L, B, num_tokens, H, K)))
    sigma = np.float32(rng.normal(size=(L, H, K)) * K)
    return [Trace(*one) for one in zip(query, key, sigma, strict=True)]


@pytest.fixture(params=["gap", "cls"])
def pool(request):
    return request.param


@pytest.fixture
def case(make_model_config, rng, pool):
    config = make_model_config(pool=pool)
    return make_traces(rng, G * G + (pool == "cls")), config


def received(weights, pool):
    """`[N, N]` weights -> `[G, G]`, what each patch gets."""
    if pool == "cls":
        return len(weights) * weights[0, 1:].reshape(G, G)
    return len(weights) * weights.mean(0).reshape(G, G)


def test_maps_are_what_each_patch_gets(case, pool):
    traces, config = case
    out = maps.attention_maps(traces, config)
    assert out.shape == (B, L, H, G, G)
    for layer, trace in enumerate(traces):
        weights = reference.attention_weights(trace.query, trace.key, trace.sigma)
        for b, h in np.ndindex(B, H):
            expected = received(weights[b, h], pool)
            np.testing.assert_allclose(out[b, layer, h], expected, atol=3e-5)
    if pool == "gap":  # all attention is on patches: the mean is that of uniform
        np.testing.assert_allclose(out.mean((-2, -1)), 1, atol=1e-5)


def test_rollout_is_the_product_of_all_layers(case, pool):
    traces, config = case
    out = maps.attention_rollout(traces, config)
    for b in range(B):
        product = np.eye(G * G + (pool == "cls"))
        for trace in traces:
            weights = reference.attention_weights(trace.query, trace.key, trace.sigma)
            mixed = 0.5 * weights[b].mean(0) + 0.5 * np.eye(len(product))
            product = mixed @ product
        np.testing.assert_allclose(out[b], received(product, pool), atol=3e-5)


def test_look_gives_probabilities_and_maps(make_model_config, randomize, rng):
    config = make_model_config()
    model = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0)))
    params = randomize(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    images = rng.integers(0, 256, size=(B, 6, 6, 2)).astype(np.uint8)
    probabilities, grids, rollout = jax.jit(maps.look, static_argnames="graphdef")(
        params, images, graphdef=create_graphdef(config)
    )
    assert probabilities.shape == (B, 7)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert grids.shape == (B, 2, 3, G, G)
    assert rollout.shape == (B, G, G)

"""Unit vectors and layer normalisation: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax.models.normalization import EPSILON, LayerNorm, normalize

K = 7


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_normalize_gives_unit_vectors_at_any_length(rng, scale):
    x = normalize(np.float32(scale * rng.normal(size=(5, K))))
    np.testing.assert_allclose(
        np.linalg.norm(x, axis=-1), np.ones(5), rtol=0, atol=2e-6
    )


def plain_normalize(x):
    length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), EPSILON**2))
    return x / length


def test_gradient_of_normalize_equals_that_of_the_plain_equation(rng):
    x = np.float32(rng.normal(size=(4, K)))
    x[1] *= 0.3 * EPSILON / np.linalg.norm(x[1])  # shorter than what is let through
    x[2] *= 1e4
    direction = np.float32(rng.normal(size=x.shape))
    _, actual = jax.vjp(normalize, x)
    _, expected = jax.vjp(plain_normalize, x)
    # Rounding of a sum of K = 7 products.
    np.testing.assert_allclose(
        actual(direction)[0], expected(direction)[0], rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(
        actual(direction)[0][1] * EPSILON, direction[1], rtol=0, atol=1e-6
    )


def test_gradient_of_normalize_at_zero_is_that_of_a_product():
    zero, direction = jnp.zeros((1, K)), jnp.ones((1, K))
    (grad,) = jax.vjp(normalize, zero)[1](direction)
    np.testing.assert_allclose(grad, direction / EPSILON, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_equals_the_plain_equation(rng, dtype):
    """Values and gradients, at ordinary, constant and hardly varying rows."""
    x = np.float32(rng.normal(size=(5, 13)) * 3 + 1)
    x[1] = 2
    x[2] = 2 + 2**-10 * np.round(x[2])
    direction = np.float32(rng.normal(size=x.shape))
    params = {name: np.float32(rng.normal(size=13)) for name in ("bias", "scale")}
    graphdef = nnx.split(LayerNorm(13, dtype=dtype, rngs=nnx.Rngs(0)))[0]

    def plain(params, x):
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return (x * params["scale"] + params["bias"]).astype(dtype)

    results = []
    for function in (plain, lambda params, x: nnx.merge(graphdef, params)(x)):
        out, vjp = jax.vjp(function, params, jnp.asarray(x, dtype))
        results.append(jax.tree.leaves((out, vjp(jnp.asarray(direction, dtype)))))
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        # Of the largest entry: a float32 near 2 is rounded to 2^-23, which is 1e-4 of
        # the third row's deviation; a bfloat16 result has 8 bits.
        tolerance = 5e-4 if expected.dtype == jnp.float32 else 1e-2
        actual, expected = np.float32(actual), np.float32(expected)
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def test_layer_norm_equals_flax(rng):
    x = np.float32(rng.normal(size=(5, 13)) * 3 + 1)
    ours, flax = (layer(13, rngs=nnx.Rngs(0)) for layer in (LayerNorm, nnx.LayerNorm))
    # Float32 rounding; Flax takes the variance as E x^2 - (E x)^2.
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-5, atol=1e-5)

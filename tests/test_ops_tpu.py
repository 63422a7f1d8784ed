"""The TPU's kernel, interpreted, against the equations in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import assert_observes_as_plain, pull_back

from svda_jax.models.ops import plain, tpu
from svda_jax.models.ops.tpu_kernels import count_stacked

SHAPES = {  # B, N, H, K, V, images that are stacked in a program
    "primes": (3, 11, 3, 7, 7, 1),
    "a group and a part": (2, 5, 11, 16, 16, 1),
    "fewer directions than values": (2, 9, 5, 3, 31, 1),
    "a head wider than the lanes": (1, 7, 2, 131, 131, 1),
    "more tokens than lanes": (1, 131, 2, 4, 4, 1),
    "three images of six": (6, 32, 3, 8, 8, 3),
    "two images": (4, 64, 5, 3, 7, 2),
}


pytestmark = pytest.mark.usefixtures("interpreted")


def create_operands(rng, shape, dtype):
    """Query, key, value, sigma and a direction; rows of zeros and short ones."""
    b, n, h, k, v, _ = SHAPES[shape]
    query, key = rng.normal(size=(2, b, n, h, k))
    value, direction = rng.normal(size=(2, b, n, h, v))
    query[0, 0, 0], key[0, -1, -1] = 0, 0
    # Of half the length that still normalises to one.
    query[0, 1] *= 0.5 * plain.EPSILON / np.linalg.norm(query[0, 1], axis=-1)[:, None]
    arrays = [jnp.asarray(x, dtype) for x in (query, key, value)]
    sigma = jnp.asarray(rng.normal(size=(h, k)), jnp.float32)
    return (*arrays, sigma), jnp.asarray(direction, dtype)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_plain(rng, shape, unit):
    operands, direction = create_operands(rng, shape, "float32")
    batch, num_tokens, *_, stacked = SHAPES[shape]
    assert count_stacked(batch, num_tokens, "float32") == stacked
    results = []
    for attend in (tpu.attend, plain.attend):
        results.append(
            pull_back(functools.partial(attend, unit=unit), operands, direction)
        )
    for actual, expected in zip(*results, strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        # Rounding of float32 in sums of up to 131 tokens. Gradients of zero and short
        # rows are 1e6 times larger than others: each row is held to its own length.
        size = np.linalg.norm(expected, axis=-1, keepdims=True)
        limit = 1e-5 * np.maximum(size, 1) * np.ones(expected.shape)
        np.testing.assert_array_less(np.abs(actual - expected), limit)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("shape", ["primes", "two images", "more tokens than lanes"])
def test_what_is_observed_equals_plain(rng, shape, unit):
    operands, _ = create_operands(rng, shape, "float32")
    assert_observes_as_plain(rng, tpu, *operands, unit=unit)


def test_gradient_of_a_bias_of_heads_equals_plain(rng):
    x, kernel, bias = (
        jnp.float32(rng.normal(size=shape)) for shape in ((2, 5, 3), (3, 2, 7), (2, 7))
    )
    direction = jnp.float32(rng.normal(size=(2, 5, 2, 7)))
    results = [
        pull_back(ops.linear, (x, kernel, bias), direction) for ops in (tpu, plain)
    ]
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [True, False])
def test_kernel_in_bfloat16_rounds_like_plain(rng, unit):
    """Both are as near to float32 as operands of 8 bits allow."""
    operands, direction = create_operands(rng, "primes", "bfloat16")
    exact = [x.astype(jnp.float32) for x in operands]
    attend = functools.partial(plain.attend, unit=unit)
    _, *expected = pull_back(attend, exact, direction)
    attend = functools.partial(tpu.attend, unit=unit)
    out, *grads = pull_back(attend, operands, direction)
    assert out.dtype == jnp.bfloat16
    for actual, wanted, like in zip(grads, expected, operands, strict=True):
        assert actual.dtype == like.dtype
        # Each of a few factors is rounded to 2^-9 of itself; scores of up to 8 move
        # weights by as many units.
        size = np.linalg.norm(wanted, axis=-1, keepdims=True)
        limit = 2**-5 * np.maximum(size, 1) * np.ones(wanted.shape)
        error = np.abs(np.float32(actual) - np.float32(wanted))
        np.testing.assert_array_less(error, limit)


def test_stacked_images_do_not_see_each_other(rng):
    (query, key, value, sigma), _ = create_operands(
        rng, "three images of six", "float32"
    )
    together = tpu.attend(query, key, value, sigma, unit=True)
    key, value = key.at[1].set(1e3), value.at[1].set(jnp.nan_to_num(jnp.inf) / 1e30)
    other = tpu.attend(query, key, value, sigma, unit=True)
    np.testing.assert_array_equal(np.delete(together, 1, 0), np.delete(other, 1, 0))


@pytest.mark.parametrize(
    ("num_tokens", "dtype", "expected"),
    [(197, "bfloat16", True), (577, "bfloat16", True), (1025, "bfloat16", False)],
)
def test_what_does_not_fit_is_left_to_plain(num_tokens, dtype, expected):
    query = jax.ShapeDtypeStruct((2, num_tokens, 6, 64), dtype)
    assert tpu.fits(query, query) == expected
    sigma = jax.ShapeDtypeStruct((6, 64), "float32")
    attend = functools.partial(tpu.attend, unit=True)
    jaxpr = jax.make_jaxpr(attend)(query, query, query, sigma)
    assert ("pallas_call" in str(jaxpr)) == expected

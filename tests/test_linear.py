"""Linear maps and sums against Flax and NumPy, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax.models.linear import Linear, sum_last, sum_rows

CASES = {  # in_features, out_features, axis, shape of x
    "matrix": (5, 6, -1, (2, 3, 5)),
    "into heads": (6, (2, 4), -1, (2, 3, 6)),
    "out of heads": ((2, 4), 6, (-2, -1), (3, 5, 2, 4)),
    "one row": (5, 3, -1, (5,)),
}


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_linear_equals_flax(rng, case, dtype):
    """The same start from the same key, values and gradients."""
    inputs, outputs, axis, shape = CASES[case]
    options = {"axis": axis, "dtype": dtype, "bias_init": nnx.initializers.normal()}
    x = jnp.asarray(rng.normal(size=shape), dtype or jnp.float32)
    results = []
    for module in (Linear, nnx.LinearGeneral):
        layer = module(inputs, outputs, **options, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(layer, nnx.Param)
        params = nnx.to_pure_dict(params)
        out, vjp = jax.vjp(lambda p, x, g=graphdef: nnx.merge(g, p)(x), params, x)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=out.shape))
        results.append((params, out, *vjp(direction.astype(out.dtype))))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    # Of the largest entry: sums of up to 15 products; a bfloat16 has 8 bits.
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        actual, expected = np.float32(actual), np.float32(expected)
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def test_linear_starts_like_flax_linear():
    """The kernels and biases of matrices are those that `nnx.Linear` would draw."""
    ours, theirs = (
        nnx.to_pure_dict(nnx.state(module(5, 6, rngs=nnx.Rngs(3)), nnx.Param))
        for module in (Linear, nnx.Linear)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sum_rows_adds_up_in_float32(dtype):
    ones = jnp.ones((1000, 3), dtype)  # bfloat16 would stop at 256
    total = sum_rows(ones)
    assert total.dtype == dtype
    np.testing.assert_array_equal(np.float32(total), np.full(3, 1000))


def test_sum_last_keeps_the_axis(rng):
    x = np.float32(rng.normal(size=(2, 3, 7)))
    # Rounding of a sum of 7.
    np.testing.assert_allclose(sum_last(x), x.sum(-1, keepdims=True), rtol=0, atol=2e-6)

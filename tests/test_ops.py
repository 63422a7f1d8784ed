"""The operations on every machine, in values and gradients; which one each gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from machines import assert_close, assert_observes_as_plain, device, pull_back

from svda_jax.models import ops as O
from svda_jax.models.layers import LayerNorm, Linear
from svda_jax.models.ops import cpu, gpu
from svda_jax.models.ops.plain import EPSILON

K = 7


def slopes(function, arrays, direction):
    """Gradients of sum(function * direction) by central differences in float64."""
    arrays = [np.float64(array) for array in arrays]
    grads = [np.zeros_like(array) for array in arrays]
    for array, grad in zip(arrays, grads, strict=True):
        for at in np.ndindex(array.shape):
            middle, ends = array[at], []
            for step in (1e-5, -1e-5):
                array[at] = middle + step
                ends.append(np.sum(function(*arrays) * direction))
            array[at] = middle
            grad[at] = (ends[0] - ends[1]) / 2e-5
    return grads


# name: function of float64 loops, shapes of the activations, of the parameters.
LOOPS = {
    "linear": (reference.linear, [(2, 3, 5)], [(5, 2, 4), (2, 4)]),
    "layer_norm": (reference.layer_norm, [(2, 3, 13)], [(13,), (13,)]),
    "normalize": (reference.normalize, [(2, 3, 2, K)], []),
    "attend": (reference.attend, [(2, 5, 2, 3)] * 3, [(2, 3)]),
    "attend, K = 8": (reference.attend, [(2, 5, 2, 8)] * 3, [(2, 8)]),
}


@functools.cache
def run_loops(name, dtype):
    """Operands, a direction, and what loops in float64 make of them."""
    function, activations, parameters = LOOPS[name]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=s), dtype) for s in activations]
    arrays += [jnp.asarray(rng.normal(size=s), "float32") for s in parameters]
    exact = [np.float64(np.float32(array)) for array in arrays]
    out = function(*exact)
    direction = jnp.asarray(rng.normal(size=out.shape), dtype)
    grads = slopes(function, exact, np.float64(np.float32(direction)))
    return arrays, direction, out, grads


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Float32 rounding, through exp and sums of up to 13. bfloat16 rounds to 2^-9, at
    # most a few times between operands and result.
    [("float32", 3e-6), ("bfloat16", 2e-2)],
)
@pytest.mark.parametrize("name", LOOPS)
def test_values_and_gradients_equal_float64_loops(ops, name, dtype, tolerance):
    arrays, direction, expected, wanted = run_loops(name, dtype)
    quick = getattr(ops, name.split(",")[0])
    if name.startswith("attend"):
        quick = functools.partial(quick, unit=False)
    out, *grads = pull_back(quick, arrays, direction)
    assert out.dtype == dtype
    assert_close(out, expected, tolerance)
    for grad, array, other in zip(grads, arrays, wanted, strict=True):
        assert (grad.shape, grad.dtype) == (array.shape, array.dtype)
        assert_close(grad, other, tolerance)


CASES = {  # in_features, out_features, shapes of x and of the result
    "matrix": (5, 6, (2, 3, 5), (2, 3, 6)),
    "into heads": (6, (2, 4), (2, 3, 6), (2, 3, 2, 4)),
    "out of heads": ((2, 4), 6, (3, 5, 2, 4), (3, 5, 6)),
    "one row": (5, 3, (5,), (3,)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_linear_equals_flax(rng, ops, case, dtype):
    """The same start from the same keys, values and gradients."""
    inputs, outputs, *shapes = CASES[case]
    axis = (-2, -1) if case == "out of heads" else -1
    init = nnx.initializers.xavier_uniform()
    options = {"kernel_init": init, "dtype": dtype}
    ours_rngs, flax_rngs = nnx.Rngs(3), nnx.Rngs(3)
    layers = (
        Linear(inputs, outputs, **options, ops=ops, rngs=ours_rngs),
        nnx.LinearGeneral(inputs, outputs, axis=axis, **options, rngs=flax_rngs),
    )
    assert ours_rngs.params.count[...] == flax_rngs.params.count[...]
    x, direction = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    bias = jnp.asarray(rng.normal(size=outputs), jnp.float32)
    results = []
    for layer in layers:
        graphdef, start = nnx.split(layer, nnx.Param)
        start = nnx.to_pure_dict(start)

        def apply(params, x, graphdef=graphdef):
            return nnx.merge(graphdef, params)(x)

        operands = ({**start, "bias": bias}, x)
        results.append((start, *pull_back(apply, operands, direction)))
    jax.tree.map(np.testing.assert_array_equal, *(result[0] for result in results))
    # Sums of up to 15 products; a bfloat16 has 8 bits.
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert_close(actual, expected, tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embed_is_linear_on_patches(rng, ops, dtype):
    images = jnp.asarray(rng.normal(size=(2, 6, 9, 2)), dtype)
    kernel, bias = (jnp.float32(rng.normal(size=size)) for size in ((18, 5), 5))
    direction = jnp.asarray(rng.normal(size=(2, 6, 5)), dtype)
    found, expected = (
        pull_back(
            functools.partial(one.embed, patch_size=3),
            (images, kernel, bias),
            direction,
        )
        for one in (ops, O.PLAIN)
    )
    # Sums of 18 products, of the order of their root; a bfloat16 has 8 bits.
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        assert_close(actual, wanted, tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_parameters_add_up_in_float32(ops, dtype):
    ones = jnp.ones((1000, 3), dtype)  # bfloat16 would stop at 256
    params = {
        "linear": (jnp.zeros((3, 2)), jnp.zeros(2)),
        "layer_norm": (jnp.ones(3), jnp.zeros(3)),
    }
    for name, (first, bias) in params.items():
        direction = jnp.ones((1000, len(bias)))
        *_, grad = pull_back(getattr(ops, name), (ones, first, bias), direction)
        np.testing.assert_array_equal(grad, np.full(bias.shape, 1000))


def test_layer_norm_starts_like_flax_and_equals_it(rng, ops):
    x = np.float32(rng.normal(size=(5, 13)) * 3 + 1)
    ours_rngs, flax_rngs = nnx.Rngs(0), nnx.Rngs(0)
    ours = LayerNorm(13, ops=ops, rngs=ours_rngs)
    flax = nnx.LayerNorm(13, rngs=flax_rngs)
    assert ours_rngs.params.count[...] == flax_rngs.params.count[...]
    start, other = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (ours, flax))
    jax.tree.map(np.testing.assert_array_equal, start, other)
    # Float32 rounding; Flax takes the variance as E x^2 - (E x)^2.
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_at_rows_that_hardly_vary(rng, ops, dtype):
    """Values and gradients, at ordinary, constant and hardly varying rows."""
    x = np.float32(rng.normal(size=(5, 13)) * 3 + 1)
    x[1] = 2
    x[2] = 2 + 2**-10 * np.round(x[2])
    x[3] += 100
    scale, bias = np.float32(rng.normal(size=(2, 13)))
    x, direction = (jnp.asarray(a, dtype) for a in (x, rng.normal(size=x.shape)))

    def equation(x, scale, bias):
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return (x * scale + bias).astype(dtype)

    results = []
    for function in (equation, ops.layer_norm):
        out, vjp = jax.vjp(function, x, scale, bias)
        results.append((out, *vjp(direction)))
    # Of the largest entry: a float32 near 2 is rounded to 2^-23, which is 1e-4 of the
    # third row's deviation; a bfloat16 result has 8 bits, and bfloat16 near 100 are so
    # far apart that the rounding of E x^2 to 2^-24 is 2e-3 of the variance.
    tolerance = 5e-4 if dtype == jnp.float32 else 1e-2
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        actual, expected = np.float32(actual), np.float32(expected)
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_normalize_gives_unit_vectors_at_any_length(rng, ops, scale):
    x = ops.normalize(np.float32(scale * rng.normal(size=(5, K))))
    lengths = np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(lengths, np.ones(5), rtol=0, atol=2e-6)


def test_gradient_of_normalize_at_short_and_long_vectors(rng, ops):
    x = np.float32(rng.normal(size=(4, K)))
    x[1] *= 0.3 * EPSILON / np.linalg.norm(x[1])  # shorter than what is let through
    x[2] *= 1e4
    direction = np.float32(rng.normal(size=x.shape))

    def equation(x):
        squared = jnp.maximum(jnp.sum(x * x, -1, keepdims=True), EPSILON**2)
        return x / jnp.sqrt(squared)

    (_, actual), (_, expected) = (
        pull_back(function, (x,), direction) for function in (ops.normalize, equation)
    )
    # Rounding of a sum of K = 7 products.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(actual[1] * EPSILON, direction[1], rtol=0, atol=1e-6)


def test_gradient_of_normalize_at_zero_is_that_of_a_product(ops):
    zero, direction = jnp.zeros((1, K)), jnp.ones((1, K))
    _, grad = pull_back(ops.normalize, (zero,), direction)
    np.testing.assert_allclose(grad, direction / EPSILON, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_equals_that_of_jax(rng, ops, dtype):
    x, direction = (jnp.asarray(rng.normal(size=(3, 7)), dtype) for _ in range(2))
    found, expected = (
        pull_back(function, (x,), direction) for function in (ops.gelu, jax.nn.gelu)
    )
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == wanted.dtype
        # Compiled alike but for what is rounded between: bfloat16 has 8 bits.
        assert_close(actual, wanted, 1e-2 if dtype == jnp.bfloat16 else 1e-6)


def test_machines_draw_the_same_numbers(ops):
    keys = jax.random.split(jax.random.key(0), 3)
    numbers = ops.draw(keys, 5)
    assert (numbers.shape, numbers.dtype) == ((3, 5), jnp.uint16)
    np.testing.assert_array_equal(numbers, O.PLAIN.draw(keys, 5))


def test_a_device_gets_the_operations_of_its_kind():
    assert O.choose(jax.devices()[0]) == O.Ops.of(cpu)
    assert O.choose(device("tpu")) == O.Ops.of(O.tpu)
    assert O.choose(device("rocket")) == O.PLAIN


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("9.0", True), ("12.0", True), ("8.0", True), ("7.5", False), ("gfx90a", False)],
)
def test_gpus_need_compute_capability_8(capability, expected):
    one = device("gpu", compute_capability=capability)
    assert O.choose(one) == (O.Ops.of(gpu) if expected else O.PLAIN)
    assert O.choose(device("gpu")) == O.PLAIN


def test_sums_as_products_equal_sums(rng):
    x = np.float32(rng.normal(size=(2, 3, 7)))
    # Rounding of a sum of 7.
    expected = x.sum(-1, keepdims=True)
    np.testing.assert_allclose(cpu.sum_last(x), expected, rtol=0, atol=2e-6)
    for dtype in (jnp.float32, jnp.bfloat16):
        total = cpu.sum_rows(jnp.ones((1000, 3), dtype))
        assert total.dtype == dtype
        np.testing.assert_array_equal(np.float32(total), np.full(3, 1000))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_what_is_observed_equals_plain(rng, monkeypatch, ops, unit, images):
    """Of one image at a time too, of two, where one is left over, and of all."""
    shape = (5, 7, 2, 3)
    monkeypatch.setattr(gpu, "MANY_SCORES", images * 2 * 7**2)
    query, key, value = (jnp.float32(rng.normal(size=shape)) for _ in range(3))
    sigma = jnp.float32(rng.normal(size=shape[2:]))
    assert_observes_as_plain(rng, ops, query, key, value, sigma, unit=unit)

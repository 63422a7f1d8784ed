"""`attend` on every machine against its equation, in values and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import assert_close, pull_back

from svda_jax.models import ops as O
from svda_jax.models.ops import gpu

SHAPES = {  # B, N, H, K, V
    "ordinary": (2, 11, 3, 7, 7),
    "one token": (3, 1, 2, 4, 4),
    "one head": (2, 5, 1, 8, 8),
    "one direction": (1, 6, 2, 1, 5),
    "fewer directions than values": (2, 9, 2, 3, 8),
    "benchmark": (4, 50, 4, 16, 16),
}


def attend_equation(query, key, value, sigma):
    """The equation as it stands, in float32."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bihk,hk,bjhk->bhij", query, sigma, key, precision="highest")
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhij,bjhv->bihv", weights, value, precision="highest")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Float32 through sums over up to 50 tokens; bfloat16 has 8 bits, and its scores of
    # up to 10 move weights by as many units.
    [("float32", 1e-5), ("bfloat16", 0.06)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_attend_equals_the_equation(rng, ops, shape, dtype, tolerance):
    b, n, h, k, v = SHAPES[shape]
    query, key = (rng.normal(size=(b, n, h, k)) for _ in range(2))
    value, direction = (rng.normal(size=(b, n, h, v)) for _ in range(2))
    query[0, 0] = 0
    key[0, -1] = 0
    operands = [jnp.asarray(x, dtype) for x in (query, key, value)]
    operands.append(jnp.asarray(rng.normal(size=(h, k)), jnp.float32))
    direction = jnp.asarray(direction, dtype)
    attend = functools.partial(ops.attend, unit=False)
    found = pull_back(attend, operands, direction)
    expected = pull_back(attend_equation, operands, direction)
    likes = [operands[2], *operands]
    for actual, wanted, like in zip(found, expected, likes, strict=True):
        assert (actual.shape, actual.dtype) == (like.shape, like.dtype)
        assert_close(actual, wanted, tolerance)


@pytest.mark.parametrize("shift", [-1e3, 1e3])
def test_scores_of_any_size_stay_finite(rng, ops, shift):
    query = np.float32(rng.normal(size=(1, 4, 1, 2)))
    key = np.float32(shift + rng.normal(size=(1, 4, 1, 2)))
    attend = functools.partial(ops.attend, unit=False)
    operands = (query, key, query, jnp.ones((1, 2)))
    for array in pull_back(attend, operands, jnp.ones(query.shape)):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("dtype", "directions", "expected"),
    [
        ("bfloat16", (64, 64, 64), True),
        ("bfloat16", (128, 128, 128), True),
        ("float16", (64, 64, 64), False),
        ("float32", (64, 64, 64), False),
        ("bfloat16", (20, 20, 20), False),
        ("bfloat16", (136, 136, 136), False),
        ("bfloat16", (64, 64, 32), False),
    ],
)
def test_where_the_fused_kernel_is_used(monkeypatch, dtype, directions, expected):
    calls = []

    def kernel(query, *args, **options):
        calls.append(query)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    query, key, value = (jnp.zeros((1, 3, 2, k), dtype) for k in directions)
    gpu.attend(query, key, value, jnp.ones((2, directions[0])), unit=False)
    assert bool(calls) == expected


@pytest.mark.parametrize("num_tokens", [6, 7])
def test_what_surrounds_the_fused_kernel_equals_plain(rng, monkeypatch, num_tokens):
    """With JAX's equations in the kernel's place; rows and directions of zero too."""
    kernel = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **options):
        return kernel(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arrays = rng.normal(size=(3, 2, num_tokens, 3, 8))
    arrays[:2, 0, 1] = 0
    sigma = 5 * rng.normal(size=(3, 8))
    sigma[0, 0] = 0
    operands = [*(jnp.asarray(x, jnp.bfloat16) for x in arrays), jnp.float32(sigma)]
    direction = jnp.asarray(rng.normal(size=arrays[0].shape), jnp.bfloat16)
    found, expected = (
        pull_back(functools.partial(ops.attend, unit=True), operands, direction)
        for ops in (gpu, O.PLAIN)
    )
    # The zero rows' gradient is 1 / EPSILON of the others': apart.
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        assert np.abs(np.float32(wanted)).max() > 0
        # bfloat16 rounds to 2^-9, at most a few times between operands and result.
        if actual.shape == direction.shape:
            assert_close(actual[0, 1], wanted[0, 1], 2e-2)
            actual, wanted = (x.at[0, 1].set(0) for x in (actual, wanted))
        assert_close(actual, wanted, 2e-2)


def test_plain_differentiates_forwards_and_twice(rng):
    """Along two directions, against differences of first gradients."""
    arrays = [jnp.asarray(rng.normal(size=(1, 3, 2, 5)), jnp.float32) for _ in range(3)]
    sigma = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)

    def function(query, key, value):
        out = O.PLAIN.attend(query, key, value, sigma, unit=True)
        return jnp.sum(jnp.square(O.PLAIN.layer_norm(out, sigma[0], sigma[1])))

    for at, other in itertools.product(range(3), repeat=2):
        step = jnp.asarray(rng.normal(size=arrays[other].shape), jnp.float32)
        grad = jax.jit(jax.grad(function, argnums=at))

        def along(t, grad=grad, other=other, step=step):
            moved = list(arrays)
            moved[other] = moved[other] + t * step
            return grad(*moved)

        _, curve = jax.jvp(along, (0.0,), (1.0,))
        # Central differences at 1e-2 in float32: errors of step^2 and 1e-6 / step.
        differences = (along(1e-2) - along(-1e-2)) / 2e-2
        assert_close(curve, differences, 2e-2)


def gpus():
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


@pytest.mark.skipif(not gpus(), reason="needs a GPU")
def test_the_kernel_of_a_gpu_equals_the_equations(rng):
    """cuDNN itself, at the sizes of ViT-S/16, in values and gradients."""
    with jax.default_device(gpus()[0]):
        shape = (3, 197, 6, 64)
        arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3)]
        sigma = jnp.asarray(rng.normal(size=shape[2:]), jnp.float32)
        direction = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        results = []
        for ops in (O.choose(gpus()[0]), O.PLAIN):
            attend = functools.partial(ops.attend, unit=True)
            out, vjp = jax.jit(lambda *a, f=attend: jax.vjp(f, *a))(*arrays, sigma)
            results.append((out, *jax.jit(vjp)(direction)))
        assert O.choose(gpus()[0]).attend is gpu.attend
    for actual, expected in zip(*results, strict=True):
        # bfloat16 rounds to 2^-9, at most a few times between operands and result.
        assert_close(actual, expected, 2e-2)

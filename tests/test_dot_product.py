"""Dot-product attention against its equation, and where the fused kernel is used."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svda_jax.models import dot_product as D

SHAPES = {  # B, N, H, K, V
    "ordinary": (2, 11, 3, 7, 7),
    "one token": (3, 1, 2, 4, 4),
    "one head": (2, 5, 1, 8, 8),
    "one direction": (1, 6, 2, 1, 5),
    "fewer directions than values": (2, 9, 2, 3, 8),
    "benchmark": (4, 50, 4, 16, 16),
}


def plain(query, key, value, sigma):
    """The equation as it stands, in float32."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bihk,hk,bjhk->bhij", query, sigma, key, precision="highest")
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhij,bjhv->bihv", weights, value, precision="highest")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Of the largest entry: float32 through sums over up to 50 tokens; bfloat16 has 8
    # bits, and its scores of up to 10 move weights by as many units.
    [("float32", 1e-5), ("bfloat16", 0.06)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_plain_equation(rng, shape, dtype, tolerance):
    b, n, h, k, v = SHAPES[shape]
    query, key = (rng.normal(size=(b, n, h, k)) for _ in range(2))
    value, direction = (rng.normal(size=(b, n, h, v)) for _ in range(2))
    query[0, 0] = 0
    key[0, -1] = 0
    operands = [jnp.asarray(x, dtype) for x in (query, key, value)]
    operands.append(jnp.asarray(rng.normal(size=(h, k)), jnp.float32))
    direction = jnp.asarray(direction, dtype)

    out, vjp = jax.vjp(D.dot_product_attention, *operands)
    expected, expected_vjp = jax.vjp(plain, *operands)
    results = zip(
        [out, *vjp(direction)],
        [expected, *expected_vjp(direction.astype(jnp.float32))],
        [operands[2], *operands],
        strict=True,
    )
    for actual, wanted, like in results:
        assert (actual.shape, actual.dtype) == (like.shape, like.dtype)
        actual, wanted = np.float32(actual), np.float32(wanted)
        # A gradient that is zero is so up to the rounding of its terms, of order one.
        limit = tolerance * max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("shift", [-1e3, 1e3])
def test_scores_of_any_size_stay_finite(rng, shift):
    query = np.float32(rng.normal(size=(1, 4, 1, 2)))
    key = np.float32(shift + rng.normal(size=(1, 4, 1, 2)))
    out, vjp = jax.vjp(D.dot_product_attention, query, key, query, jnp.ones((1, 2)))
    for array in (out, *vjp(jnp.ones_like(out))):
        assert np.isfinite(array).all()


def test_fused_kernel_gets_the_same_scores(rng, monkeypatch):
    attend = jax.nn.dot_product_attention

    def fused(*args, implementation, **options):
        assert implementation == "cudnn"
        return attend(*args, **options)

    qkv = np.float32(rng.normal(size=(3, 2, 11, 3, 8)))
    sigma = np.float32(rng.normal(size=(3, 8)))
    monkeypatch.setattr(D, "_has_fused_kernel", lambda query, value: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    out = D.dot_product_attention(*qkv, sigma)
    # Float32 rounding of scores of order one, through exp and a sum over 11.
    np.testing.assert_allclose(out, plain(*qkv, sigma), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "platform", "expected"),
    [
        ("bfloat16", 64, "cuda 13.0", True),
        ("bfloat16", 64, "cpu", False),
        ("float32", 64, "cuda 13.0", False),
        ("bfloat16", 20, "cuda 13.0", False),
        ("bfloat16", 136, "cuda 13.0", False),
    ],
)
def test_where_the_fused_kernel_is_used(
    monkeypatch, dtype, head_dim, platform, expected
):
    backend = types.SimpleNamespace(platform_version=platform)
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: backend)
    query = jnp.zeros((1, 1, 1, head_dim), dtype)
    assert D._has_fused_kernel(query, query) == expected
    assert not D._has_fused_kernel(query, jnp.zeros((1, 1, 1, 8), dtype))

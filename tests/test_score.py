"""The spectrum of a head's score, against every score that there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from svda_jax.models.attention import Attention, Trace, diagonal
from svda_jax.models.ops.plain import second_moments
from svda_jax.models.score import (
    collision_entropy,
    decompose,
    score_spectrum,
    weigh_moments,
)

B, N, H, K = 3, 7, 2, 5


@pytest.fixture
def make_trace(rng):
    def make(attention, shape=(B, N, H, K), dtype="float32"):
        query, key = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
        key += jnp.asarray(3, dtype)  # what centring takes away
        sigma = jnp.float32(rng.normal(size=shape[2:])) if attention == "svda" else None
        return Trace(query, key, sigma)

    return make


def sum_moments(trace, mask=None):
    return second_moments(trace.query, trace.key, mask, unit=trace.sigma is not None)


def measure(trace, mask=None):
    number = len(trace.query) if mask is None else mask.sum()
    factors = diagonal(trace.query, trace.sigma, trace.scale)
    return score_spectrum(sum_moments(trace, mask) / number, factors)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
@pytest.mark.parametrize(
    "shape", [(B, N, H, K), (2, 5, 1, 1), (2, 1, 3, 4), (1, 2, 2, 7)]
)
def test_it_is_that_of_all_scores(make_trace, attention, shape):
    """Of one direction too, of one token, whose centred score is 0, and of few."""
    trace = make_trace(attention, shape)
    expected = reference.score_spectrum(trace.query, trace.key, trace.sigma)
    # Moments are float32, and singular values their square roots.
    np.testing.assert_allclose(
        measure(trace), expected, rtol=1e-5, atol=2e-3 * expected.max() + 1e-6
    )
    largest = measure(trace)[:, 0], expected[:, 0]
    np.testing.assert_allclose(*largest, rtol=1e-5, atol=1e-6)


def test_bfloat16_rounds_it_as_the_score_is_rounded(make_trace):
    trace = make_trace("svda", dtype="bfloat16")
    expected = reference.score_spectrum(*map(np.float32, trace[:2]), trace.sigma)
    np.testing.assert_allclose(measure(trace), expected, atol=0.01 * expected.max())


def test_only_masked_images_count(make_trace):
    trace = make_trace("svda", (5, N, H, K))
    mask = np.array([True, False, True, True, False])
    some = Trace(trace.query[mask], trace.key[mask], trace.sigma)
    np.testing.assert_allclose(measure(trace, mask), measure(some), rtol=1e-5)


@pytest.mark.parametrize("turn", ["rotation", "shear"])
def test_coordinates_do_not_matter(make_trace, rng, turn):
    """Of q^T k, for q <- A q and k <- A^-T k."""
    trace = make_trace("softmax")
    change = rng.normal(size=(K, K))
    if turn == "rotation":
        change = np.linalg.qr(change)[0]
    other = Trace(
        jnp.float32(trace.query @ change.T),
        jnp.float32(trace.key @ np.linalg.inv(change)),
        None,
    )
    np.testing.assert_allclose(measure(other), measure(trace), rtol=1e-4, atol=1e-4)


def test_sigma_and_lengths_of_directions_are_one(make_trace, rng):
    """A direction twice as long with half the sigma is the same score."""
    trace = make_trace("svda")
    moments, factors = sum_moments(trace) / B, diagonal(trace.query, trace.sigma, None)
    stretch = np.exp(rng.normal(size=(H, K)))
    moved = moments.at[0].multiply(stretch[:, :, None] * stretch[:, None])
    np.testing.assert_allclose(
        score_spectrum(moved, factors / stretch),
        score_spectrum(moments, factors),
        rtol=1e-4,
        atol=1e-4,
    )


def test_order_and_signs_of_directions_do_not_matter(make_trace, rng):
    trace = make_trace("svda")
    order, one, two = rng.permutation(K), *rng.choice([-1, 1], size=(2, K))
    other = Trace(
        trace.query[..., order] * one,
        trace.key[..., order] * two,
        trace.sigma[:, order] * one * two,
    )
    np.testing.assert_allclose(measure(other), measure(trace), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_squares_add_up_to_the_mean_squared_centred_score(make_trace, attention):
    trace = make_trace(attention)
    query, key = trace.query, trace.key
    if attention == "svda":
        query, key = reference.normalize(query), reference.normalize(key)
    key = key - key.mean(axis=1, keepdims=True)
    factors = diagonal(trace.query, trace.sigma, None)
    scores = np.einsum("bihk,hk,cjhk->hbicj", query, factors, key)
    np.testing.assert_allclose(
        np.sum(measure(trace) ** 2, axis=-1),
        np.mean(scores**2, axis=(1, 2, 3, 4)),
        rtol=1e-5,
    )


def test_directions_of_zeros_have_none(make_trace):
    trace = make_trace("svda")
    query = trace.query.at[..., 3:].set(0)
    key = trace.key.at[..., 3:].set(0)
    spectrum = measure(Trace(query, key, trace.sigma))
    np.testing.assert_array_less(spectrum[:, 3:], 1e-6)
    whole = Trace(query[..., :3], key[..., :3], trace.sigma[:, :3], K**-0.5)
    np.testing.assert_allclose(spectrum[:, :3], measure(whole), rtol=1e-5)


@pytest.mark.parametrize("start", ["matched", None])
def test_weights_alone_are_inputs_of_unit_covariance(rng, start):
    attention = Attention(
        H * K, H, spectrum_init=start, rngs=nnx.Rngs(int(rng.integers(100)))
    )
    moments = weigh_moments(
        attention.query.kernel[...], attention.key.kernel[...], unit=start is not None
    )
    x = jnp.float32(np.linalg.qr(rng.normal(size=(H * K, H * K)))[0])  # x^T x = 1
    query, key = (p(x[None])[0] for p in (attention.query, attention.key))
    for moment, rows in zip(moments, (query, key), strict=True):
        expected = np.einsum("ihk,ihl->hkl", rows, rows)
        if start is not None:
            expected /= np.trace(expected, axis1=1, axis2=2)[:, None, None]
        np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        attention.factors, diagonal(query[None], attention.sigma, None)
    )


def test_entropy_is_that_of_the_squared_singular_values(make_trace):
    for attention in ("svda", "softmax"):
        trace = make_trace(attention)
        factors = diagonal(trace.query, trace.sigma, trace.scale)
        energy = measure(trace) ** 2
        share = energy / energy.sum(-1, keepdims=True)
        expected = -np.log(np.sum(share**2, axis=-1))
        out = collision_entropy(sum_moments(trace) / B, factors)
        np.testing.assert_allclose(out, expected, rtol=1e-4)


def test_entropy_of_a_score_of_no_or_one_direction_has_a_finite_gradient(rng):
    moments = jnp.eye(4) * jnp.ones((2, 3, 1, 1))
    factors = jnp.array([[0.0, 0, 0, 0], [0, -3, 0, 0], [2, 2, 2, 2]])
    np.testing.assert_allclose(
        collision_entropy(moments, factors), [np.log(4), 0, np.log(4)], atol=1e-6
    )
    gradients = jax.grad(lambda *args: jnp.sum(collision_entropy(*args)), (0, 1))(
        moments, factors
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("size", [1e-10, 1.0, 1e12])
def test_entropy_and_its_gradient_know_no_size_of_the_score(rng, size):
    moments = jnp.float32(weigh_moments(*rng.normal(size=(2, 7, H, K)), unit=True))
    factors = jnp.float32(rng.normal(size=(H, K)))

    def entropy(factors):
        return jnp.sum(collision_entropy(moments, factors))

    value, gradient = jax.value_and_grad(entropy)(size * factors)
    np.testing.assert_allclose(value, entropy(factors), rtol=1e-5)
    np.testing.assert_allclose(size * gradient, jax.grad(entropy)(factors), rtol=1e-3)


@pytest.mark.parametrize("what", ["moments", "factors"])
def test_spectrum_of_a_head_that_is_not_finite_is_nan(make_moments, rng, what):
    found = {"moments": make_moments(K, K, K), "factors": rng.normal(size=(H, K))}
    expected = score_spectrum(**found)
    found[what][(1, 0, 2, 3) if what == "moments" else (0, 3)] = np.inf
    spectrum = score_spectrum(**found)
    assert np.isnan(spectrum[0]).all()
    np.testing.assert_array_equal(spectrum[1], expected[1])


@pytest.fixture
def make_moments(rng):
    """Makes `[2, H, K, K]` of vectors in random subspaces of those dimensions."""

    def make(width, *ranks):
        rows = [
            rng.normal(size=(H, 4 * width, rank)) @ rng.normal(size=(H, rank, width))
            for rank in ranks
        ]
        return np.stack([np.swapaxes(x, -1, -2) @ x for x in rows])

    return make


@pytest.mark.parametrize(
    ("width", "ranks", "zeros"),
    [(5, (5, 5), 0), (5, (5, 5), 2), (5, (3, 2), 0), (5, (0, 0), 1), (1, (1, 1), 0)],
)
def test_directions_add_up_to_the_score(make_moments, rng, width, ranks, zeros):
    """With zeros in sigma too, data of fewer directions or none, and K = 1."""
    moments, factors = make_moments(width, *ranks), rng.normal(size=(H, width))
    factors[:, :zeros] = 0
    query, size, key = decompose(moments, factors)
    diagonals = factors[..., None] * np.eye(width)
    whole = query * size[:, None] @ np.swapaxes(key, -1, -2)
    np.testing.assert_allclose(whole, diagonals, atol=1e-9)
    mean = np.trace(moments, axis1=-2, axis2=-1)[..., None, None] / width
    floor = 1e-6 * np.where(mean > 0, mean, 1) * np.eye(width)
    expected = score_spectrum(moments + floor, factors)
    np.testing.assert_allclose(size, expected, rtol=1e-6, atol=1e-9 * size.max())


def test_first_directions_are_the_best_form_of_their_rank(make_moments, rng):
    """Nothing near them is better, and what they miss is the sizes of the others."""
    moments, factors = make_moments(K, K, K), rng.normal(size=(H, K))
    query, size, key = decompose(moments, factors)

    def miss(query, key):  # of x^T (F - A) y for independent x, y
        form = factors[..., None] * np.eye(K) - query @ np.swapaxes(key, -1, -2)
        return np.einsum("hkl,hkm,hmn,hln->h", form, moments[0], form, moments[1])

    np.testing.assert_allclose(size, score_spectrum(moments, factors), rtol=1e-3)
    for rank in range(1, K):
        q, k = (query * size[:, None])[..., :rank], key[..., :rank]
        least = miss(q, k)
        np.testing.assert_allclose(least, np.sum(size[:, rank:] ** 2, -1), rtol=1e-3)
        for _ in range(20):
            near = (x * (1 + 0.01 * rng.normal(size=x.shape)) for x in (q, k))
            assert np.all(miss(*near) > least)

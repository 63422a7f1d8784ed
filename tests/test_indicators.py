"""The indicators: equality with loops, known values, ranges, invariances."""

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import strategies

from svda_jax.models import indicators as I
from svda_jax.models.attention import Trace
from svda_jax.models.ops.cpu import sum_last
from svda_jax.models.ops.plain import normalize, perturb

B, N, H, K = 3, 7, 2, 5

# Sums of N * N = 49 float32 numbers of order one, divided again; exp and log at 1 ulp.
TOLERANCE = 3e-6
SPECTRAL = {
    "spectral_entropy": I.spectral_entropy,
    "effective_rank": I.effective_rank,
    "spectral_sparsity": I.spectral_sparsity,
}


def assert_close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def spectrum(rng):
    return np.float32(rng.normal(size=(2, H, K)) * 4)


@pytest.fixture
def trace(rng):
    query, key = np.float32(rng.normal(size=(2, B, N, H, K)))
    sigma = np.float32(rng.normal(size=(H, K)) * K)
    return Trace(query, key, sigma)


@pytest.fixture
def softmax_trace(trace):
    return trace._replace(sigma=None)


def alignment(query, key):
    cosines = np.einsum("bihk,bjhk->bhij", normalize(query), normalize(key))
    return I.angular_alignment(cosines).mean(-1)


def of_attention(trace, key, noise_scale):
    return I.measure(key, noise_scale, None, 0, trace, trace.key)[1]["indicators"]


def selectivity(weights):
    return I.selectivity_index(weights).mean(-1)


def robustness(weights, perturbed):
    return I.perturbation_robustness(weights, perturbed).mean(-1)


@pytest.fixture
def weights(trace):
    return np.float32(reference.attention_weights(trace.query, trace.key, trace.sigma))


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_ones_equal_reference(spectrum, name):
    expected = np.apply_along_axis(getattr(reference, name), -1, spectrum)
    assert_close(SPECTRAL[name](spectrum), expected)


@pytest.mark.parametrize("rho", [0.5, 0.9, 1.0])
def test_retained_rank_equals_reference(spectrum, rho):
    expected = np.apply_along_axis(reference.retained_rank, -1, spectrum, rho)
    np.testing.assert_array_equal(I.retained_rank(spectrum, rho), expected)


def test_attentional_ones_equal_reference(trace, weights, rng):
    assert_close(
        alignment(trace.query, trace.key),
        reference.angular_alignment(trace.query, trace.key),
    )
    assert_close(selectivity(weights), reference.selectivity_index(weights))
    other = np.float32(rng.dirichlet(np.ones(N), size=(B, H, N)))
    assert_close(
        robustness(weights, other),
        reference.perturbation_robustness(weights, other),
    )


@pytest.mark.parametrize("kind", ["trace", "softmax_trace"])
def test_compute_indicators_equals_reference(kind, request, spectrum):
    trace = request.getfixturevalue(kind)
    key, scale = jax.random.key(3), 0.3
    out = I.compute_indicators({"spectrum": spectrum}) | of_attention(trace, key, scale)
    assert out.keys() == I.INDICATORS.keys()
    noise = jax.random.normal(jax.random.fold_in(key, 0), (2, N, H, K))
    noise = np.asarray(noise)
    weights, perturbed = (
        reference.attention_weights(query, key, trace.sigma)
        for query, key in (
            (trace.query, trace.key),
            (
                reference.perturb(trace.query, noise[0], scale),
                reference.perturb(trace.key, noise[1], scale),
            ),
        )
    )
    expected = {
        "angular_alignment": reference.angular_alignment(trace.query, trace.key),
        "selectivity_index": reference.selectivity_index(weights),
        "perturbation_robustness": reference.perturbation_robustness(
            weights, perturbed
        ),
        **{
            name: np.apply_along_axis(getattr(reference, name), -1, spectrum)
            for name in SPECTRAL
        },
    }
    for name, value in out.items():
        assert value.dtype == jnp.float32
        assert_close(value, expected[name], 1e-5)  # scores of order 5 through two exp


@pytest.mark.parametrize(
    ("spectrum", "entropy", "sparsity", "rank"),
    [
        (np.full(K, -3.0), np.log(K), 0, K),  # equal
        (3.0 * np.eye(K)[2], 0, 1, 1),  # one-hot
        (np.zeros(K), 0, 1, 1),
        (np.array([2.0]), 0, 0, 1),  # K = 1
        (np.array([0.0]), 0, 0, 1),
        (np.full(K, 1e38), np.log(K), 0, K),
        (np.full(K, 1e-37), np.log(K), 0, K),
    ],
)
def test_known_spectra(spectrum, entropy, sparsity, rank):
    spectrum = np.float32(spectrum)
    assert_close(I.spectral_entropy(spectrum), entropy)
    assert_close(I.effective_rank(spectrum), np.exp(entropy))
    assert_close(I.spectral_sparsity(spectrum), sparsity)
    assert I.retained_rank(spectrum) == rank
    assert I.retained_rank(spectrum, 1.0) == rank


def test_known_alignments():
    directions = np.eye(4, dtype=np.float32)
    lengths = np.float32([2, -5, 1]).reshape(1, 3, 1, 1)
    parallel = np.tile(directions[0], (1, 3, 1, 1)) * lengths
    assert_close(alignment(parallel, 7 * parallel), [[1]])
    orthogonal = np.tile(directions[1], (1, 3, 1, 1))
    assert_close(alignment(parallel, orthogonal), [[0]])
    # Independent directions, 64^2 cosines an image, K = 32.
    query, key = jax.random.normal(jax.random.key(0), (2, 8, 64, 1, 32))
    expected = np.sqrt(2 / (np.pi * 32))
    assert np.mean(alignment(query, key)) == pytest.approx(expected, rel=0.03)


def test_known_selectivities():
    uniform = np.full((1, 1, N, N), 1 / N, np.float32)
    assert_close(selectivity(uniform), [[0]])
    one_hot = np.eye(N, dtype=np.float32)[None, None]
    assert_close(selectivity(one_hot), [[1]])
    assert_close(selectivity(np.ones((1, 1, 1, 1), np.float32)), [[1]])


def test_known_robustnesses(weights):
    assert_close(robustness(weights, weights), np.ones((B, H)))
    one_hot = np.eye(N, dtype=np.float32)[None, None]
    assert_close(robustness(one_hot, one_hot[..., ::-1, :]), [[1 / N]])
    assert_close(robustness(one_hot, np.roll(one_hot, 1, -1)), [[0]])
    single = np.ones((1, 1, 1, 1), np.float32)
    assert_close(robustness(single, single), [[1]])


SPECTRA = hypothesis.extra.numpy.arrays(
    np.float32,
    strategies.sampled_from([(1,), (2,), (5,), (3, 9)]),  # each is compiled
    elements=strategies.floats(
        width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False
    ),
)
quick = hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


@quick
@hypothesis.given(SPECTRA)
def test_spectral_ranges(spectrum):
    size = spectrum.shape[-1]
    slack = 1e-5
    entropy = np.asarray(I.spectral_entropy(spectrum))
    rank = np.asarray(I.effective_rank(spectrum))
    sparsity = np.asarray(I.spectral_sparsity(spectrum))
    retained = np.asarray(I.retained_rank(spectrum))
    assert ((entropy >= 0) & (entropy <= np.log(size) + slack)).all()
    assert ((rank >= 1) & (rank <= size * (1 + slack))).all()
    assert ((sparsity >= 0) & (sparsity <= 1)).all()
    assert ((retained >= 1) & (retained <= size)).all()


VECTORS = hypothesis.extra.numpy.arrays(
    np.float32,
    strategies.just((2, 2, 3, 1, 2)),
    elements=strategies.one_of(
        strategies.floats(-10, 10, width=32, allow_subnormal=False),
        strategies.sampled_from([0.0, 1e-15, -1e15, 3.0, 3.0]).map(np.float32),
    ),
)


@quick
@hypothesis.given(VECTORS, strategies.sampled_from([0.0, -3.0, 1e4]))
def test_attentional_ranges(vectors, sigma):
    sigma = np.full((1, 2), sigma, np.float32)
    trace = Trace(vectors[0], vectors[1], sigma)
    for name, value in of_attention(trace, jax.random.key(0), 0.5).items():
        assert ((value >= 0) & (value <= 1)).all(), name


def test_spectral_ones_do_not_see_order_sign_or_scale(spectrum, rng):
    order = rng.permutation(K)
    signs = np.float32(rng.choice([-1, 1], size=spectrum.shape))
    for function in (*SPECTRAL.values(), I.retained_rank):
        changed = function(spectrum[..., order] * signs * 2.0**40)
        assert_close(changed, function(spectrum))


def test_attentional_ones_do_not_see_the_order_of_tokens_or_lengths(
    trace, weights, rng
):
    order = rng.permutation(N)
    lengths = np.float32(rng.uniform(0.1, 10, size=(2, B, N, H, 1)))
    assert_close(
        alignment(trace.query[:, order] * lengths[0], trace.key[:, order] * lengths[1]),
        alignment(trace.query, trace.key),
    )
    permuted = weights[:, :, order][:, :, :, order]
    assert_close(selectivity(permuted), selectivity(weights))


def test_heads_do_not_see_each_other(trace, weights):
    for h in range(H):
        assert_close(
            alignment(trace.query[:, :, h : h + 1], trace.key[:, :, h : h + 1]),
            alignment(trace.query, trace.key)[:, h : h + 1],
        )
        assert_close(
            selectivity(weights[:, h : h + 1]),
            selectivity(weights)[:, h : h + 1],
        )


def test_noise_scale_moves_robustness_alone(trace):
    none, some, much = (
        of_attention(trace, jax.random.key(0), scale) for scale in (0, 0.1, 1)
    )
    for name in I.of_images():
        if name == "perturbation_robustness":
            assert (none[name] == 1).all()
            assert (none[name] > some[name]).all()
            assert (some[name] > much[name]).all()
        else:
            np.testing.assert_array_equal(some[name], much[name])


def test_noise_leaves_padding_alone(rng):
    """A head that keeps three of five directions is as one that has three."""
    x = np.float32(rng.normal(size=(2, 4, 1, 3)))
    noise = np.float32(rng.normal(size=(4, 1, 5)))
    moved = perturb(np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 2))), noise, sum_last)
    np.testing.assert_array_equal(moved[..., 3:], 0)
    expected = perturb(x, noise[..., :3], sum_last)
    np.testing.assert_allclose(moved[..., :3], expected, rtol=1e-6)


def test_an_image_does_not_see_its_batch(trace):
    whole = of_attention(trace, jax.random.key(0), 0.2)
    one = Trace(trace.query[2:], trace.key[2:], trace.sigma)
    for name, value in of_attention(one, jax.random.key(0), 0.2).items():
        assert_close(value, whole[name][2:])


def test_bfloat16_is_taken_and_float32_given(trace):
    coarse = jax.tree.map(jnp.bfloat16, trace)
    exact = jax.tree.map(np.float32, coarse)
    out = of_attention(coarse, jax.random.key(0), 0.1)
    expected = of_attention(exact, jax.random.key(0), 0.1)
    assert list(out) == I.of_images()
    for name in out:
        assert out[name].dtype == jnp.float32
        # q_hat * sigma is rounded to bfloat16 on one side: see test_attention.
        assert_close(out[name], expected[name], 0.05)


def test_bfloat16_without_noise_is_unmoved(trace):
    coarse = jax.tree.map(jnp.bfloat16, trace)
    out = of_attention(coarse, jax.random.key(0), 0)
    assert (out["perturbation_robustness"] == 1).all()


def test_every_entry_says_what_it_is():
    """Of a range that its values keep to, at the ends that known spectra reach."""
    flat, one = np.ones(K, np.float32), np.eye(K, dtype=np.float32)[0]
    for name, indicator in I.INDICATORS.items():
        low, high = (end(K) for end in indicator.range)
        assert low < high
        assert all((indicator.label, indicator.unit, indicator.low, indicator.high))
        assert indicator.source in indicator.meaning
        if name in I.of_spectrum():
            ends = sorted(float(indicator.function(x)) for x in (flat, one))
            np.testing.assert_allclose(ends, [low, high], atol=TOLERANCE)

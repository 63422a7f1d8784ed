"""SVDA and softmax attention against the float64 loops of reference.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.test_util import check_grads
from machines import pull_back

from svda_jax.models import attention as A
from svda_jax.models.ops import PLAIN, Ops, cpu
from svda_jax.models.ops.plain import EPSILON, normalize

B, N, H, K = 2, 11, 3, 7

# Float32 rounding of scores of order one, through exp and a sum over N = 11.
TOLERANCE = 2e-6
# bfloat16 has 8 bits: rounding of q_hat * sigma and k_hat moves a score of at most
# |sigma| = 4 by up to 4 * 2^-8 / sqrt(7), and the weights, in [0, 1], by less than
# that; values of up to 3 and the rounding of the output multiply it.
BFLOAT16_TOLERANCE = 0.05


@pytest.fixture(params=["plain", "cpu"])
def attention(request):
    ops = {"plain": PLAIN, "cpu": Ops.of(cpu)}[request.param]
    return functools.partial(A.attention, ops=ops)


@pytest.fixture
def qkv(rng):
    return np.float32(rng.normal(size=(3, B, N, H, K)))


@pytest.fixture
def sigma(rng):
    """Both signs, of the order of K."""
    return np.float32(rng.normal(size=(H, K)) * K / 2)


def assert_close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["svda", "softmax"])
def test_weights_equal_reference(qkv, sigma, kind):
    sigma = sigma if kind == "svda" else None
    weights = A.attention_weights(qkv[0], qkv[1], sigma)
    assert weights.shape == (B, H, N, N)
    assert_close(weights, reference.attention_weights(qkv[0], qkv[1], sigma))


def test_attention_equals_reference(attention, qkv, sigma):
    assert sigma.min() < 0 < sigma.max()
    for diagonal in (sigma, None):
        out = attention(*qkv, diagonal)
        assert_close(out, reference.attention(*qkv, diagonal))


def test_weights_equal_x_transformers(qkv, rng):
    query_scale, key_scale = rng.normal(size=(2, H, K))
    expected = reference.x_transformers_weights(
        qkv[0], qkv[1], query_scale, key_scale, scale=1.0
    )
    sigma = np.float32(query_scale * key_scale * np.sqrt(K))
    assert_close(A.attention_weights(qkv[0], qkv[1], sigma), expected)


def test_attention_is_weights_times_values(attention, qkv, sigma):
    weights = A.attention_weights(qkv[0], qkv[1], sigma)
    out = jnp.einsum("bhij,bjhk->bihk", weights, qkv[2])
    assert_close(attention(*qkv, sigma), out)


@pytest.mark.parametrize("kind", ["svda", "softmax"])
def test_directions_without_weight_are_as_directions_that_are_not_there(
    attention, qkv, sigma, kind
):
    query, key, value = qkv
    keep = K - 2
    query[..., keep:] = key[..., keep:] = sigma[:, keep:] = 0
    short = (query[..., :keep], key[..., :keep], value)
    if kind == "svda":
        full = attention(query, key, value, sigma)
        short += (sigma[:, :keep],)
    else:
        full = attention(query, key, value)
    assert_close(attention(*short, scale=K**-0.5), full)


def test_constant_sigma_is_cosine_attention(qkv):
    query, key, _ = np.float64(qkv)
    query /= np.linalg.norm(query, axis=-1, keepdims=True)
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    cosine = np.einsum("bihk,bjhk->bhij", query, key)
    exponentials = np.exp(5.0 * cosine / np.sqrt(K))
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    weights = A.attention_weights(qkv[0], qkv[1], np.full((H, K), 5.0, np.float32))
    assert_close(weights, expected)


def test_length_of_queries_and_keys_changes_nothing(attention, qkv, sigma, rng):
    lengths = np.float32(rng.uniform(0.01, 100, size=(2, B, N, H, 1)))
    scaled = attention(qkv[0] * lengths[0], qkv[1] * lengths[1], qkv[2], sigma)
    assert_close(scaled, attention(*qkv, sigma))


def test_permuting_tokens_permutes_outputs(attention, qkv, sigma, rng):
    order = rng.permutation(N)
    permuted = attention(*qkv[:, :, order], sigma)
    assert_close(permuted, attention(*qkv, sigma)[:, order])


def test_zero_rows_are_finite_in_value_and_gradient(attention, qkv, sigma):
    query, key, value = qkv
    query[0, 3], key[1, 4] = 0, 0

    def total(*args):
        return jnp.sum(jnp.square(attention(*args)))

    out, grads = jax.value_and_grad(total, argnums=(0, 1, 2, 3))(
        query, key, value, sigma
    )
    assert np.isfinite(out)
    assert all(np.isfinite(grad).all() for grad in grads)
    # A zero query has the same score, 0, for every key.
    weights = A.attention_weights(query, key, sigma)
    assert_close(weights[0, :, 3], np.full((H, N), 1 / N))


def plain_normalize(x):
    length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), EPSILON**2))
    return x / length


def plain_attention(query, key, value, sigma):
    """The equations as they stand, differentiated by JAX."""
    query, key, value = (jnp.float32(x) for x in (query, key, value))
    if sigma is not None:
        query, key = plain_normalize(query) * sigma, plain_normalize(key)
    scores = jnp.einsum("bihk,bjhk->bhij", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bhij,bjhk->bihk", jax.nn.softmax(scores), value)


@pytest.mark.parametrize("kind", ["svda", "softmax"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (11, 7), (49, 16), (64, 32), (197, 64)])
def test_value_and_gradients_equal_the_plain_equation(
    attention, rng, kind, dtype, n, k
):
    query, key, value, direction = jnp.asarray(rng.normal(size=(4, 2, n, 3, k)), dtype)
    sigma = None
    if kind == "svda":
        sigma = np.float32(rng.normal(size=(3, k)) * k**0.5)
    actual, expected = (
        pull_back(functools.partial(f, sigma=sigma), (query, key, value), direction)
        for f in (attention, plain_attention)
    )
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        one, other = np.float32(one), np.float32(other)
        # Of the largest entry or of one, the order of the arguments: float32 rounding,
        # through exp, over at most 197 keys; bfloat16 rounds operands, weights and
        # result to 8 bits.
        tolerance = 1e-5 if dtype == jnp.float32 else 0.05
        assert_close(one, other, tolerance * max(np.abs(other).max(), 1))


def test_gradient_of_sigma_equals_that_of_the_plain_equation(
    attention, qkv, sigma, rng
):
    direction = np.float32(rng.normal(size=qkv[0].shape))
    (_, actual), (_, expected) = (
        pull_back(lambda sigma, f=f: f(*qkv, sigma), (sigma,), direction)
        for f in (attention, plain_attention)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_large_scores_do_not_overflow(attention, qkv, sigma):
    out = attention(*qkv, 1e4 * sigma)
    assert_close(out, plain_attention(*qkv, 1e4 * sigma), 1e-4)


def test_gradient_equals_finite_differences(attention, qkv, sigma):
    # Central differences at step 1e-2 in float32: error about step^2 and 1e-6 / step.
    check_grads(attention, (*qkv, sigma), 1, ["rev"], eps=1e-2, atol=2e-2, rtol=2e-2)


def test_bfloat16(attention, qkv):
    sigma = np.linspace(-4, 4, H * K, dtype=np.float32).reshape(H, K)
    out = attention(*jnp.bfloat16(qkv), sigma)
    assert out.dtype == jnp.bfloat16
    expected = reference.attention(*qkv, sigma)
    assert_close(np.float32(out), expected, BFLOAT16_TOLERANCE)
    weights = A.attention_weights(*jnp.bfloat16(qkv[:2]), sigma)
    assert weights.dtype == jnp.float32
    assert_close(weights.sum(-1), np.ones((B, H, N)))


def test_jit_equals_eager(attention, qkv, sigma):
    assert_close(jax.jit(attention)(*qkv, sigma), attention(*qkv, sigma))


def test_sigma_of_another_shape_is_refused(qkv):
    with pytest.raises(ValueError, match="sigma has shape"):
        A.attention(*qkv, np.ones(K, np.float32))
    with pytest.raises(ValueError, match="sigma has shape"):
        A.attention_weights(qkv[0], qkv[1], np.ones((1, K), np.float32))


def test_orthonormality_penalty(rng):
    kernel = np.float32(rng.normal(size=(13, H, K)))
    expected = reference.orthonormality_penalty(kernel)
    np.testing.assert_allclose(A.orthonormality_penalty(kernel), expected, rtol=1e-5)
    orthogonal = np.linalg.qr(rng.normal(size=(13, K)))[0] * np.arange(1, K + 1)
    assert_close(A.orthonormality_penalty(np.float32(orthogonal[:, None])), [0])
    parallel = np.ones((13, 1, K), np.float32)
    np.testing.assert_allclose(A.orthonormality_penalty(parallel), [K - 1], rtol=1e-5)


def test_singular_values_equal_those_of_the_product(rng):
    query, key = np.float32(rng.normal(size=(2, 13, H, K)))
    expected = reference.singular_values(query, key)
    np.testing.assert_allclose(A.singular_values(query, key), expected, rtol=2e-5)


def make(kind, spectrum_init="matched", dtype=jnp.float32):
    start = spectrum_init if kind == "svda" else None
    return A.Attention(H * K, H, spectrum_init=start, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", A.ATTENTIONS)
def test_module_is_its_function_between_projections(rng, kind):
    module = make(kind)
    x = np.float32(rng.normal(size=(B, N, H * K)))
    out, trace = module(x)
    assert out.shape == x.shape
    attended = reference.attention(trace.query, trace.key, module.value(x), trace.sigma)
    expected = module.out(np.float32(attended))
    assert_close(out, expected, 1e-5)  # sums over D = 21 on both sides
    assert trace.query.shape == trace.key.shape == (B, N, H, K)
    assert module.spectrum.shape == (H, K)
    assert (trace.sigma is None) == (kind == "softmax")


@pytest.mark.parametrize(
    ("name", "start"), [("matched", K), ("sqrt", K**0.5), ("ones", 1)]
)
def test_start_of_sigma(name, start):
    assert_close(make("svda", name).sigma, np.full((H, K), start), 1e-6)


def test_matched_start_gives_logits_of_softmax_attention():
    # Standard deviation of a logit over independent Gaussian queries and keys: both 1,
    # up to sampling (64 * 64 * 16 logits) and to 1 / K (a unit vector is no Gaussian).
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 64, 16, 32))
    q_hat, k_hat = normalize(query), normalize(key)
    svda = jnp.einsum("bihk,bjhk->bhij", q_hat * 32, k_hat) / 32**0.5
    softmax = jnp.einsum("bihk,bjhk->bhij", query, key) / 32**0.5
    assert jnp.std(svda) == pytest.approx(float(jnp.std(softmax)), rel=0.04)


def test_both_attentions_start_from_the_same_projections():
    svda, softmax = make("svda"), make("softmax")
    for name in ("query", "key", "value", "out"):
        a, b = getattr(svda, name).kernel[...], getattr(softmax, name).kernel[...]
        np.testing.assert_array_equal(a, b)


def test_spectrum_of_the_baseline_has_no_gradient():
    module = make("softmax")
    graphdef, params = nnx.split(module, nnx.Param)
    grads = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p).spectrum))(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_forward_pass_does_not_measure_the_spectrum(rng, monkeypatch):
    """Run eagerly, singular values would cost more than the layer."""
    monkeypatch.setattr(A, "singular_values", None)
    make("softmax")(np.float32(rng.normal(size=(B, N, H * K))))

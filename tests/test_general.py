"""SVDA with masks, biases, dropout and groups, against Flax on unit vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax.nnx.nn.attention import dot_product_attention_weights

from svda_jax import UserError
from svda_jax.models import general
from svda_jax.models.attention import attention
from svda_jax.models.general import svda_weights

B, N, M, H, G, K, V = 2, 5, 7, 6, 3, 11, 4

# Compiled, as models call it; one program is quicker to compile than its parts.
STATIC = (
    *("is_causal", "dropout_rate", "broadcast_dropout", "deterministic"),
    *("dtype", "precision", "sow"),
)
svda_attention = jax.jit(general.svda_attention, static_argnames=STATIC)

# Float32 rounding of scores of order one, through exp and a sum over M = 7.
TOLERANCE = 2e-6


def assert_close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture
def qkv(rng):
    shapes = ((B, N, H, K), (B, M, H, K), (B, M, H, V))
    return tuple(np.float32(rng.normal(size=shape)) for shape in shapes)


@pytest.fixture
def sigma(rng):
    """Both signs, of the order of K."""
    return np.float32(rng.normal(size=(H, K)) * K / 2)


@pytest.fixture
def mask(rng):
    """Each query sees some keys and not others."""
    mask = rng.random(size=(B, 1, N, M)) < 0.6
    mask[..., 0], mask[..., 1] = True, False
    return mask


@functools.partial(jax.jit, static_argnames=STATIC)
def flax_attention(query, key, value, sigma, **options):
    """What SVDA is by its definition: ordinary attention on q_hat * sigma and k_hat."""
    query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    weights = dot_product_attention_weights(query * sigma, key, **options)
    return jnp.einsum("bhij,bjhv->bihv", weights, value)


DROPOUT = {"dropout_rng": jax.random.key(7), "dropout_rate": 0.4}
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "dropout": DROPOUT,
    "dropout of each": {**DROPOUT, "broadcast_dropout": False},
    "deterministic": {**DROPOUT, "deterministic": True},
    "precision": {"precision": "highest"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_flax_on_unit_vectors(qkv, sigma, name):
    options = OPTIONS[name]
    assert_close(
        svda_attention(*qkv, sigma, **options), flax_attention(*qkv, sigma, **options)
    )


def test_bias_and_mask_equal_those_of_flax(qkv, sigma, mask, rng):
    options = {"bias": np.float32(rng.normal(size=(H, N, M))), "mask": mask}
    expected = flax_attention(*qkv, sigma, bias=options["bias"][None], mask=mask)
    assert_close(svda_attention(*qkv, sigma, **options), expected)
    options["mask"] = np.float32(mask)  # as Flax's makers of masks give them
    assert_close(svda_attention(*qkv, sigma, **options), expected)


def test_it_equals_the_attention_of_the_vision_transformer(qkv, sigma):
    assert_close(svda_attention(*qkv, sigma), attention(*qkv, sigma))
    query, key, _ = qkv
    expected = reference.attention_weights(query, key[:, :N], sigma)
    assert_close(svda_weights(query, key[:, :N], sigma), expected)


@pytest.mark.parametrize("how", ["mask", "bias"])
def test_a_mask_is_as_keys_that_are_not_there(qkv, sigma, how):
    query, key, value = qkv
    there = np.array([True, False, True, True, False, True, False])
    options = {
        "mask": {"mask": there},
        "bias": {"bias": np.where(there, 0, -np.inf).astype(np.float32)},
    }[how]
    expected = svda_attention(query, key[:, there], value[:, there], sigma)
    assert_close(svda_attention(query, key, value, sigma, **options), expected)
    weights = svda_weights(query, key, sigma, **options)
    assert (weights[..., ~there] == 0).all()


def test_causal_is_each_query_with_the_keys_up_to_its_own(qkv, sigma):
    expected = svda_attention(*qkv, sigma, mask=np.tri(N, M))
    np.testing.assert_array_equal(svda_attention(*qkv, sigma, is_causal=True), expected)


def test_grouped_heads_are_repeated_heads(qkv, sigma):
    query, key, value = qkv
    key, value = key[..., :G, :], value[..., :G, :]
    repeated = (np.repeat(x, H // G, axis=-2) for x in (key, value))
    expected = svda_attention(query, *repeated, sigma)
    assert_close(svda_attention(query, key, value, sigma), expected)


def test_leading_axes_are_as_many_calls(rng, sigma):
    shapes = ((3, B, N, H, K), (3, B, M, H, K), (3, B, M, H, V))
    qkv = tuple(np.float32(rng.normal(size=shape)) for shape in shapes)
    attend = functools.partial(svda_attention, sigma=sigma)
    out = attend(*qkv)
    assert_close(jax.vmap(jax.vmap(attend))(*qkv), out)
    assert_close(attend(*(x[2, 1] for x in qkv)), out[2, 1])


def test_zero_rows_and_queries_that_see_nothing_are_finite(qkv, sigma, mask):
    query, key, _ = qkv
    query[0, 3], key[1, 4] = 0, 0
    mask[0, :, 2] = False
    bias = np.zeros((N, M), np.float32)
    bias[4] = -np.inf

    def attend(query, key, value, sigma, bias):
        return svda_attention(query, key, value, sigma, bias=bias, mask=mask)

    out = attend(*qkv, sigma, bias)
    assert (out[0, 2] == 0).all()
    assert (out[:, 4] == 0).all()

    @jax.jit
    @functools.partial(jax.grad, argnums=range(5))
    def differentiate(*args):
        return jnp.sum(jnp.square(attend(*args)))

    with jax.debug_nans(True):
        grads = differentiate(*qkv, sigma, bias)
    assert all(np.isfinite(grad).all() for grad in (out, *grads))
    assert all((grad != 0).any() for grad in grads)


def test_a_number_that_is_not_finite_is_not_hidden(qkv, sigma):
    qkv[0][0, 1, 2, 3] = np.nan
    assert np.isnan(svda_attention(*qkv, sigma)[0, 1, 2]).all()


@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_is_unbiased(qkv, sigma, broadcast):
    options = {"dropout_rate": 0.3, "broadcast_dropout": broadcast}
    attend = functools.partial(svda_attention, *qkv, sigma, **options)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.jit(jax.vmap(lambda key: attend(dropout_rng=key)))(keys)
    # 5.5 standard errors of 4000 draws; there are 240 values.
    error = 5.5 * draws.std(0) / len(keys) ** 0.5
    assert (np.abs(draws.mean(0) - svda_attention(*qkv, sigma)) < error).all()
    assert draws.std(0).min() > 0.01
    np.testing.assert_array_equal(
        attend(deterministic=True), svda_attention(*qkv, sigma)
    )


def test_what_is_sown_are_the_weights_before_dropout(qkv, sigma):
    sown = []
    general.svda_attention(*qkv, sigma, **DROPOUT, sow=sown.append)
    np.testing.assert_array_equal(sown[0], svda_weights(*qkv[:2], sigma))


def test_jit_equals_eager(qkv, sigma, mask):
    eager = general.svda_attention(*qkv, sigma, mask=mask)
    assert_close(svda_attention(*qkv, sigma, mask=mask), eager)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits(qkv, dtype):
    sigma = np.linspace(-4, 4, H * K, dtype=np.float32).reshape(H, K)
    expected = svda_attention(*qkv, sigma)
    for arrays, options in (([x.astype(dtype) for x in qkv], {}), (qkv, {})):
        options = options if arrays is not qkv else {"dtype": dtype}
        out = svda_attention(*arrays, sigma, **options)
        assert out.dtype == dtype
        # bfloat16 has 8 bits: a score of at most 4 moves by 4 * 2^-8 / sqrt(11) for
        # each operand, weights by less; values of up to 3 and the result multiply it.
        assert_close(np.float32(out), expected, 0.05)
    weights = svda_weights(*(x.astype(dtype) for x in qkv[:2]), sigma)
    assert weights.dtype == jnp.float32
    assert_close(weights.sum(-1), np.ones((B, H, N)))


def test_whole_numbers_are_promoted(qkv, sigma):
    whole = [np.round(3 * x).astype(np.int32) for x in qkv]
    expected = svda_attention(*map(np.float32, whole), sigma)
    assert_close(svda_attention(*whole, sigma), expected)


ones = np.ones
MISTAKES = {
    "sigma has shape": {"sigma": ones(K)},
    "query has shape": {"query": ones((N, K))},
    "only their tokens and heads may differ": {"key": ones((B, M, H, K + 1))},
    "heads of key must divide": {
        "key": ones((B, M, 4, K)),
        "value": ones((B, M, 4, V)),
    },
    "only their width may differ": {"value": ones((B, M + 1, H, V))},
    "mask has shape": {"mask": ones((B, N, M), bool)},
    "bias has shape": {"bias": ones((1, 1, 1, N, M))},
    "must be at least 0 and below 1": {**DROPOUT, "dropout_rate": 1.0},
    "needs a PRNG key": {"dropout_rate": 0.5},
    "they must be real": {"query": ones((B, N, H, K), complex)},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line(qkv, sigma, message):
    arrays = dict(zip(("query", "key", "value"), qkv, strict=True))
    with pytest.raises(UserError, match=message):
        svda_attention(**{**arrays, "sigma": sigma, **MISTAKES[message]})


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("groups", [H, G])
def test_it_equals_x_transformers(rng, is_causal, groups):
    pytest.importorskip("x_transformers")
    import torch
    from x_transformers.x_transformers import Attention

    torch.manual_seed(0)
    theirs = Attention(
        dim=H * K,
        dim_head=K,
        heads=H,
        kv_heads=groups,
        causal=is_causal,
        qk_norm=True,
        qk_norm_dim_scale=True,
    )
    with torch.no_grad():
        for scale in (theirs.qk_norm_q_scale, theirs.qk_norm_k_scale):
            scale.copy_(torch.from_numpy(np.float32(2 * rng.normal(size=scale.shape))))
        x = np.float32(rng.normal(size=(B, N, H * K)))
        expected = theirs(torch.from_numpy(x)).numpy()

    def kernel(linear):
        return linear.weight.detach().numpy().T

    projections = (theirs.to_q, theirs.to_k, theirs.to_v)
    query, key, value = ((x @ kernel(p)).reshape(B, N, -1, K) for p in projections)
    query_scale, key_scale = (
        scale.detach().numpy()[:, 0]
        for scale in (theirs.qk_norm_q_scale, theirs.qk_norm_k_scale)
    )
    # There head h reads head h mod G of the keys, here the heads of a group are
    # neighbours, as in Flax.
    order = np.arange(H).reshape(-1, groups).T.ravel()
    key_scale = np.repeat(key_scale, H // groups, axis=0)
    sigma = query_scale[order] * key_scale * theirs.attend.scale * K**0.5
    out = svda_attention(query[:, :, order], key, value, sigma, is_causal=is_causal)
    out = out[:, :, np.argsort(order)].reshape(B, N, H * K)
    assert_close(out @ kernel(theirs.to_out), expected, 1e-5)

"""Pruning by spectral energy: what is kept, and what that changes in a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax.models.attention import orthonormality_penalty
from svda_jax.models.indicators import retained_rank
from svda_jax.models.vit import ViT, count_macs
from svda_jax.prune.model import choose, factorise, mask, shrink

L, H, K = 2, 3, 5


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(4, 6, 6, 2)).astype(np.uint8)


@pytest.fixture
def make_model(make_model_config, randomize):
    def make(**changes):
        model = ViT(make_model_config(**changes), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model, nnx.Param)
        return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))

    return make


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_same_arrays(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("spectrum", "rho", "expected"),
    [
        ([3, -4, 0, 0], 0.6, [0, 1, 0, 0]),  # 16 of 25
        ([3, -4, 0, 0], 0.64, [0, 1, 0, 0]),
        ([3, -4, 0, 0], 0.65, [1, 1, 0, 0]),
        ([3, -4, 0, 0], 1 - 1e-12, [1, 1, 0, 0]),
        ([3, -4, 0, 0], 1.0, [1, 1, 1, 1]),
        ([1, 1, 1, 1], 0.5, [1, 1, 0, 0]),  # of equal ones the first
        ([1, -1, 1, -1], 0.51, [1, 1, 1, 0]),
        ([0, 0, 0, 0], 0.9, [1, 0, 0, 0]),
        ([0, 0, 0, 7], 1e-9, [0, 0, 0, 1]),
    ],
)
def test_what_a_head_keeps(spectrum, rho, expected):
    np.testing.assert_array_equal(choose(np.array([spectrum]), rho), [expected])


def test_as_many_as_the_retained_rank(rng):
    spectrum = np.float32(rng.normal(size=(50, 16)) ** 3)
    for rho in (0.5, 0.9, 0.99):
        np.testing.assert_array_equal(
            choose(spectrum, rho).sum(-1), retained_rank(spectrum, rho)
        )


def test_all_of_the_energy_is_the_same_model_bit_for_bit(make_model, images):
    model = make_model()
    keep = [choose(block.attention.spectrum, 1.0) for block in model.blocks]
    for pruned in (mask(model, keep), shrink(model, keep)):
        assert_same_arrays(params_of(pruned), params_of(model))
        np.testing.assert_array_equal(pruned(images)[0], model(images)[0])


def test_exact_zeros_go_at_any_rho_and_change_no_logit(make_model, images):
    model = make_model()
    for block in model.blocks:
        sigma = block.attention.relative_sigma
        sigma[...] = sigma[...].at[:, 1].set(0).at[2, 3].set(0)
    keep = [choose(block.attention.spectrum, 1 - 1e-9) for block in model.blocks]
    for kept in keep:
        np.testing.assert_array_equal(kept.sum(-1), [4, 4, 3])
    np.testing.assert_array_equal(mask(model, keep)(images)[0], model(images)[0])


def test_masked_model_has_zeros_in_sigma_alone(make_model):
    model = make_model()
    keep = [choose(block.attention.spectrum, 0.6) for block in model.blocks]
    before, after = params_of(model), params_of(mask(model, keep))
    for layer, kept in enumerate(keep):
        attention = before["blocks"][layer]["attention"]
        attention["relative_sigma"] = attention["relative_sigma"] * kept
    assert_same_arrays(after, before)


def test_shrunk_model_is_the_equation_on_what_is_kept(make_model, images):
    model = make_model(depth=1)
    (attention,) = (block.attention for block in model.blocks)
    keep = [np.array([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]], bool)]
    shrunk = shrink(model, keep)
    assert shrunk.config.qk_dim == (3,)
    _, (trace,) = model(images)
    _, (narrow,) = shrunk(images)
    for head, kept in enumerate(keep[0]):
        count = kept.sum()
        for name in ("query", "key"):
            array = np.asarray(getattr(narrow, name))[:, :, head]
            whole = np.asarray(getattr(trace, name))[:, :, head]
            # A narrower product may be summed in another order.
            np.testing.assert_allclose(array[..., :count], whole[..., kept], atol=1e-5)
            np.testing.assert_array_equal(array[..., count:], 0)
        sigma = np.asarray(attention.sigma)[head, kept]
        np.testing.assert_array_equal(narrow.sigma[head, :count], sigma)
        np.testing.assert_array_equal(narrow.sigma[head, count:], 0)
    assert narrow.scale == K**-0.5


def test_counts_equal_hand_counts(make_model):
    model = make_model(num_heads=3)
    keep = [np.arange(K) < np.array([[4], [2], [1]]) for _ in range(L)]
    shrunk = shrink(model, keep)
    count = sum(leaf.size for leaf in jax.tree.leaves(params_of(shrunk)))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params_of(model)))
    # A direction of W_q and of W_k has 15 weights and a bias each, and a sigma.
    assert whole - count == L * H * (K - 4) * (2 * (15 + 1) + 1)
    # 9 tokens: W_q, W_k (4 directions of 3 heads), W_v, W_o; scores, values; MLP of 11.
    layer = 9 * 15 * (12 + 12 + 15 + 15) + 9 * 9 * (12 + 15) + 2 * 9 * 15 * 11
    assert count_macs(shrunk.config) == 9 * 2 * 2 * 2 * 15 + L * layer + 15 * 7
    full = 9 * 15 * 4 * 15 + 9 * 9 * 2 * 15 + 2 * 9 * 15 * 11
    assert count_macs(model.config) == 9 * 2 * 2 * 2 * 15 + L * full + 15 * 7


def test_width_is_rounded_up_but_not_beyond_all(make_model):
    model = make_model()
    keep = [np.arange(K) < count for count in (3, 5)]
    keep = [np.tile(kept, (H, 1)) for kept in keep]
    assert shrink(model, keep, multiple=4).config.qk_dim == (4, 5)


def test_padding_does_not_count_as_direction():
    """A head that keeps three of five directions is as one that has three."""
    rng = np.random.default_rng(0)
    kernel = np.float32(rng.normal(size=(7, 1, 3)))
    wide = np.pad(kernel, ((0, 0), (0, 0), (0, 2)))
    np.testing.assert_allclose(
        orthonormality_penalty(wide), orthonormality_penalty(kernel), rtol=1e-6
    )
    orthonormal = np.eye(5, dtype=np.float32)[:, None, :] * (np.arange(5) < 3)
    np.testing.assert_array_equal(orthonormality_penalty(orthonormal), 0)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_padding_has_no_gradient(make_model, images, attention):
    model = make_model(attention=attention)
    model = factorise(model) if attention == "softmax" else model
    keep = [np.arange(K) < np.array([[4], [2], [3]]) for _ in range(L)]
    shrunk = shrink(model, keep)
    graphdef, params = nnx.split(shrunk, nnx.Param)

    def loss(params):
        return jnp.sum(jnp.square(nnx.merge(graphdef, params)(images)[0]))

    grads = jax.jit(jax.grad(loss))(nnx.to_pure_dict(params))
    for layer in range(L):
        of = grads["blocks"][layer]["attention"]
        leaves = [of[p][k] for p in ("query", "key") for k in ("kernel", "bias")]
        leaves += [of["relative_sigma"]] if attention == "svda" else []
        for leaf in leaves:
            np.testing.assert_array_equal(leaf[..., 1, 2:], 0)
            np.testing.assert_array_equal(leaf[..., 2, 3:], 0)
            assert np.any(leaf[..., 0, :] != 0)


def test_singular_directions_say_the_same(make_model, images):
    model = make_model(attention="softmax")
    singular = factorise(model)
    # Float32 rounding of logits of order ten.
    np.testing.assert_allclose(singular(images)[0], model(images)[0], atol=1e-4)
    for one, two in zip(model.blocks, singular.blocks, strict=True):
        expected = np.asarray(one.attention.spectrum)
        np.testing.assert_allclose(two.attention.spectrum, expected, rtol=1e-4)
        # Its directions are in the order of the spectrum.
        lengths = np.linalg.norm(two.attention.query.kernel[...], axis=0)
        np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    keep = [np.arange(K) < np.full((H, 1), 3)] * L
    np.testing.assert_allclose(
        shrink(singular, keep)(images)[0], mask(singular, keep)(images)[0], atol=1e-4
    )

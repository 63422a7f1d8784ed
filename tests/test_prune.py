"""What pruned models compute; test_prune_choice has which directions they keep."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from svda_jax.models.attention import orthonormality_penalty
from svda_jax.models.vit import ViT, count_macs, count_parameters
from svda_jax.prune.measure import measure_moments
from svda_jax.prune.model import choose, mask, shrink, split

L, H, K, N, D = 2, 3, 7, 9, 21
# Heads that keep 3, 1 and 2 directions.
KEPT = np.array([[1, 0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]])
KEPT = KEPT == 1
ALL = np.ones((H, K), bool)
EVERY = [("svda", "score"), ("svda", "weights"), ("svda", "sigma")]
EVERY += [("softmax", "score"), ("softmax", "weights")]


@pytest.fixture
def make_model(make_model_config, randomize):
    def make(**changes):
        model = ViT(make_model_config(width=D, **changes), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model, nnx.Param)
        return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))

    return make


def take_apart(model, data, basis="score"):
    """A model's directions, and lengths."""
    moments, lengths = measure_moments(model, data)
    return split(model, basis, moments), lengths


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_same_arrays(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)


def sides(trace):
    """Queries and keys as they are scored, float64."""
    sides = map(np.float64, (trace.query, trace.key))
    return sides if trace.sigma is None else map(reference.normalize, sides)


def scores(trace):
    """`[B, H, N, N]` float64."""
    factors = trace.scale * (1 if trace.sigma is None else np.float64(trace.sigma))
    query, key = sides(trace)
    return np.einsum("bihk,bjhk->bhij", query * factors, key)


@pytest.mark.parametrize(("attention", "basis"), EVERY)
def test_masked_model_scores_with_the_sum_of_what_is_kept(
    make_model, data, rng, attention, basis
):
    """Biases, and tokens that nothing was measured on, included."""
    model = make_model(attention=attention)
    directions, _ = take_apart(model, data, basis)
    masked = mask(model, directions, [KEPT, ~KEPT])
    for layer, kept in enumerate((KEPT, ~KEPT)):
        x = jnp.float32(rng.normal(size=(2, N, D)))
        before, after = (m.blocks[layer].attention(x)[1] for m in (model, masked))
        form = directions[layer].add_up(kept)
        query, key = sides(before)
        expected = np.einsum("bihk,hkl,bjhl->bhij", query, form, key)
        # Float32 rounding of projections and parameters.
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(scores(after), expected, atol=atol)
        assert np.abs(expected - scores(before)).max() > 1000 * atol
        whole = directions[layer].add_up(ALL) * np.ones((H, K, K))
        factors = np.float64(model.blocks[layer].attention.factors)
        expected = factors[..., None] * np.eye(K)
        np.testing.assert_allclose(whole, expected, atol=1e-9)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_sizes_by_weights_are_singular_values_of_the_form_in_the_inputs(
    make_model, attention
):
    """Over the norms of W_q and W_k where queries and keys are of unit length."""
    model = make_model(attention=attention)
    attention = model.blocks[0].attention
    moments = np.ones((L, 2, H, K, K))  # not of these
    found = split(model, "weights", moments)[0].size
    query, key = (np.float64(p.kernel[...]) for p in (attention.query, attention.key))
    for h, factors in enumerate(np.float64(attention.factors)):
        form = query[:, h] * factors @ key[:, h].T
        if attention.start is not None:
            form /= np.linalg.norm(query[:, h]) * np.linalg.norm(key[:, h])
        expected = np.linalg.svd(form, compute_uv=False)[:K]
        # What the data do not reach has a millionth of the energy.
        np.testing.assert_allclose(found[h], expected, atol=2e-3 * expected[0])


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_what_is_kept_is_the_spectrum_of_the_masked_model(make_model, data, attention):
    model = make_model(attention=attention)
    directions, _ = take_apart(model, data)
    keep = choose([one.size for one in directions], rank=3)
    masked, _ = take_apart(mask(model, directions, keep), data)
    # Of the first layer alone, whose inputs are as they were. Moments are float32.
    atol = 2e-3 * directions[0].size.max()
    expected = directions[0].size * keep[0]
    np.testing.assert_allclose(masked[0].size, expected, atol=atol)
    assert directions[0].size[:, 3].min() > 3 * atol


def test_masked_along_sigma_is_the_model_with_zeros_in_sigma(make_model, data, images):
    model = make_model()
    directions, _ = take_apart(model, data, "sigma")
    masked = mask(model, directions, [KEPT, KEPT])
    for block in model.blocks:
        block.attention.relative_sigma[...] *= KEPT
    # Coordinates come in another order, and so do their sums.
    np.testing.assert_allclose(masked(images)[0], model(images)[0], atol=1e-4)


def test_a_layer_that_keeps_all_is_the_same_bit_for_bit(make_model, data, images):
    model = make_model()
    directions, lengths = take_apart(model, data)
    keep = choose([one.size for one in directions], rho=1)
    for pruned in (
        mask(model, directions, keep),
        shrink(model, directions, keep, lengths),
    ):
        assert pruned.config == model.config
        assert_same_arrays(params_of(pruned), params_of(model))
        np.testing.assert_array_equal(pruned(images)[0], model(images)[0])


def test_shrunk_model_with_a_column_for_each_direction_is_the_masked(make_model, data):
    model = make_model()
    directions, lengths = take_apart(model, data)
    keep = [KEPT, ~KEPT]
    shrunk = shrink(model, directions, keep, lengths, norm_columns=K)
    assert shrunk.config == model.config
    assert_same_arrays(params_of(shrunk), params_of(mask(model, directions, keep)))


@pytest.mark.parametrize("norm_columns", [0, 1, 2])
def test_shrunk_model_has_the_mean_squared_lengths_of_the_original(
    make_model, data, images, norm_columns
):
    """Its constant is the least that so many columns can leave to it."""
    model = make_model()
    directions, lengths = take_apart(model, data)
    keep = [ALL, KEPT]  # the second layer's inputs are as they were
    shrunk = shrink(model, directions, keep, lengths, norm_columns=norm_columns)
    width = 3 + norm_columns + 1
    assert shrunk.config.qk_dim == (K, width)
    before, after = (m(images)[1][1] for m in (model, shrunk))
    forms = directions[1].add_up(KEPT)
    for name, left in (("query", forms), ("key", np.swapaxes(forms, -1, -2))):
        x, y = np.float64(getattr(before, name)), np.float64(getattr(after, name))
        squares = np.sum(x**2, -1).mean((0, 1)), np.sum(y**2, -1).mean((0, 1))
        np.testing.assert_allclose(*squares, rtol=1e-5)
        for h, rank in enumerate(KEPT.sum(-1)):
            kept = np.linalg.svd(left[h])[0][:, :rank]
            others = x[:, :, h] @ (np.eye(K) - kept @ kept.T)
            moment = np.einsum("bik,bil->kl", others, others) / (len(x) * N)
            least = np.linalg.eigvalsh(moment)[rank:][: K - width + 1]
            np.testing.assert_allclose(y[:, :, h, -1], np.sqrt(least.sum()), rtol=1e-4)


def test_shrunk_model_without_columns_for_lengths_is_the_equation_on_what_is_kept(
    make_model, data, images
):
    model = make_model()
    directions, lengths = take_apart(model, data, "sigma")
    keep = [KEPT, ALL]
    shrunk = shrink(model, directions, keep, lengths, norm_columns=None)
    assert shrunk.config.qk_dim == (3, K)
    before, after = (m(images)[1][0] for m in (model, shrunk))
    assert after.scale == K**-0.5
    for h, kept in enumerate(KEPT):
        query, key = (
            reference.normalize(np.asarray(x[:, :, h])[..., kept]) for x in before[:2]
        )
        sigma = np.asarray(before.sigma)[h, kept] / np.sqrt(K)
        expected = np.einsum("bik,bjk->bij", query * sigma, key)
        np.testing.assert_allclose(scores(after)[:, h], expected, atol=1e-5)
        padding = [x[..., h, kept.sum() :] for x in after[:3]]
        assert not any(map(np.any, padding))


@pytest.mark.parametrize(
    ("multiple", "qk_dim"), [(1, (5, 7)), (3, (6, 7)), (5, (5, 7)), (8, (7, 7))]
)
def test_sizes_and_counts_equal_hand_counts(make_model, data, multiple, qk_dim):
    model = make_model()
    directions, lengths = take_apart(model, data)
    options = {"norm_columns": 1, "multiple": multiple}
    shrunk = shrink(model, directions, [KEPT, ~KEPT], lengths, **options)
    assert (shrunk.config.qk_dim or (K, K)) == qk_dim
    # A direction of W_q and of W_k has 21 weights and a bias each, and a sigma.
    gone = H * (K - qk_dim[0])
    count = count_parameters(model) - gone * (2 * (D + 1) + 1)
    assert count_parameters(shrunk) == count
    # 9 tokens: W_q, W_k, W_v, W_o; scores, values; an MLP of 11.
    full = 9 * D * 4 * D + 9 * 9 * 2 * D + 2 * 9 * D * 11
    assert count_macs(model.config) == 9 * 2 * 2 * 2 * D + L * full + D * 7
    saved = 2 * 9 * D * gone + 9 * 9 * gone
    assert count_macs(shrunk.config) == count_macs(model.config) - saved


@pytest.mark.parametrize(
    ("attention", "norm_columns"), [("svda", None), ("svda", 1), ("softmax", 3)]
)
def test_gradients_are_finite_and_those_of_padding_zero(
    make_model, data, images, attention, norm_columns
):
    model = make_model(attention=attention)
    directions, lengths = take_apart(model, data)
    options = {"norm_columns": norm_columns, "multiple": 4}
    shrunk = shrink(model, directions, [KEPT] * L, lengths, **options)
    graphdef, params = nnx.split(shrunk, nnx.Param)

    def loss(params):
        return jnp.sum(jnp.square(nnx.merge(graphdef, params)(images)[0]))

    params = nnx.to_pure_dict(params)
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    full = attention == "svda" and norm_columns  # each column has something in it
    for layer, (h, rank) in itertools.product(range(L), enumerate(KEPT.sum(-1))):
        for tree in (params, grads):
            of = tree["blocks"][layer]["attention"]
            leaves = [of[p][k] for p in ("query", "key") for k in ("kernel", "bias")]
            leaves += [of["relative_sigma"]] if attention == "svda" else []
            for leaf in leaves:
                assert leaf.shape[-1] == (K if full else 4)
                assert np.all(np.any(leaf[..., h, :rank].reshape(-1, rank), axis=0))
                assert full or not np.any(leaf[..., h, rank:])


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_pruning_what_is_pruned_finds_it_as_it_was_left(
    make_model, data, images, attention
):
    model = make_model(attention=attention)
    directions, lengths = take_apart(model, data)
    keep = choose([one.size for one in directions], rank=3)
    once = shrink(model, directions, keep, lengths, norm_columns=1)
    directions, lengths = take_apart(once, data)
    keep = choose([one.size for one in directions], rho=1 - 1e-5)
    assert [kept.sum(-1).tolist() for kept in keep] == [[3] * H] * L
    twice = shrink(once, directions, keep, lengths, norm_columns=1)
    assert twice.config == once.config
    np.testing.assert_allclose(twice(images)[0], once(images)[0], atol=1e-3)


def test_bfloat16_model_is_pruned_as_the_float32_one(make_model, data, images):
    logits = []
    for dtype in ("float32", "bfloat16"):
        model = make_model(dtype=dtype)
        directions, lengths = take_apart(model, data)
        keep = choose([one.size for one in directions], rank=3)
        shrunk = shrink(model, directions, keep, lengths, norm_columns=1)
        assert shrunk.blocks[0].attention.query.dtype == dtype
        logits.append(shrunk(images)[0])
    # 8 bits a number, through two layers.
    np.testing.assert_allclose(*logits, atol=0.05 * np.abs(logits[0]).max())


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

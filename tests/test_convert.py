"""Softmax attention made SVDA: the model."""

import jax
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.models.attention import attention_weights
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.prune.convert import convert, find_coordinates, rebuild
from svda_jax.prune.measure import measure_apart, measure_moments
from svda_jax.prune.model import choose, shrink, split

L, H, K = 2, 3, 5


def build(config, params):
    return nnx.merge(create_graphdef(config), params)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def weights_of(model, images):
    """Attention weights of each layer."""
    _, traces = model(images)
    return [
        np.asarray(attention_weights(t.query, t.key, t.sigma, scale=t.scale))
        for t in traces
    ]


@pytest.fixture
def softmax(make_model_config, randomize):
    config = make_model_config(attention="softmax")
    params = params_of(ViT(config, rngs=nnx.Rngs(0)))
    return build(config, randomize(params))


def test_queries_and_keys_of_constant_length_convert_exactly(
    make_model_config, data, images, rng
):
    """Tokens that are plus and minus orthogonal vectors are so whatever turns them."""
    size = {"width": 21, "num_heads": 3, "depth": 1, "image_size": 6, "patch_size": 2}
    config = make_model_config(attention="softmax", **size, pool="cls")  # 10 tokens
    params = params_of(ViT(config, rngs=nnx.Rngs(0)))
    across = rng.normal(size=(21, 5))
    across, _ = np.linalg.qr(across - across.mean(axis=0))  # LayerNorm leaves it
    params["position_embedding"] = np.sqrt(21) * np.float32([across.T, -across.T])
    params["position_embedding"] = params["position_embedding"].reshape(1, 10, 21)
    params["patch_embed"]["projection"]["kernel"] *= 0
    attention = params["blocks"][0]["attention"]
    for name in ("query", "key"):
        attention[name]["kernel"] = np.float32(rng.normal(size=(21, 3, 7)))
    params["head"]["kernel"] = np.float32(rng.normal(size=(21, 7)))
    model = build(config, params)
    converted = convert(model, data)
    (before,), (after,) = (weights_of(one, images) for one in (model, converted))
    assert before.max() > 0.9  # they are far from uniform
    np.testing.assert_allclose(after, before, atol=1e-4)
    logits = [one(images)[0] for one in (model, converted)]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_a_large_constant_leaves_of_scores_all_but_the_weakest_direction(softmax, data):
    params = jax.tree.map(np.array, params_of(softmax))
    for block in params["blocks"].values():
        for leaf in block["attention"]["query"].values():
            leaf[..., 2] = 0
    model = build(softmax.config, params)
    found = [
        measure_apart(model, convert(model, data, constant=c), data) for c in (0, 3, 30)
    ]
    far, near, nearest = (one["logits"].mean() for one in found)
    assert far > 2 * near
    assert near > 30 * nearest  # what is left falls with the constant's square
    assert np.all(found[-1]["logits"] < 1e-2 * found[-1]["size"])
    assert np.all(found[-1]["weights"] < 5e-4)


def test_sigma_is_what_fits_scores_best(softmax, data, rng):
    converted = convert(softmax, data)
    moments, _ = measure_moments(softmax, data)
    factors = softmax.blocks[0].attention.factors
    coordinates = [find_coordinates(one, factors) for one in moments]
    turned = params_of(rebuild(softmax, coordinates, np.zeros((L, H, K))))
    found = params_of(converted)
    # The first layer, whose inputs are those of softmax attention.
    best = found["blocks"][0]["attention"]["relative_sigma"]

    def error(sigma):
        turned["blocks"][0]["attention"]["relative_sigma"] = np.float32(sigma)
        model = build(converted.config, turned)
        return measure_apart(softmax, model, data)["logits"][0]

    least = error(best)
    for k in range(K):
        for change in (-0.05, 0.05):
            moved = np.array(best)
            moved[:, k] += change * np.abs(best).max(axis=-1)
            assert np.all(error(moved) > least)
    _, traces = softmax(next(iter(data.eval_batches()))["image"])
    unfitted = [
        np.sqrt(np.einsum("hkk->h", one.swapaxes(-1, -2) @ moment @ one))
        for one, moment in zip(coordinates[0][:2], moments[0], strict=True)
    ]
    sizes = split(softmax, "score", moments)[0].size
    sizes = sizes * (unfitted[0] * unfitted[1])[:, None] / traces[0].scale
    assert np.all(error(sizes / converted.blocks[0].attention.start) > least)


def test_all_but_queries_and_keys_stays_and_the_query_bias_counts(softmax, data):
    before, after = params_of(softmax), params_of(convert(softmax, data))
    for block in after["blocks"].values():
        assert block["attention"].pop("relative_sigma").shape == (H, K)
        assert np.abs(block["attention"]["query"]["bias"]).max() > 0.01
    for tree in (before, after):
        for block in tree["blocks"].values():
            del block["attention"]["query"], block["attention"]["key"]
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_columns_that_only_fill_up_a_pruned_head_get_no_sigma(softmax, data):
    moments, lengths = measure_moments(softmax, data)
    directions = split(softmax, "score", moments)
    keep = choose([one.size for one in directions], rank=2)
    keep[0][0, 2:4] = True  # this head keeps four, the others are filled up
    pruned = shrink(softmax, directions, keep, lengths)
    assert pruned.config.qk_dim == (4, 2)
    converted = convert(pruned, data)
    assert converted.config.qk_dim == (4, 2)
    sigma = np.abs(converted.blocks[0].attention.sigma)
    assert np.all(sigma[0] > 0.1)
    np.testing.assert_allclose(np.sort(sigma[1:])[:, :2], 0, atol=1e-5)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(params_of(converted))
    )


def test_attention_apart_is_a_mean_over_rows_and_images(softmax, data, images):
    converted = convert(softmax, data)
    found = measure_apart(softmax, converted, data)
    for layer, (one, two) in enumerate(
        zip(*(weights_of(model, images) for model in (softmax, converted)), strict=True)
    ):
        x, y = (np.log(np.float64(a)) for a in (one, two))
        x, y = (a - a.mean(axis=-1, keepdims=True) for a in (x, y))
        for name, expected in (
            ("logits", np.sqrt(np.mean(np.square(x - y), axis=(0, 2, 3)))),
            ("size", np.sqrt(np.mean(np.square(x), axis=(0, 2, 3)))),
            ("weights", np.abs(one - two).sum(-1).mean(axis=(0, 2)) / 2),
        ):
            np.testing.assert_allclose(found[name][layer], expected, rtol=1e-3)


def test_a_model_that_is_not_finite_is_refused(softmax, data):
    params = jax.tree.map(np.array, params_of(softmax))
    params["blocks"][1]["attention"]["key"]["bias"][0] = np.nan
    with pytest.raises(UserError, match="queries or keys that are not finite"):
        convert(build(softmax.config, params), data)

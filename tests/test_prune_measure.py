"""What pruning measures over images, against loops in float64."""

import numpy as np
import pytest
import reference
from flax import nnx

from svda_jax import UserError
from svda_jax.models.vit import ViT
from svda_jax.prune import measure

L, H, K = 2, 3, 5


@pytest.fixture(params=["svda", "softmax"])
def model(request, make_model_config, randomize):
    model = ViT(make_model_config(attention=request.param), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))


def vectors(trace):
    """Queries, and keys centred within their image, as scores see them, float64."""
    query, key = map(np.float64, trace[:2])
    if trace.sigma is not None:
        query, key = reference.normalize(query), reference.normalize(key)
    return query, key - key.mean(axis=1, keepdims=True)


def second_moment(x):
    """`[B, N, H, K]` -> `[H, K, K]`."""
    out = np.zeros((H, K, K))
    for b, i, h in np.ndindex(x.shape[:3]):
        out[h] += np.outer(x[b, i, h], x[b, i, h]) / (len(x) * x.shape[1])
    return out


@pytest.mark.parametrize("name", ["head/bias", "blocks/1/attention/relative_sigma"])
def test_numbers_that_are_not_finite_are_named(make_model_config, data, name):
    graphdef, params = nnx.split(ViT(make_model_config(), rngs=nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(params)
    *parents, leaf = (int(x) if x.isdigit() else x for x in name.split("/"))
    there = params
    for parent in parents:
        there = there[parent]
    there[leaf] = there[leaf] * np.nan
    with pytest.raises(UserError, match=f"numbers in {name} that are not finite"):
        measure.measure_moments(nnx.merge(graphdef, params), data)


# A whole batch is the least that is measured.
@pytest.mark.parametrize(("most", "number"), [(10_000, 5), (4, 5), (3, 3), (1, 3)])
def test_moments_and_lengths_are_means_over_the_first_images(
    model, data, images, monkeypatch, most, number
):
    monkeypatch.setattr(measure, "MAX_IMAGES", most)
    moments, lengths = measure.measure_moments(model, data)
    _, traces = model(images[:number])
    for layer, trace in enumerate(traces):
        for side in range(2):
            raw, scored = np.float64(trace[side]), vectors(trace)[side]
            for found, x in ((moments, scored), (lengths, raw)):
                expected = second_moment(x)
                # Activations are float32.
                atol = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(found[layer][side], expected, atol=atol)
    assert len(moments) == len(lengths) == L


def test_movement_is_that_of_all_scores_of_a_query_and_a_key_of_one_image(
    model, data, images, rng
):
    forms = [rng.normal(size=(H, K, K)) for _ in range(L)]
    moved = measure.measure_movement(model, forms, data)
    _, traces = model(images)
    expected = np.zeros((L, H))
    for layer, trace in enumerate(traces):
        query, key = vectors(trace)
        for b, i, h in np.ndindex(query.shape[:3]):
            for y in key[b, :, h]:
                score = query[b, i, h] @ forms[layer][h] @ y
                expected[layer, h] += score**2 / (query[..., 0, 0].size * key.shape[1])
    np.testing.assert_allclose(moved, np.sqrt(expected), rtol=1e-4)

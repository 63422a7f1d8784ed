"""Operations of machines that are not here, and gradients to compare them by."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from svda_jax.models import ops as O


def device(platform, **attributes):
    return types.SimpleNamespace(platform=platform, **attributes)


OPS = {
    "plain": O.PLAIN,
    "cpu": O.choose(device("cpu")),
    "gpu": O.choose(device("gpu", compute_capability="9.0")),
    "tpu": O.choose(device("tpu")),
}


def assert_close(actual, expected, tolerance):
    """Within a share of the largest entry, or of one where all are smaller."""
    actual, expected = np.float32(actual), np.float32(expected)
    limit = tolerance * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def pull_back(function, arrays, direction):
    """The value of a function, compiled, and its gradients along a direction."""

    @jax.jit
    def both(arrays, direction):
        out, vjp = jax.vjp(function, *arrays)
        return out, *vjp(direction.astype(out.dtype))

    return both(arrays, direction)


def assert_observes_as_plain(rng, ops, query, key, value, sigma, *, unit):
    """All that `observe` gives, for a function of every kind of row and a mask."""
    noise = jnp.float32(0.3 * rng.normal(size=(2, *query.shape[1:])))
    mask = np.arange(len(query)) != 1

    def function(rows):
        moved = jnp.abs(rows["weights"] - rows["perturbed"])
        cosines = jnp.abs(rows["cosines"])
        return {"moved": jnp.sum(moved, axis=-1)}, (jnp.max(cosines, axis=-1),)

    actual, expected = (
        one.observe(function, query, key, value, sigma, noise, mask, unit=unit)
        for one in (ops, O.PLAIN)
    )
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        # Scores of up to 30, rounded, through exp; sums of up to 131 tokens.
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)

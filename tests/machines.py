"""Operations of machines that are not here, and gradients to compare them by."""

import types

import jax
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

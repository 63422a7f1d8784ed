"""Which directions pruning keeps."""

import itertools

import numpy as np
import pytest

from svda_jax.models.indicators import retained_rank
from svda_jax.prune.model import choose


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        ([3, 4, 0, 0], {"rho": 0.6}, [0, 1, 0, 0]),  # 16 of 25
        ([3, 4, 0, 0], {"rho": 0.64}, [0, 1, 0, 0]),
        ([3, 4, 0, 0], {"rho": 0.65}, [1, 1, 0, 0]),
        ([3, 4, 0, 0], {"rho": 1 - 1e-12}, [1, 1, 0, 0]),
        ([3, 4, 0, 0], {"rho": 1.0}, [1, 1, 1, 1]),
        ([1, 1, 1, 1], {"rho": 0.5}, [1, 1, 0, 0]),  # of equal ones the first
        ([1, 1, 1, 1], {"rho": 0.51}, [1, 1, 1, 0]),
        ([0, 0, 0, 0], {"rho": 0.9}, [1, 0, 0, 0]),
        ([0, 0, 0, 7], {"rho": 1e-9}, [0, 0, 0, 1]),
        ([3, 4, 4, 0], {"rank": 1}, [0, 1, 0, 0]),
        ([3, 4, 4, 0], {"rank": 2}, [0, 1, 1, 0]),
        ([0, 3, 0, 0], {"rank": 3}, [1, 1, 1, 0]),
        ([3, 4, 4, 0], {"rank": 9}, [1, 1, 1, 1]),
        ([2, 1] * 20, {"rank": 25}, [1] * 10 + [1, 0] * 15),
        ([3, 4, 0, 1], {"bound": 0}, [1, 1, 0, 1]),
        ([3, 4, 0, 1], {"bound": 1}, [1, 1, 0, 0]),
        ([3, 4, 0, 1], {"bound": 3.17}, [0, 1, 0, 0]),  # sqrt(3^2 + 1) = 3.162...
        ([3, 4, 0, 1], {"bound": 3.16}, [1, 1, 0, 0]),
        ([3, 4, 0, 1], {"bound": np.inf}, [0, 1, 0, 0]),
    ],
)
def test_what_a_head_keeps(size, rule, expected):
    """Whatever a head beside it has."""
    (kept,) = choose([np.array([size, [9] * len(size)])], **rule)
    np.testing.assert_array_equal(kept[0], expected)


def test_as_many_as_the_retained_rank(rng):
    sizes = np.float32(rng.normal(size=(50, 16)) ** 3)
    for rho in (0.5, 0.9, 0.99):
        (kept,) = choose([sizes], rho=rho)
        np.testing.assert_array_equal(kept.sum(-1), retained_rank(sizes, rho))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [  # Squares: 9 1 0, 4 4 0; 16 1/4, 0 0: 34 1/4 in all, 29 of the largest of each.
        ({"rank": 1}, ["100", "100", "10", "10"]),
        ({"rank": 2}, ["111", "110", "11", "10"]),
        ({"rank": 3}, ["111", "111", "11", "11"]),
        ({"rho": 0.8}, ["100", "100", "10", "10"]),
        ({"rho": 0.96}, ["100", "110", "10", "10"]),  # 33 of 34.25
        ({"rho": 0.97}, ["110", "110", "10", "10"]),
        ({"rho": 1 - 1e-12}, ["110", "110", "11", "10"]),
        ({"rho": 1}, ["111", "111", "11", "11"]),
        ({"bound": 0}, ["110", "110", "11", "10"]),
        ({"bound": 0.25}, ["110", "110", "10", "10"]),  # 1/4 of four heads
        ({"bound": 0.56}, ["100", "110", "10", "10"]),  # 5/4
        ({"bound": 99}, ["100", "100", "10", "10"]),
    ],
)
def test_what_heads_of_one_budget_keep(rule, expected):
    sizes = [[[3, 1, 0], [2, 2, 0]], [[4, 0.5], [0, 0]]]
    heads = [head for layer in choose(sizes, pooled=True, **rule) for head in layer]
    assert ["".join(map(str, np.int8(head))) for head in heads] == expected


def test_pooled_choice_misses_the_least_that_so_many_can(rng):
    """Of all choices with a direction a head."""
    energy = np.square(sizes := rng.normal(size=(2, 2, 3)))
    everything = np.array([*itertools.product([False, True], repeat=12)])
    everything = everything.reshape(-1, 2, 2, 3)
    everything = everything[everything.any(-1).all((1, 2))]
    missed = np.sum(energy * ~everything, axis=(1, 2, 3))
    number = everything.sum((1, 2, 3))
    for rule, holds in (
        ({"rank": 2}, number == 8),
        ({"rho": 0.9}, missed <= 0.1 * energy.sum()),
        ({"bound": 0.3}, missed <= 4 * 0.3**2),
    ):
        kept = np.array(choose(sizes, pooled=True, **rule))
        fewest = holds & (number == number[holds].min())
        assert kept.sum() == number[holds].min() < 12
        np.testing.assert_allclose(np.sum(energy * ~kept), missed[fewest].min())

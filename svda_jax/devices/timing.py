"""Times of functions, measured so that they can be compared."""

import time
from typing import NamedTuple

import jax
import numpy as np


class Spread(NamedTuple):
    """A median and its quartiles, written with that many decimals."""

    low: float
    median: float
    high: float
    decimals: int

    def __str__(self):
        low, median, high = (f"{x:,.{self.decimals}f}" for x in self[:3])
        return f"{median} ({low} to {high})"


def spread(values, decimals=3):
    """The `Spread` of measurements."""
    return Spread(*map(float, np.percentile(values, [25, 50, 75])), decimals)


def measure(variants, repeats):
    """Times functions in turn.

    Args:
      variants: functions without arguments that return arrays, by name.
      repeats: rounds; in each, every variant runs once.

    Returns:
      Seconds `[repeats]` by name.
    """
    seconds = {name: [] for name in variants}
    for function in variants.values():
        jax.block_until_ready(function())  # compiles
    for _ in range(repeats):
        for name, function in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def repeat(state, step):
    """A function without arguments that takes the next step each time, for `measure`.

    Args:
      state: the first.
      step: from state to the next state and an array to wait for.
    """

    def run():
        nonlocal state
        state, result = step(state)
        return result

    return run

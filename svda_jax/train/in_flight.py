"""Steps that were started and not yet waited for."""

import collections
import math
import time

import jax

# How many there are at most. It keeps the device busy, the progress bar honest and a
# loss that is not finite close by; several CPU devices in one process deadlock in their
# collectives when it has no bound (JAX 0.10).
MAX_IN_FLIGHT = 8


class InFlight:
    """A bounded queue of started steps.

    Args:
      finish: called with step, its `StepReport` and the time at which it was finished
        (`time.perf_counter`), in order and after it.
    """

    def __init__(self, finish):
        self._finish = finish
        self._started = collections.deque()  # step, report
        self._finished_at = collections.deque()  # of the first of these

    def add(self, step, report):
        """Adds a step that was just started; waits where too many are."""
        self._started.append((step, report))
        for _, one in list(self._started)[len(self._finished_at) :]:
            if not one.skipped_in_a_row.is_ready():
                break
            self._finished_at.append(time.perf_counter())
        while len(self._started) > MAX_IN_FLIGHT:
            self._take()

    def wait(self):
        """Waits for all of them."""
        while self._started:
            self._take()

    def _take(self):
        step, report = self._started.popleft()
        jax.block_until_ready(report)
        now = time.perf_counter()
        at = self._finished_at.popleft() if self._finished_at else now
        self._finish(step, report, at)


class Clock:
    """Images a second, from the first finished step of an interval to the last.

    What is compiled or evaluated before the first step ends does not count.
    """

    def __init__(self, batch_size):
        self._batch_size = batch_size
        self.reset()

    def reset(self):
        """Begins a new interval."""
        self._first = self._last = None
        self._steps = 0

    def tick(self, at):
        """Counts a step that was finished at that time."""
        if self._first is None:
            self._first = at
        else:
            self._steps += 1
        self._last = at

    def rate(self):
        """Images a second; not a number after a single step."""
        if not self._steps:
            return math.nan
        return self._steps * self._batch_size / (self._last - self._first)

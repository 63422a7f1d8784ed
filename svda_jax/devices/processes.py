"""Several processes that train together, and the signal that ends them."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from svda_jax import UserError


def initialize(
    *, coordinator_address, num_processes, process_id, distributed, heartbeat_seconds
):
    """Joins this process with the others of the run; one alone needs none of it.

    Args:
      coordinator_address: host:port of process 0; None where a cluster says it.
      num_processes: of the run, or None.
      process_id: this one's number, from 0, or None.
      distributed: whether to join without these, as Slurm, Open MPI, Kubernetes or a
        TPU pod tells JAX.
      heartbeat_seconds: without a sign of life from a peer for that long all end.

    Raises:
      UserError: they do not fit together, or nothing tells of other processes.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3 and not distributed:
        return
    if missing and not distributed:
        raise UserError(f"{', '.join(missing)} is missing beside the others")
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=heartbeat_seconds)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot join the other processes: {reason}") from None


def is_primary():
    """Whether this is the one process that writes and prints."""
    return jax.process_index() == 0


def synchronize(name):
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(flag, step):
    """What process 0 says; several processes ask it every 50 steps, False else."""
    if jax.process_count() == 1:
        return flag
    if step % 50:
        return False
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(flag)))


class StopSignal:
    """Whether the run has been asked to stop; a context manager.

    SIGTERM and Ctrl-C ask; a second one stops at once. Of several processes SIGTERM to
    any asks all, and they agree on the step: JAX's coordination service sees to that.
    """

    def __init__(self):
        self._asked = False
        self._old = {}

    def __enter__(self):
        alone = jax.process_count() == 1  # otherwise SIGTERM is JAX's
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
            self._old = {s: signal.signal(s, self._ask) for s in signals}
        return self

    def __exit__(self, *exc_info):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self._asked or jax.process_count() > 1:
            raise KeyboardInterrupt
        self._asked = True

    def reached(self, step):
        """Whether to stop after that step; all processes say the same."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

"""Several processes that train together, and the signal that ends them."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from svda_jax import UserError


def initialize(
    *,
    coordinator_address,
    num_processes,
    process_id,
    distributed,
    heartbeat_seconds,
    initialization_seconds=300,
):
    """Joins this process with the others of the run; one alone needs none of it.

    Args:
      coordinator_address: host:port of process 0; None where a cluster says it.
      num_processes: of the run, or None.
      process_id: this one's number, from 0, or None.
      distributed: whether to join without these, as Slurm, Open MPI, Kubernetes or a
        TPU pod tells JAX.
      heartbeat_seconds: without a sign of life from a peer for that long all end.
      initialization_seconds: how long those that have come wait for the others.

    Raises:
      UserError: they do not fit together, nothing tells of other processes, or some
        have not come in time: it says which.
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
    if not missing:
        meet(**given, seconds=initialization_seconds)

    def give_up():  # JAX itself would abort, with a dump of the stack
        print(f"error: {_late(initialization_seconds)}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(initialization_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=initialization_seconds + 60,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot join the other processes: {reason}") from None
    finally:
        timer.cancel()


def meet(*, coordinator_address, num_processes, process_id, seconds):
    """Waits until all processes of a run have come, before JAX has them join.

    Process 0 listens where JAX's coordinator will, and tells the others who is missing.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: of the run.
      process_id: this one's number.
      seconds: to wait.

    Raises:
      UserError: naming those that have not come.
    """
    host, _, port = coordinator_address.rpartition(":")
    if not port.isdigit():
        raise UserError(f"--coordinator_address={coordinator_address}: HOST:PORT")
    deadline = time.monotonic() + seconds
    try:
        if process_id:
            address = host.strip("[]"), int(port)
            missing = _ask_who_is_missing(address, process_id, deadline)
        else:
            missing = _receive(int(port), num_processes, deadline)
    except OSError as error:
        where = f"--coordinator_address={coordinator_address}"
        raise UserError(f"{where}: {error.strerror or error}") from None
    if missing:
        raise UserError(_late(seconds, missing))


def _receive(port, num_processes, deadline):
    """Process 0's part: receives the others; returns who is missing, as a text."""
    came = {}
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        )
        while len(came) < num_processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            with contextlib.suppress(OSError, ValueError):  # no process of ours
                peer.settimeout(1)
                came[int(peer.recv(16))] = peer
        others = range(1, num_processes)
        missing = ", ".join(str(i) for i in others if i not in came)
        for peer in came.values():
            with contextlib.suppress(OSError):
                peer.sendall(missing.encode())
    return missing


def _ask_who_is_missing(address, process_id, deadline):
    """The others' part: reports to process 0; returns who is missing, as a text."""
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection(address, timeout=max(left, 0.001)) as peer:
                peer.sendall(str(process_id).encode())
                peer.settimeout(max(left, 0) + 5)  # it may have begun a little later
                return peer.recv(4096).decode()
        except socket.gaierror:
            raise
        except OSError:
            if left <= 0:
                return "0"
            time.sleep(min(left, 0.1))


def _late(seconds, missing=""):
    """What is said where processes have not come."""
    who = f"process {missing} of the run" if missing else "another process of the run"
    return f"{who} has not come within --initialization_seconds={seconds}"


def is_primary():
    """Whether this is the one process that writes and prints."""
    return jax.process_index() == 0


def synchronize(name):
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch(array):
    """An array on this host, whole; where processes hold parts of it, all must ask."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


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

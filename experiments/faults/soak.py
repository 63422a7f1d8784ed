"""Runs under faults that are drawn at random until they end, then compared."""

import contextlib
import random
import resource
import shutil
import signal
import sys
import time
import traceback

from experiments.faults.programs import (
    TIMEOUT,
    Program,
    assert_same_run,
    damage_newest,
    finish,
    read_until,
)
from svda_jax import UserError
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints

FAULTS = {
    "sigkill": "SIGKILL",
    "sigterm": "SIGTERM: saved, said",
    "pause": "SIGSTOP, then SIGCONT",
    "full": "no file can grow: said in a line",
    "flip": "a byte flipped, or a file cut, in the newest checkpoint",
    "rename": "folder renamed under the run: said in a line; renamed back",
    "second": "a second trainer: refused in a line",
    "reader": "a reader loads the run while it goes on",
    "pair": "two processes, stopped, go on as one",
}


def soak(folder, *, minutes, seed=0):
    """Runs programs under faults until the time is over; the last run may end.

    Two processes add in another order than one, so a run that a pair had a share in is
    held against its history's steps and its end alone; all others bit for bit.

    Args:
      folder: for what they write.
      minutes: to go on for.
      seed: of which fault comes when.

    Returns:
      How many runs were compared, how many were lost, and a dict of how often each of
      `FAULTS` came.
    """
    rng = random.Random(seed)
    counts = dict.fromkeys(FAULTS, 0)
    num_runs = num_lost = 0
    with contextlib.closing(Program(folder, num_epochs=100)) as program:
        program.finish(folder / "whole")
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            workdir = folder / f"run{num_runs}"
            num_runs += 1
            try:
                paired = _disturb(program, workdir, rng, counts, end)
                program.finish(workdir)
                _compare(workdir, folder / "whole", paired=paired)
            except Exception:  # whatever: it is lost, and the next is tried
                num_lost += 1
                print(f"lost {workdir.name}: {traceback.format_exc()}", file=sys.stderr)
            finally:
                program.close()
            shutil.rmtree(workdir, ignore_errors=True)
    return num_runs, num_lost, counts


def _disturb(program, workdir, rng, counts, end):
    """Draws faults for a run until enough have come; whether a pair was among them."""
    paired = False
    for _ in range(rng.randint(2, 5)):
        if time.monotonic() > end:
            break
        name = rng.choice(list(FAULTS))
        seconds = rng.uniform(0, 0.4)
        epoch = rng.choice(["workdir", "epoch"])
        print(f"{workdir.name}: {name}", flush=True)
        counts[name] += 1
        if name == "flip":
            path = runs.checkpoints_path(workdir)
            if path.exists() and len(_steps(path)) > 1:
                damage_newest(path, rng)
            else:
                counts[name] -= 1
            continue
        if name == "pair":
            paired = True
            pair = program.start_pair(workdir)
            read_until(pair[0], "epoch")
            pair[1].send_signal(signal.SIGTERM)
            for process in pair:
                finish(process)
            continue
        process = program.start(workdir)
        if not read_until(process, epoch):  # it had ended before
            assert process.wait() == 0
            counts[name] -= 1
            break
        time.sleep(seconds)
        _FAULTS[name](program, process, workdir)
    return paired


def _sigkill(program, process, workdir):
    process.kill()
    process.communicate()


def _sigterm(program, process, workdir):
    process.send_signal(signal.SIGTERM)
    finish(process)


def _pause(program, process, workdir):
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    _sigterm(program, process, workdir)


def _full(program, process, workdir):
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    _ends_in_a_line(process, "error: cannot write ")


def _rename(program, process, workdir):
    while not runs.config_path(workdir).exists():  # it is said before it is made
        assert process.poll() is None
        time.sleep(0.01)
    gone = workdir.with_suffix(".gone")
    workdir.rename(gone)
    _ends_in_a_line(process, "error: cannot write ")
    shutil.rmtree(workdir, ignore_errors=True)
    gone.rename(workdir)


def _second(program, process, workdir):
    other = program.start(workdir)
    out, _ = other.communicate(timeout=TIMEOUT)
    if process.poll() is None:
        assert out.startswith("error: another process is training"), out
    _sigkill(program, process, workdir)


def _reader(program, process, workdir):
    with contextlib.suppress(UserError):  # no checkpoint or evaluation yet
        runs.load(workdir)
    _sigterm(program, process, workdir)


_FAULTS = {
    "sigkill": _sigkill,
    "sigterm": _sigterm,
    "pause": _pause,
    "full": _full,
    "rename": _rename,
    "second": _second,
    "reader": _reader,
}


def _ends_in_a_line(process, start):
    """Unless it had nothing left to write."""
    out, _ = process.communicate(timeout=TIMEOUT)
    assert "Traceback" not in out, out
    if process.returncode:
        assert out.splitlines()[-1].startswith(start), out


def _steps(path):
    with Checkpoints(path) as checkpoints:
        return checkpoints.steps()


def _compare(workdir, whole, *, paired):
    if not paired:
        assert_same_run(workdir, whole)
        return
    history, expected = map(runs.read_history, (workdir, whole))
    assert history.step.identical(expected.step)
    assert _steps(runs.checkpoints_path(workdir))[0] == int(expected.step[-1])

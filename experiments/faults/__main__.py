"""Does to running programs what can happen to them, and counts what was lost.

    python -m experiments.faults --trials=20

starts training programs of a small model, kills, stops and hinders them, lets the same
command go on, and compares the end with that of a run that nothing disturbed. The table
goes to experiments/results/faults.md.

    python -m experiments.faults soak --minutes=30

does all of it to one run after the other, drawn by a seed, and adds its counts there.
"""

import argparse
import contextlib
import importlib.metadata
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np

from experiments.faults.programs import (
    Program,
    assert_same_run,
    damage,
    fill_disk,
    finish,
    kill_peer,
    kill_until_finished,
    read_until,
    remove_folder,
    stop,
)
from experiments.faults.soak import FAULTS, soak
from svda_jax import UserError
from svda_jax.run.checkpoints import Checkpoints

OUT = pathlib.Path(__file__).parents[1] / "results" / "faults.md"


_SOAK = "## Soak"


def survives(trial, *args):
    """Whether a trial's assertions hold."""
    try:
        trial(*args)
    except (AssertionError, UserError, subprocess.TimeoutExpired) as error:
        print(f"lost: {error}", file=sys.stderr)
        return False
    return True


def try_all(folder, trials):
    """Yields a row of the table for each fault: name, times tried, survived."""
    with contextlib.ExitStack() as stack:

        def create(name, **options):
            path = folder / name
            path.mkdir()
            program = Program(path, **options)
            stack.enter_context(contextlib.closing(program))
            program.finish(path / "whole")
            return program

        one = create("one")
        four = create("four", num_devices=4)
        options = {"dataset.streaming": True, "dataset.min_crop_area": 0.5}
        streaming = create("streaming", **options)

        for name, program in (
            ("one device", one),
            ("four devices", four),
            ("one device, streaming", streaming),
        ):
            workdir = program.folder / "killed"
            killed = kill_until_finished(program, workdir, trials, seed=1)
            same = survives(assert_same_run, workdir, program.folder / "whole")
            yield f"SIGKILL at a random moment; {name}", killed, killed if same else 0

        def stopped(program, workdir, number, seed):
            assert "saved; the same line goes on" in stop(
                program, workdir, number, seed
            )
            program.finish(workdir)

        for name, program in (("one device", one), ("four devices", four)):
            good = 0
            for i in range(trials):
                workdir = program.folder / f"stopped{i}"
                number = (signal.SIGTERM, signal.SIGINT)[i % 2]
                good += survives(stopped, program, workdir, number, i)
            yield f"SIGTERM or Ctrl-C; {name}: saved, went on, finished", trials, good

        checkpoints = one.folder / "whole" / "checkpoints"
        with Checkpoints(checkpoints) as there:
            saved = {step: there.read(step) for step in there.steps()}
        rng = random.Random(0)
        good = 0
        for i in range(10 * trials):

            def restores_what_was_saved(path=folder / f"damaged{i}"):
                damage(checkpoints, path, rng)
                with Checkpoints(path) as there:
                    step = next(s for s in there.steps() if not there.verify(s))
                    jax.tree.map(
                        np.testing.assert_array_equal, there.read(step), saved[step]
                    )

            good += survives(restores_what_was_saved)
        yield (
            "a byte flipped, or a file cut, in the newest checkpoint",
            10 * trials,
            good,
        )

        def disk_is_full(workdir):
            assert fill_disk(one, workdir).startswith("error: cannot write ")
            one.finish(workdir)
            assert_same_run(workdir, one.folder / "whole")

        def folder_is_gone(workdir):
            line = remove_folder(one, workdir)
            assert line.startswith("error: cannot write ")

        def peer_is_killed(workdir):
            assert kill_peer(one, workdir) < 60
            pair = one.start_pair(workdir, num_epochs=1000)
            assert read_until(pair[0], "resuming at step")
            for process in pair:
                process.kill()

        def one_of_two_is_stopped(workdir):
            pair = one.start_pair(workdir)
            read_until(pair[0], "epoch    2.0")
            pair[1].send_signal(signal.SIGTERM)
            out, _ = map(finish, pair)
            assert "saved; the same line goes on" in out
            one.finish(workdir)

        few = max(trials // 4, 1)
        for name, trial in (
            ("no file can grow: said, ended, went on to the same end", disk_is_full),
            ("workdir taken away: said, ended", folder_is_gone),
            (
                "two processes, one killed: the other ended, the pair went on",
                peer_is_killed,
            ),
            (
                "two processes, SIGTERM to one: both saved, one process finished it",
                one_of_two_is_stopped,
            ),
        ):
            good = sum(
                survives(trial, folder / f"{trial.__name__}{i}") for i in range(few)
            )
            yield name, few, good


def write_soak(args):
    """Runs the soak and puts its table at the end of the page, in place of an older."""
    with tempfile.TemporaryDirectory() as folder:
        num_runs, num_lost, counts = soak(
            pathlib.Path(folder), minutes=args.minutes, seed=args.seed
        )
    lines = [
        _SOAK,
        "",
        "One run after the other, each under faults drawn at random until it ended, "
        "then held against a run that nothing disturbed, bit for bit: "
        f"{num_runs} runs, {sum(counts.values())} faults, {num_lost} runs that "
        f"differed or did not end, in {args.minutes:g} minutes. Runs that two "
        "processes had a share in, which add in another order, are compared by "
        "their steps.",
        "",
        f"    python -m experiments.faults soak --minutes={args.minutes:g} "
        f"--seed={args.seed}",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {FAULTS[name]} | {count} |" for name, count in counts.items()),
    ]
    old = args.out.read_text().split(_SOAK)[0].rstrip() if args.out.exists() else ""
    args.out.write_text("\n".join([old, "", *lines]).lstrip() + "\n")
    print("\n".join(lines))
    if num_lost:
        sys.exit(1)


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=["all", "soak"], default="all")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30, help="of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of the soak")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args(argv)
    if args.what == "soak":
        write_soak(args)
        return
    packages = ("jax", "flax", "orbax-checkpoint")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    lines = [
        "# Faults",
        "",
        "What was done to training programs (digits, 500 images, a model of 4,000 "
        "parameters with dropout, drop path, mixup, erasing and a moving average of "
        "them), and how often nothing was lost. After a SIGKILL that means: the "
        "run ended with the same parameters, optimizer state, average and history, bit "
        "for bit, as one that nothing disturbed.",
        "",
        f"{os.cpu_count()} processor cores, {versions}.",
        "",
        f"    python -m experiments.faults --trials={args.trials}",
        "",
        "| fault | tried | survived | lost |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, tried, good in try_all(pathlib.Path(folder), args.trials):
            lines.append(f"| {name} | {tried} | {good} | {tried - good} |")
            print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Training programs that are started, killed, stopped, hindered, and compared."""

import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]

# Seconds after which a program is taken to hang, however slow the machine.
TIMEOUT = 1200

# A small model with all that is random switched on, and little data.
OPTIONS = {
    "num_epochs": 8,
    "batch_size": 32,
    "eval_every_epochs": 1,
    "ema_decay": 0.9,
    "checkpoint.every_epochs": 1,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 16,
    "model.patch_size": 4,
    "model.dropout": 0.1,
    "model.drop_path": 0.1,
    "dataset.train_split": "train[:500]",
    "dataset.eval_split": "test[:77]",
    "augment.crop_padding": 1,
    "augment.erase": 0.25,
    "augment.mixup": 0.5,
}


class Program:
    """Starts training programs that share a data folder and a compile cache.

    Args:
      folder: for both.
      num_devices: CPU devices a process has.
      options: of the config, beside `OPTIONS`.
    """

    def __init__(self, folder, *, num_devices=1, **options):
        self.folder = folder
        self.processes = []
        self.options = {**OPTIONS, "dataset.data_dir": folder / "tfds", **options}
        flags = [  # compiles in half the time
            "--xla_backend_optimization_level=0",
            f"--xla_force_host_platform_device_count={num_devices}",
        ]
        self.environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            **os.environ,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": " ".join(flags),
        }

    def start(self, workdir, *flags, **options):
        """A running program; its output is `stdout`, errors beside it."""
        options = {**self.options, **options}
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "svda_jax.main",
                "--config=configs/digits.py",
                f"--workdir={workdir}",
                *flags,
                *(f"--config.{key}={value}" for key, value in options.items()),
            ],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def close(self):
        """Kills what a test that failed left running."""
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()

    def start_pair(self, workdir, *flags, **options):
        """Two processes that train together over the loopback device."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        return [
            self.start(
                workdir,
                f"--coordinator_address={address}",
                "--num_processes=2",
                f"--process_id={i}",
                *flags,
                **options,
            )
            for i in range(2)
        ]

    def finish(self, workdir, *flags, **options):
        """Runs it to the end; its output."""
        return finish(self.start(workdir, *flags, **options))


def finish(program, code=0):
    """Waits for a program; its output."""
    out, _ = program.communicate(timeout=TIMEOUT)
    assert program.returncode == code, out
    return out


def read_until(program, text):
    """Reads a program's output until a line holds that text; False at its end."""
    return any(text in line for line in program.stdout)


def kill_until_finished(program, workdir, num_kills, seed):
    """Kills a run at random moments, starting it again each time; then lets it end.

    The moments are after the start of the preparation, of the compilation, or of an
    evaluation, and some tenths of a second.

    Returns:
      How many were killed.
    """
    rng = random.Random(seed)
    killed = 0
    while killed < num_kills:
        process = program.start(workdir)
        where = rng.choice(["preparing", "workdir", "epoch", "epoch", "epoch"])
        if read_until(process, where):
            time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        killed += process.returncode == -9
    program.finish(workdir)
    return killed


def state_of(workdir):
    """Every array of the newest checkpoint, by name, and its step."""
    with Checkpoints(runs.checkpoints_path(workdir)) as checkpoints:
        step = checkpoints.steps()[0]
        state = checkpoints.read(step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_run(workdir, expected):
    """Checkpoint and history are the same bit for bit, but for times."""
    (step, state), (expected_step, expected_state) = map(state_of, (workdir, expected))
    assert step == expected_step
    assert state.keys() == expected_state.keys()
    assert any("opt_state" in name for name in state)
    assert any("ema" in name for name in state)
    for name, array in state.items():
        np.testing.assert_array_equal(array, expected_state[name], err_msg=name)
    timed = ["images_per_second", "epoch_seconds"]
    history, other = (
        runs.read_history(path).drop_vars(timed) for path in (workdir, expected)
    )
    assert history.identical(other)


def stop(program, workdir, number, seed=0):
    """Asks a run to stop at a random moment after its second evaluation; its output."""
    process = program.start(workdir)
    read_until(process, "epoch    2.0")
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(number)
    return finish(process)


def fill_disk(program, workdir):
    """Lets no file of a run grow once it has a checkpoint; its last line."""
    process = program.start(workdir)
    read_until(process, "epoch")
    path = runs.checkpoints_path(workdir)
    while not any(file.name.isdigit() for file in path.glob("*")):
        assert process.poll() is None
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    out = finish(process, code=1)
    assert "Traceback" not in out, out
    return out.splitlines()[-1]


def remove_folder(program, workdir):
    """Takes a run's folder away after its second evaluation; its last line."""
    process = program.start(workdir, num_epochs=1000)
    read_until(process, "epoch    2.0")
    workdir.rename(workdir.with_suffix(".gone"))
    out = finish(process, code=1)
    assert "Traceback" not in out, out
    return out.splitlines()[-1]


def damage(checkpoints, folder, rng):
    """Copies a folder of checkpoints and damages one byte or the length of a file.

    The file is one of the newest checkpoint's.
    """
    shutil.copytree(checkpoints, folder)
    damage_newest(folder, rng)


def damage_newest(folder, rng):
    """Damages one byte or the length of a file of the newest checkpoint."""
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=step_of)
    file = rng.choice(sorted(f for f in newest.rglob("*") if f.is_file()))
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        data = data[: rng.randrange(max(len(data), 1))]
    elif data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def step_of(path):
    """The step that a checkpoint's folder is named after."""
    return int(path.name)


def kill_peer(program, workdir):
    """Kills one of two processes; seconds until the other has ended by itself."""
    pair = program.start_pair(workdir, "--heartbeat_seconds=10", num_epochs=1000)
    read_until(pair[0], "epoch    2.0")
    pair[1].kill()
    start = time.monotonic()
    pair[0].communicate(timeout=120)
    assert pair[0].returncode != 0
    return time.monotonic() - start

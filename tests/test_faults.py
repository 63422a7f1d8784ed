"""Programs that are killed, stopped, run twice: nothing is lost, all is said."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import socket

import numpy as np
import pytest

from experiments.faults.programs import (
    Program,
    assert_same_run,
    fill_disk,
    finish,
    kill_peer,
    kill_until_finished,
    read_until,
    remove_folder,
)
from experiments.faults.soak import soak
from svda_jax import UserError
from svda_jax.devices import processes
from svda_jax.run import runs


@pytest.fixture(scope="module")
def create_program(tmp_path_factory):
    """Makes a `Program`; those of one number of devices share their folder."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("program")

        def create(**options):
            return stack.enter_context(contextlib.closing(Program(folder, **options)))

        yield create


@pytest.fixture(scope="module")
def program(create_program):
    return create_program()


@pytest.fixture(scope="module")
def whole(program):
    """A run that nothing disturbed."""
    program.finish(program.folder / "whole")
    return program.folder / "whole"


@pytest.mark.parametrize(
    ("num_kills", "num_devices", "streaming"),
    [
        pytest.param(3, 1, False, id="default"),
        pytest.param(10, 4, False, marks=pytest.mark.slow, id="4 devices"),
        pytest.param(10, 1, True, marks=pytest.mark.slow, id="streaming"),
    ],
)
def test_killed_anywhere_ends_the_same(
    create_program, whole, tmp_path, num_kills, num_devices, streaming
):
    program = create_program(
        num_devices=num_devices,
        **{
            "dataset.streaming": streaming,
            "dataset.min_crop_area": 0.5,
            "dataset.data_dir": tmp_path / "tfds",  # to be prepared, and killed at it
        },
    )
    killed = kill_until_finished(program, tmp_path / "killed", num_kills, seed=0)
    assert killed == num_kills
    if num_devices > 1 or streaming:
        whole = tmp_path / "whole"
        program.finish(whole)
    assert_same_run(tmp_path / "killed", whole)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stop_signal_saves_and_says_how_to_go_on(program, whole, tmp_path, number):
    process = program.start(tmp_path / "run", **{"checkpoint.every_epochs": 0})
    assert read_until(process, "epoch    2.0")
    process.send_signal(number)
    out = finish(process)
    assert "saved; the same line goes on" in out
    step = int(out.split("stopped at step ")[1].split()[0])
    assert (tmp_path / "run/checkpoints" / str(step)).is_dir()
    config = tmp_path / "run/config.json"
    text = config.read_text()
    config.write_text(text.replace('"every_epochs": 0', '"every_epochs": 1'))
    assert "resuming at step" in program.finish(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_two_runs_in_one_workdir(program, tmp_path):
    first = program.start(tmp_path / "run", num_epochs=1000)
    assert read_until(first, "epoch")
    second = program.start(tmp_path / "run", num_epochs=1000)
    out = finish(second, code=1)
    assert out == f"error: another process is training in {tmp_path / 'run'}\n"
    first.kill()
    first.communicate()
    # What a killed run leaves is no obstacle.
    third = program.start(tmp_path / "run", num_epochs=1000)
    assert read_until(third, "resuming at step")
    third.kill()
    third.communicate()


def test_folder_removed_under_the_run(program, tmp_path):
    line = remove_folder(program, tmp_path / "run")
    assert line.startswith("error: cannot write ")


@pytest.mark.slow
def test_disk_full_under_the_run(program, whole, tmp_path):
    line = fill_disk(program, tmp_path / "run")
    assert line.startswith("error: cannot write ")
    assert "resuming at step" in program.finish(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_read_only_under_the_run(program, tmp_path):
    process = program.start(tmp_path / "run", num_epochs=1000)
    assert read_until(process, "epoch    2.0")
    (tmp_path / "run").chmod(0o500)
    out = finish(process, code=1)
    assert out.splitlines()[-1].startswith("error: cannot write ")


def losses(workdir):
    history = runs.read_history(workdir)
    return history[["train_loss", "eval_loss"]].to_array().values


@pytest.fixture(scope="module")
def two_devices_whole(create_program, program):
    """The run that two processes of one device, or one of two, make."""
    create_program(num_devices=2).finish(program.folder / "two")
    return program.folder / "two"


def test_two_processes_train_as_one_and_one_writes(
    program, two_devices_whole, tmp_path
):
    first, second = map(finish, program.start_pair(tmp_path / "run"))
    assert "epoch    8.0" in first
    assert all(line.startswith("[Gloo]") for line in second.splitlines())
    # Sums over devices are added in another order than inside one process.
    np.testing.assert_allclose(
        losses(tmp_path / "run"), losses(two_devices_whole), rtol=1e-4
    )
    history = runs.read_history(tmp_path / "run")
    assert history.sizes["step"] == 8
    # 77 images, which two devices do not divide: each counts once.
    right = history["eval_accuracy"].values * 77
    np.testing.assert_allclose(right, right.round(), atol=1e-4)
    names = [path.name.split(".")[0] for path in (tmp_path / "run").iterdir()]
    assert sorted(names) == ["checkpoints", "classes", "config", "events", "history"]


def test_who_does_not_come_is_named_by_all_that_have():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def said(number, num_processes):
        run = {"coordinator_address": address, "num_processes": num_processes}
        try:
            processes.meet(**run, process_id=number, seconds=1)
        except UserError as error:
            return str(error)

    late = "process 1, 3 of the run has not come within --initialization_seconds=1"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert list(pool.map(said, (0, 2), (4, 4))) == [late, late]
        assert list(pool.map(said, (0, 1, 2), (3, 3, 3))) == [None] * 3
    assert said(1, 2).startswith("process 0 of the run has not come")


@pytest.mark.slow
def test_two_minutes_of_everything(tmp_path):
    num_runs, num_lost, counts = soak(tmp_path, minutes=2)
    assert num_runs > 0
    assert num_lost == 0, counts


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step_and_one_goes_on(
    create_program, program, two_devices_whole, tmp_path
):
    pair = program.start_pair(tmp_path / "run")
    assert read_until(pair[0], "epoch    2.0")
    pair[1].send_signal(signal.SIGTERM)
    first, _ = map(finish, pair)
    assert "saved; the same line goes on" in first
    two = create_program(num_devices=2)
    assert "resuming at step" in two.finish(tmp_path / "run")
    np.testing.assert_allclose(
        losses(tmp_path / "run"), losses(two_devices_whole), rtol=1e-4
    )


@pytest.mark.slow
def test_a_state_split_over_two_processes_is_saved_and_goes_on_in_two_or_one(
    program, tmp_path
):
    wide = {"model.width": 64, "model.mlp_dim": 64}  # or nothing would be split
    program.finish(tmp_path / "whole", **wide)
    pair = program.start_pair(tmp_path / "two", fsdp=True, **wide)
    assert read_until(pair[0], "epoch    2.0")
    pair[1].send_signal(signal.SIGTERM)
    first, _ = map(finish, pair)
    assert "saved; the same line goes on" in first
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    first, _ = map(finish, program.start_pair(tmp_path / "two", fsdp=True, **wide))
    assert "resuming at step" in first
    assert "resuming at step" in program.finish(tmp_path / "one", **wide)
    for name in ("two", "one"):
        np.testing.assert_allclose(
            losses(tmp_path / name), losses(tmp_path / "whole"), rtol=1e-4
        )


@pytest.mark.slow
def test_a_killed_peer_ends_the_other_and_the_pair_resumes(
    program, two_devices_whole, tmp_path
):
    # The timeout of 10 s, and its detection on a busy machine.
    assert kill_peer(program, tmp_path / "run") < 60
    pair = program.start_pair(tmp_path / "run", num_epochs=1000)
    assert read_until(pair[0], "resuming at step")
    for process in pair:
        process.kill()
        process.communicate()

"""Programs whose run or data set is in a bucket: killed, cut off, in two, read."""

import signal
import time

import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

from emulator import Emulator

from experiments.faults.programs import Program, assert_same_run, finish, read_until
from svda_jax import UserError, load
from svda_jax.data.bucket import Bucket
from svda_jax.look.report import write_report
from svda_jax.run import runs
from svda_jax.run.mirror import reading
from svda_jax.run.verify import main as verify

pytestmark = pytest.mark.slow


@pytest.fixture
def emulator(monkeypatch, tmp_path):
    with Emulator() as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
        yield emulator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Compiled programs and data, which the programs share, and a whole run."""
    folder = tmp_path_factory.mktemp("programs")
    program = Program(folder)
    program.finish(folder / "whole")
    return folder


@pytest.fixture
def create_program(folder, emulator, tmp_path):
    """Makes a `Program` of a machine, by its number."""
    made = []

    def create(machine=1, **options):
        program = Program(folder, **options)
        program.environment["XDG_CACHE_HOME"] = str(tmp_path / f"machine {machine}")
        made.append(program)
        return program

    yield create
    for program in made:
        program.close()


def wait_for_step(process, run):
    """Waits until a run has sent a whole checkpoint."""
    bucket = Bucket(run)
    while not any(name.endswith("_CHECKPOINT_METADATA") for name in bucket.list()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)


def test_a_run_killed_in_a_bucket_goes_on_and_is_read_elsewhere(
    create_program, folder, emulator, capsys
):
    data, run = Bucket("gs://b/data"), "gs://b/runs/whole"
    for path in (folder / "tfds/digits").rglob("*"):
        if path.is_file():
            data.upload(path, path.relative_to(folder / "tfds").as_posix())
    program = create_program(**{"dataset.data_dir": "gs://b/data"})
    process = program.start(run, num_epochs=1000)
    wait_for_step(process, run)
    process.kill()
    finish(process, code=-9)
    with reading(run) as copy:  # it is whole
        runs.load(copy)
    process = program.start(run, num_epochs=1000)
    assert read_until(process, "resuming at step")
    assert read_until(process, "epoch")
    process.send_signal(signal.SIGTERM)
    assert "saved; the same line goes on" in finish(process)
    verify(["--workdir", run])
    assert "a run would go on from step" in capsys.readouterr().out
    assert load(run).step
    assert str(write_report(run)) == "gs://b/runs/whole/report.html"
    assert b"<html" in Bucket(run).read("report.html")


def test_what_a_bucket_holds_is_what_a_folder_would(create_program, folder, emulator):
    emulator.refusals = 2  # a burst, which is waited out: a short one at first
    process = create_program().start("gs://b/run")
    assert read_until(process, "epoch    1.0")
    emulator.refusals = 4
    finish(process)
    with reading("gs://b/run") as copy:
        assert_same_run(copy, folder / "whole")
        for name in ("config.json", "classes.json"):
            assert (copy / name).read_text() == (folder / "whole" / name).read_text()


def test_a_bucket_that_goes_away_is_said_and_the_same_line_sends_the_run(
    create_program, folder, emulator
):
    program = create_program()
    process = program.start("gs://b/run")
    assert read_until(process, "epoch    1.0")
    with emulator.away():
        out = finish(process, code=1)
    assert "Traceback" not in out, out
    assert "gs://b/run: the bucket cannot be reached" in out.splitlines()[-1]
    assert "sends it and goes on" in out.splitlines()[-1]
    out = program.finish("gs://b/run")
    assert "holds this run, finished" in out
    with reading("gs://b/run") as copy:
        assert_same_run(copy, folder / "whole")


def test_two_processes_on_two_disks_train_in_a_bucket(create_program, tmp_path, folder):
    run = "gs://b/run"
    programs = [create_program(i, fsdp=True) for i in (1, 2)]
    for epochs in (2, 3):  # the second time both resume
        pair = programs[0].start_pair(run, num_epochs=epochs)
        outs = [finish(one) for one in pair]
    assert "resuming" in outs[0]
    assert load(run).step


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("gs://nowhere/run", "there is no bucket nowhere"),
        ("gs://b/run", "no data set digits"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(create_program, run, said, tmp_path):
    process = create_program(**{"dataset.data_dir": "gs://b/data"}).start(run)
    out = finish(process, code=1)
    assert said in out.splitlines()[-1]
    assert "Traceback" not in out
    with pytest.raises(UserError):
        load(run)


def test_an_object_is_created_once(emulator):
    bucket = Bucket("gs://b/run")
    assert bucket.create("lock", b"mine")
    assert not bucket.create("lock", b"other")
    assert bucket.read("lock") == b"mine"

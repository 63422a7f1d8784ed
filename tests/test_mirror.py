"""A run in a bucket: its lock, what is sent, what is taken back, and when."""

import contextlib
import json
import threading

import pytest

from svda_jax import UserError, place
from svda_jax.data.bucket import Bucket
from svda_jax.run import lock
from svda_jax.run.mirror import Mirror, exists, reading

RUN = place("gs://b/run")
STEP = "checkpoints/7/"
LAST = STEP + "_CHECKPOINT_METADATA"


@pytest.fixture
def bucket(fake_bucket, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.4)
    return Bucket(RUN)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Makes this process one of another machine, by its number."""

    def move(number):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {number}"))
        monkeypatch.setattr("socket.gethostname", lambda: f"machine {number}")

    move(1)
    return move


def write(folder, **files):
    """A run's folder: config.json, and files by name with __ for a slash."""
    for name, text in {"config.json": "{}", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_step(folder, step=7):
    for name in ("_CHECKPOINT_METADATA", "d/1", "manifest.ocdbt"):
        write(folder, **{f"checkpoints__{step}__{name}": f"{name} of {step}"})


def texts(bucket):
    """What is in the bucket, without locks."""
    names = [name for name in bucket.list() if not name.startswith(".")]
    return {name: bucket.read(name).decode() for name in names}


def kill(monkeypatch, mirror):
    """What SIGKILL leaves of a process that trains."""
    mirror._ending.set()
    for thread in mirror._threads:
        thread.join()
    with mirror._stack:
        monkeypatch.setattr(mirror, "_release", lambda: None)
        mirror._stack.pop_all()._exit_callbacks[0][1](None, None, None)  # the file's


def test_a_folder_stays_what_it_is(tmp_path):
    with Mirror(tmp_path) as mirror, reading(tmp_path) as folder:
        mirror.check()
        assert mirror.folder == folder == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert exists(tmp_path)


def test_what_is_written_is_in_the_bucket_and_read_elsewhere(bucket, elsewhere):
    with Mirror(RUN) as mirror:
        write(mirror.folder, **{".history.nc.tmp": "half"}, history__nc="x")
        write(mirror.folder, **{"checkpoints__9.orbax-checkpoint-tmp-1__d": "half"})
        write_step(mirror.folder)
    assert set(texts(bucket)) == {
        *("config.json", "history/nc", LAST, STEP + "d/1", STEP + "manifest.ocdbt")
    }
    elsewhere(2)
    assert exists(RUN)
    with reading(RUN) as folder:
        assert folder != mirror.folder
        assert (folder / LAST).read_text() == "_CHECKPOINT_METADATA of 7"


def test_it_is_sent_while_the_run_goes_on(bucket):
    with Mirror(RUN) as mirror:
        write(mirror.folder)
        done = threading.Event()
        while "config.json" not in bucket.list():
            assert not done.wait(0.05)
        write(mirror.folder, **{"config.json": "{1}"})
        while bucket.read("config.json") != b"{1}":
            assert not done.wait(0.05)


def test_what_goes_in_the_folder_goes_in_the_bucket_and_nothing_else(bucket):
    for name in ("cat.jpg", "other/config.json", "checkpoints/notes"):
        bucket.write(name, b"of others")
    with Mirror(RUN) as mirror:
        write(mirror.folder)
        write_step(mirror.folder)
        mirror._send()
        for path in (mirror.folder / "checkpoints/7").rglob("*"):
            path.unlink() if path.is_file() else None
    assert set(texts(bucket)) == {
        *("cat.jpg", "other/config.json", "checkpoints/notes", "config.json")
    }


def test_the_file_that_makes_a_checkpoint_whole_goes_last_and_leaves_first(
    bucket, monkeypatch
):
    order = []
    for name in ("upload", "remove"):
        monkeypatch.setattr(Bucket, name, lambda self, *args: order.append(args[-1]))
    with Mirror(RUN) as mirror:
        mirror._ending.set()
        write_step(mirror.folder)
        mirror._send()
        assert order[-1] == LAST
        assert len(order) == 3
        for name in order[:3]:
            (mirror.folder / name).unlink()
        order.clear()
        mirror._send()
        assert order[0] == LAST


def test_a_checkpoint_that_is_half_sent_is_not_taken(bucket, elsewhere):
    bucket.write("config.json", b"{}")
    bucket.write(STEP + "d/1", b"half")
    with reading(RUN) as folder:
        assert (folder / "config.json").exists()
        assert not (folder / "checkpoints").exists()


def test_the_next_machine_goes_on_where_the_last_ended(bucket, elsewhere):
    with Mirror(RUN) as mirror:
        write(mirror.folder, **{"tracker.json": '{"wandb": "1"}'})
        write_step(mirror.folder)
    elsewhere(2)
    with Mirror(RUN) as second:
        assert (second.folder / LAST).exists()
        assert (second.folder / "tracker.json").read_text() == '{"wandb": "1"}'
        write_step(second.folder, 8)
    elsewhere(1)
    with Mirror(RUN) as mirror:
        assert (mirror.folder / "checkpoints/8/d/1").exists()


def test_two_machines_do_not_train_in_one_place(bucket, elsewhere):
    with Mirror(RUN) as mirror:
        write(mirror.folder)
        with pytest.raises(UserError, match="gs://b/run: on this machine"):
            Mirror(RUN).__enter__()
        elsewhere(2)
        with pytest.raises(UserError, match="is training in gs://b/run: machine 1"):
            Mirror(RUN).__enter__()
        elsewhere(1)
    elsewhere(2)
    with Mirror(RUN):
        pass


def test_after_a_kill_the_same_machine_goes_on_at_once(bucket, elsewhere, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 1e6)
    mirror = Mirror(RUN).__enter__()
    write(mirror.folder)
    write_step(mirror.folder)
    kill(monkeypatch, mirror)
    monkeypatch.setattr(lock, "BEAT", 1e6)
    with Mirror(RUN) as again:
        assert (again.folder / LAST).exists()
    assert LAST in bucket.list()
    assert len(bucket.list(".lock")) == 1


def test_after_a_kill_another_machine_waits_and_says_so(
    bucket, elsewhere, monkeypatch, capsys
):
    mirror = Mirror(RUN).__enter__()
    write(mirror.folder)
    mirror._send()
    kill(monkeypatch, mirror)
    elsewhere(2)
    with Mirror(RUN) as second:
        assert (second.folder / "config.json").exists()
    said = capsys.readouterr().out
    assert said.startswith("gs://b/run was trained in by machine 1; waiting 0.4 s")


def test_who_was_taken_over_sends_nothing_more_and_says_who_did(bucket, elsewhere):
    mirror = Mirror(RUN).__enter__()
    write(mirror.folder)
    mirror._send()
    bucket.create(".lock/9", json.dumps({"host": "machine 2"}).encode())
    for thread in mirror._threads:
        thread.join(5)
    write_step(mirror.folder)
    for end in (mirror.check, lambda: mirror.__exit__(None)):
        with pytest.raises(UserError, match=r"is training in gs://b/run: machine 2"):
            end()
    assert set(texts(bucket)) == {"config.json"}
    assert bucket.read(".lock/9") == b'{"host": "machine 2"}'


def test_of_two_that_begin_at_once_one_is_refused(bucket, monkeypatch, elsewhere):
    write, create = Bucket.write, Bucket.create

    def late(self, name, data):
        write(self, name, b"{}")
        return create(self, name, data)

    monkeypatch.setattr(Bucket, "create", late)
    with pytest.raises(UserError, match="it began at the same moment"):
        Mirror(RUN).__enter__()


def test_a_run_that_ends_before_it_begins_leaves_nothing(bucket):
    with contextlib.suppress(KeyError), Mirror(RUN):
        raise KeyError
    assert bucket.list() == {}


def test_without_the_bucket_the_run_goes_on_and_is_sent_later(
    bucket, fake_bucket, monkeypatch, capsys
):
    with Mirror(RUN) as mirror:
        write(mirror.folder)
        monkeypatch.setattr(fake_bucket, "error", OSError("503"))
        mirror._ending.wait(0.3)
        write_step(mirror.folder)
        mirror.check()
        monkeypatch.setattr(fake_bucket, "error", None)
    said = capsys.readouterr().err
    assert said.count("503; the run goes on in") == 1
    assert LAST in bucket.list()


def test_without_it_to_the_end_all_is_kept_and_sent_when_it_is_there_again(
    bucket, fake_bucket, monkeypatch
):
    mirror = Mirror(RUN).__enter__()
    write(mirror.folder)
    mirror._send()
    mirror._ending.set()
    write_step(mirror.folder)
    monkeypatch.setattr(fake_bucket, "error", OSError("503"))
    line = f"train --config={mirror.folder}/config.json --workdir={RUN} sends it"
    with pytest.raises(UserError, match=f"503; the run is kept in .*run: .* {line}"):
        mirror.__exit__(None)
    assert (mirror.folder / LAST).exists()
    monkeypatch.setattr(fake_bucket, "error", None)
    assert LAST not in bucket.list()
    with Mirror(RUN) as again:
        assert again.folder == mirror.folder
    assert LAST in bucket.list()


def test_steps_that_were_never_sent_are_put_aside_when_another_went_on(
    bucket, fake_bucket, elsewhere, monkeypatch, capsys
):
    mirror = Mirror(RUN).__enter__()
    write(mirror.folder)
    mirror._send()
    mirror._ending.set()
    write_step(mirror.folder, 9)
    monkeypatch.setattr(fake_bucket, "error", OSError("503"))
    with pytest.raises(UserError, match="503"):
        mirror.__exit__(None)
    monkeypatch.setattr(fake_bucket, "error", None)
    elsewhere(2)
    with Mirror(RUN) as second:
        write_step(second.folder, 8)
    elsewhere(1)
    with Mirror(RUN) as mirror:
        assert not (mirror.folder / "checkpoints/9").exists()
    said = capsys.readouterr().out
    assert "gs://b/run has step 8" in said
    (aside,) = mirror.folder.parent.glob("run.*")
    assert str(aside) in said
    assert (aside / "checkpoints/9/d/1").exists()

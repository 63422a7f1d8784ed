"""Each command on a run in a bucket, by a machine that has seen nothing of it."""

import contextlib

import numpy as np
import pytest
from folders import write_images

from svda_jax import UserError, load
from svda_jax.__main__ import main
from svda_jax.data.bucket import Bucket
from svda_jax.prune import run as pruning_run
from svda_jax.run.runs import write_atomically
from svda_jax.train.loop import train_and_evaluate

RUN = "gs://b/runs/softmax"


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def run(kept, fake_bucket, make_config, two_devices, no_pictures, monkeypatch):
    """A softmax run, trained in a bucket once for this module."""
    if not kept:
        train_and_evaluate(make_config(model__attention="softmax"), RUN)
        kept.update(fake_bucket.store)
    fake_bucket.store.update(kept)
    return Bucket(RUN)


@pytest.fixture(autouse=True)
def other_machine(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    for module in ("main", "__main__"):  # which would start pytest again
        monkeypatch.setattr(f"svda_jax.{module}.keep_memory", lambda: None)


def test_a_run_in_a_bucket_is_what_it_is_in_a_folder(run, make_config, tmp_path):
    folder = tmp_path / "softmax"
    train_and_evaluate(make_config(model__attention="softmax"), folder)
    here, there = load(folder), load(RUN)
    assert (here.step, here.class_names) == (there.step, there.class_names)
    times = ["images_per_second", "epoch_seconds"]
    assert here.history.drop_vars(times).equals(there.history.drop_vars(times))
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    assert here.classify(images) == there.classify(images)
    files = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert files == {name.partition(".")[0].split("/")[0] for name in run.list()} - {""}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "--workdir", RUN], "accuracy"),
        (["verify", "--workdir", RUN], "a run would go on from step 7"),
        (["predict", "--workdir", RUN, "{images}"], "%"),
        (["runs", "gs://b/runs"], f"\n{RUN}    2.2"),
        (["train", f"--config={RUN}/config.json"], f"{RUN} holds this run, finished"),
    ],
)
def test_a_run_is_read(argv, said, tmp_path, capsys):
    write_images(tmp_path / "images", ["a"])
    with contextlib.suppress(SystemExit):  # predict ends so
        main([text.format(images=tmp_path / "images") for text in argv])
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "written"),
    [
        (["report"], [f"{RUN}/report.html"]),
        (["atlas", "--images=9", "--removed=2"], [f"{RUN}/atlas.html"]),
        (["export", "--format=npz"], [f"{RUN}-npz/model.npz", f"{RUN}-npz/README.md"]),
    ],
)
def test_what_is_made_of_a_run_is_beside_it(argv, written, no_report_pictures, capsys):
    main([*argv, "--workdir", RUN])
    assert written[-1] in capsys.readouterr().out
    for address in written:
        above, _, name = address.rpartition("/")
        assert Bucket(above).read(name)


def test_a_run_that_is_made_of_it_is_trained_on(run, monkeypatch, capsys, make_config):
    times = dict.fromkeys(("original", "shrunk"), np.ones(1))
    what = dict.fromkeys(("inference", "training step"), times)
    monkeypatch.setattr(pruning_run, "_measure", lambda *args: what)
    main(["prune", "--workdir", RUN, "--basis=score", "--rho=0.9"])
    pruned = f"{RUN}-pruned-0.9"
    assert f"the run {pruned}" in capsys.readouterr().out
    assert load(pruned).step == load(RUN).step
    assert {"prune.md", "pruning.json"} <= Bucket(pruned).list().keys()
    main(["convert", "--workdir", pruned, "--finetune_epochs=1"])
    assert load(f"{pruned}-converted-finetuned").history["epoch"][-1] >= 1
    for command in (["prune", "--basis=score", "--rho=0.9"], ["convert"]):
        with pytest.raises(SystemExit, match=f"^error: {RUN}-.* exists; give another"):
            main([*command, "--workdir", RUN, f"--out={pruned}"])


def test_another_run_is_refused_where_one_is(run, make_config):
    with pytest.raises(UserError, match=f"^{RUN} holds a run with seed=0, not 1"):
        train_and_evaluate(make_config(model__attention="softmax", seed=1), RUN)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["report", "--workdir=gs://b/none"], "gs://b/none holds no run"),
        (["verify", "--workdir=gs://b/none"], "gs://b/none has no checkpoints"),
        (["predict", "--workdir=gs://b/none", "x"], "gs://b/none holds no run"),
        (["runs", "gs://b/none"], "gs://b/none holds no run"),
        (["runs", "az://b/none"], "az:// is not supported; gs://BUCKET/FOLDER or"),
        (["export", f"--workdir={RUN}", "--format=npz", f"--out={RUN}"], "exists"),
        (["report", f"--workdir={RUN}", "--out=gs://b/x"], "not supported here"),
        (["prepare", "digits", "--data_dir=gs://b/x"], "not supported here"),
        (["train", "--config=gs://b/none/config.json"], "there is no gs://b/none/con"),
        (["train", "--config=gs://b/digits.py"], "of a bucket a run's config.json"),
        (["train", f"--config={RUN}/history.nc"], "of a bucket a run's config.json"),
    ],
)
def test_a_mistake_is_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert str(raised.value).startswith("error: ")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damage_is_named_where_it_is(run, capsys):
    run.write("config.json", b"{")
    with pytest.raises(UserError, match=f"^{RUN}/config.json is damaged"):
        load(RUN)
    with pytest.raises(SystemExit, match="1"):
        main(["runs", "gs://b/runs"])
    assert f"damaged: {RUN}: {RUN}/config.json is damaged" in capsys.readouterr().err


def test_a_file_is_written_into_a_bucket_whole(fake_bucket):
    from svda_jax import place

    write_atomically(place("gs://b/x/y"), b"1")
    assert Bucket("gs://b/x").read("y") == b"1"

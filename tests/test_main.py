"""The command line: what a user's mistake says, and whole programs."""

import os
import pathlib
import subprocess
import sys

import pytest

from svda_jax import main

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which config"),
        (["--config="], "which config"),
        (["--config"], "which config"),
        (["--config=configs/nope.py"], "there is no config file configs/nope.py"),
        (["--config=configs"], "there is no config file configs"),
        (["--config=LICENSE"], "LICENSE is no config file: IndentationError"),
        (["--config=svda_jax/train.py"], "no config file: KeyError: 'get_config'"),
        (["--config=configs/default.py"], "leaves a required value unset"),
        ([DIGITS, "--config.sed=1"], "no key sed; did you mean --config.seed"),
        ([DIGITS, "--config.width=1"], "no key width; did you mean --config.model.wid"),
        ([DIGITS, "--config.modle.width=1"], "did you mean --config.model.width"),
        ([DIGITS, "--config.model.atention=softmax"], "--config.model.attention"),
        ([DIGITS, "--config.model=1"], "no key model"),
        ([DIGITS, "--config.num_epochs=1.5"], "num_epochs=1.5"),
        ([DIGITS, "--config.model.width=wide"], "model.width=wide"),
        ([DIGITS, "--config.augment.flip=maybe"], "augment.flip=maybe"),
        ([DIGITS, "--workdri=x"], "Did you mean: workdir"),
        ([DIGITS, "softmax"], "unexpected softmax"),
        ([DIGITS, "--process_id=0"], "--num_processes is missing beside the others"),
        ([DIGITS, "--process_id=-1"], "--process_id=-1"),
        ([DIGITS, "--heartbeat_seconds=soon"], "--heartbeat_seconds=soon"),
        ([DIGITS, "--distributed"], "cannot join the other processes: "),
    ],
)
def test_a_mistake_ends_in_one_line(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit_:
        main.main(["main", *argv])
    said = str(exit_.value)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("flag", [[DIGITS], ["--config", "configs/digits.py"]])
def test_options_override_the_config(flag, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--config.model.attention=softmax", "--config.seed=3"]
    argv = ["main", *options, *flag, "--config.dataset.std=(2,)"]
    config, workdir, _ = main.parse(argv)
    assert config.model.attention == "softmax"
    assert config.seed == 3
    assert config.dataset.std == (2,)
    assert workdir == pathlib.Path("runs/digits-softmax-3")
    assert main.parse(["main", *flag, "--workdir=x"])[1] == pathlib.Path("x")


def test_help_says_how(capsys):
    main.main(["main", "--help"])
    assert "--config.model.attention=softmax" in capsys.readouterr().out


def run(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "svda_jax.main", *argv],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_mistake_in_a_value_exits_with_one_line_and_no_traceback(tmp_path):
    done = run(DIGITS, "--config.model.num_heads=5", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: model.num_heads=5 must divide model.width=64\n"
    assert not list(tmp_path.iterdir())


def test_first_run_in_an_empty_folder(tmp_path):
    """Prepares the digits, trains, says where to look; without TensorFlow."""
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    )
    done = run(
        DIGITS,
        "--config.num_epochs=2",
        "--config.model.depth=1",
        "--config.model.attention=softmax",
        f"--workdir={tmp_path / 'run'}",
        TFDS_DATA_DIR=str(tmp_path / "tfds"),
        PYTHONPATH=str(trap.parent),
        JAX_COMPILATION_CACHE_DIR="",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        PYTHONWARNINGS="default",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warnings, no chatter
    assert not (tmp_path / "imported").exists()
    for part in (
        "preparing it",
        "Total: ",
        "softmax attention",
        "digits: 1,437 images to train on, 360 to evaluate",
        "devices  1 x cpu",
        "epoch    2.0  step     45",
        "eval accuracy",
        "images/s",
        f"tensorboard --logdir {tmp_path / 'run'}",
    ):
        assert part in done.stdout
    assert (tmp_path / "run" / "history.nc").exists()
    assert any((tmp_path / "cache" / "svda_jax").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_digits_reach_94_percent(tmp_path, attention):
    """One seed; experiments/results has the mean over three and its spread."""
    from svda_jax.run.runs import read_history

    workdir = tmp_path / "run"
    done = run(DIGITS, f"--config.model.attention={attention}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert read_history(workdir)["eval_accuracy"][-1] >= 0.94

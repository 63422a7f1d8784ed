"""The command line: what a user's mistake says, and whole programs."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from svda_jax import UserError, main
from svda_jax.devices import parallel
from svda_jax.options import OPTIONS, REQUIRED, TYPES
from svda_jax.train import loop as train

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
        (["--config=svda_jax/train/loop.py"], "no config file: KeyError: 'get_config'"),
        (["--config=configs/nope.py"], "configs/digits.py, configs/emoji.py"),
        ([DIGITS, "--config.sed=1"], "no key sed; did you mean --config.seed"),
        ([DIGITS, "--config.width=1"], "no key width; did you mean --config.model.wid"),
        ([DIGITS, "--config.modle.width=1"], "did you mean --config.model.width"),
        ([DIGITS, "--config.model.atention=softmax"], "--config.model.attention"),
        ([DIGITS, "--config.model=1"], "no key model"),
        ([DIGITS, "--noconfig.augment.flipp"], "did you mean --config.augment.flip?"),
        ([DIGITS, "--noconfig.seed"], "seed=False must be an integer"),
        ([DIGITS, "--config.lr=1"], "did you mean --config.learning_rate?"),
        ([DIGITS, "--config.num_epochs=1.5"], "num_epochs=1.5"),
        ([DIGITS, "--config.seed"], "seed= must be an integer"),
        ([DIGITS, "--config.model.width=wide"], "model.width=wide"),
        ([DIGITS, "--config.augment.flip=maybe"], "augment.flip=maybe"),
        ([DIGITS, "--workdri=x"], "Did you mean: workdir"),
        (["--confg=configs/digits.py"], "Unknown command line flag 'confg'"),
        (
            [DIGITS, "--config.dataset.image_size=100000"],
            "memory does not suffice: Una",
        ),
        ([DIGITS, "softmax"], "unexpected softmax"),
        ([DIGITS, "--workdir=az://b/x"], "az://b/x: az:// is not supported"),
        ([DIGITS, "--workdir=gs://b"], "gs://b must be gs://BUCKET/FOLDER"),
        ([DIGITS, "--config.dataset.data_dir=hdfs://b"], "hdfs:// is not supported"),
        ([DIGITS, "--config.init_from=s3:/b"], "s3:/b must be gs://BUCKET/FOLDER or"),
        (
            [DIGITS, "--config.dataset.class_list=gs://b/x"],
            "gs:// is not supported here; give a local path",
        ),
        ([DIGITS, "--workdir=~nobody_/x"], "~nobody_/x: there is no such home folder"),
        (["--config=~nobody_/x.py"], "there is no such home folder"),
        ([DIGITS, "--config.model.qk_dim=8"], "must be numbers in brackets, as in (8"),
        ([DIGITS, "--initialization_seconds=0"], "--initialization_seconds=0"),
        ([DIGITS, "--process_id=0"], "--num_processes is missing beside the others"),
        ([DIGITS, "--process_id=-1"], "--process_id=-1"),
        ([DIGITS, "--heartbeat_seconds=soon"], "--heartbeat_seconds=soon"),
        ([DIGITS, "--distributed"], "cannot join the other processes: "),
    ],
)
def test_a_mistake_ends_in_one_line(argv, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit_:
        main.main(["main", *argv])
    code = exit_.value.code  # a text is said at the end, for 1
    said = capsys.readouterr().err if code == 2 else f"{code}\n"
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


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
    argv = ["--workdir=~/x", "--config.dataset.data_dir=~/y"]
    config, workdir, _ = main.parse(["main", *flag, *argv])
    assert workdir == pathlib.Path.home() / "x"
    assert config.dataset.data_dir == str(pathlib.Path.home() / "y")


def test_flags_of_the_config_are_switched_and_values_may_follow(monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["--config.augment.flip", "--noconfig.compile_cache", "--config.seed", "3"]
    config = main.parse(["main", DIGITS, *argv])[0]
    assert config.augment.flip is True
    assert config.compile_cache is False
    assert config.seed == 3


def test_a_recipe_is_found_from_any_folder_but_the_folders_own_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main.parse(["main", DIGITS])[0].dataset.name == "digits"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(
        "from svda_jax.config import recipe\n\n"
        "def get_config():\n"
        "    config = recipe('digits')\n"
        "    config.dataset.name = 'mine'\n"
        "    return config\n"
    )
    assert main.parse(["main", DIGITS])[0].dataset.name == "mine"


def test_a_file_has_to_say_what_has_no_default(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from svda_jax.config import defaults as get_config\n")
    with pytest.raises(SystemExit, match=r"error: dataset.name is not set"):
        main.main(["main", f"--config={file}"])


def test_help_lists_every_option_with_default_and_comment(capsys):
    main.main(["main", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "--config.model.attention=softmax" in lines[4]
    said = " ".join(line.strip() for line in lines)
    for key, option in OPTIONS.items():
        shown = f"<{TYPES[key].__name__}>" if key in REQUIRED else option.default
        assert f"--config.{key}={shown} {option.comment}" in said
    for flag in ("config=FILE", "workdir=", "keep_memory=True", "num_processes="):
        assert f"--{flag}" in lines
    assert max(map(len, lines)) <= 88


SLOW = {
    *("jax", "flax", "numpy", "orbax", "matplotlib", "xarray", "grain"),
    *("etils", "fsspec"),
}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("['svda_jax.main', '--help']", "Trains a Vision Transformer."),
        (f"['svda_jax.main', '{DIGITS}', '--config.sed=1']", "did you mean"),
        ("['svda_jax', '--help']", "verify"),
        (f"['svda_jax.main', '{DIGITS}']", "starts again"),
    ],
)
def test_nothing_slow_is_imported_before_the_program_starts_again(argv, said):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    program = (
        "import os, runpy, sys\n"
        f"sys.argv = {argv}\n"
        "def execv(*args):\n"
        "    sys.exit('starts again')\n"
        "os.execv = execv\n"
        "try:\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as error:\n"
        "    print(error)\n"
        f"print('slow:', sorted({SLOW} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("slow: []\n")


def test_a_flag_keeps_the_program_from_starting_again(monkeypatch, capsys):
    def trains(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "train_and_evaluate", trains)
    monkeypatch.setattr(main, "keep_memory", lambda: sys.exit("starts again"))
    with pytest.raises(SystemExit, match="starts again"):
        main.program([DIGITS])
    for call in (
        lambda: main.program([DIGITS, "--nokeep_memory"]),
        lambda: main.main(["main", DIGITS]),
    ):
        with pytest.raises(SystemExit, match=r"^130$"):
            call()
        said = capsys.readouterr().err
        assert said == "\ninterrupted; the same line resumes the run\n"


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_garbage_collector_ends_the_program_too(
    interruptible, capsys
):
    """Where Python drops it, as in the callback that JAX has there."""

    def interrupt(*args):
        gc.callbacks.remove(interrupt)
        raise KeyboardInterrupt

    def program():
        gc.callbacks.append(interrupt)
        gc.collect()
        time.sleep(20)

    with pytest.raises(SystemExit, match="130"), main.one_line():
        program()
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_platform_that_is_not_there_and_64_bits_are_one_line(monkeypatch):
    def find():  # as JAX 0.10 does for JAX_PLATFORMS=cuda without one
        raise AssertionError

    with pytest.raises(UserError, match=r"no device, JAX_PLATFORMS=.*: there is none"):
        parallel.find_devices(find)
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        parallel.create_mesh()


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
        "eval ",
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

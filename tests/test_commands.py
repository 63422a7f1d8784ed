"""The command svda: help, exit codes, and what ends in one line."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys

import pytest

from svda_jax import __main__ as commands
from svda_jax import main
from svda_jax.commands import COMMANDS
from svda_jax.look import report
from svda_jax.prune.model import BASES
from svda_jax.prune.run import DEFAULT_RHO
from svda_jax.run import compare
from svda_jax.run.export import FORMATS

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--config="],
        ["--confg=configs/digits.py"],
        [DIGITS, "softmax"],
        [DIGITS, "--process_id=-1"],
        [DIGITS, "--config.sed=1"],
        [DIGITS, "--config.seed=x"],
        [DIGITS, "--config.model.qk_dim=8"],
        [DIGITS, "--noconfig.seed"],
    ],
)
def test_a_line_of_train_that_cannot_be_read_is_code_2(argv, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"^2$"):
        commands.main(["train", *argv])
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_line_of_help_and_its_own(command, capsys, monkeypatch):
    monkeypatch.setattr(commands, "keep_memory", lambda: None)
    commands.main(["--help"])
    assert f"\n  {command} " in capsys.readouterr().out
    with contextlib.suppress(SystemExit):
        commands.main([command, "--help"])
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_help_and_a_wrong_flag_come_before_jax():
    code = (
        "import sys\nfrom svda_jax.__main__ import main\n"
        "try: main(sys.argv[1:])\nfinally: assert 'jax' not in sys.modules"
    )
    for command in COMMANDS:
        for flag, expected in (("--help", 0), ("--workdri=x", 2)):
            line = [sys.executable, "-c", code, command, flag]
            done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == expected, done.stderr


def test_help_says_what_there_is_to_choose_from():
    for name, choices in (("prune", BASES), ("export", FORMATS)):
        text = f"{COMMANDS[name].text} {COMMANDS[name].arguments}"
        assert all(choice in text for choice in choices)
    rho = dict(COMMANDS["prune"].arguments)[("--rho",)]
    assert rho["help"].startswith("share")
    assert str(DEFAULT_RHO) in rho["help"]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_a_wrong_flag_is_one_line_and_code_2(command, capsys, monkeypatch):
    monkeypatch.setattr(commands, "keep_memory", lambda: None)
    with pytest.raises(SystemExit, match=r"^2$"):
        commands.main([command, "--workdri=x"])
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*; svda {command} --help says more\n", said)


def test_a_command_that_is_none_or_is_interrupted_ends_in_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        commands.main(["trian"])
    said = capsys.readouterr().err
    assert said.startswith("error: no command trian; there are train, ")
    assert said.count("\n") == 1

    def main(argv):
        assert argv == ["--workdir=x"]
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "main", main)
    with pytest.raises(SystemExit, match=r"^130$"):
        commands.main(["report", "--workdir=x"])
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_folder_that_may_not_be_read_is_one_line(monkeypatch, tmp_path):
    def deny(*args):  # who runs the tests may be allowed everything
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(pathlib.Path, "exists", deny)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"error: .*/x: Permission denied$"):
        main.main(["main", DIGITS, f"--workdir={tmp_path / 'x'}"])


@pytest.mark.parametrize("command", ["verify", "evaluate", "export"])
def test_a_path_that_is_empty_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--format=npz"] if command == "export" else []
    with pytest.raises(SystemExit, match=r"^error: a path is empty"):
        commands.main([command, "--workdir=", *more])


@pytest.mark.parametrize("flag", ["--workdir=", "--config="])
def test_a_name_too_long_is_one_line(flag, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"^error: x+[^\s]*: File name too long$"):
        main.main(["main", DIGITS, flag + 300 * "x"])


def test_a_name_that_the_screen_cannot_show_is_no_error(tmp_path, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(compare, "compare", lambda folder: [])
    monkeypatch.setattr(compare, "_print", lambda *args: print("caf\xe9 \udce9"))
    commands.main(["runs", "x"])
    assert screen.buffer.getvalue() == b"caf\\xe9 \\udce9\n"


@pytest.mark.parametrize("argv", [["svda_jax.main", "--help"], ["svda_jax", "--help"]])
def test_output_that_nobody_reads_is_no_error(argv):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *argv]
    done = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""

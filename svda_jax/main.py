"""Trains a Vision Transformer.

    python -m svda_jax.main --config=configs/digits.py

Options of the config follow with a dot, such as --config.model.attention=softmax or
--config.seed=1. The same line again resumes the run.

Several processes, one on each host, train together with --distributed where Slurm, a
TPU pod or the like tells them of each other, or with --coordinator_address=HOST:PORT
--num_processes=N --process_id=I, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID in the environment.
"""

import _thread
import contextlib
import io
import os
import pathlib
import re
import sys
import textwrap
import threading

from absl import flags

from svda_jax import UsageError, UserError, place
from svda_jax.config import divide, load
from svda_jax.devices.memory import keep_memory
from svda_jax.options import OPTIONS, REQUIRED, TYPES

_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PROCESSES = (
    "coordinator_address",
    "num_processes",
    "process_id",
    "distributed",
    "heartbeat_seconds",
    "initialization_seconds",
)

_CONFIG = (
    "Recipe as configs/digits.py, or configs/folder.py:NAME for images of your own; a "
    "file of your own; or a run's config.json."
)
_WORKDIR = (
    "Folder of the run, or gs://BUCKET/FOLDER; by default "
    "runs/<config>-<attention>-<seed>, with NAME for <config>, or that of the "
    "config.json."
)
_KEEP_MEMORY = (
    "Whether, on Linux without an accelerator, the program starts itself again so that "
    "it keeps its memory from step to step, which is quicker."
)
_HEARTBEAT = "Seconds after which the others end when a process is lost."
_INITIALIZATION = "Seconds after which they end when one has not come."


def main(argv, *, restart=False):
    """Runs the command line; a user's mistake ends in one line.

    Args:
      argv: the program's name and its arguments.
      restart: whether the program may start again to keep its memory.
    """
    with one_line("interrupted; the same line resumes the run"):
        if {"--help", "-help", "-h"} & set(argv):
            print(_help())
            return
        config, workdir, processes = parse(argv)
        if restart and "--nokeep_memory" not in argv:
            keep_memory()
        from svda_jax.devices.processes import initialize
        from svda_jax.run.checkpoints import (
            quiet_orbax,  # seconds, for a good line only
        )
        from svda_jax.train.loop import train_and_evaluate

        quiet_orbax()
        initialize(**processes)
        train_and_evaluate(config, workdir)


@contextlib.contextmanager
def one_line(interrupted="interrupted"):
    """Ends a program in one line after a user's mistake or Ctrl-C.

    The exit code is 1; 2 where the command line cannot be read; 130 after Ctrl-C.

    So does a file that cannot be used, and a lack of memory, on host or device.
    Where nobody reads its output any more, as behind `head`, it ends without one.

    Args:
      interrupted: the line after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in whatever encoding they are
        sys.stdout.reconfigure(errors="backslashreplace")
    say_unraisable = sys.unraisablehook

    def interrupt_again(ignored):
        if ignored.exc_type is KeyboardInterrupt:
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            say_unraisable(ignored)

    # Python drops an interrupt that comes in JAX's callback of the garbage collector,
    # which is where it often is.
    sys.unraisablehook = interrupt_again
    try:
        yield
        sys.stdout.flush()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if not error.filename:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        if not re.search("RESOURCE_EXHAUSTED|Unable to allocate", said):
            raise
        sys.exit(
            f"error: memory does not suffice: {said}; smaller batches (batch_size, "
            "accumulate_steps), images or models need less"
        )
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)
    finally:
        sys.unraisablehook = say_unraisable


def parse(argv):
    """Reads a command line.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The config, with what the command line overrides; the workdir; and the arguments
      of `processes.initialize`.

    Raises:
      UsageError: a flag or an option does not exist, lacks or has a value of another
        kind.
      UserError: the config file, or a value, is not what it should be.
    """
    path, overrides, argv = _take_config(argv)
    try:
        values = _flags()
        rest = values(argv)
    except flags.Error as error:
        raise UsageError(str(error)) from None
    if len(rest) > 1:
        raise UsageError(f"unexpected {rest[1]}; an option looks like --config.seed=1")
    if not path:
        raise UsageError("which config? For a start: --config=configs/digits.py")
    config = load(path, overrides)
    file, argument = divide(path)
    file = place(file)
    name = f"{argument or file.stem}-{config.model.attention}-{config.seed}"
    default = file.parent if file.suffix == ".json" else pathlib.Path("runs", name)
    workdir = place(values.workdir or default)
    return config, workdir, {name: values[name].value for name in _PROCESSES}


def _flags():
    """The flags beside --config."""
    v = flags.FlagValues()
    address, count, number = map(os.environ.get, _ENVIRONMENT)
    flags.DEFINE_string("workdir", None, _WORKDIR, v)
    flags.DEFINE_bool("keep_memory", True, _KEEP_MEMORY, v)
    flags.DEFINE_bool("distributed", False, "Whether to join other processes.", v)
    flags.DEFINE_string("coordinator_address", address, "HOST:PORT of process 0.", v)
    flags.DEFINE_integer("num_processes", count, "Number of these.", 1, flag_values=v)
    flags.DEFINE_integer("process_id", number, "Which one this is.", 0, flag_values=v)
    flags.DEFINE_integer("heartbeat_seconds", 100, _HEARTBEAT, 1, flag_values=v)
    name = "initialization_seconds"
    flags.DEFINE_integer(name, 300, _INITIALIZATION, 1, flag_values=v)
    return v


def _take_config(argv):
    """The value of --config, pairs of key and text of its options, and what is left."""
    path, overrides, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        off = flag.lstrip("-").startswith("noconfig.") and not equals
        flag = flag.lstrip("-").removeprefix("no" if off else "")
        key = flag.removeprefix("config.")
        if not argument.startswith("-") or flag.partition(".")[0] != "config":
            rest.append(argument)
            continue
        if off or (key != flag and not equals and TYPES.get(key, bool) is bool):
            text = str(not off)
        elif not equals:
            text = next(arguments, "")
        if key == flag:
            path = text
        else:
            overrides.append((key, text))
    return path, overrides, rest


def _help():
    """How to call the program, every flag, and every option by section."""
    values = _flags()
    lines = [__doc__, "--config=FILE", *_comment(_CONFIG)]
    for name in values:
        default = "" if values[name].default is None else values[name].default
        lines += [f"--{name}={default}", *_comment(values[name].help)]
    section = None
    for key, option in OPTIONS.items():
        if section != (section := key.rpartition(".")[0]):
            lines += ["", f"Options of the config{section and ', section '}{section}:"]
        default = f"<{TYPES[key].__name__}>" if key in REQUIRED else option.default
        rule = f" It {option.rule[0]}." if option.rule else ""
        lines += [f"--config.{key}={default}", *_comment(option.comment + rule)]
    return "\n".join(lines)


def _comment(text):
    return textwrap.wrap(text, 80, initial_indent=" " * 4, subsequent_indent=" " * 4)


def program(arguments):
    """The command line as a program of its own, which may start itself again."""
    main([sys.argv[0], *arguments], restart=True)


if __name__ == "__main__":
    program(sys.argv[1:])

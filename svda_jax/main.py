"""Trains a Vision Transformer.

    python -m svda_jax.main --config=configs/digits.py

Options of the config follow with a dot, such as --config.model.attention=softmax or
--config.seed=1; configs/default.py explains each. --workdir=DIR is the run's folder, by
default runs/<config>-<attention>-<seed>. The same line again resumes the run; a run's
config.json is a config too.

Several processes, one on each host, train together with --distributed where Slurm, a
TPU pod or the like tells them of each other, or with --coordinator_address=HOST:PORT
--num_processes=N --process_id=I, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID in the environment. When one is lost the others end after
--heartbeat_seconds, by default 100.

On Linux without an accelerator the program starts itself again so that it keeps its
memory from step to step, which is quicker; --nokeep_memory leaves that out.
"""

import difflib
import os
import pathlib
import runpy
import sys

from absl import flags
from ml_collections import config_dict, config_flags

from svda_jax import UserError
from svda_jax.config import flatten, from_json
from svda_jax.devices.memory import keep_memory

_NO_KEPT_MEMORY = "--nokeep_memory"
_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PROCESSES = (
    "coordinator_address",
    "num_processes",
    "process_id",
    "distributed",
    "heartbeat_seconds",
)


def main(argv):
    """Runs the command line; a user's mistake ends in one line and exit code 1."""
    if {"--help", "-help", "-h"} & set(argv):
        print(__doc__)
        return
    try:
        config, workdir, processes = parse(argv)
        from svda_jax.devices.processes import initialize
        from svda_jax.run.checkpoints import (
            quiet_orbax,  # seconds, for a good line only
        )
        from svda_jax.train.loop import train_and_evaluate

        quiet_orbax()
        initialize(**processes)
        train_and_evaluate(config, workdir)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same line resumes the run")


def parse(argv):
    """Reads a command line.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The config, with what the command line overrides; the workdir; and the arguments
      of `processes.initialize`.

    Raises:
      UserError: an argument, or the config file, is not what it should be.
    """
    path, argv = _take_config([a for a in argv if a != _NO_KEPT_MEMORY])
    config = load_config(path)
    _check_keys(argv, config)
    values = flags.FlagValues()
    address, count, number = map(os.environ.get, _ENVIRONMENT)
    try:
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.DEFINE_string("coordinator_address", address, "", flag_values=values)
        flags.DEFINE_integer("num_processes", count, "", 1, flag_values=values)
        flags.DEFINE_integer("process_id", number, "", 0, flag_values=values)
        flags.DEFINE_bool("distributed", False, "", flag_values=values)
        flags.DEFINE_integer("heartbeat_seconds", 100, "", 1, flag_values=values)
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        rest = values(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected {rest[1]}; an option looks like --config.seed=1")
    name = f"{pathlib.Path(path).stem}-{config.model.attention}-{config.seed}"
    of_run = pathlib.Path(path).suffix == ".json"
    default = pathlib.Path(path).parent if of_run else pathlib.Path("runs", name)
    workdir = pathlib.Path(values.workdir or default)
    return config, workdir, {name: values[name].value for name in _PROCESSES}


def load_config(path):
    """The config that a config file's `get_config()` returns, locked.

    Raises:
      UserError: there is no such file, it fails, or it is no config file.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no config file {path}")
    try:
        if pathlib.Path(path).suffix == ".json":
            config = from_json(pathlib.Path(path).read_text())
        else:
            config = runpy.run_path(str(path))["get_config"]().lock()
        flatten(config)
    except config_dict.RequiredValueError:
        raise UserError(f"{path} leaves a required value unset") from None
    except Exception as error:  # whatever its code raises
        message = f"{path} is no config file: {type(error).__name__}: {error}"
        raise UserError(message.splitlines()[0]) from None
    return config


def _take_config(argv):
    """The value of --config, and the arguments without it."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            after = i + 1 if equals else i + 2
            value = value if equals else "".join(argv[i + 1 : after])
            if value:
                return value, argv[:i] + argv[after:]
    raise UserError("which config? For a start: --config=configs/digits.py")


def _check_keys(argv, config):
    """Refuses an override of a key that the config does not have."""
    keys = list(flatten(config))
    for argument in argv:
        key = argument.lstrip("-").partition("=")[0]
        if (
            key.startswith("config.")
            and (key := key.removeprefix("config.")) not in keys
        ):
            nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0)[0]
            raise UserError(
                f"the config has no key {key}; did you mean --config.{nearest}?"
            )


if __name__ == "__main__":
    if _NO_KEPT_MEMORY not in sys.argv:
        keep_memory()
    main(sys.argv)

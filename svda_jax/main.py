"""Trains a Vision Transformer:

    python -m svda_jax.main --config=configs/digits.py

Options of the config follow with a dot, such as --config.model.attention=softmax or
--config.seed=1; configs/default.py explains each. --workdir is the run's folder, by
default runs/<config>-<attention>-<seed>. The same line again resumes the run.
"""

import difflib
import pathlib
import runpy
import sys

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from svda_jax import UserError
from svda_jax.config import flatten

_CONFIG = config_flags.DEFINE_config_file("config", None, "the config file")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's folder (default: runs/<config>-<attention>-<seed>)"
)


def main(_):
    from svda_jax.train import train_and_evaluate  # JAX starts only for a good line

    config = _CONFIG.value
    workdir = _WORKDIR.value
    if not workdir:
        name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        workdir = f"runs/{name}-{config.model.attention}-{config.seed}"
    logging.set_verbosity(logging.ERROR)
    try:
        train_and_evaluate(config, pathlib.Path(workdir))
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; the same line resumes {workdir}")


def parse(argv):
    """Parses the command line; a mistake in it ends the program with one line."""
    try:
        path = _find_config(argv)
        if path:
            _check_keys(argv, load_config(path))
        rest = flags.FLAGS(argv)
        if not path:
            raise UserError("which config? For a start: --config=configs/digits.py")
        if len(rest) > 1:
            raise UserError(f"unexpected {rest[1]}; options are --config.seed=1 and such")
    except (UserError, flags.Error) as error:
        sys.exit(f"error: {error}")
    return rest


def load_config(path):
    """The config that a config file returns, locked.

    Raises:
      UserError: there is no such file, it fails, or it is no config file.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no config file {path}")
    try:
        config = runpy.run_path(path)["get_config"]().lock()
        flatten(config)
    except config_dict.RequiredValueError:
        raise UserError(f"{path} leaves a required value unset") from None
    except Exception as error:  # whatever its code raises
        message = f"{path} is no config file: {type(error).__name__}: {error}"
        raise UserError(message.splitlines()[0]) from None
    return config


def _find_config(argv):
    """The value of --config, before the flags are parsed."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return None


def _check_keys(argv, config):
    """Refuses an override of a key that the config does not have."""
    keys = set(flatten(config))
    for argument in argv:
        key = argument.lstrip("-").partition("=")[0]
        if key.startswith("config.") and (key := key.removeprefix("config.")) not in keys:
            nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0)[0]
            raise UserError(
                f"the config has no key {key}; did you mean --config.{nearest}?"
            )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

"""A config: read from a file, checked against the options, and back.

A config file is Python, whose `get_config()` returns what differs from `defaults()`:

    def get_config():
        config = defaults()  # or recipe("digits"), configs/digits.py
        config.num_epochs = 50
        return config

or JSON, such as a run's config.json. One that is asked for as FILE.py:ARGUMENT is given
the argument and what the command line sets: `get_config(argument, options)`. Nothing
slow is imported here.
"""

import ast
import difflib
import inspect
import json
import pathlib
import re
import runpy

from ml_collections import ConfigDict, FieldReference

from svda_jax import UsageError, UserError, is_address, local_path, place
from svda_jax.options import IN_BUCKETS, KINDS, OPTIONS, PATHS, REQUIRED, TYPES

# Inside the package where it is installed, beside it in the repository.
RECIPES = pathlib.Path(__file__).with_name("configs")
if not RECIPES.exists():
    RECIPES = RECIPES.parent.with_name("configs")


def defaults():
    """A config to change: the defaults. It takes any value and is checked when used."""
    values = {k: FieldReference(o.default, object) for k, o in OPTIONS.items()}
    return _nest({k: values[k] for k in values if k not in REQUIRED}, type_safe=False)


def recipe(name):
    """A config to change: that of configs/<name>.py."""
    return runpy.run_path(str(RECIPES / f"{name}.py"))["get_config"]()


def load(path, overrides=()):
    """The config that a file describes, checked and locked.

    Args:
      path: of a Python or JSON file; configs/<name>.py may be a recipe's. Behind that
        of a Python file may stand a colon and an argument.
      overrides: pairs of a key and its value, a text as on the command line.

    Raises:
      UsageError: a key of the overrides does not exist, or its text is no value of it.
      UserError: there is no such file, it fails, or it and the overrides are no config.
    """
    given = {}
    for key, text in overrides:
        if key not in OPTIONS:
            raise UsageError(_unknown(key, "--config."))
        given[key] = _from_text(key, text)
    return check(_read(path, given) | given)


def check(config):
    """A config, or a dict, with every key and each value of its type; locked.

    Raises:
      UserError: naming a key that does not exist or is missing, or key, rule and value.
    """
    flat = flatten(config)
    for key in flat:
        if key not in OPTIONS:
            raise _unknown(key)
    values = {}
    for key, option in OPTIONS.items():
        if key in REQUIRED - flat.keys():
            raise UserError(f"{key} is not set; the config file has to say it")
        value = values[key] = _typed(key, flat.get(key, option.default))
        if option.rule and not option.rule[1](value):
            raise UserError(f"{key}={value} {option.rule[0]}")
    return _nest(values).lock()


def validate(config, *, num_devices):
    """Checks a config and returns the `ViTConfig` that it describes.

    Raises:
      UserError: as from `check`, or values do not fit each other or `num_devices`.
    """
    config = check(config)
    parts = num_devices * config.accumulate_steps
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size} must be a multiple of {num_devices} "
            f"devices times accumulate_steps={config.accumulate_steps}"
        )
    for name in ("mixup", "cutmix"):
        if config.augment[name] and (config.batch_size // parts) % 2:
            raise UserError(
                f"augment.{name}={config.augment[name]} pairs images: batch_size="
                f"{config.batch_size} must be a multiple of 2 x {parts}"
            )
    if config.augment.crop_padding >= config.dataset.image_size:
        raise UserError(
            f"augment.crop_padding={config.augment.crop_padding} must be less than "
            f"dataset.image_size={config.dataset.image_size}"
        )
    return vit_config(config)


def vit_config(config):
    """The `ViTConfig` of a config, or UserError where its values do not fit."""
    from svda_jax.models.vit import ViTConfig  # brings JAX

    names = ("image_size", "channels", "mean", "std", "num_classes")
    values = {name: config.dataset[name] for name in names} | dict(config.model)
    try:
        return ViTConfig(**values)
    except UserError as error:  # it speaks of fields
        keys = {key.rpartition(".")[2]: key for key in OPTIONS if "." in key}
        raise UserError(re.sub(r"\w+(?==)", lambda n: keys[n[0]], str(error))) from None


def to_json(config):
    """A config as JSON."""
    return json.dumps(config.to_dict(), indent=2)


def flatten(config, prefix=""):
    """A config as one dict from dotted keys to values."""
    if not isinstance(config, (ConfigDict, dict)):
        raise UserError("it holds no options")
    flat = {}
    for key, value in ((f"{prefix}{name}", config[name]) for name in config):
        is_section = any(option.startswith(f"{key}.") for option in OPTIONS)
        if is_section and isinstance(value, (ConfigDict, dict)):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def _nest(flat, *, type_safe=True):
    nested = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return ConfigDict(nested, type_safe)


def divide(path):
    """The file and the argument of FILE.py:ARGUMENT; without one it is ""."""
    file, _, argument = str(path).rpartition(".py:")
    return (f"{file}.py", argument) if file and "/" not in argument else (path, "")


def _read(path, given):
    """What a config file says, flat."""
    if is_address(path):
        return _read_from_bucket(path)
    found, argument = divide(path)
    file = local_path(found)
    if not file.is_file() and file.parent == pathlib.Path("configs"):
        file = RECIPES / file.name
    if not file.is_file():
        names = ", ".join(sorted(f"configs/{f.name}" for f in RECIPES.glob("*.py")))
        raise UserError(f"there is no config file {found}; there are {names}")
    try:
        if file.suffix == ".json":
            return flatten(json.loads(file.read_text("utf-8-sig")))
        get_config = runpy.run_path(str(file))["get_config"]
        arguments = (argument, given) if argument else ()
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f"{found} takes no argument, such as :{argument}")
        return flatten(get_config(*arguments))
    except UserError:
        raise
    except Exception as error:  # whatever its code raises
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is no config file: {said}") from None


def _read_from_bucket(path):
    """The same of a run's config.json in a bucket."""
    from svda_jax.data.bucket import Bucket  # brings JAX

    file = place(path)
    text = Bucket(file.parent).read(file.name) if file.suffix == ".json" else None
    if text is None:
        raise UserError(f"there is no {path}; of a bucket a run's config.json is read")
    try:
        return flatten(json.loads(text))
    except ValueError as error:
        raise UserError(f"{path} is no config file: {error}") from None


def _unknown(key, prefix=""):
    short = {"".join(re.findall(r"(?:^|_)(.)", k)): k for k in OPTIONS}  # lr, wd, ...
    nearest = short.get(key) or difflib.get_close_matches(key, OPTIONS, 1, 0)[0]
    return UserError(f"the config has no key {key}; did you mean {prefix}{nearest}?")


def _from_text(key, text):
    """The value that a text on the command line stands for."""
    kind = TYPES[key]
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return _typed(key, ast.literal_eval(text)) if kind is tuple else kind(text)
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(f"{key}={text} {KINDS[kind]}") from None


def _typed(key, value):
    """The value in its option's type: integers are numbers, JSON's lists tuples."""
    kind = TYPES[key]
    if kind is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    value = tuple(value) if kind is tuple and isinstance(value, list) else value
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if right and kind in (int, tuple):
        right = all(
            isinstance(x, float) or (type(x) is int and abs(x) < 10**15)
            for x in (value if kind is tuple else [value])
        )
    if not right:
        raise UserError(f"{key}={value!r} {KINDS[kind]}")
    if not value or key not in PATHS:
        return value
    return str((place if key in IN_BUCKETS else local_path)(value))

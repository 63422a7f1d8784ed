"""Variants of one training, each over several seeds: trained, read back, compared."""

import argparse
import contextlib
import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import scipy.stats
import xarray as xr
from absl import flags

from svda_jax import UserError
from svda_jax.devices import parallel
from svda_jax.devices.timing import Spread, measure, repeat, spread
from svda_jax.main import parse
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.train.compiled import create_timed_step
from svda_jax.train.loop import train_and_evaluate

# What is compared, by the name in a run's folder: the options that make it.
ATTENTIONS = {
    "softmax": {"model.attention": "softmax"},
    "svda": {"model.attention": "svda"},
}


@dataclasses.dataclass
class Comparison:
    """Runs of a config, by variant and seed.

    Attributes:
      name: of the config.
      workdirs: a run's folder for each seed, by variant.
      histories: `xarray.Dataset` of each finished run, None for one that failed.
      failures: what a run that failed said, by folder.
      overhead: `Spread` of a training step's time with SVDA over that with softmax
        attention, taken in turn.
    """

    name: str
    workdirs: dict[str, list[pathlib.Path]]
    histories: dict[str, list[xr.Dataset | None]]
    failures: dict[pathlib.Path, str]
    overhead: Spread | None = None

    def values(self, variant, read):
        """A number of each run, NaN for one that failed: `[seeds]`."""
        return np.array(
            [
                np.nan if history is None else float(read(history))
                for history in self.histories[variant]
            ]
        )

    def copy_histories(self, out):
        """Copies the history of every run that has not failed, as <run>.nc."""
        for workdirs in self.workdirs.values():
            for workdir in workdirs:
                if workdir not in self.failures:
                    path = runs.history_path(workdir)
                    shutil.copyfile(path, out / f"{workdir.name}.nc")


def create_parser(name, description):
    """The command line of an experiment, with what they all have.

    Args:
      name: of its module.
      description: for --help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    parser.add_argument("--out", default="experiments/results", help="of the results")
    return parser


def run_command(parser, argv, function):
    """Runs an experiment; a user's mistake ends in one line and exit code 1.

    Args:
      parser: from `create_parser`.
      argv: the program's name and its arguments.
      function: called with the arguments, the options of the config, and the command.

    Returns:
      What function returns.
    """
    args, rest = parser.parse_known_args(argv[1:])
    quiet_orbax()
    try:
        if args.seeds < 1:
            raise UserError(f"--seeds={args.seeds} must be positive")
        return function(args, rest, f"{parser.prog} {shlex.join(argv[1:])}")
    except (UserError, FloatingPointError, flags.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same line goes on")


@contextlib.contextmanager
def writing(out):
    """Makes a folder for results, and says it where they cannot be written.

    Raises:
      UserError: they cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None


def read_configs(paths, argv):
    """Checks that every config with these options is one; their names.

    Raises:
      UserError: a config or an option is wrong, or two configs have one name.
    """
    names = []
    for path in paths:
        parse(["", f"--config={path}", *argv])
        names.append(pathlib.Path(path).stem)
    if len(set(names)) < len(names):
        raise UserError(f"two configs have the same name: {', '.join(names)}")
    return names


def configure(path, argv, options, seed):
    """The config of one run; what the variant says overrides the command line."""
    options = {**options, "seed": seed}
    overrides = [f"--config.{key}={value}" for key, value in options.items()]
    return parse(["", f"--config={path}", *argv, *overrides])[0]


def train(path, argv, variants, *, num_seeds, folder, say=None):
    """Trains every run that is not finished, seed by seed, variants in turn.

    Args:
      path: of the config.
      argv: options for all runs, as on the command line.
      variants: options of each, by name.
      num_seeds: runs of each.
      folder: of the runs.
      say: called with a run's folder before it is trained; by default `progress`
        through these runs.

    Returns:
      A `Comparison`. A run whose loss or gradient stays not finite has failed and the
      others go on.

    Raises:
      UserError: a config, the data or a folder is not what it should be.
    """
    say = say or progress(len(variants) * num_seeds)
    name = pathlib.Path(path).stem
    workdirs = {variant: [] for variant in variants}
    histories = {variant: [] for variant in variants}
    failures = {}
    for seed in range(num_seeds):
        for variant, options in variants.items():
            config = configure(path, argv, options, seed)
            workdir = pathlib.Path(folder, f"{name}-{variant}-{seed}")
            say(workdir)
            runs.check_workdir(config, workdir)
            history = None
            try:
                if not runs.is_finished(workdir, config):
                    train_and_evaluate(config, workdir)
                if runs.is_finished(workdir):
                    history = runs.read_history(workdir)
                else:
                    raise UserError(f"{workdir} was stopped; the same line goes on")
            except FloatingPointError as error:
                failures[workdir] = str(error)
                print(f"failed: {error}", flush=True)
            workdirs[variant].append(workdir)
            histories[variant].append(history)
    return Comparison(name, workdirs, histories, failures)


def train_for(study, args, rest, names):
    """The runs that a study of one config is about; what is missing is trained.

    Args:
      study: its name, that of its folder under --out.
      args: of its command line, with --config.
      rest: options of the config.
      names: of `ATTENTIONS`; the config of the last stands beside the results.

    Returns:
      The folder of the results, and a `Comparison`.

    Raises:
      UserError: a config, the data or a folder is not what it should be, results of
        another config are there, or a run failed.
    """
    (config,) = read_configs([args.config], rest)
    out = pathlib.Path(args.out, study, config)
    variants = {name: ATTENTIONS[name] for name in names}
    runs.check_workdir(configure(args.config, rest, variants[names[-1]], 0), out)
    comparison = train(
        args.config, rest, variants, num_seeds=args.seeds, folder=args.runs
    )
    if comparison.failures:
        raise UserError(f"{next(iter(comparison.failures))} failed")
    return out, comparison


def measure_overhead(path, argv, repeats=30):
    """`Comparison.overhead` of a config: median and quartiles of neighbouring steps."""
    mesh = parallel.create_mesh()
    steps = {
        name: repeat(*create_timed_step(configure(path, argv, options, 0), mesh))
        for name, options in ATTENTIONS.items()
    }
    seconds = measure(steps, repeats)
    return spread(seconds["svda"] / seconds["softmax"])


def progress(total):
    """A function that says which run of so many is next, and how long they have taken.

    Args:
      total: number of runs.
    """
    start, count = time.monotonic(), 0

    def say(workdir):
        nonlocal count
        count += 1
        minutes = (time.monotonic() - start) / 60
        print(f"\nrun {count} of {total}, after {minutes:.0f} min: {workdir}")

    return say


def read_commit():
    """The commit that is checked out, short; "unknown" outside git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def mean_and_spread(values, decimals=3):
    """Mean and standard deviation of what is there, as text."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "-"
    text = f"{values.mean():,.{decimals}f}"
    return text + (f" ± {values.std(ddof=1):,.{decimals}f}" if len(values) > 1 else "")


def mean_and_interval(values, decimals=3):
    """Mean of differences with its 95 % confidence interval (Student's t), as text."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "-"
    text = f"{values.mean():+,.{decimals}f}"
    if len(values) == 1:
        return text
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{text} ± {half:,.{decimals}f}"


def adjusted_p(differences):
    """How likely such differences are where there are none, many looked at at once.

    Paired t tests against a mean of 0, adjusted by Holm's step-down procedure: where
    all with p <= alpha are called different, any is so wrongly with probability alpha
    at most.

    Args:
      differences: `[seeds]` of each quantity, NaN where a run failed.

    Returns:
      p of each quantity, 0 to 1; NaN where fewer than two seeds are there, or nothing
      differs.

    Source: Holm 1979.
    """
    p = np.full(len(differences), np.nan)
    for i, one in enumerate(differences):
        one = one[np.isfinite(one)]
        if len(one) > 1 and one.any():
            t = abs(one.mean()) / max(scipy.stats.sem(one), 1e-30)
            p[i] = 2 * scipy.stats.t.sf(t, len(one) - 1)
    order = np.argsort(p)  # NaN last
    tests = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * tests))
    return p

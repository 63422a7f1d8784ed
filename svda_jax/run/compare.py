"""The runs below a folder, in what their options differ and where they ended."""

import csv
import os
import pathlib
import sys

from svda_jax import UserError, is_address, place
from svda_jax.commands import parse
from svda_jax.config import flatten
from svda_jax.run import runs
from svda_jax.run.console import align, to_json
from svda_jax.run.mirror import reading

# What is told of each run, and how a person reads it.
_FIGURES = {
    "epoch": ".1f",
    "accuracy": ".2%",
    "loss": ".4f",
    "score_rank": ".2f",
    "finished": "",
}

_WIDTH = 24  # of a column of options, for a person


def find_runs(folder):
    """The folders with a config.json, folder itself and below, sorted; no exports."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "checkpoints"]
        if "config.json" in files and "model.json" not in files:
            found.append(pathlib.Path(path))
    return sorted(found)


def compare(folder):
    """A dict for each run below a folder.

    Returns:
      For each: "run", its path; "options", those that differ between the runs, by key;
      "epoch", "accuracy", "loss" (nats) and "score_rank" of its last evaluation, None
      where there is none; "finished"; or in place of all these "error", its damage.

    Raises:
      UserError: folder is none, or cannot be read, or there is no run below it.
    """
    folder = place(folder)
    if not is_address(folder) and not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    with reading(folder, listed=True) as copy:
        found = [_describe(path) for path in find_runs(copy)]
    for run in found:
        for key in {"run", "error"} & run.keys():
            run[key] = run[key].replace(str(copy), str(folder))
    if not found:
        raise UserError(f"{folder} holds no run (no config.json in it or below)")
    every = [run["options"] for run in found if "options" in run]
    differ = [
        key
        for key in (every[0] if every else ())
        if key != "note" and any(options[key] != every[0][key] for options in every)
    ]
    for run in found:
        if "options" in run:
            run["options"] = {key: run["options"][key] for key in differ}
    return found


def _describe(workdir):
    """One run with all its options."""
    figures = dict.fromkeys(_FIGURES)
    try:
        options = flatten(runs.load_config(workdir))
        if runs.history_path(workdir).exists():
            last = runs.read_history(workdir).isel(step=-1)
            figures |= {
                "epoch": float(last["epoch"]),
                "accuracy": float(last["eval_accuracy"]),
                "loss": float(last["eval_loss"]),
            }
            if "score_rank" in last:
                figures["score_rank"] = float(last["score_rank"].mean())
        figures["finished"] = runs.is_finished(workdir)
    except (UserError, OSError, KeyError) as error:
        return {"run": str(workdir), "error": str(error)}
    return {"run": str(workdir), "options": options, **figures}


def main(argv=None):
    """Runs the command line."""
    args = parse("runs", argv)
    found = compare(args.folder)
    _print(found, args)
    if any("error" in run for run in found):
        sys.exit(1)


def _print(found, args):
    if args.json:
        print(to_json(found))
        return
    whole = [run for run in found if "error" not in run]
    keys = list(whole[0]["options"]) if whole else []
    if args.csv:
        columns = ["run", *keys, *_FIGURES, "error"]
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**run, **run.get("options", {})} for run in found)
        return
    rows = [("run", *keys, *_FIGURES)]
    for run in whole:
        options = [_shorten(str(run["options"][key])) for key in keys]
        rows.append(
            (run["run"], *options, *(_show(name, run[name]) for name in _FIGURES))
        )
    if whole:
        print(align(rows))
    for run in found:
        if "error" in run:
            print(f"damaged: {run['run']}: {run['error']}", file=sys.stderr)


def _shorten(text):
    """What a column holds at most; of paths and the like the end says more."""
    return text if len(text) <= _WIDTH else f"…{text[1 - _WIDTH :]}"


def _show(name, value):
    if value is None:
        return ""
    if name == "finished":
        return "yes" if value else "no"
    return format(value, _FIGURES[name])

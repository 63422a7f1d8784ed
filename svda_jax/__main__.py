"""One command for all that the package does.

svda COMMAND ...    or, where it is not installed, python -m svda_jax COMMAND ...

Exit code 0: done; 1: a mistake or damage, said in one line; 2: a command line that
cannot be read: no such command or flag, or no value of it; 130: interrupted.
"""

import importlib
import sys

from svda_jax.devices.memory import keep_memory
from svda_jax.main import one_line

# What each runs: a function of the command line's arguments, imported when it is asked
# for.
COMMANDS = {
    "train": ("svda_jax.main:program", "Trains a Vision Transformer."),
    "evaluate": ("svda_jax.look.evaluate:main", "Says how well a run classifies."),
    "predict": ("svda_jax.look.explain:main", "Says what is on images, and why."),
    "report": ("svda_jax.look.report:main", "Writes a run as one HTML page."),
    "export": ("svda_jax.run.export:main", "Writes a run's model for other programs."),
    "prune": ("svda_jax.prune.run:main", "Prunes the directions of a run's scores."),
    "convert": ("svda_jax.prune.convert_run:main", "Makes a softmax run an SVDA run."),
    "atlas": ("svda_jax.atlas.page:main", "Shows what a head's directions are for."),
    "prepare": ("svda_jax.data.prepare:main", "Puts a data set on disk."),
    "runs": ("svda_jax.run.compare:main", "Lists runs: how they differ and ended."),
    "verify": ("svda_jax.run.verify:main", "Checks the checkpoints of a run."),
}


def main(argv=None):
    """Runs the command that argv asks for, by default the program's arguments."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv or ["--help"])[0], argv[1:]
    if command in ("--help", "-help", "-h"):
        lines = [f"  {name:<9}{comment}" for name, (_, comment) in COMMANDS.items()]
        with one_line():
            print("\n".join([__doc__, *lines, "\nCOMMAND --help says more."]))
        return
    if command not in COMMANDS:
        said = f"error: no command {command}; there are {', '.join(COMMANDS)}"
        print(said, file=sys.stderr)
        sys.exit(2)
    with one_line():
        if command in ("prune", "convert"):
            keep_memory()
        module, _, function = COMMANDS[command][0].partition(":")
        try:
            getattr(importlib.import_module(module), function)(rest)
        finally:
            sys.stdout.flush()  # argparse exits by itself after --help


if __name__ == "__main__":
    main()

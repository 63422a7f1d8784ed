"""One command for all that the package does.

python -m svda_jax COMMAND ...
"""

import importlib
import sys

from svda_jax.devices.memory import keep_memory
from svda_jax.main import one_line

# What each runs: a function of the command line's arguments, imported when it is asked
# for.
COMMANDS = {
    "train": ("svda_jax.main:program", "Trains a Vision Transformer."),
    "predict": ("svda_jax.look.explain:main", "Says what is on images, and why."),
    "report": ("svda_jax.look.report:main", "Writes a run as one HTML page."),
    "prune": ("svda_jax.prune.run:main", "Prunes the directions of a run's scores."),
    "atlas": (
        "svda_jax.atlas.page:main",
        "Shows what the directions of heads are for.",
    ),
    "prepare": ("svda_jax.data.prepare:main", "Puts a data set on disk."),
    "verify": ("svda_jax.run.verify:main", "Checks the checkpoints of a run."),
}


def main(argv):
    """Runs the command that argv, without the program's name, asks for."""
    command, rest = (argv or ["--help"])[0], argv[1:]
    if command in ("--help", "-help", "-h"):
        lines = [f"  {name:<9}{comment}" for name, (_, comment) in COMMANDS.items()]
        with one_line():
            print("\n".join([__doc__, *lines, "\nCOMMAND --help says more."]))
        return
    if command not in COMMANDS:
        sys.exit(f"error: no command {command}; there are {', '.join(COMMANDS)}")
    with one_line():
        if command == "prune":
            keep_memory()
        module, _, function = COMMANDS[command][0].partition(":")
        try:
            getattr(importlib.import_module(module), function)(rest)
        finally:
            sys.stdout.flush()  # argparse exits by itself after --help


if __name__ == "__main__":
    main(sys.argv[1:])

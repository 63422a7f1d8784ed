"""One command for all that the package does.

svda COMMAND ...    or, where it is not installed, python -m svda_jax COMMAND ...

Exit code 0: done; 1: a mistake or damage, said in one line; 2: a command line that
cannot be read: no such command or flag, or no value of it; 130: interrupted.
"""

import importlib
import os
import sys

from svda_jax.commands import COMMANDS, parse
from svda_jax.devices.memory import keep_memory
from svda_jax.main import one_line

# They need none, or look for them themselves.
_WITHOUT_DEVICES = ("train", "prepare", "runs")


def main(argv=None):
    """Runs the command that argv asks for, by default the program's arguments."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv or ["--help"])[0], argv[1:]
    if command in ("--help", "-help", "-h"):
        lines = [f"  {name:<9}{about.line}" for name, about in COMMANDS.items()]
        with one_line():
            print("\n".join([__doc__, *lines, "\nCOMMAND --help says more."]))
        return
    if command not in COMMANDS:
        said = f"error: no command {command}; there are {', '.join(COMMANDS)}"
        print(said, file=sys.stderr)
        sys.exit(2)
    with one_line():
        try:
            if command != "train":
                parse(command, rest)  # help and mistakes come before seconds of JAX
            if command in ("prune", "convert"):
                keep_memory()
            if os.environ.get("JAX_PLATFORMS") and command not in _WITHOUT_DEVICES:
                from svda_jax.devices.parallel import find_devices

                find_devices()  # says that there is none of these
            module, _, function = COMMANDS[command].function.partition(":")
            getattr(importlib.import_module(module), function)(rest)
        finally:
            sys.stdout.flush()  # argparse exits by itself after --help


if __name__ == "__main__":
    main()

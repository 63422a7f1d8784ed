"""Writes the report of a run: python -m svda_jax.report --workdir RUN."""

import argparse
import sys

from absl import logging

from svda_jax import UserError
from svda_jax.report import write_report


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax.report",
        description="Writes a run as one HTML page that needs no network.",
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--compare", metavar="RUN", help="a run to put beside it")
    parser.add_argument("--out", help="the page (default: report.html in workdir)")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    try:
        print(write_report(args.workdir, compare=args.compare, out=args.out))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

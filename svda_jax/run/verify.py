"""Checks the checkpoints of a run.

    python -m svda_jax verify --workdir RUN

lists them, says which are damaged and where the run would go on.
"""

import argparse
import sys

from svda_jax import local_path
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints, quiet_orbax


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax verify",
        description="Checks the checkpoints of a run.",
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    args = parser.parse_args(argv)
    quiet_orbax()
    path = runs.checkpoints_path(local_path(args.workdir))
    if not path.is_dir():
        sys.exit(f"error: {args.workdir} has no checkpoints")
    good = []
    with Checkpoints(path) as checkpoints:
        for step in checkpoints.steps():
            damage = checkpoints.verify(step)
            if not (path / str(step)).exists():
                continue  # the run, which goes on, has newer ones
            verdict = f"damaged: {damage}" if damage else "good"
            print(f"step {step:>9,}  {checkpoints.size(step) / 1e6:9.2f} MB  {verdict}")
            if not damage:
                good.append(step)
        for aside in sorted(path.glob("*.damaged*")):
            print(f"{aside.name}: set aside earlier")
    if not good:
        sys.exit("error: there is no good checkpoint; a run would stop here")
    print(f"a run would go on from step {max(good):,}")


if __name__ == "__main__":
    main()

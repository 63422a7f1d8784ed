"""Checks the checkpoints of a run."""

import json
import sys

from svda_jax.commands import parse
from svda_jax.run import runs
from svda_jax.run.checkpoints import Checkpoints, quiet_orbax
from svda_jax.run.mirror import reading


def main(argv=None):
    """Runs the command line."""
    args = parse("verify", argv)
    quiet_orbax()
    with reading(args.workdir) as folder:
        _verify(args, runs.checkpoints_path(folder))


def _verify(args, path):
    if not path.is_dir():
        sys.exit(f"error: {args.workdir} has no checkpoints")
    say = (lambda line: None) if args.json or args.quiet else print
    found = []
    with Checkpoints(path) as checkpoints:
        for step in checkpoints.steps():
            damage = checkpoints.verify(step)
            if not (path / str(step)).exists():
                continue  # the run, which goes on, has newer ones
            size = checkpoints.size(step)
            found.append({"step": step, "bytes": size, "damage": damage})
            verdict = f"damaged: {damage}" if damage else "good"
            say(f"step {step:>9,}  {size / 1e6:9.2f} MB  {verdict}")
        aside = [one.name for one in sorted(path.glob("*.damaged*"))]
        for name in aside:
            say(f"{name}: set aside earlier")
    last = max((one["step"] for one in found if not one["damage"]), default=None)
    if args.json:
        said = {"checkpoints": found, "set_aside": aside, "goes_on_from": last}
        print(json.dumps(said))
    if last is None:
        sys.exit("error: there is no good checkpoint; a run would stop here")
    say(f"a run would go on from step {last:,}")


if __name__ == "__main__":
    main()

"""Prunes a run: python -m svda_jax.prune --workdir RUN --rho=0.9."""

import argparse
import pathlib
import shlex
import sys

from absl import logging

from svda_jax import UserError, prune
from svda_jax.checkpoint import quiet_orbax
from svda_jax.memory import keep_memory
from svda_jax.prune.run import prune_run


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax.prune",
        description=prune.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--rho", type=float, default=0.9, help="share kept of energy")
    parser.add_argument("--out", help="folder of the new run")
    parser.add_argument("--multiple", type=int, default=1, help="round widths up to")
    parser.add_argument(
        "--low_rank", action="store_true", help="prune softmax attention, by its SVD"
    )
    parser.add_argument("--finetune_epochs", type=int, default=0)
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    quiet_orbax()
    workdir = pathlib.Path(args.workdir)
    out = args.out or workdir.with_name(f"{workdir.name}-pruned-{args.rho:g}")
    try:
        text = prune_run(
            workdir,
            out,
            rho=args.rho,
            multiple=args.multiple,
            low_rank=args.low_rank,
            finetune_epochs=args.finetune_epochs,
        )
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    print(f"\n{text}\nThe shrunk model is the run {out}. Train it further with")
    options = ["python", "-m", "svda_jax.main", f"--config={out}/config.json"]
    options += [f"--config.init_from={out}", "--config.num_epochs=10"]
    print("  " + shlex.join([*options, f"--workdir={out}-finetuned"]))


if __name__ == "__main__":
    keep_memory()
    main()

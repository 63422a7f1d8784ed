"""Pruning a run: what it costs and what it buys, and the run that comes of it."""

import copy
import json

import jax
import jax.numpy as jnp
from flax import nnx

from svda_jax import UserError, place
from svda_jax.commands import parse
from svda_jax.devices.timing import measure, repeat
from svda_jax.prune import page
from svda_jax.prune.measure import measure_moments, measure_movement
from svda_jax.prune.model import BASES, choose, mask, shrink, split
from svda_jax.run import runs
from svda_jax.run.checkpoints import quiet_orbax
from svda_jax.run.predict import predict
from svda_jax.train.compiled import create_timed_step
from svda_jax.train.derive import (
    check_new,
    evaluate,
    finetune,
    go_on_from,
    load_data,
    name_finetuned,
    write_run,
)

RULES = ("rho", "rank", "bound")  # of which one says how much goes
DEFAULT_RHO = 0.99
_BOUND = "logits that scores may move by, were queries and keys independent"


def prune_run(
    workdir,
    out,
    *,
    basis="score",
    rho=None,
    rank=None,
    bound=None,
    pooled=False,
    norm_columns=3,
    multiple=1,
    finetune_epochs=0,
    repeats=30,
):
    """Prunes a run, measures what it bought and writes the shrunk model as a run.

    What decides is measured over images of the training split, up to
    `measure.MAX_IMAGES`; what is reported, over the evaluation split.

    Args:
      workdir: of the run.
      out: folder of the new run, which must not exist.
      basis: one of `model.BASES`.
      rho: see `model.choose`, as for rank, bound and pooled; one of the three rules.
      rank: likewise.
      bound: likewise; in the basis "score" alone, whose sizes are logits.
      pooled: likewise.
      norm_columns: see `model.shrink`.
      multiple: likewise.
      finetune_epochs: epochs that the shrunk model is trained for, in <out>-finetuned,
        at a tenth of the run's learning rate.
      repeats: pairs of times.

    Returns:
      The text of prune.md.

    Raises:
      UserError: an argument or a folder is not what it should be; nothing is written.
    """
    workdir, out = place(workdir), place(out)
    rule = _check_rule(basis, rho, rank, bound, pooled)
    _require(
        (norm_columns >= 0, f"--norm_columns={norm_columns} must not be negative"),
        (multiple > 0, f"--multiple={multiple} must be positive"),
    )
    check_new(out, finetune_epochs=finetune_epochs)
    run = runs.load(workdir)
    config, model = run.config, run.model
    if config.model.attention == "softmax" and basis == "sigma":
        raise UserError(f"{workdir} has softmax attention and no sigma; --basis=score")
    mesh, training, data = load_data(config)
    print(f"looking through {training.num_images:,} images for directions", flush=True)
    moments, lengths = measure_moments(model, training)
    directions = split(model, basis, moments)
    sizes = [one.size for one in directions]
    keep = choose(sizes, rho=rho, rank=rank, bound=bound, pooled=pooled)
    options = {"norm_columns": norm_columns, "multiple": multiple}
    rule += "".join(f" --{name}={value}" for name, value in options.items())
    models = {
        "original": model,
        "masked": mask(model, directions, keep),
        "shrunk": shrink(model, directions, keep, lengths, **options),
    }
    print("evaluating the model as it was, masked and shrunk", flush=True)
    values = evaluate(config, models, data, mesh)
    pruned = copy.deepcopy(config)
    with pruned.unlocked():
        pruned.model.qk_dim = models["shrunk"].config.qk_dim
    logits = {name: predict(one, data)[0] for name, one in models.items()}
    print(f"timing {repeats} steps of each", flush=True)
    seconds = _measure(config, pruned, models, mesh, repeats)
    gone = [one.add_up(~kept) for one, kept in zip(directions, keep, strict=True)]
    moved = measure_movement(model, gone, data)
    text = "\n".join(
        [
            f"# {workdir.name}, pruned with {rule}",
            "",
            *page.compare(keep, models, values, logits, seconds),
            "",
            *page.describe(keep, models["shrunk"].config, basis, sizes, moved),
            "",
        ]
    )
    took = {
        "workdir": str(workdir),
        "rule": rule,
        "spectrum": [size.tolist() for size in sizes],
        "keep": [kept.tolist() for kept in keep],
    }
    files = {runs.pruning_path(out).name: json.dumps(took), "prune.md": text}
    write_run(run, pruned, models["shrunk"], values["shrunk"], out, mesh, files)
    if finetune_epochs:
        finetune(out, name_finetuned(out), epochs=finetune_epochs)
    return text


def _check_rule(basis, rho, rank, bound, pooled):
    """The options that decide what goes, as on the command line."""
    rules = zip(RULES, (rho, rank, bound), strict=True)
    given = {name: value for name, value in rules if value is not None}
    _require(
        (basis in BASES, f"--basis={basis} must be one of {', '.join(BASES)}"),
        (len(given) == 1, "one of --rho, --rank and --bound says how much goes"),
        (rho is None or 0 < rho <= 1, f"--rho={rho} must be more than 0 and at most 1"),
        (rank is None or rank > 0, f"--rank={rank} must be positive"),
        (bound is None or bound >= 0, f"--bound={bound} must be 0 or more"),
        (
            bound is None or basis == "score",
            f"--bound={bound} is in logits, which --basis={basis} does not measure; "
            "--basis=score does",
        ),
    )
    (said,) = (f"--{name}={value}" for name, value in given.items())
    return f"{said} --basis={basis}" + " --pooled" * pooled


def _require(*rules):
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def _measure(config, pruned, models, mesh, repeats):
    """Seconds of inference and of a training step, original and shrunk in turn."""
    side = config.dataset.image_size
    images = jnp.zeros((config.batch_size, side, side, config.dataset.channels))

    def inference(model):
        graphdef, params = nnx.split(model, nnx.Param)
        apply = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x)[0])
        return lambda: apply(params, images)

    of = {"original": config, "shrunk": pruned}
    return {
        "inference": measure({name: inference(models[name]) for name in of}, repeats),
        "training step": measure(
            {n: repeat(*create_timed_step(c, mesh)) for n, c in of.items()}, repeats
        ),
    }


def _name_out(workdir, *, basis, pooled, **options):
    """The new run's folder, by what decides on directions where it is not the usual."""
    name, value = next((n, options[n]) for n in RULES if options[n] is not None)
    rule = f"{name}-{value}".removeprefix("rho-")
    ending = [basis] * (basis != "score") + [rule] + ["pooled"] * pooled
    return runs.name_out(workdir, "-".join(["pruned", *ending]))


def main(argv=None):
    """Runs the command line."""
    args = parse("prune", argv)
    quiet_orbax()
    options = vars(args)  # of `prune_run` too
    workdir, out = options.pop("workdir"), options.pop("out")
    if all(options[name] is None for name in RULES):
        options["rho"] = DEFAULT_RHO
    workdir = place(workdir)
    out = place(out or _name_out(workdir, **options))
    text = prune_run(workdir, out, **options)
    print(f"\n{text}\nThe shrunk model is the run {out}. Train it further with")
    print("  " + go_on_from(out, finetuned=args.finetune_epochs > 0))

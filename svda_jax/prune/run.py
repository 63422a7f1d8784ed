"""Pruning a run: what it costs and what it buys, and the run that comes of it."""

import copy
import dataclasses
import functools
import json
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from svda_jax import UserError, command_line, local_path
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.devices.timing import measure, repeat
from svda_jax.prune import model as pruning
from svda_jax.prune import page
from svda_jax.prune.measure import measure_moments, measure_movement
from svda_jax.prune.model import BASES, choose, mask, shrink, split
from svda_jax.run import console, runs
from svda_jax.run.checkpoints import Checkpoints, quiet_orbax
from svda_jax.run.events import EventWriter
from svda_jax.run.history import History
from svda_jax.run.predict import predict
from svda_jax.train.compiled import (
    create_evaluate,
    create_keys,
    create_timed_step,
    create_training,
)
from svda_jax.train.loop import train_and_evaluate

RULES = ("rho", "rank", "bound")  # of which one says how much goes
DEFAULT_RHO = 0.99


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
    workdir, out = local_path(workdir), local_path(out)
    finetuned = out.with_name(f"{out.name}-finetuned")
    rule = _check_rule(basis, rho, rank, bound, pooled)
    _check(norm_columns, multiple, finetune_epochs)
    _check_folders([out, *([finetuned] if finetune_epochs else [])])
    run = runs.load(workdir)
    config, model = run.config, run.model
    if config.model.attention == "softmax" and basis == "sigma":
        raise UserError(f"{workdir} has softmax attention and no sigma; --basis=score")
    mesh = parallel.create_mesh(parallel.find_devices(jax.local_devices)[:1])
    training, data = (
        datasets.load(config.dataset, kind, batch_size=config.batch_size, mesh=mesh)
        for kind in ("train", "eval")
    )
    moments, lengths = measure_moments(model, training)
    if not all(np.isfinite(one).all() for one in (*moments, *lengths)):
        raise UserError(f"{workdir} has queries or keys that are not finite")
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
    values = _evaluate(config, models, data, mesh)
    pruned = copy.deepcopy(config)
    with pruned.unlocked():
        pruned.model.qk_dim = models["shrunk"].config.qk_dim
    logits = {name: predict(one, data)[0] for name, one in models.items()}
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
    _write_run(run, pruned, models["shrunk"], values["shrunk"], out, mesh)
    took = {
        "workdir": str(workdir),
        "rule": rule,
        "spectrum": [size.tolist() for size in sizes],
        "keep": [kept.tolist() for kept in keep],
    }
    runs.write_atomically(runs.pruning_path(out), json.dumps(took).encode())
    runs.write_atomically(out / "prune.md", text.encode())
    if finetune_epochs:
        finetune(out, finetuned, epochs=finetune_epochs)
    return text


def finetune(workdir, out, *, epochs):
    """Trains a run's model further, at a tenth of its learning rate, as a run in out.

    Args:
      workdir: of the run.
      out: folder of the new run; one that was stopped goes on.
      epochs: to train for.
    """
    config = copy.deepcopy(runs.load_config(workdir))
    with config.unlocked():
        config.init_from = str(workdir)
        config.num_epochs = epochs
        config.learning_rate = config.learning_rate / 10
    train_and_evaluate(config, out)


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
    (said,) = (f"--{name}={value:g}" for name, value in given.items())
    return f"{said} --basis={basis}" + " --pooled" * pooled


def _check(norm_columns, multiple, finetune_epochs):
    _require(
        (norm_columns >= 0, f"--norm_columns={norm_columns} must not be negative"),
        (multiple > 0, f"--multiple={multiple} must be positive"),
        (
            finetune_epochs >= 0,
            f"--finetune_epochs={finetune_epochs} must not be negative",
        ),
    )


def _require(*rules):
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def _check_folders(folders):
    for folder in folders:
        if folder.exists():
            raise UserError(f"{folder} exists; give another --out or remove it")
        Checkpoints(runs.checkpoints_path(folder))  # refuses what it cannot use


def _evaluate(config, models, data, mesh):
    """What an evaluation measures of each model."""
    key = create_keys(config.seed, parallel.replicated(mesh)).noise
    noise_scale = config.indicators.noise_scale

    @functools.cache  # the original and the masked model are one program
    def evaluation(graphdef):
        return create_evaluate(data, graphdef, mesh, key=key, noise_scale=noise_scale)

    values = {}
    for name, model in models.items():
        graphdef, params = nnx.split(model, nnx.Param)
        params = parallel.replicate(nnx.to_pure_dict(params), mesh)
        values[name] = evaluation(graphdef)(params)
    return values


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


def _write_run(run, config, model, values, out, mesh):
    """The shrunk model as a run that has ended where the original has."""
    init, _ = create_training(config, model.config, num_steps=10**6, mesh=mesh)
    state = init(create_keys(config.seed, parallel.replicated(mesh)).init)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = state.with_params(parallel.replicate(params, mesh))
    step = parallel.replicate(np.int32(run.step), mesh)
    state = dataclasses.replace(state, step=step)
    runs.create_workdir(config, out)
    runs.write_class_names(out, run.class_names)
    last = run.history.isel(step=-1)
    history = History(out, last_step=0, attrs=console.describe_devices(mesh))
    history.append(run.step, float(last["epoch"]), values)
    with EventWriter(out, config, last_step=0) as events:
        events.write(run.step, values)
    with Checkpoints(runs.checkpoints_path(out)) as checkpoints:
        checkpoints.save(run.step, vars(state))


def main(argv=None):
    """Runs the command line."""
    parser = command_line("prune", pruning.__doc__)
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument(
        "--basis", default="score", help=f"what directions are: {', '.join(BASES)}"
    )
    rho = f"share kept of the energy; {DEFAULT_RHO} where no rule is given"
    parser.add_argument("--rho", type=float, help=rho)
    parser.add_argument("--rank", type=int, help="directions kept of a head")
    parser.add_argument("--bound", type=float, help="logits that scores may move by")
    parser.add_argument(
        "--pooled", action="store_true", help="one budget for all heads together"
    )
    parser.add_argument(
        "--norm_columns", type=int, default=3, help="that stand in the lengths"
    )
    parser.add_argument("--multiple", type=int, default=1, help="round widths up to")
    parser.add_argument("--out", help="folder of the new run")
    parser.add_argument("--finetune_epochs", type=int, default=0)
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    quiet_orbax()
    options = vars(args)  # of `prune_run` too
    workdir, out = options.pop("workdir"), options.pop("out")
    if all(options[name] is None for name in RULES):
        options["rho"] = DEFAULT_RHO
    name, value = next((n, options[n]) for n in RULES if options[n] is not None)
    try:
        workdir = local_path(workdir)
        named = workdir if workdir.name.strip(".") else workdir.resolve()
        rule = f"{name}-{value:g}".removeprefix("rho-")
        out = out or named.parent / f"{named.name}-pruned-{rule}"
        text = prune_run(workdir, out, **options)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    print(f"\n{text}\nThe shrunk model is the run {out}. Train it further with")
    options = ["python", "-m", "svda_jax.main", f"--config={out}/config.json"]
    options += [f"--config.init_from={out}", "--config.num_epochs=10"]
    print("  " + shlex.join([*options, f"--workdir={out}-finetuned"]))

"""Pruning a run: what it costs and what it buys, and the run that comes of it."""

import argparse
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

from svda_jax import UserError, local_path
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.devices.timing import measure, repeat, spread
from svda_jax.look.predict import predict
from svda_jax.models.vit import count_macs, count_parameters
from svda_jax.prune import model as pruning
from svda_jax.prune.model import choose, factorise, mask, shrink
from svda_jax.run import console, runs
from svda_jax.run.checkpoints import Checkpoints, quiet_orbax
from svda_jax.run.events import EventWriter
from svda_jax.run.history import History
from svda_jax.train.compiled import (
    create_evaluate,
    create_keys,
    create_timed_step,
    create_training,
)
from svda_jax.train.loop import train_and_evaluate


def prune_run(
    workdir, out, *, rho, multiple=1, low_rank=False, finetune_epochs=0, repeats=30
):
    """Prunes a run, measures what it bought and writes the shrunk model as a run.

    Args:
      workdir: of the run.
      out: folder of the new run, which must not exist.
      rho: see `choose`.
      multiple: see `shrink`.
      low_rank: whether a run with softmax attention is factorised for it.
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
    _check(
        rho, multiple, finetune_epochs, [out, *([finetuned] if finetune_epochs else [])]
    )
    run = runs.load(workdir)
    config = run.config
    model = run.model
    if config.model.attention == "softmax":
        if not low_rank:
            raise UserError(
                f"{workdir} has softmax attention; --low_rank prunes the singular "
                "directions of its W_q W_k^T"
            )
        model = model if rho == 1 else factorise(model)
    keep = [choose(block.attention.spectrum, rho) for block in model.blocks]
    models = {
        "original": run.model,
        "masked": mask(model, keep),
        "shrunk": shrink(model, keep, multiple=multiple),
    }
    mesh = parallel.create_mesh(parallel.find_devices(jax.local_devices)[:1])
    data = datasets.load(
        config.dataset, "eval", batch_size=config.batch_size, mesh=mesh
    )
    noise_key = create_keys(config.seed, parallel.replicated(mesh)).noise
    noise_scale = config.indicators.noise_scale

    @functools.cache  # the original and the masked model are one program
    def evaluation(graphdef):
        return create_evaluate(
            data, graphdef, mesh, key=noise_key, noise_scale=noise_scale
        )

    values = {}
    for name, one in models.items():
        graphdef, params = nnx.split(one, nnx.Param)
        params = parallel.replicate(nnx.to_pure_dict(params), mesh)
        values[name] = evaluation(graphdef)(params)
    pruned = copy.deepcopy(config)
    with pruned.unlocked():
        pruned.model.qk_dim = models["shrunk"].config.qk_dim
    logits = {name: predict(one, data)[0] for name, one in models.items()}
    seconds = _measure(config, pruned, models, mesh, repeats)
    text = _page(workdir, rho, keep, models, values, logits, seconds)
    _write_run(run, pruned, models["shrunk"], values["shrunk"], out, mesh)
    took = {
        "workdir": str(workdir),
        "rho": rho,
        "spectrum": [np.asarray(b.attention.spectrum).tolist() for b in model.blocks],
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


def _check(rho, multiple, finetune_epochs, folders):
    for holds, message in (
        (0 < rho <= 1, f"--rho={rho} must be more than 0 and at most 1"),
        (multiple > 0, f"--multiple={multiple} must be positive"),
        (
            finetune_epochs >= 0,
            f"--finetune_epochs={finetune_epochs} must not be negative",
        ),
    ):
        if not holds:
            raise UserError(message)
    for folder in folders:
        if folder.exists():
            raise UserError(f"{folder} exists; give another --out or remove it")
        Checkpoints(runs.checkpoints_path(folder))  # refuses what it cannot use


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


def _page(workdir, rho, keep, models, values, logits, seconds):
    kept, all_ = sum(k.sum() for k in keep), sum(k.size for k in keep)
    lines = [
        f"# {workdir.name}, pruned to {rho:g} of its spectral energy",
        "",
        f"{1 - kept / all_:.1%} of the directions of attention scores are gone. JAX "
        f"{jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}. "
        "Times over the original's: median and quartiles of pairs in turn.",
        "",
        "| | original | masked | shrunk |",
        "|---|---|---|---|",
    ]
    rows = {
        "accuracy (%)": [f"{100 * v['eval_accuracy']:.2f}" for v in values.values()],
        "cross-entropy (nats)": [f"{v['eval_loss']:.4f}" for v in values.values()],
        "parameters": [f"{count_parameters(model):,}" for model in models.values()],
        "MACs an image": [f"{count_macs(m.config):,}" for m in models.values()],
    }
    for what, measured in seconds.items():
        ratio = spread(measured["shrunk"] / measured["original"])
        rows[f"time of {what}"] = ["1", "", str(ratio)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    apart = np.abs(logits["masked"] - logits["shrunk"])
    heads = [f"head {h + 1}" for h in range(len(keep[0]))]
    same = np.mean(logits["masked"].argmax(-1) == logits["shrunk"].argmax(-1))
    lines += [
        "",
        "Masked and shrunk are not the same model: their logits are "
        f"{apart.mean():.3g} apart in the mean and {apart.max():.3g} at most, and they "
        f"agree on the class of {same:.2%} of the images.",
        "",
        "Directions kept, head by head; a layer is as wide as its widest head, others "
        "are filled up with zeros, which MACs and times include:",
        "",
        f"| layer | width | {' | '.join(heads)} |",
        "|---" * (2 + len(heads)) + "|",
    ]
    for layer, (one, width) in enumerate(
        zip(keep, models["shrunk"].config.qk_dim, strict=True), start=1
    ):
        counts = " | ".join(str(count) for count in one.sum(-1))
        lines.append(f"| {layer} | {width} of {one.shape[-1]} | {counts} |")
    return "\n".join(lines) + "\n"


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
    parser = argparse.ArgumentParser(
        prog="python -m svda_jax prune",
        description=pruning.__doc__,
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
    try:
        workdir = local_path(args.workdir)
        named = workdir if workdir.name.strip(".") else workdir.resolve()
        out = args.out or named.parent / f"{named.name}-pruned-{args.rho:g}"
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

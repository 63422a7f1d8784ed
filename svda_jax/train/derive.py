"""A run that is made of another run's model, and its training from there.

How the model changes is not known here.
"""

import contextlib
import copy
import dataclasses
import functools
import shlex

import numpy as np
from flax import nnx

from svda_jax import UserError, is_address
from svda_jax.data import datasets
from svda_jax.devices import parallel
from svda_jax.run import console, runs
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.events import EventWriter
from svda_jax.run.history import History
from svda_jax.run.mirror import Mirror, exists, reading
from svda_jax.run.trackers import Tracker
from svda_jax.train.compiled import create_evaluate, create_keys, create_training
from svda_jax.train.loop import train_and_evaluate


def name_finetuned(out):
    """The folder that `finetune` is given for the run in out."""
    return out.with_name(f"{out.name}-finetuned")


def check_new(out, *, finetune_epochs):
    """Refuses folders that exist and those that could not hold a run.

    Args:
      out: folder of the new run.
      finetune_epochs: where it is not 0, `name_finetuned(out)` is looked at too.

    Raises:
      UserError: naming the folder, or finetune_epochs below 0.
    """
    if finetune_epochs < 0:
        raise UserError(f"--finetune_epochs={finetune_epochs} must not be negative")
    for folder in [out, *([name_finetuned(out)] if finetune_epochs else [])]:
        if exists(folder):
            raise UserError(f"{folder} exists; give another --out or remove it")
        if not is_address(folder):
            Checkpoints(runs.checkpoints_path(folder))  # refuses what it cannot use


def load_data(config):
    """The mesh of one device, and the training and the evaluation split on it."""
    mesh = parallel.create_mesh([parallel.local_device()])
    training, data = (
        datasets.load(config.dataset, kind, batch_size=config.batch_size, mesh=mesh)
        for kind in ("train", "eval")
    )
    return mesh, training, data


def evaluate(config, models, data, mesh):
    """What an evaluation measures of each model.

    Args:
      config: of the run.
      models: by name.
      data: the evaluation split.
      mesh: from `load_data`.
    """
    key = create_keys(config.seed, parallel.replicated(mesh)).noise
    noise_scale = config.indicators.noise_scale

    @functools.cache  # models of one shape are one program
    def evaluation(graphdef):
        return create_evaluate(data, graphdef, mesh, key=key, noise_scale=noise_scale)

    values = {}
    for name, model in models.items():
        graphdef, params = nnx.split(model, nnx.Param)
        params = parallel.replicate(nnx.to_pure_dict(params), mesh)
        values[name] = evaluation(graphdef)(params)
    return values


def write_run(run, config, model, values, out, mesh, files):
    """Writes a model as a run that has ended where another has.

    Args:
      run: the other `Run`.
      config: the new run's.
      model: its model.
      values: what an evaluation measured of it.
      out: its folder or address.
      mesh: from `load_data`.
      files: texts that are written beside it, by name.
    """
    init, _ = create_training(config, model.config, num_steps=10**6, mesh=mesh)
    state = init(create_keys(config.seed, parallel.replicated(mesh)).init)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = state.with_params(parallel.replicate(params, mesh))
    step = parallel.replicate(np.int32(run.step), mesh)
    state = dataclasses.replace(state, step=step)
    with Mirror(out) as mirror:
        folder = mirror.folder
        runs.create_workdir(config, folder)
        runs.write_class_names(folder, run.class_names)
        last = run.history.isel(step=-1)
        history = History(folder, last_step=0, attrs=console.describe_devices(mesh))
        history.append(run.step, float(last["epoch"]), values)
        with contextlib.ExitStack() as stack:
            writers = [EventWriter(folder, config, last_step=0)]
            if config.tracker:
                writers.append(Tracker(folder, config, say=print))
            for writer in writers:
                stack.enter_context(writer).write(run.step, values)
        with Checkpoints(runs.checkpoints_path(folder)) as checkpoints:
            checkpoints.save(run.step, vars(state))
        for name, text in files.items():
            runs.write_atomically(folder / name, text.encode())


def go_on_from(out, *, finetuned):
    """The command that trains the run in out further, at a tenth of its learning rate.

    Args:
      out: folder of the run.
      finetuned: whether `finetune` has done so, and its run is the one to go on from.
    """
    last = name_finetuned(out) if finetuned else out
    line = ["python", "-m", "svda_jax.main", f"--config={last}/config.json"]
    line += [f"--config.init_from={last}", "--config.num_epochs=10"]
    if not finetuned:  # else its rate is that already
        with reading(out) as folder:
            rate = runs.load_config(folder).learning_rate / 10
        line.append(f"--config.learning_rate={rate:g}")
    return shlex.join([*line, f"--workdir={name_finetuned(last)}"])


def finetune(workdir, out, *, epochs):
    """Trains a run's model further, at a tenth of its learning rate, as a run in out.

    Args:
      workdir: of the run.
      out: folder of the new run; one that was stopped goes on.
      epochs: to train for.
    """
    with reading(workdir) as folder:
        config = copy.deepcopy(runs.load_config(folder))
    with config.unlocked():
        config.init_from = str(workdir)
        config.num_epochs = epochs
        config.learning_rate = config.learning_rate / 10
    train_and_evaluate(config, out)

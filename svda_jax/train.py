"""Training and evaluating, in the order in which it happens."""

import collections
import contextlib
import dataclasses
import functools
import math
import time

import jax
import numpy as np

from svda_jax import UserError, console, datasets, parallel, processes, runs
from svda_jax.checkpoint import Checkpoints
from svda_jax.compile_cache import use_compile_cache
from svda_jax.config import validate
from svda_jax.datasets.augment import create_augment
from svda_jax.maps import look
from svda_jax.metrics import EvalMetrics, Metrics
from svda_jax.optimizer import create_optimizer, create_schedule
from svda_jax.profiling import profiled
from svda_jax.steps import (
    TrainState,
    create_graphdef,
    create_train_state,
    eval_step,
    measure_parameters,
    train_step,
)
from svda_jax.timing import Clock
from svda_jax.writers import EventWriter, History

# Steps started and not yet waited for. It keeps the device busy, the progress bar
# honest and a non-finite loss close by; several CPU devices in one process deadlock in
# their collectives when it has no bound (JAX 0.10).
MAX_IN_FLIGHT = 8

# Images of the evaluation split, its first, that attention maps are drawn over.
NUM_PICTURED = 4


def train_and_evaluate(config, workdir):
    """Trains the model that a config describes, from the start or where it stopped.

    Args:
      config: as from `svda_jax.config`.
      workdir: the run's folder; `svda_jax.runs` says what it will hold.

    Raises:
      UserError: the config, the data set or workdir is not what it should be, and
        nothing has been compiled or written then; or workdir cannot be written later.
      FloatingPointError: loss or gradient was not finite more often in a row than
        allowed; the message names the step and the last checkpoint.
    """
    mesh = parallel.create_mesh()
    whole = parallel.replicated(mesh)
    model_config = validate(config, num_devices=mesh.size)
    if config.compile_cache:
        use_compile_cache()
    train_data, eval_data = (
        datasets.load(config.dataset, kind, batch_size=config.batch_size, mesh=mesh)
        for kind in ("train", "eval")
    )
    num_images, batch_size = train_data.num_images, config.batch_size
    if batch_size > num_images:
        raise UserError(
            f"batch_size={batch_size} must not exceed the {num_images} images to train "
            f"on, dataset.train_split={config.dataset.train_split}"
        )
    num_steps = math.ceil(config.num_epochs * num_images / batch_size)

    def steps_every(epochs):
        """The steps at which that many epochs, twice as many, ... and all are done."""
        ends = range(epochs, config.num_epochs, epochs) if epochs else ()
        return {num_steps, *(math.ceil(e * num_images / batch_size) for e in ends)}

    eval_steps = steps_every(config.eval_every_epochs)
    policy = config.checkpoint
    checkpoint_steps = steps_every(policy.every_epochs)
    if policy.every_steps:
        checkpoint_steps |= set(
            range(policy.every_steps, num_steps, policy.every_steps)
        )

    start = runs.load_start(config, model_config, workdir)
    schedule, init, step_ = create_training(
        config, model_config, num_steps=num_steps, mesh=mesh
    )
    graphdef = create_graphdef(model_config)
    init_key, order_key, step_key, noise_key = create_keys(config.seed, whole)
    abstract_state = jax.eval_shape(init, init_key)
    evaluate = create_evaluate(
        eval_data,
        graphdef,
        mesh,
        key=noise_key,
        noise_scale=config.indicators.noise_scale,
    )

    picture = _create_picture(eval_data, graphdef)

    primary = processes.is_primary()

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(processes.StopSignal())
        new = not runs.config_path(workdir).exists()
        if primary and not new:
            stack.enter_context(runs.hold(workdir))
        checkpoints = Checkpoints(
            runs.checkpoints_path(workdir),
            keep_last=policy.keep_last,
            keep_every_steps=policy.keep_every_steps,
        )
        stack.enter_context(checkpoints)
        step, restored = checkpoints.restore_newest(vars(abstract_state), whole)
        last_saved = step
        runs.check_workdir(config, workdir)
        if step >= num_steps:
            if primary:
                console.say_finished(workdir)
            return
        if primary:
            runs.create_workdir(config, workdir)
            if new:
                stack.enter_context(runs.hold(workdir))
            history = History(
                workdir, last_step=step, attrs=console.describe_devices(mesh)
            )
            events = stack.enter_context(EventWriter(workdir, config, last_step=step))
            console.say_start(
                config, workdir, mesh, abstract_state.params, train_data, eval_data
            )
            if step:
                print(f"resuming at step {step:,} of {num_steps:,}")
        processes.synchronize("workdir")
        state = TrainState(**restored) if restored else init(init_key)
        if start:
            state = state.with_params(parallel.replicate(start, mesh))
        bar = console.progress_bar(num_steps, step, batch_size, hidden=not primary)
        stack.enter_context(bar)

        clock = Clock()
        saved_at = time.monotonic()
        in_flight = collections.deque()
        batches = train_data.train_batches(order_key, step)
        if config.profile and primary:
            batches = profiled(batches, workdir)
        for batch in stack.enter_context(contextlib.closing(batches)):
            state, skipped = step_(state, batch, step_key)
            step += 1
            in_flight.append((step, skipped))
            stopping = stop.reached(step)
            save = step in checkpoint_steps or stopping
            if policy.every_minutes and not save:
                minutes = (time.monotonic() - saved_at) / 60
                save = processes.agree(minutes >= policy.every_minutes, step)
            due = step in eval_steps or save
            while len(in_flight) > (0 if due else MAX_IN_FLIGHT):
                done, skipped = in_flight.popleft()
                skipped = int(skipped)  # waits, once
                if skipped > config.max_skipped_in_a_row:
                    good = checkpoints.path / str(last_saved) if last_saved else "none"
                    raise FloatingPointError(
                        f"loss or gradient is not finite at step {done} (learning rate "
                        f"{schedule(done - 1):.3g}), {skipped} in a row; last good "
                        f"checkpoint: {good}"
                    )
                if skipped and primary:
                    bar.write(f"step {done:,} skipped: loss or gradient is not finite")
                bar.update(batch_size)
                clock.tick(batch_size)
            if step in eval_steps:
                rate = clock.rate()
                values = {
                    **{f"train_{k}": v for k, v in state.metrics.compute().items()},
                    **evaluate(state.eval_params),
                    "learning_rate": schedule(step - 1),
                    "skipped_steps": state.skipped,
                    "images_per_second": rate,
                    "epoch_seconds": num_images / rate,
                }
                empty = parallel.replicate(Metrics.empty(), mesh)
                state = dataclasses.replace(state, metrics=empty)
                epoch = step * batch_size / num_images
                if primary:
                    history.append(step, epoch, values)
                    events.write(step, values)
                    bar.write(console.evaluation_line(step, epoch, values))
            if save:
                checkpoints.save(step, vars(state))
                last_saved, saved_at = step, time.monotonic()
                if step in eval_steps:
                    pictures = picture(state.eval_params)
                    if primary:
                        events.write_pictures(step, values, *pictures)
            if due:
                clock = Clock()
            if step == num_steps or stopping:
                break
    if not primary:
        return
    if step < num_steps:
        print(
            f"stopped at step {step:,} of {num_steps:,}, saved; the same line goes on"
        )
    else:
        console.say_end(workdir, train_data, eval_data)


def create_keys(seed, sharding):
    """PRNG keys of a run: of parameters, order, steps, and noise of the perturbation.

    Args:
      seed: of the run.
      sharding: of the keys.
    """
    return jax.jit(
        lambda seed: tuple(jax.random.split(jax.random.key(seed), 4)),
        out_shardings=sharding,
    )(np.uint32(seed))


def create_training(config, model_config, *, num_steps, mesh):
    """The start and the step of the training that a config describes.

    Args:
      config: as from `svda_jax.config`.
      model_config: from `validate`.
      num_steps: of the whole run.
      mesh: from `parallel.create_mesh`.

    Returns:
      The learning rate by step; a compiled function from a PRNG key to a `TrainState`;
      and the compiled `train_step`, from state, batch and PRNG key.
    """
    schedule = create_schedule(
        config.learning_rate,
        num_steps=num_steps,
        warmup_steps=round(config.warmup_fraction * num_steps),
    )
    optimizer = create_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        spectrum_lr_scale=config.spectrum_lr_scale,
    )
    init = functools.partial(
        create_train_state, model_config, optimizer, ema=config.ema_decay > 0
    )
    step = functools.partial(
        train_step,
        graphdef=create_graphdef(model_config),
        optimizer=optimizer,
        augment=create_augment(config.augment),
        label_smoothing=config.label_smoothing,
        orthonormality_weight=config.orthonormality_weight,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    return (
        schedule,
        jax.jit(init, out_shardings=parallel.replicated(mesh)),
        parallel.pmap(step, mesh, split_argnums=(1,), donate_argnums=(0,)),
    )


def create_timed_step(config, mesh):
    """A training step on a batch of noise, for measuring its time.

    Args:
      config: as from `svda_jax.config`.
      mesh: from `parallel.create_mesh`.

    Returns:
      The first state, and a function from state to the next state and
      `skipped_in_a_row`.
    """
    model_config = validate(config, num_devices=mesh.size)
    dataset, rng = config.dataset, np.random.default_rng(0)
    side = dataset.image_size
    shape = (config.batch_size, side, side, dataset.channels)
    batch = {
        "image": rng.integers(0, 256, size=shape).astype(np.uint8),
        "label": rng.integers(dataset.num_classes, size=shape[0]).astype(np.int32),
    }
    batch = jax.device_put(batch, parallel.split(mesh))
    key = create_keys(0, parallel.replicated(mesh))[0]
    _, init, step = create_training(config, model_config, num_steps=10**6, mesh=mesh)
    return init(key), lambda state: step(state, batch, key)


def create_evaluate(data, graphdef, mesh, *, key, noise_scale):
    """The evaluation of a run.

    Args:
      data: the split to evaluate, from `datasets.load`.
      graphdef: from `create_graphdef`.
      mesh: from `parallel.create_mesh`.
      key: PRNG key of the noise of the perturbation.
      noise_scale: see `compute_indicators`.

    Returns:
      A function from parameters to a dict of what an evaluation measures.
    """
    step = functools.partial(eval_step, graphdef=graphdef, noise_scale=noise_scale)
    step = parallel.pmap(step, mesh, split_argnums=(1,))
    merge = jax.jit(EvalMetrics.merge)
    measure = jax.jit(functools.partial(measure_parameters, graphdef=graphdef))

    def evaluate(params):
        metrics = None
        for i, batch in enumerate(data.eval_batches(), start=1):
            update = step(params, batch, key)
            metrics = merge(metrics, update) if metrics else update
            if i % MAX_IN_FLIGHT == 0:
                jax.block_until_ready(metrics)
        measured, averages = jax.device_get((measure(params), metrics.compute()))
        indicators = [measured["indicators"], averages["indicators"]]
        return {
            **measured,
            "eval_loss": averages["loss"],
            "eval_accuracy": averages["accuracy"],
            "indicators": np.concatenate(indicators),  # [6, L, H]
        }

    return evaluate


def _create_picture(data, graphdef):
    """A function from parameters to images, attention maps and titles."""
    images, labels = data.get(range(min(NUM_PICTURED, data.num_images)))
    truth = [data.class_names[label] for label in labels]
    look_ = jax.jit(functools.partial(look, graphdef=graphdef))

    def picture(params):
        probabilities, maps, _ = jax.device_get(look_(params, images))
        titles = [
            f"true: {name}\npredicted: {data.class_names[row.argmax()]}"
            for name, row in zip(truth, probabilities, strict=True)
        ]
        return images, maps, titles

    return picture

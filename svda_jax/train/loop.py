"""Training and evaluating, in the order in which it happens."""

import contextlib
import dataclasses

import jax

from svda_jax import UserError, place
from svda_jax.config import check, validate
from svda_jax.devices import parallel, processes
from svda_jax.devices.compile_cache import use_compile_cache
from svda_jax.models.ops import choose
from svda_jax.models.vit import create_graphdef
from svda_jax.run.session import Session
from svda_jax.run.start import load_start
from svda_jax.train.compiled import (
    create_evaluate,
    create_keys,
    create_pictures,
    create_training,
)
from svda_jax.train.due import Due
from svda_jax.train.in_flight import Clock, InFlight
from svda_jax.train.memory import compile_step
from svda_jax.train.metrics import Metrics
from svda_jax.train.profile import profiled
from svda_jax.train.steps import TrainState


def train_and_evaluate(config, workdir):
    """Trains the model that a config describes, from the start or where it stopped.

    Args:
      config: as from `svda_jax.config.defaults`.
      workdir: the run's folder or address; `svda_jax.run.runs` says what it will hold.

    Raises:
      UserError: the config, the data set or workdir is not what it should be, and
        nothing has been compiled or written then; a step does not fit in memory, and
        nothing has been written; or workdir cannot be written later.
      FloatingPointError: loss or gradient was not finite more often in a row than
        allowed; the message names the step and the last checkpoint.
    """
    config, workdir = check(config), place(workdir)
    mesh = parallel.create_mesh()
    model_config = validate(config, num_devices=mesh.size)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(processes.StopSignal())
        session = stack.enter_context(Session(config, workdir))
        if session.is_finished():
            return
        from svda_jax.data import datasets  # half a second, for nothing until here

        if config.compile_cache:
            use_compile_cache()
        train_data, eval_data = (
            datasets.load(config.dataset, kind, batch_size=config.batch_size, mesh=mesh)
            for kind in ("train", "eval")
        )
        num_images = train_data.num_images
        due = Due(config, num_images)
        start, changes = load_start(config, model_config, session.folder)
        keys = create_keys(config.seed, parallel.replicated(mesh))
        init, train_step = create_training(
            config, model_config, num_steps=due.num_steps, mesh=mesh
        )
        graphdef = create_graphdef(model_config, choose(mesh.devices.flat[0]))
        evaluate = create_evaluate(
            eval_data, graphdef, mesh, key=keys.noise, **config.indicators
        )
        draw = create_pictures(eval_data, graphdef, config.model.attention)

        abstract_state = jax.eval_shape(init, keys.init)
        shardings = parallel.shard(abstract_state, mesh, fsdp=config.fsdp)
        step, restored = session.restore(vars(abstract_state), vars(shardings))
        session.open(mesh, abstract_state.params, train_data, eval_data, due.num_steps)
        memory = compile_step(
            train_step, abstract_state, keys.step, config=config, mesh=mesh
        )
        session.begin(mesh, train_data.class_names, due.num_steps)
        for line in filter(None, [memory, *changes]):
            session.say(line)
        state = TrainState(**restored) if restored else init(keys.init)
        if start:
            state = state.with_params(parallel.place(start, shardings.params))

        clock = Clock(config.batch_size)
        in_flight = InFlight(_create_finish(config, session, due=due, clock=clock))
        batches = train_data.train_batches(keys.order, step)
        if config.profile:
            batches = profiled(batches, session.folder)
        stack.enter_context(contextlib.closing(batches))
        stopping = False

        def record(state, **measured):
            """Evaluates after that step; returns what it found, and the state."""
            with _saved(session, in_flight, step, state):
                values = {
                    **{f"train_{k}": v for k, v in state.metrics.compute().items()},
                    **evaluate(parallel.whole(state.eval_params, mesh)),
                    "skipped_steps": state.skipped,
                    **measured,
                }
            session.record(step, step * config.batch_size / num_images, values)
            empty = parallel.replicate(Metrics.empty(), mesh)
            return values, dataclasses.replace(state, metrics=empty)

        if step and due.evaluation(step) and session.lacks(step):  # it ended in it
            _, state = record(state, images_per_second=float("nan"))
        while step < due.num_steps and not stopping:
            with _saved(session, in_flight, step, state):
                batch = next(batches)
            state, report = train_step(state, batch, keys.step)
            step += 1
            in_flight.add(step, report)
            stopping = stop.reached(step)
            saving = due.checkpoint(step, stopping=stopping)
            values = None
            if saving or due.evaluation(step) or due.pictures(step):
                in_flight.wait()
                rate = clock.rate()
                clock.reset()
            if due.evaluation(step):
                values, state = record(
                    state,
                    learning_rate=report.learning_rate,
                    images_per_second=rate,
                    epoch_seconds=num_images / rate,
                )
            if saving:
                session.save(step, vars(state))
            if due.pictures(step):
                params = parallel.whole(state.eval_params, mesh)
                session.picture(step, draw(params, values))
    session.say_end(step, due.num_steps, train_data, eval_data)


@contextlib.contextmanager
def _saved(session, in_flight, step, state):
    """Saves before a run ends for what it reads, such as a corrupt image.

    Several processes cannot: the others are in their next step.
    """
    try:
        yield
    except UserError:
        if step > session.last_saved and jax.process_count() == 1:
            in_flight.wait()
            session.save(step, vars(state))
        raise


def _create_finish(config, session, *, due, clock):
    """What is done with a finished step: it is counted, written, or ends the run."""

    def finish(step, report, at):
        skipped = int(report.skipped_in_a_row)
        if skipped > config.max_skipped_in_a_row:
            raise FloatingPointError(
                f"loss or gradient is not finite at step {step} (learning rate "
                f"{report.learning_rate:.3g}), {skipped} in a row; last good "
                f"checkpoint: {session.last_checkpoint()}"
            )
        if skipped:
            session.say(f"step {step:,} skipped: loss or gradient is not finite")
        clock.tick(at)
        session.advance(config.batch_size)
        if due.log(step):
            values = {**report._asdict(), "images_per_second": clock.rate()}
            session.log(step, values)

    return finish

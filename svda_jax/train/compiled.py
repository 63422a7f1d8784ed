"""What a run compiles: its first state, its step, its evaluation, its pictures.

A process that trains a model twice, with another seed or other data, compiles it once.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from svda_jax.config import validate
from svda_jax.data.augment import create_augment
from svda_jax.devices import parallel
from svda_jax.look.maps import look
from svda_jax.models.indicators import INDICATORS, of_images, of_score
from svda_jax.models.ops import choose
from svda_jax.models.score import score_spectrum
from svda_jax.models.vit import create_graphdef
from svda_jax.train.in_flight import MAX_IN_FLIGHT
from svda_jax.train.metrics import EvalMetrics
from svda_jax.train.optimizer import create_optimizer, create_schedule
from svda_jax.train.steps import (
    create_train_state,
    eval_step,
    measure_parameters,
    train_step,
)

# The options that a training step is compiled for, beside the model's.
_COMPILED = (
    "accumulate_steps",
    "augment",
    "clip_norm",
    "ema_decay",
    "fsdp",
    "label_smoothing",
    "learning_rate",
    "orthonormality_weight",
    "score_entropy_weight",
    "spectrum_lr_scale",
    "spectrum_weight_decay",
    "warmup_fraction",
    "weight_decay",
)

# Images of the evaluation split, its first, that attention maps are drawn over.
NUM_PICTURED = 4


class Keys(NamedTuple):
    """PRNG keys of a run: of first parameters, order of examples, steps, and noise of
    the perturbation."""

    init: jax.Array
    order: jax.Array
    step: jax.Array
    noise: jax.Array


def create_keys(seed, sharding):
    """The `Keys` of a run.

    Args:
      seed: of the run.
      sharding: of the keys.
    """
    return _compile_keys(sharding)(np.uint32(seed))


@functools.cache
def _compile_keys(sharding):
    return jax.jit(
        lambda seed: Keys(*jax.random.split(jax.random.key(seed), 4)),
        out_shardings=sharding,
    )


def create_training(config, model_config, *, num_steps, mesh):
    """The start and the step of the training that a config describes.

    Args:
      config: as from `svda_jax.config.defaults`.
      model_config: from `validate`.
      num_steps: of the whole run.
      mesh: from `parallel.create_mesh`.

    Returns:
      A compiled function from a PRNG key to a `TrainState`, and the compiled
      `train_step`, from state, batch and PRNG key.
    """
    options = FrozenConfigDict({name: config[name] for name in _COMPILED})
    return _compile_training(options, model_config, num_steps, mesh)


@functools.lru_cache(maxsize=8)
def _compile_training(config, model_config, num_steps, mesh):
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
        spectrum_weight_decay=config.spectrum_weight_decay,
    )
    init = functools.partial(
        create_train_state, model_config, optimizer, ema=config.ema_decay > 0
    )
    step = functools.partial(
        train_step,
        graphdef=create_graphdef(model_config, choose(mesh.devices.flat[0])),
        optimizer=optimizer,
        schedule=schedule,
        augment=create_augment(config.augment),
        label_smoothing=config.label_smoothing,
        orthonormality_weight=config.orthonormality_weight,
        score_entropy_weight=config.score_entropy_weight,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    state = jax.eval_shape(lambda: init(jax.random.key(0)))
    shardings = parallel.shard(state, mesh, fsdp=config.fsdp)
    if config.fsdp:
        step = jax.jit(
            functools.partial(step, shardings=shardings.params),
            out_shardings=(shardings, parallel.replicated(mesh)),
            donate_argnums=(0,),
        )
    else:
        step = parallel.pmap(step, mesh, split_argnums=(1,), donate_argnums=(0,))
    return jax.jit(init, out_shardings=shardings), step


def create_timed_step(config, mesh):
    """A training step on a batch of noise, for measuring its time.

    Args:
      config: as from `svda_jax.config.defaults`.
      mesh: from `parallel.create_mesh`.

    Returns:
      The first state, and a function from state to the next state and
      its `StepReport`.
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
    key = create_keys(0, parallel.replicated(mesh)).init
    init, step = create_training(config, model_config, num_steps=10**6, mesh=mesh)
    return init(key), lambda state: step(state, batch, key)


def create_evaluate(data, graphdef, mesh, *, key, noise_scale):
    """The evaluation of a run.

    Args:
      data: the split to evaluate, from `datasets.load`.
      graphdef: from `create_graphdef`.
      mesh: from `parallel.create_mesh`.
      key: PRNG key of the noise of the perturbation.
      noise_scale: see `indicators.measure`.

    Returns:
      A function from parameters to a dict of what an evaluation measures.
    """
    step, measure = _compile_evaluation(graphdef, mesh, noise_scale, tuple(INDICATORS))
    merge = jax.jit(EvalMetrics.merge)

    def evaluate(params):
        metrics = None
        for i, batch in enumerate(data.eval_batches(), start=1):
            update = step(params, batch, key)
            metrics = merge(metrics, update) if metrics else update
            if i % MAX_IN_FLIGHT == 0:
                jax.block_until_ready(metrics)
        measured = measure(params)
        measured, averages = jax.device_get((measured, metrics.compute()))
        factors, there = measured.pop("factors"), np.isfinite(measured["spectrum"])
        score, by_weights = (
            np.where(there, score_spectrum(moments, factors), np.nan)
            for moments in (averages["moments"], measured.pop("weight_moments"))
        )
        images = dict(zip(of_images(), averages["indicators"], strict=True))
        indicators = measured["indicators"] | images
        return {
            **measured,
            "eval_loss": averages["loss"],
            "eval_accuracy": averages["accuracy"],
            "score_spectrum": score,
            "weight_spectrum": by_weights,
            **of_score(score),
            **_by_class(averages["confusion"]),
            "indicators": np.stack([indicators[name] for name in INDICATORS]),
        }

    return evaluate


def _by_class(counts):
    """Accuracy by class, NaN for one without images, and the matrix, if counted."""
    square = counts.shape[0] == counts.shape[1]
    right, total = (counts.diagonal() if square else counts[:, 1]), counts.sum(-1)
    accuracy = np.where(total, right / np.maximum(total, 1), np.nan)
    return {"class_accuracy": accuracy} | ({"confusion": counts} if square else {})


@functools.lru_cache(maxsize=8)
def _compile_evaluation(graphdef, mesh, noise_scale, indicators):
    """`eval_step` and `measure_parameters`, of the indicators that the table has."""
    del indicators  # both read the table; another one is another program
    step = functools.partial(eval_step, graphdef=graphdef, noise_scale=noise_scale)
    measure = functools.partial(measure_parameters, graphdef=graphdef)
    return parallel.pmap(step, mesh, split_argnums=(1,)), jax.jit(measure)


def create_pictures(data, graphdef, attention):
    """The pictures of a run.

    Args:
      data: the evaluation split, from `datasets.load`.
      graphdef: from `create_graphdef`.
      attention: of its model, "svda" or "softmax".

    Returns:
      A function from parameters and a dict of what an evaluation measured, or None, to
      pictures `[height, width, 3]` uint8 by TensorBoard's tag.
    """
    images, labels = data.get(range(min(NUM_PICTURED, data.num_images)))
    truth = [data.class_names[label] for label in labels]

    def draw(params, values):
        probabilities, maps, _ = jax.device_get(look(params, images, graphdef=graphdef))
        titles = [
            f"true: {name}\npredicted: {data.class_names[row.argmax()]}"
            for name, row in zip(truth, probabilities, strict=True)
        ]
        return draw_pictures(images, maps, titles, attention, values)

    return draw


def draw_pictures(images, maps, titles, attention, values=None):
    """Pictures `[height, width, 3]` uint8 by TensorBoard's tag.

    Args:
      images: `[n, S, S, channels]` uint8.
      maps: their attention maps, `[n, L, H, g, g]`.
      titles: a line for each image.
      attention: of the model, "svda" or "softmax".
      values: what an evaluation measured, or None to draw attention alone.
    """
    # Matplotlib takes half a second.
    from svda_jax.look import figures, pictures, style

    drawn = {}
    for i, args in enumerate(zip(images, maps, titles, strict=True), start=1):
        drawn[f"attention/image_{i}"] = pictures.attention_grid(*args)
    if values:
        last = {name: np.asarray(one)[None] for name, one in values.items()}
        run = figures.Drawn(attention, attention, last)
        drawn["spectrum/heads"] = figures.spectra([run])
        drawn["score_spectrum/heads"] = figures.score_spectra([run])
        num_directions = values["spectrum"].shape[-1]
        for name, one in zip(INDICATORS, values["indicators"], strict=True):
            tag = f"indicators/{name}/heads"
            drawn[tag] = figures.heat_map(one, name, num_directions)
    return {tag: style.to_rgb(figure) for tag, figure in drawn.items()}

"""The training and evaluation steps: pure functions of pytrees.

Both run under `parallel.pmap`: `state` and `params` whole on every device, `batch`
split over them; where the state is split too, a training step runs under `jit`. Axes:
B images (a device's share), C classes, L layers, H heads, K per-head width.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from svda_jax.devices import parallel
from svda_jax.devices.parallel import AXIS
from svda_jax.models.indicators import (
    compute_indicators,
    measure,
    of_images,
    retained_rank,
)
from svda_jax.models.vit import ViT
from svda_jax.train.metrics import EvalMetrics, Metrics
from svda_jax.train.optimizer import at_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training.

    Attributes:
      step: int32, batches seen so far.
      skipped: int32, how many of them were skipped, their loss or gradient not finite.
      skipped_in_a_row: int32, how many of the last ones.
      params: the model's parameters, float32, as nested dicts.
      opt_state: the optimizer's state.
      ema: moving average of params, or None where none is kept.
      metrics: `Metrics` of the training batches since the last evaluation.
    """

    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    metrics: Metrics

    @property
    def eval_params(self):
        """The parameters that are evaluated: the moving average where there is one."""
        return self.params if self.ema is None else self.ema

    def with_params(self, params):
        """The state with other parameters, their average among them."""
        ema = None if self.ema is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(self, params=params, ema=ema)


class StepReport(NamedTuple):
    """What a training step says of itself, over all devices.

    Attributes:
      skipped_in_a_row: int32, 0 where loss and gradient were finite.
      loss: cross-entropy with label smoothing, mean over the batch, nats.
      gradient_norm: global L2 norm of the gradient before it is clipped.
      learning_rate: of this step.
    """

    skipped_in_a_row: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array


def create_train_state(config, optimizer, key, *, ema=False):
    """The state before the first step, drawn from a PRNG key.

    Args:
      config: a `ViTConfig`.
      optimizer: from `optimizer.create_optimizer`.
      key: PRNG key.
      ema: whether to keep a moving average of the parameters.
    """
    model = ViT(config, rngs=nnx.Rngs(key))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        metrics=Metrics.empty(),
    )


def smooth_labels(labels, num_classes, *, label_smoothing):
    """Targets of labels: (1 - a) onehot(label) + a / C.

    Args:
      labels: `[B]` int32.
      num_classes: C.
      label_smoothing: a, in [0, 1).

    Returns:
      `[B, C]` float32, rows that sum to 1.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def train_step(
    state,
    batch,
    key,
    *,
    graphdef,
    optimizer,
    schedule,
    augment,
    label_smoothing,
    orthonormality_weight,
    score_entropy_weight,
    accumulate_steps,
    ema_decay=0.0,
    shardings=None,
):
    """One update.

        loss = mean cross-entropy + orthonormality_weight * orthonormality penalty
               + score_entropy_weight * entropy of the score's spectrum by weights
        ema <- d ema + (1 - d) params,  d = min(ema_decay, (1 + step) / (10 + step))

    The randomness of an image is a function of the key, the step and its place in the
    batch, so the result depends on the number of devices and on accumulate_steps only
    by rounding.

    Args:
      state: a `TrainState`.
      batch: "image" `[B, ...]` uint8, "label" `[B]` int32.
      key: the run's PRNG key.
      graphdef: from `create_graphdef`.
      optimizer: from `optimizer.create_optimizer`, with that schedule.
      schedule: learning rate by step; it counts batches, skipped ones too.
      augment: (images uint8, targets `[B, C]`, `[B]` keys) -> (images, targets).
      label_smoothing: see `smooth_labels`.
      orthonormality_weight: weight of `ViT.orthonormality_penalty`.
      score_entropy_weight: weight of `ViT.score_entropy`.
      accumulate_steps: parts the batch is worked through in, to save memory. Split
        parameters are gathered for each.
      ema_decay: of the moving average, read where the state keeps one. It starts lower,
        so that the average forgets the first parameters.
      shardings: of params, from `parallel.shard`, where the state is split over the
        devices and the step runs under `jit`; None under `parallel.pmap`.

    Returns:
      The new state, and a `StepReport`. Where loss or gradient are not finite,
      parameters, their average and the optimizer stay.
    """

    def compute_gradients(params, step, batch, key):
        """On each device: mean gradient over all, in parts as params are; metrics."""
        num_images = len(batch["label"])
        first = jax.lax.axis_index(AXIS) * num_images
        step_key = jax.random.fold_in(key, step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            step_key, first + jnp.arange(num_images)
        )

        def loss_fn(params, images, labels, keys):
            augment_keys, dropout_keys = jax.vmap(jax.random.split)(keys).T  # [B], [B]
            if shardings is not None:
                params = parallel.gather(params, shardings)
            model = nnx.merge(graphdef, params)
            targets = smooth_labels(
                labels, model.config.num_classes, label_smoothing=label_smoothing
            )
            images, targets = augment(images, targets, augment_keys)
            logits, _ = model(images, dropout_keys=dropout_keys)
            losses = optax.softmax_cross_entropy(logits, targets)
            loss = jnp.mean(losses)
            if orthonormality_weight:
                loss += orthonormality_weight * model.orthonormality_penalty()
            if score_entropy_weight:
                loss += score_entropy_weight * model.score_entropy()
            metrics = Metrics.single_from_model_output(
                loss=losses, logits=logits, labels=labels
            )
            return loss, metrics

        def accumulate(total, part):
            grads = jax.grad(loss_fn, has_aux=True)(params, *part)
            return jax.tree.map(jnp.add, total, grads), None

        images = (batch["image"], batch["label"], keys)
        if accumulate_steps == 1:
            grads, metrics = jax.grad(loss_fn, has_aux=True)(params, *images)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), images
            )
            zeros = (jax.tree.map(jnp.zeros_like, params), Metrics.empty())
            (grads, metrics), _ = jax.lax.scan(accumulate, zeros, parts)
            grads = jax.tree.map(lambda grad: grad / accumulate_steps, grads)
        if shardings is None:
            grads = jax.lax.pmean(grads, AXIS)
        else:
            grads = parallel.average(grads, shardings)
        return grads, jax.lax.psum(metrics, AXIS)

    if shardings is not None:
        compute_gradients = parallel.map_parts(compute_gradients, shardings)
    grads, metrics = compute_gradients(state.params, state.step, batch, key)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics.loss.total) & jnp.isfinite(norm)
    opt_state = at_step(state.opt_state, state.step)
    updates, opt_state = optimizer.update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, ema, 1 - decay)
    updated = TrainState(
        step=state.step + 1,
        skipped=state.skipped,
        skipped_in_a_row=jnp.zeros_like(state.skipped),
        params=params,
        opt_state=opt_state,
        ema=ema,
        metrics=state.metrics.merge(metrics),
    )
    skipped = dataclasses.replace(
        state,
        step=state.step + 1,
        skipped=state.skipped + 1,
        skipped_in_a_row=state.skipped_in_a_row + 1,
    )
    rate = schedule(state.step)
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, skipped)
    loss = metrics.loss.total / metrics.loss.count
    return state, StepReport(state.skipped_in_a_row, loss, norm, rate)


def eval_step(params, batch, key, *, graphdef, noise_scale):
    """Metrics and indicators of one batch, over all devices.

    Args:
      params: the model's parameters.
      batch: "image" `[B, ...]` uint8, "label" `[B]` int32, "mask" `[B]` bool, False
        where an image only fills the batch up.
      key: the run's PRNG key for the noise of the perturbation.
      graphdef: from `create_graphdef`.
      noise_scale: see `indicators.measure`.

    Returns:
      `EvalMetrics` of the masked images: the loss without label smoothing, the
      indicators `of_images`, the moments of all layers and the counts by class.
    """
    model = nnx.merge(graphdef, params)
    logits, traces = model(
        batch["image"],
        measure=functools.partial(measure, key, noise_scale, batch["mask"]),
    )
    indicators = jnp.stack(
        [jnp.stack([t.indicators[name] for t in traces], 1) for name in of_images()], 1
    )  # [B, I, L, H]
    metrics = EvalMetrics.single_from_model_output(
        loss=optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
        logits=logits,
        labels=batch["label"],
        mask=batch["mask"],
        indicators=indicators,
        moments=_stack([t.moments for t in traces], axes=2),
    )
    return jax.lax.psum(metrics, AXIS)


def measure_parameters(params, *, graphdef):
    """What is read off the parameters alone, once an evaluation.

    Returns:
      A dict of
        "spectrum" `[L, H, K]`, that of each head (`Attention.spectrum`), with NaN for
          directions that other layers have and its own does not,
        "indicators" `[L, H]` by name, those of the spectrum,
        "factors" `[L, H, K]`, see `score.score_spectrum`, 0 where "spectrum" is NaN,
        "weight_moments" `[L, 2, H, K, K]`, see `score.weigh_moments`,
        "retained_rank" `[L, H]`, the directions that hold 90 % of its energy,
        "orthonormality", the mean over layers of the soft-orthonormality penalty.
    """
    model = nnx.merge(graphdef, params)
    spectra = [block.attention.spectrum for block in model.blocks]  # [H, K] each
    layers = [compute_indicators({"spectrum": spectrum}) for spectrum in spectra]
    attentions = [block.attention for block in model.blocks]
    return {
        "spectrum": _stack(spectra, axes=1, fill=jnp.nan),
        "factors": _stack([a.factors for a in attentions], axes=1),
        "weight_moments": _stack([a.weight_moments for a in attentions], axes=2),
        "indicators": jax.tree.map(lambda *layers: jnp.stack(layers), *layers),
        "retained_rank": jnp.stack([retained_rank(spectrum) for spectrum in spectra]),
        "orthonormality": model.orthonormality_penalty(),
    }


def _stack(layers, *, axes, fill=0.0):
    """Arrays of all layers, filled up where a pruned one has fewer directions.

    Args:
      layers: arrays whose last axes are directions.
      axes: how many of them.
      fill: what they are filled up with.
    """
    widest = max(array.shape[-1] for array in layers)
    return jnp.stack(
        [
            jnp.pad(
                array,
                [(0, 0)] * (array.ndim - axes) + [(0, widest - array.shape[-1])] * axes,
                constant_values=fill,
            )
            for array in layers
        ]
    )

"""AdamW with warm-up, cosine decay and clipping; sigma has its own learning rate."""

import jax
import optax

from svda_jax.models.attention import label_sigma


def create_schedule(learning_rate, *, num_steps, warmup_steps):
    """The learning rate by step: linear from 0 to its peak, then a cosine to 0.

    Args:
      learning_rate: the peak, reached after warmup_steps.
      num_steps: of the whole run.
      warmup_steps: of them; one at least is left to decay.

    Returns:
      A function from step to learning rate.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=min(warmup_steps, num_steps - 1),
        decay_steps=num_steps,
    )


def create_optimizer(
    schedule, *, weight_decay, clip_norm, spectrum_lr_scale, spectrum_weight_decay=0.0
):
    """The update rule, AdamW (Loshchilov & Hutter 2019) on clipped gradients.

    Args:
      schedule: learning rate by step.
      weight_decay: decoupled, times the learning rate, on matrices alone ("kernel").
      clip_norm: the largest global gradient norm let through; longer ones are scaled.
      spectrum_lr_scale: what the learning rate of relative_sigma is multiplied by; 0
        leaves sigma at its start.
      spectrum_weight_decay: decoupled, times the learning rate of relative_sigma, on
        it.

    Returns:
      An `optax.GradientTransformation`.
    """
    decays = [optax.add_decayed_weights(weight_decay, mask=_is_kernel)]
    if spectrum_weight_decay:  # one state more, which other checkpoints do not have
        decays.append(optax.add_decayed_weights(spectrum_weight_decay, mask=_is_sigma))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(),
        *decays,
        optax.scale_by_learning_rate(schedule),
        optax.masked(optax.scale(spectrum_lr_scale), _is_sigma),
    )


def at_step(opt_state, step):
    """The optimizer's state with its schedule at that step, whatever was skipped."""

    def is_schedule(part):
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: part._replace(count=step) if is_schedule(part) else part,
        opt_state,
        is_leaf=is_schedule,
    )


def _is_sigma(params):
    return jax.tree.map(lambda label: label == "sigma", label_sigma(params))


def _is_kernel(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )

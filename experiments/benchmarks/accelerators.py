"""The tables `accelerators` of `experiments.benchmarks`: what compilers for them say.

Steps are compiled for TPUs and GPUs that are not there; `compilers` says what by.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.compilers import (
    MACHINES,
    MANY_NUMBERS,
    describe_devices,
    estimate,
    place,
    place_batch,
)
from experiments.benchmarks.kernels import count_cycles
from experiments.benchmarks.peers import LinenViT
from experiments.benchmarks.speed import (
    count_flops,
    create_cifar,
    create_config,
    create_update,
    vit,
    with_attention,
)
from experiments.benchmarks.table import Table
from svda_jax.config import recipe, validate
from svda_jax.data.augment import create_augment
from svda_jax.devices import parallel
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.train.compiled import create_training
from svda_jax.train.memory import abstract_arguments
from svda_jax.train.steps import eval_step

LINEN = "Flax Linen, softmax"
VIT_S, CIFAR = "ViT-S/16, 224 x 224, bfloat16", "CIFAR recipe, float32"


def create_vit_s(image_size=224, depth=12):
    """ViT-S/16 in bfloat16, the mean over tokens in front of its head."""
    return vit(image_size, 16, 384, 6, depth, "bfloat16", pool="gap", num_classes=100)


def create_models():
    """What is compiled, by name: a `ViTConfig` and the images of a batch."""
    vit_b = vit(224, 16, 768, 12, 12, "bfloat16", pool="gap", num_classes=100)
    small = vit(160, 16, 192, 3, 2, "bfloat16", num_classes=100)
    digits = create_config(image_size=8, patch_size=2, depth=4)
    return {
        VIT_S: (create_vit_s(), 128),
        "ViT-S/16, 384 x 384, bfloat16": (create_vit_s(384), 32),
        "ViT-B/16, 224 x 224, bfloat16": (vit_b, 128),
        "160 x 160, width 192, 3 heads, 2 blocks, bfloat16": (small, 128),
        CIFAR: (create_cifar(), 128),
        "digits, float32": (digits, 64),
    }


def accelerators_v5e(repeats):
    """A training step of ours against one of Flax Linen's layers, for a TPU v5e."""
    return _compare("v5e")


def accelerators_v6e(repeats):
    """The same for a TPU v6e."""
    return _compare("v6e")


def accelerators_h100(repeats):
    """The same for an NVIDIA H100."""
    return _compare("h100")


def _compare(name):
    machine, rows, steps = MACHINES[name], [], {}
    for model, (config, batch_size) in create_models().items():
        estimates = steps[model] = estimate_steps(config, batch_size, name)
        flops = count_flops(config, batch_size)
        for layers, one in estimates.items():
            row = {"model": model, "layers, attention": layers}
            row |= _describe_cost(one, estimates[LINEN], flops, machine)
            rows.append(row | _describe_program(one, machine))
    return Table(
        f"A training step for the {machine.name}, as its compiler sees it",
        "Batches of 128 images (384 x 384: 32, digits: 64) on one device: forward, "
        f"loss, gradient, clipping, AdamW. No {machine.name} was there and nothing was "
        "timed but the compiler, on the processor below: all other figures are its "
        "estimates, or follow from its program. "
        f"{_COUNTED[machine.clock is None]} "
        "A step is bound by products "
        f"({machine.flops / 1e12:.0f} TFLOP/s, bfloat16) or memory "
        f"({machine.bandwidth / 1e9:.0f} GB/s), whichever alone would take longer; the "
        "share of the peak is that of its products in the "
        f"{'longer of the two' if machine.clock is None else 'estimated cycles'}. "
        f"Gathers and scatters are those of {MANY_NUMBERS} numbers and more.",
        tuple(rows[0]),
        [tuple(row.values()) for row in rows],
        notes=(
            _describe_evaluation(name),
            _describe_recipe(name, steps[VIT_S]["ours, svda"]),
        ),
        packages=("libtpu", "jax-cuda12-plugin", "nvidia-cudnn-cu12", "optax"),
        second="kernels",
    )


# What is counted: where the compiler estimates cycles, and where it does not.
_COUNTED = (
    "Cycles are those of the fusions and, for the kernels of attention, the bundles of "
    "instructions of their code times their passes through it; waiting for memory "
    "inside them is not in them.",
    "The compiler estimates no cycles and does not say how large its code is. Bytes "
    "are what its kernels read and write, each operand and result once: a floor. "
    "Products are cuBLAS's here; with a device the compiler tries its own beside them. "
    "Models in float32 are held against bfloat16's peak too.",
)


def _describe_cost(one, linen, flops, machine):
    seconds = {
        "products": flops / machine.flops,
        "memory": one.bytes / machine.bandwidth,
    }
    bound, cycles = max(seconds, key=seconds.get), {}
    least = seconds[bound]
    if machine.clock:
        least = one.cycles / machine.clock
        cycles = {
            "cycles": f"{one.cycles:.3g}",
            "cycles over Linen": f"{one.cycles / linen.cycles:.3f}",
            "in kernels": f"{one.kernel_cycles / one.cycles:.0%}",
        }
    return {
        **cycles,
        "GB accessed": f"{one.bytes / 1e9:.2f}",
        "GB over Linen": f"{one.bytes / linen.bytes:.3f}",
        "MiB of temporaries": f"{one.temporaries / 2**20:.0f}",
        "MiB over Linen": f"{one.temporaries / linen.temporaries:.3f}",
        "bound by": bound,
        "share of peak": f"{seconds['products'] / least:.0%}",
    }


def _describe_program(one, machine):
    code = {"MiB of code": f"{one.code / 2**20:.1f}"} if machine.clock else {}
    return {
        "kernels": _join(one.kernels),
        "collectives": _join(one.collectives),
        "loops": one.loops,
        "gathers": one.gathers,
        "MiB of arguments": f"{one.arguments / 2**20:.0f}",
        **code,
        "seconds to compile": f"{one.seconds:.0f}",
    }


def _join(counts):
    parts = (f"`{name}` x {number}" for name, number in sorted(counts.items()))
    return ", ".join(parts) or "none"


def _describe_evaluation(name):
    lines, models = [], create_models()
    what = "cycles" if MACHINES[name].clock else "bytes"
    for model in (VIT_S, CIFAR):
        for attention in ("softmax", "svda"):
            config = with_attention(models[model][0], attention)
            without, measured = estimate_evaluation(config, 256, name)
            cost = getattr(measured, what) / getattr(without, what)
            memory = _sum_memory(measured) / _sum_memory(without)
            lines.append(f"{model}, {attention}: {cost:.3f} and {memory:.3f}")
    return (
        f"Evaluation of 256 images with all indicators over evaluation without, {what} "
        f"and memory (arguments and temporaries): {'; '.join(lines)}."
    )


def _describe_recipe(name, step):
    """A whole step, and augmentation in front of one of the same model without it."""
    number = len(describe_devices(name))
    whole = estimate_recipe("imagenet100", name)
    augmentation = estimate_augmentation("imagenet100", name)
    code = f", {whole.code / 2**20:.0f} MiB of code" if whole.code else ""
    shares = []
    for what in ("cycles", "bytes"):
        if cost := getattr(augmentation, what):
            shares.append(f"{cost / (cost + getattr(step, what)):.1%} of the {what}")
    return (
        "The whole training step of configs/imagenet100.py with model.scan, for "
        f"{number} of them with 128 images each: {whole.seconds:.0f} s to compile"
        f"{code}. Its augmentation alone, in front of {VIT_S}, SVDA: "
        f"{' and '.join(shares)}, {augmentation.gathers} gathers; its loops, whose "
        "turns are random, count as one turn."
    )


def _sum_memory(one):
    return one.arguments + one.temporaries


def estimate_steps(config, batch_size, machine="v5e"):
    """`Estimate` of a training step of each model, by name.

    Args:
      config: a `ViTConfig`; both attentions and Linen's softmax are compiled for it.
      batch_size: images.
      machine: one of `MACHINES`.
    """
    device = describe_devices(machine)[0]
    mesh = parallel.create_mesh([device])
    linen = LinenViT(config)
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    params = jax.eval_shape(linen.init, jax.random.key(0), images)["params"]

    def apply_linen(params, images):
        return linen.apply({"params": params}, images)

    models = {LINEN: (params, apply_linen, config)}
    for name in ("softmax", "svda"):
        ours = with_attention(config, name)
        graphdef, params = _abstract(ours, device)
        models[f"ours, {name}"] = (params, functools.partial(_apply, graphdef), ours)
    found = {}
    for name, (params, apply, used) in models.items():
        init, step = create_update(apply, mesh)
        state = place(jax.eval_shape(init, params), parallel.replicated(mesh))
        batch = place_batch(config, batch_size, mesh)
        args = (state, batch["image"], batch["label"])
        found[name] = estimate(
            step, args, machine, count_cycles(used, batch_size, machine)
        )
    return found


def estimate_evaluation(config, batch_size, machine="v5e"):
    """`Estimate` of the logits alone, and of `eval_step`.

    Args:
      config: a `ViTConfig`.
      batch_size: images.
      machine: one of `MACHINES`.
    """
    device = describe_devices(machine)[0]
    mesh = parallel.create_mesh([device])
    graphdef, params = _abstract(config, device)
    params = place(params, parallel.replicated(mesh))
    batch = place_batch(config, batch_size, mesh, mask=np.bool_)
    key = place(jax.eval_shape(lambda: jax.random.key(0)), parallel.replicated(mesh))
    alone = parallel.pmap(functools.partial(_apply, graphdef), mesh, split_argnums=(1,))
    step = functools.partial(eval_step, graphdef=graphdef, noise_scale=0.1)
    measured = parallel.pmap(step, mesh, split_argnums=(1,))
    kernels = count_cycles(config, batch_size, machine)
    return (
        estimate(alone, (params, batch["image"]), machine, kernels),
        estimate(measured, (params, batch, key), machine, kernels),
    )


def estimate_recipe(name, machine="v5e"):
    """`Estimate` of the whole `train_step` of a recipe, with `model.scan`.

    Args:
      name: of the recipe.
      machine: one of `MACHINES`; 128 images for each of its devices.
    """
    devices = describe_devices(machine)
    config = recipe(name)
    config.model.scan = True
    config.batch_size = 128 * len(devices)
    return estimate_training(config, machine, devices)


def estimate_training(config, machine, devices):
    """`Estimate` of the `train_step` of a config.

    Args:
      config: as from `svda_jax.config.defaults`.
      machine: one of `MACHINES`.
      devices: of that machine, among which a batch is split.

    Raises:
      UserError: the config is not valid for as many devices.
    """
    mesh = parallel.create_mesh(devices)
    model_config = validate(config, num_devices=mesh.size)
    init, step = create_training(config, model_config, num_steps=1000, mesh=mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = abstract_arguments(jax.eval_shape(init, key), config, mesh)
    key = place(key, parallel.replicated(mesh))
    kernels = count_cycles(model_config, config.batch_size // mesh.size, machine)
    return estimate(step, (*arguments, key), machine, kernels)


def estimate_augmentation(name, machine="v5e"):
    """`Estimate` of the augmentation of a recipe, of 128 images on one device."""
    mesh = parallel.create_mesh(describe_devices(machine)[:1])
    config = recipe(name)
    model_config = validate(config, num_devices=1)
    augment = parallel.pmap(
        create_augment(config.augment), mesh, split_argnums=(0, 1, 2)
    )
    images = place_batch(model_config, 128, mesh)["image"]
    targets = jax.ShapeDtypeStruct((128, model_config.num_classes), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 128))
    targets, keys = place((targets, keys), parallel.split(mesh))
    return estimate(augment, (images, targets, keys), machine)


def _abstract(config, device):
    ops = choose(device)
    model = nnx.eval_shape(lambda: ViT(config, ops=ops, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return create_graphdef(config, ops), params


def _apply(graphdef, params, images):
    return nnx.merge(graphdef, params)(images)[0]

"""The tables `accelerators` of `experiments.benchmarks`: what compilers for them say.

Steps are compiled for TPUs that are not there; libtpu alone is needed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.compilers import (
    MACHINES,
    count_passes,
    describe_devices,
    estimate,
    place,
    place_batch,
)
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
from svda_jax.devices import parallel
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.train.steps import eval_step

LINEN = "Flax Linen, softmax"
COLUMNS = (
    "model",
    "layers, attention",
    "cycles",
    "over Linen",
    "in kernels",
    "GB accessed",
    "over Linen",
    "MiB of temporaries",
    "over Linen",
    "MiB of arguments",
    "MiB of code",
    "bound by",
    "share of peak",
    "seconds to compile",
)


def create_vit_s(image_size=224, depth=12):
    """ViT-S/16 in bfloat16, the mean over tokens in front of its head."""
    return vit(image_size, 16, 384, 6, depth, "bfloat16", pool="gap", num_classes=100)


def create_models():
    """What is compiled, by name: a `ViTConfig` and the images of a batch."""
    vit_b = vit(224, 16, 768, 12, 12, "bfloat16", pool="gap", num_classes=100)
    small = vit(160, 16, 192, 3, 2, "bfloat16", num_classes=100)
    digits = create_config(image_size=8, patch_size=2, depth=4)
    return {
        "ViT-S/16, 224 x 224, bfloat16": (create_vit_s(), 128),
        "ViT-S/16, 384 x 384, bfloat16": (create_vit_s(384), 32),
        "ViT-B/16, 224 x 224, bfloat16": (vit_b, 128),
        "160 x 160, width 192, 3 heads, 2 blocks, bfloat16": (small, 128),
        "CIFAR recipe, float32": (create_cifar(), 128),
        "digits, float32": (digits, 64),
    }


def accelerators_v5e(repeats):
    """A training step of ours against one of Flax Linen's layers, for a TPU v5e."""
    return _compare("v5e")


def accelerators_v6e(repeats):
    """The same for a TPU v6e."""
    return _compare("v6e")


def _compare(name):
    machine, rows, found = MACHINES[name], [], {}
    for model, (config, batch_size) in create_models().items():
        estimates = estimate_steps(config, batch_size, name)
        flops = count_flops(config, batch_size)
        linen = estimates[LINEN]
        for layers, one in estimates.items():
            seconds = one.cycles / machine.clock
            bounds = {
                "products": flops / machine.flops,
                "memory": one.bytes / machine.bandwidth,
            }
            found[f"{model}, {layers}"] = one
            rows.append(
                (
                    model,
                    layers,
                    f"{one.cycles:.3g}",
                    f"{one.cycles / linen.cycles:.3f}",
                    f"{one.kernel_cycles / one.cycles:.0%}",
                    f"{one.bytes / 1e9:.2f}",
                    f"{one.bytes / linen.bytes:.3f}",
                    f"{one.temporaries / 2**20:.0f}",
                    f"{one.temporaries / linen.temporaries:.3f}",
                    f"{one.arguments / 2**20:.0f}",
                    f"{one.code / 2**20:.1f}",
                    max(bounds, key=bounds.get),
                    f"{flops / machine.flops / seconds:.0%}",
                    f"{one.seconds:.0f}",
                )
            )
    return Table(
        f"A training step on a {machine.name}, as its compiler sees it",
        "Batches of 128 images (384 x 384: 32, digits: 64) on one device: forward, "
        f"loss, gradient, clipping, AdamW. No {machine.name} was there and nothing was "
        "timed but the compiler, on the processor below: all other figures are its "
        "estimates. Cycles are those of the fusions and, for the kernels of attention, "
        "the bundles of instructions of their code times their passes through it; "
        "waiting for memory inside them is not in them. A step is bound by products "
        f"({machine.flops / 1e12:.0f} TFLOP/s) or memory ({machine.bandwidth / 1e9:.0f}"
        " GB/s), whichever alone would take longer; the share of the peak is that of "
        "its products in the estimated cycles.",
        COLUMNS,
        rows,
        notes=(_describe_kernels(found), _describe_evaluation(name)),
        packages=("libtpu", "optax"),
    )


def _describe_kernels(found):
    lines = []
    for name, one in found.items():
        parts = [f"{number} x {kernel}" for kernel, number in one.kernels.items()]
        counts = one.collectives | {"loops": one.loops, "large gathers": one.gathers}
        parts += [f"{number} {what}" for what, number in counts.items() if number]
        lines.append(f"{name}: {', '.join(parts) or 'none'}")
    return "Kernels, collectives, loops, large gathers. " + "; ".join(lines) + "."


def _describe_evaluation(name):
    lines = []
    models = create_models()
    for model in ("ViT-S/16, 224 x 224, bfloat16", "CIFAR recipe, float32"):
        for attention in ("softmax", "svda"):
            config = with_attention(models[model][0], attention)
            without, measured = estimate_evaluation(config, 256, name)
            cycles = measured.cycles / without.cycles
            memory = _sum_memory(measured) / _sum_memory(without)
            lines.append(f"{model}, {attention}: {cycles:.3f} and {memory:.3f}")
    return (
        "Evaluation of 256 images with all indicators over evaluation without, cycles "
        f"and memory (arguments and temporaries): {'; '.join(lines)}."
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
    device = describe_devices(MACHINES[machine].topology)[0]
    mesh = parallel.create_mesh([device])
    linen = LinenViT(config)
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    params = jax.eval_shape(linen.init, jax.random.key(0), images)["params"]

    def apply_linen(params, images):
        return linen.apply({"params": params}, images)

    models = {LINEN: (params, apply_linen)}
    for name in ("softmax", "svda"):
        graphdef, params = _abstract(with_attention(config, name), device)
        apply = functools.partial(_apply, graphdef)
        models[f"ours, {name}"] = (params, apply)
    found = {}
    for name, (params, apply) in models.items():
        init, step = create_update(apply, mesh)
        state = place(jax.eval_shape(init, params), parallel.replicated(mesh))
        batch = place_batch(config, batch_size, mesh)
        args = (state, batch["image"], batch["label"])
        found[name] = estimate(step, args, passes=count_passes(config, batch_size))
    return found


def estimate_evaluation(config, batch_size, machine="v5e"):
    """`Estimate` of the logits alone, and of `eval_step`.

    Args:
      config: a `ViTConfig`.
      batch_size: images.
      machine: one of `MACHINES`.
    """
    device = describe_devices(MACHINES[machine].topology)[0]
    mesh = parallel.create_mesh([device])
    graphdef, params = _abstract(config, device)
    params = place(params, parallel.replicated(mesh))
    batch = place_batch(config, batch_size, mesh, mask=np.bool_)
    key = place(jax.eval_shape(lambda: jax.random.key(0)), parallel.replicated(mesh))
    alone = parallel.pmap(functools.partial(_apply, graphdef), mesh, split_argnums=(1,))
    step = functools.partial(eval_step, graphdef=graphdef, noise_scale=0.1)
    measured = parallel.pmap(step, mesh, split_argnums=(1,))
    passes = count_passes(config, batch_size)
    return (
        estimate(alone, (params, batch["image"]), passes=passes),
        estimate(measured, (params, batch, key), passes=passes),
    )


def _abstract(config, device):
    ops = choose(device)
    model = nnx.eval_shape(lambda: ViT(config, ops=ops, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return create_graphdef(config, ops), params


def _apply(graphdef, params, images):
    return nnx.merge(graphdef, params)(images)[0]

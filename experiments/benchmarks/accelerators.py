"""The table `accelerators` of `experiments.benchmarks`: what a compiler for one says.

The step is compiled for a TPU that is not there; libtpu alone is needed.
"""

import atexit
import functools
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from experiments.benchmarks.peers import LinenViT
from experiments.benchmarks.speed import (
    create_cifar,
    create_config,
    create_update,
    vit,
    with_attention,
)
from experiments.benchmarks.table import Table
from svda_jax.devices import parallel
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT

LINEN = "Flax Linen, softmax"


class Estimate(NamedTuple):
    """What a compiler says of a program.

    Attributes:
      cycles: estimated, sum over the fusions of its entry, and the kernels'.
      kernel_cycles: those of the kernels: bundles of instructions, one a cycle, of a
        pass through a kernel's code, times its passes.
      bytes: accessed; a kernel's operands and results count once.
      temporaries: bytes of memory beside arguments and results.
    """

    cycles: int
    kernel_cycles: int
    bytes: float
    temporaries: int


def create_vit_s(depth=12):
    """ViT-S/16 at 224 x 224 in bfloat16, the mean over tokens in front of its head."""
    return vit(224, 16, 384, 6, depth, "bfloat16", pool="gap", num_classes=100)


def create_models():
    """What is compiled, by name: a `ViTConfig` and the images of a batch."""
    digits = create_config(image_size=8, patch_size=2, depth=4)
    small = vit(160, 16, 192, 3, 2, "bfloat16", num_classes=100)
    return {
        "ViT-S/16, 224 x 224, bfloat16": (create_vit_s(), 128),
        "160 x 160, width 192, 3 heads, 2 blocks, bfloat16": (small, 128),
        "CIFAR recipe, float32": (create_cifar(), 128),
        "digits, float32": (digits, 64),
    }


def accelerators(repeats):
    """A training step of ours against one of Flax Linen's layers, for a TPU v5e."""
    del repeats  # a compiler says the same every time
    rows = []
    for model, (config, batch_size) in create_models().items():
        estimates = estimate_all(config, batch_size)
        linen = estimates[LINEN]
        rows += [
            (
                model,
                name,
                f"{one.cycles:.3g}",
                f"{one.cycles / linen.cycles:.3f}",
                f"{one.kernel_cycles / one.cycles:.0%}",
                f"{one.bytes / 1e9:.2f}",
                f"{one.bytes / linen.bytes:.3f}",
                f"{one.temporaries / 2**20:.0f}",
                f"{one.temporaries / linen.temporaries:.3f}",
            )
            for name, one in estimates.items()
        ]
    return Table(
        "A training step on a TPU v5e, as its compiler sees it",
        "Batches of 128 images (digits: 64) on one device: forward, loss, gradient, "
        "clipping, AdamW. All figures are the compiler's estimates for a TPU v5e that "
        "was not there; nothing was timed. Cycles are those of the fusions and, for "
        "the attention's kernel, the bundles of instructions of its code times its "
        "passes through it; waiting for memory inside it is not in them.",
        (
            "model",
            "layers, attention",
            "cycles",
            "over Linen",
            "in kernels",
            "GB accessed",
            "over Linen",
            "MiB of temporaries",
            "over Linen",
        ),
        rows,
        packages=("libtpu", "optax"),
    )


def estimate_all(config, batch_size):
    """`Estimate` of the step of each model, by name, for a TPU v5e.

    Args:
      config: a `ViTConfig`; both attentions and Linen's softmax are compiled for it.
      batch_size: images.
    """
    device = _describe_device()
    linen = LinenViT(config)
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    params = jax.eval_shape(linen.init, jax.random.key(0), images)["params"]

    def apply_linen(params, images):
        return linen.apply({"params": params}, images)

    found = {LINEN: _estimate(params, apply_linen, config, batch_size, device)}
    for name in ("softmax", "svda"):
        model = nnx.eval_shape(
            lambda name=name: ViT(
                with_attention(config, name), ops=choose(device), rngs=nnx.Rngs(0)
            )
        )
        graphdef, params = nnx.split(model, nnx.Param)

        def apply(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images)[0]

        found[f"ours, {name}"] = _estimate(
            nnx.to_pure_dict(params), apply, config, batch_size, device
        )
    return found


@functools.cache
def _describe_device():
    """A TPU v5e, from a compiler that writes its kernels' schedules to `_dumps`."""
    jax.config.update("jax_platforms", "cpu")  # there is no TPU to wait for,
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # nor to ask for
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={_dumps()} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return topology.devices[0]


@functools.cache
def _dumps():
    path = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    return path


def _estimate(params, apply, config, batch_size, device):
    mesh = parallel.create_mesh([device])
    init, step = create_update(apply, mesh)
    side = config.image_size
    images = jax.ShapeDtypeStruct((batch_size, side, side, config.channels), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def place(tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    state = place(jax.eval_shape(init, params), parallel.replicated(mesh))
    batch = place((images, labels), parallel.split(mesh))
    compiled = step.lower(state, *batch).compile()
    text = compiled.as_text()
    cycles = re.findall(r'"estimated_cycles":"([0-9]+)"', text[text.index("\nENTRY") :])
    kernel_cycles = _count_kernel_cycles(text)
    return Estimate(
        cycles=sum(map(int, cycles)) + kernel_cycles,
        kernel_cycles=kernel_cycles,
        bytes=compiled.cost_analysis()["bytes accessed"],
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


def _count_kernel_cycles(text):
    """Cycles of the kernels that a compiled program calls.

    A kernel of `ops.tpu` passes through its code once for each entry of the first axis
    of its results.
    """
    bundles = {}
    for path in _dumps().glob("*schedule-analysis_final_bundles.txt"):
        if name := re.search(r"attend_(forward|backward)", path.name):
            count = re.search(r"total scheduled bundles: +(\d+)", path.read_text())
            bundles[name[0]] = int(count[1])
    for path in _dumps().iterdir():
        path.unlink()
    calls = re.findall(
        r"= \(?\w+\[(\d+),[^\n]*\"tpu_custom_call\"[^\n]*op_name=\"[^\"]*"
        r"(attend_(?:forward|backward))",
        text,
    )
    return sum(int(passes) * bundles[name] for passes, name in calls)

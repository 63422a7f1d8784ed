"""The table `accelerators` of `experiments.benchmarks`: what a compiler for one says.

The step is compiled for a TPU that is not there; libtpu alone is needed.
"""

import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from experiments.benchmarks.peers import LinenViT
from experiments.benchmarks.speed import create_config, create_update, with_attention
from experiments.benchmarks.table import Table
from svda_jax.devices import parallel
from svda_jax.models.ops import choose
from svda_jax.models.vit import ViT


class Estimate(NamedTuple):
    """What a compiler says of a program.

    Attributes:
      cycles: estimated, sum over the fusions of its entry.
      bytes: accessed.
      temporaries: bytes of memory beside arguments and results.
    """

    cycles: int
    bytes: float
    temporaries: int


def accelerators(repeats):
    """A training step of ours against one of Flax Linen's layers, for a TPU v5e."""
    del repeats  # a compiler says the same every time
    batch_size = 128
    config = create_vit_s()
    estimates = estimate_all(config, batch_size)
    linen = estimates["Flax Linen, softmax"]
    rows = [
        (
            name,
            f"{one.cycles:.3g}",
            f"{one.cycles / linen.cycles:.3f}",
            f"{one.bytes / 1e9:.1f}",
            f"{one.bytes / linen.bytes:.3f}",
            f"{one.temporaries / 2**30:.2f}",
            f"{one.temporaries / linen.temporaries:.3f}",
        )
        for name, one in estimates.items()
    ]
    return Table(
        "A training step on a TPU v5e, as its compiler sees it",
        "ViT-S/16 at 224 x 224 in bfloat16, mean over tokens, batch of "
        f"{batch_size} on one device: forward, loss, gradient, clipping, AdamW. All "
        "figures are the compiler's estimates for a TPU v5e that was not there; "
        "nothing was timed.",
        (
            "model",
            "cycles",
            "over Linen",
            "GB accessed",
            "over Linen",
            "GiB of temporaries",
            "over Linen",
        ),
        rows,
        packages=("libtpu", "optax"),
    )


def create_vit_s(depth=12):
    """ViT-S/16 at 224 x 224 in bfloat16, the mean over tokens in front of its head."""
    return create_config(
        image_size=224,
        channels=3,
        num_classes=100,
        patch_size=16,
        width=384,
        depth=depth,
        num_heads=6,
        mlp_dim=1536,
        dtype="bfloat16",
    )


def estimate_all(config, batch_size):
    """`Estimate` of the step of each model, by name, for a TPU v5e.

    Args:
      config: a `ViTConfig`; both attentions and Linen's softmax are compiled for it.
      batch_size: images.
    """
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask for
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    device = topology.devices[0]
    linen = LinenViT(config)
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    params = jax.eval_shape(linen.init, jax.random.key(0), images)["params"]

    def apply_linen(params, images):
        return linen.apply({"params": params}, images)

    found = {
        "Flax Linen, softmax": _estimate(
            params, apply_linen, config, batch_size, device
        )
    }
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
    return Estimate(
        cycles=sum(map(int, cycles)),
        bytes=compiled.cost_analysis()["bytes accessed"],
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )

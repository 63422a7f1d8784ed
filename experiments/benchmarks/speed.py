"""Tables of `experiments.benchmarks`: the training step, by JAX, Flax, Optax alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.table import Table, apart
from svda_jax.devices import parallel
from svda_jax.devices.timing import measure, spread
from svda_jax.models.ops import PLAIN, choose
from svda_jax.models.vit import ViT, ViTConfig, count_macs
from svda_jax.train.optimizer import create_optimizer


def create_step(config, batch_size, *, devices=None, ops=None):
    """A function without arguments that takes one training step on a constant batch.

    Forward, gradient, clipping and AdamW, as in `train.steps.train_step` without
    what that adds for data and metrics.

    Args:
      config: a `ViTConfig`.
      batch_size: images, over all devices.
      devices: to use, by default the first.
      ops: the model's `Ops`, by default the quickest on the device.
    """
    ops = ops or choose((devices or jax.devices())[0])
    model = ViT(config, ops=ops, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    return compile_step(
        nnx.to_pure_dict(params),
        lambda params, images: nnx.merge(graphdef, params)(images)[0],
        create_batch(config, batch_size),
        devices,
    )


def compile_step(params, apply, batch, devices=None):
    """The step of `create_step` for any model.

    Args:
      params: its first parameters.
      apply: from parameters and images to logits.
      batch: images and labels.
      devices: to use, by default the first.
    """
    mesh = parallel.create_mesh(devices or jax.devices()[:1])
    init, step = create_update(apply, mesh)
    images, labels = jax.device_put(batch, parallel.split(mesh))
    state = jax.device_put(init(params), parallel.replicated(mesh))

    def run():
        nonlocal state
        state, loss = step(state, images, labels)
        return state, loss

    return run


def create_update(apply, mesh):
    """A function from parameters to a state, and the step over it, jitted.

    Args:
      apply: from parameters and images to logits.
      mesh: from `parallel.create_mesh`.
    """
    optimizer = create_optimizer(
        lambda step: 1e-3, weight_decay=0.05, clip_norm=1.0, spectrum_lr_scale=30.0
    )

    def step(state, images, labels):
        params, opt_state = state

        def loss_fn(params):
            logits = apply(params, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        grads = jax.lax.pmean(grads, parallel.AXIS)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return (
        lambda params: (params, optimizer.init(params)),
        parallel.pmap(step, mesh, split_argnums=(1, 2), donate_argnums=(0,)),
    )


def create_batch(config, batch_size):
    """Noise: images uint8 and labels int32."""
    rng = np.random.default_rng(0)
    shape = (batch_size, config.image_size, config.image_size, config.channels)
    images = rng.integers(0, 256, size=shape).astype(np.uint8)
    return images, rng.integers(0, config.num_classes, size=batch_size).astype(np.int32)


def create_config(**changes):
    """A `ViTConfig`; by default that of configs/fashion_mnist.py, without drop path."""
    options = {
        "image_size": 28,
        "channels": 1,
        "num_classes": 10,
        "patch_size": 4,
        "width": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_dim": 128,
    }
    options |= changes
    channels = options["channels"]
    return ViTConfig(mean=(0.5,) * channels, std=(0.25,) * channels, **options)


def vit(image_size, patch_size, width, num_heads, depth, dtype="float32", **changes):
    """A colour ViT with an MLP four times as wide; at 224 x 224 with a class token."""
    options = {
        "image_size": image_size,
        "channels": 3,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": 4 * width,
        "pool": "cls" if image_size == 224 else "gap",
        "dtype": dtype,
    }
    return create_config(**options | changes)


def create_cifar(**changes):
    """The `ViTConfig` of the CIFAR recipe, without drop path."""
    options = {"image_size": 32, "channels": 3, "width": 192, "depth": 9}
    options |= {"num_heads": 12, "mlp_dim": 384}
    return create_config(**options | changes)


def models():
    """What the tables `overhead` and `step` measure: (config, batch size) by name."""
    if jax.default_backend() == "cpu":
        return {
            "FashionMNIST recipe": (create_config(), 128),
            "32 x 32, 6 heads": (vit(32, 4, 192, 6, 6), 64),
            "32 x 32, 3 heads": (vit(32, 4, 192, 3, 6), 64),
            "224 x 224, 6 heads": (vit(224, 16, 192, 6, 4), 16),
            "224 x 224, 3 heads": (vit(224, 16, 192, 3, 4), 16),
            "224 x 224, 6 heads, wide": (vit(224, 16, 384, 6, 4), 8),
        }
    return {
        "ViT-S/16, bfloat16": (vit(224, 16, 384, 6, 12, "bfloat16"), 256),
        "CIFAR recipe": (create_cifar(), 128),
    }


def overhead(repeats):
    """A training step with SVDA over one with softmax attention, equal models."""
    rows = []
    for name, (config, batch_size) in models().items():
        variants = {
            attention: (create_step, with_attention(config, attention), batch_size)
            for attention in ("softmax", "svda")
        }
        rate = _measure_rates(config.dtype)["bytes"]
        with apart({**variants, "again": variants["softmax"]}) as steps:
            seconds = measure(steps, repeats)
        least = count_normalization_bytes(config, batch_size) / rate
        rows.append(
            (
                *_describe(name, config, batch_size),
                spread(1000 * seconds["softmax"], 1),
                spread(seconds["svda"] / seconds["softmax"]),
                spread(seconds["again"] / seconds["softmax"]),
                f"{1 + least / np.median(seconds['softmax']):.3f}",
            )
        )
    return Table(
        "Cost of SVDA",
        "A training step (forward, gradient, clipping, AdamW) with SVDA over one with "
        "softmax attention, all else equal. Median and quartiles of "
        f"{repeats} neighbouring pairs; each model in a process of its own, softmax in "
        "two. The least is what the passes over queries and keys alone would take, "
        f"forward and gradient, at the rate of a large copy ({rate / 1e9:.1f} GB/s at "
        "the last row; caches that hold a layer can be quicker).",
        (
            *COLUMNS,
            "softmax, ms",
            "SVDA over softmax",
            "softmax over itself",
            "least by bytes",
        ),
        rows,
        packages=("optax",),
    )


def operations(repeats):
    """A training step with the machine's own operations over one with the equations."""
    rows = []
    for name, (config, batch_size) in models().items():
        for attention in ("softmax", "svda"):
            model = with_attention(config, attention)
            variants = {
                "own": (create_step, model, batch_size),
                "plain": (_create_plain_step, model, batch_size),
            }
            with apart(variants) as steps:
                seconds = measure(steps, repeats)
            rows.append(
                (
                    *_describe(name, config, batch_size),
                    attention,
                    spread(1000 * seconds["plain"], 1),
                    spread(seconds["own"] / seconds["plain"]),
                )
            )
    return Table(
        "What the machine's own operations are worth",
        "A training step (forward, gradient, clipping, AdamW) of a model with the "
        "operations that `models/ops` has for this machine, over one with the "
        "equations of `models/ops/plain.py`. Median and quartiles of "
        f"{repeats} neighbouring pairs; each model in a process of its own.",
        (*COLUMNS, "attention", "equations, ms", "own over equations"),
        rows,
        packages=("optax",),
    )


def _create_plain_step(config, batch_size):
    return create_step(config, batch_size, ops=PLAIN)


COLUMNS = ("model", "width", "K", "N", "layers", "batch")


def _describe(name, config, batch_size):
    num_tokens = config.grid**2 + (config.pool == "cls")
    head_dim = config.width // config.num_heads
    return name, config.width, head_dim, num_tokens, config.depth, batch_size


def with_attention(config, attention):
    """The same model with that attention."""
    return type(config)(**{**vars(config), "attention": attention})


def count_flops(config, batch_size):
    """Of a step's matrix products, the gradient's counted as twice the forward's."""
    return 3 * 2 * batch_size * count_macs(config)


def count_bytes(config, batch_size):
    """The least a step has to move: what the gradient reads is written and read once.

    For each token and layer in the dtype of the activations: six of width (two norms,
    query, key, value, attended), two of the MLP's hidden width and, without a fused
    kernel, two of N for each head; their gradients the same once more; and for each
    parameter, float32, seven: itself, its gradient and AdamW's two averages.
    """
    _, width, _, n, depth, _ = _describe("", config, batch_size)
    size = 2 if config.dtype == "bfloat16" else 4
    scores = 0 if size == 2 else 2 * n * config.num_heads
    token = 6 * width + 2 * config.mlp_dim + scores
    parameters = depth * (4 * width**2 + 2 * width * config.mlp_dim)
    return 4 * size * batch_size * n * depth * token + 28 * parameters


def count_normalization_bytes(config, batch_size):
    """The least that normalising queries and keys moves in a step.

    Each is read and written once; for the gradient each is read again, with that of its
    direction, and its own written.
    """
    _, width, _, n, depth, _ = _describe("", config, batch_size)
    size = 2 if config.dtype == "bfloat16" else 4
    return 2 * 5 * size * batch_size * n * depth * width


def step(repeats):
    """A training step against the floor that matrix products and memory set."""
    rows = []
    for name, (config, batch_size) in models().items():
        rates = _measure_rates(config.dtype)
        run = create_step(with_attention(config, "svda"), batch_size)
        seconds = measure({"step": run}, repeats)["step"]
        flops = count_flops(config, batch_size)
        num_bytes = count_bytes(config, batch_size)
        products, moves = flops / rates["products"], num_bytes / rates["bytes"]
        rows.append(
            (
                *_describe(name, config, batch_size),
                spread(1000 * seconds, 1),
                f"{batch_size / np.median(seconds):,.0f}",
                f"{1000 * products:.1f}",
                f"{1000 * moves:.1f}",
                f"{np.median(seconds) / max(products, moves):.2f}",
                f"{100 * products / np.median(seconds):.0f} %",
            )
        )
    return Table(
        "A training step and its floor",
        "A step with SVDA, median and quartiles. Its floor is the larger of two times: "
        "that of its matrix products at the rate of one large product "
        f"({rates['products'] / 1e9:,.0f} GFLOP/s in {config.dtype}), and that of its "
        "least traffic at the rate of a large copy, read and written "
        f"({rates['bytes'] / 1e9:.1f} GB/s; caches that hold a layer can be quicker), "
        "both measured before each row, here at the last. Utilisation is model FLOPs "
        "over time over the rate of products.",
        (
            *COLUMNS,
            "step, ms",
            "images/s",
            "products, ms",
            "memory, ms",
            "over the floor",
            "utilisation",
        ),
        rows,
        packages=("optax",),
    )


def _measure_rates(dtype):
    """FLOP/s of a large matrix product, bytes/s of a large copy."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    x = jnp.ones(2**26 if n == 2048 else 2**29, jnp.float32)
    product, copy = jax.jit(jnp.dot), jax.jit(lambda x: x + 1)
    seconds = measure({"products": lambda: product(a, a), "bytes": lambda: copy(x)}, 9)
    return {
        "products": 2 * n**3 / np.median(seconds["products"]),
        "bytes": 2 * x.nbytes / np.median(seconds["bytes"]),
    }

"""The table `scaling` of `experiments.benchmarks`: a step as sizes and devices grow."""

import io
import math

import jax
import numpy as np

from experiments.benchmarks.speed import create_config, create_step
from experiments.benchmarks.table import Table
from svda_jax.devices.timing import measure
from svda_jax.look.style import COLORS, label_axes, legend_above, subplots


def scaling(repeats):
    """A step's time as one size grows, with the exponent of the growth."""
    jax.config.update("jax_num_cpu_devices", 4)
    on_cpu = jax.default_backend() == "cpu"
    base = {"width": 64, "num_heads": 4, "depth": 3, "image_size": 28, "mlp_dim": 256}
    sizes = {
        "batch B": [{"batch_size": b} for b in (16, 32, 64, 128)],
        "layers L": [{"depth": layers} for layers in (1, 2, 4, 8)],
        "width D, H = D / 16": [
            {"width": d, "mlp_dim": 4 * d, "num_heads": d // 16}
            for d in (32, 64, 128, 256)
        ],
        "per-head width K, D = 64": [{"num_heads": 64 // k} for k in (8, 16, 32, 64)],
        "tokens N": [{"image_size": 4 * side} for side in (4, 7, 10, 14, 20)],
        "devices, B = 32": [
            {"num_devices": 2**i} for i in range(int(math.log2(len(jax.devices()))) + 1)
        ],
    }
    values = {
        "batch B": lambda c: c["batch_size"],
        "layers L": lambda c: c["depth"],
        "width D, H = D / 16": lambda c: c["width"],
        "per-head width K, D = 64": lambda c: c["width"] // c["num_heads"],
        "tokens N": lambda c: (c["image_size"] // 4) ** 2,
        "devices, B = 32": lambda c: c["num_devices"],
    }
    rows, curves = [], {}
    for size, changes in sizes.items():
        points = [{"batch_size": 32, "num_devices": 1, **base, **c} for c in changes]
        variants = {}
        for attention in ("softmax", "svda"):
            for point in points:
                options = dict(point)
                batch_size, count = (
                    options.pop("batch_size"),
                    options.pop("num_devices"),
                )
                variants[attention, values[size](point)] = create_step(
                    create_config(attention=attention, **options),
                    batch_size,
                    devices=jax.devices()[:count],
                )
        seconds = measure(variants, repeats)
        for attention in ("softmax", "svda"):
            xs = [values[size](point) for point in points]
            ys = [1000 * np.median(seconds[attention, x]) for x in xs]
            slope = (
                np.polyfit(np.log(xs), np.log(ys), 1)[0] if len(xs) > 1 else math.nan
            )
            curves[size, attention] = xs, ys
            measured = ", ".join(f"{x}: {y:.1f}" for x, y in zip(xs, ys, strict=True))
            rows.append((size, attention, measured, round(float(slope), 2)))
    return Table(
        "How a training step grows",
        "Median time of a step as one size grows and the others stay (B 32, L 3, D 64, "
        "H 4, N 49, MLP of 4 D, patch 4), and the exponent of the power law that fits "
        f"best; {repeats} rounds, all points of a row and of both attentions in turn."
        + (" The CPU devices share the same cores." if on_cpu else ""),
        ("size", "attention", "ms", "exponent"),
        rows,
        packages=("optax",),
        pictures={"curves": _plot_scaling(curves)},
    )


def _plot_scaling(curves):
    sizes = list(dict.fromkeys(size for size, _ in curves))
    figure, axes = subplots(2, 3, width=9, height=5.4, sharey=True)
    for ax, size in zip(axes.flat, sizes, strict=True):
        for attention, style in (("softmax", "o--"), ("svda", "s-")):
            xs, ys = curves[size, attention]
            color = COLORS[attention]
            ax.loglog(xs, ys, style, color=color, label=attention, markersize=5)
        label_axes(ax, size, "", "ms a step")
        ax.set_xticks(xs, [str(x) for x in xs])
        ticks = [5, 10, 20, 50, 100, 200, 500]
        ax.set_yticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    legend_above(figure, axes[0, 0], "")
    data = io.BytesIO()
    figure.savefig(data, dpi=150)
    return data.getvalue()

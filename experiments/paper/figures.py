"""The figures of the paper (arXiv 2602.10994), drawn from what was measured.

1  accuracy over epochs             3  the six indicators over training
2  time of an epoch of training     4  the six indicators over layers

Lines are means over seeds, bands reach from the lowest to the highest seed; a colour
for each attention, a line style for each data set. The paper shows the indicators of
SVDA, those of a spectrum of sigma; here those of softmax attention lie in the same
panels, and what has a spectrum is the score.
"""

import string

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svda_jax.look.pictures import color_bar, overlay, show
from svda_jax.look.style import (
    COLORS,
    STYLES,
    keep_text,
    label_axes,
    legend_above,
    subplots,
)
from svda_jax.models.indicators import INDICATORS, of_spectrum

NAMES = {"softmax": "softmax", "svda": "SVDA"}
BAND = "line: mean over seeds; band: lowest to highest seed"
_WIDTH = 7.2  # inches, two columns of print


def draw(comparisons, folder):
    """Writes the four figures as SVG and PNG.

    Args:
      comparisons: `Comparison`s of "softmax" and "svda", one a data set.
      folder: that exists.
    """
    for name, figure in {
        "figure_1_accuracy": accuracy(comparisons),
        "figure_2_time": time_per_epoch(comparisons),
        "figure_3_indicators_by_epoch": indicators(comparisons, "epoch"),
        "figure_4_indicators_by_layer": indicators(comparisons, "layer"),
    }.items():
        save(figure, folder / name)


def save(figure, path):
    """Writes a figure as `<path>.svg`, its text as text, and `<path>.png`."""
    # Equal figures are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=160)


def accuracy(comparisons):
    """Accuracy on the evaluation split over epochs, a panel a data set."""
    columns = min(len(comparisons), 3)
    rows = -(-len(comparisons) // columns)
    figure, axes = subplots(
        rows, columns, width=max(4.4, _WIDTH * columns / 2), height=0.4 + 2.7 * rows
    )
    for ax, comparison in zip(axes.flat, comparisons, strict=False):
        for variant, name in NAMES.items():
            histories = _finished(comparison, variant)
            if histories:
                values = [100 * history["eval_accuracy"] for history in histories]
                style = {
                    "color": COLORS[variant],
                    "label": f"{name}, {_count(histories)}",
                }
                draw_band(ax, histories[0].epoch, values, **style)
        label_axes(ax, comparison.name, "epoch", "accuracy (%)")
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in axes.flat[len(comparisons) :]:
        ax.remove()
    legend_above(figure, None, BAND)
    return figure


def time_per_epoch(comparisons):
    """Time of an epoch of training, SVDA's over softmax attention's, pair by pair."""
    figure, axes = subplots(
        1, 1, width=max(3.6, 1 + 1.7 * len(comparisons)), height=3.2
    )
    ax = axes[0, 0]
    ax.axhline(1, color=COLORS["softmax"], lw=1, label="softmax")
    for place, comparison in enumerate(comparisons):
        svda, softmax = (
            comparison.values(v, epoch_seconds) for v in ("svda", "softmax")
        )
        pairs = svda / softmax
        label = "SVDA: an epoch, runs of one seed" if place == 0 else None
        ax.plot(
            np.full(len(pairs), place - 0.1),
            pairs,
            "o",
            color=COLORS["svda"],
            markersize=5,
            alpha=0.8,
            label=label,
        )
        if step := comparison.overhead:
            label = "SVDA: a step, in turn; bar: quartiles" if place == 0 else None
            ax.errorbar(
                place + 0.1,
                step.median,
                [[step.median - step.low], [step.high - step.median]],
                fmt="D",
                color=COLORS["svda"],
                markerfacecolor="white",
                markersize=5,
                capsize=3,
                label=label,
            )
    label_axes(ax, "", "", "time, SVDA's over softmax attention's")
    ax.set_xticks(range(len(comparisons)), [c.name for c in comparisons])
    keep_text(ax.get_xticklabels())
    ax.set_xlim(-0.6, len(comparisons) - 0.4)
    legend_above(figure, ax, "")
    return figure


def indicators(comparisons, over):
    """The indicators of both attentions, then, of SVDA alone, those of sigma.

    Those of a spectrum in the upper panels are of the score's own, one quantity for
    both attentions.

    Args:
      comparisons: as to `draw`.
      over: "epoch", with means over layers and heads, or "layer", with means over heads
        at the end of training.
    """
    panels = [
        (name, "of the score" if name in of_spectrum() else "", tuple(NAMES))
        for name in INDICATORS
    ]
    panels += [(name, "of sigma", ("svda",)) for name in of_spectrum()]
    rows = -(-len(panels) // 3)
    figure, axes = subplots(rows, 3, width=1.25 * _WIDTH, height=0.6 + 2.2 * rows)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, letter, (name, whose, variants) in zip(
        axes.flat, string.ascii_lowercase, panels, strict=False
    ):
        unit = _draw(ax, comparisons, variants, name, over, whose == "of the score")
        title = f"({letter}) {INDICATORS[name].label} {whose}".rstrip()
        label_axes(ax, title, unit, INDICATORS[name].unit)
        if over == "layer":
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, axes[0, 0], BAND)
    return figure


def _draw(ax, comparisons, variants, name, over, of_score):
    """An indicator, a line a data set and attention; what it is drawn over."""
    runs = [
        (place, comparison.name, variant, histories)
        for place, comparison in enumerate(comparisons)
        for variant in variants
        if (histories := _finished(comparison, variant))
    ]
    lengths = {float(histories[0].epoch[-1]) for *_, histories in runs}
    unit = "fraction of training" if over == "epoch" and len(lengths) > 1 else over
    for place, data, variant, histories in runs:
        chosen = [_read(history, name, of_score) for history in histories]
        if over == "layer":
            x = np.arange(1, 1 + chosen[0].shape[1])
            values = [one[-1].mean(-1) for one in chosen]
        else:
            epochs = histories[0].epoch.values
            x = epochs / epochs[-1] if unit != "epoch" else epochs
            values = [one.mean((1, 2)) for one in chosen]
        draw_band(
            ax,
            x,
            values,
            color=COLORS[variant],
            ls=STYLES[place % len(STYLES)],
            marker="osD^"[place % 4] if over == "layer" else "",
            label=f"{NAMES[variant]}, {data}",
        )
    return unit


def _read(history, name, of_score):
    """An indicator by evaluation, layer and head."""
    if of_score:
        return np.asarray(INDICATORS[name].function(history["score_spectrum"].values))
    return history["indicators"].sel(indicator=name).values


def attention(images, maps, spectrum, titles):
    """Where the heads of the first and the last layer look, below their spectra.

    Args:
      images: `[n, S, S, channels]` uint8.
      maps: their attention maps, `[n, L, H, g, g]`, 1 where attention is uniform.
      spectrum: `[L, H, K]`.
      titles: of the images.
    """
    num_layers, num_heads, _ = spectrum.shape
    layers = sorted({0, num_layers - 1})
    heads = [(layer, head) for layer in layers for head in range(num_heads)]
    rows = 1 + len(images)
    figure = Figure(figsize=(1 + len(heads), 1.05 * rows), layout="constrained")
    axes = figure.subplots(rows, 1 + len(heads))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(1, 0.5, "|sigma|,\nby size", ha="right", va="center", fontsize=8)
    for ax, (layer, head) in zip(axes[0, 1:], heads, strict=True):
        size = -np.sort(-np.abs(spectrum[layer, head]))
        ax.bar(range(len(size)), size, 0.8, color=COLORS["svda"])
        ax.set_ylim(0, np.abs(spectrum).max())
        ax.set_title(f"layer {layer + 1}\nhead {head + 1}", fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[["top", "right"]].set_visible(False)
    for row, image, title, attention in zip(
        axes[1:], images, titles, maps, strict=True
    ):
        show(row[0], image)
        keep_text([row[0].set_title(title, fontsize=8)])
        for ax, place in zip(row[1:], heads, strict=True):
            ax.imshow(overlay(image, attention[place], 160))
            ax.set_axis_off()
    color_bar(figure, axes[1:, :])
    return figure


def epoch_seconds(history):
    """Seconds that an epoch of training takes, the median over a run's evaluations."""
    return history["epoch_seconds"].median()


def _finished(comparison, variant):
    return [history for history in comparison.histories[variant] if history is not None]


def _count(histories):
    return f"{len(histories)} seed{'s' if len(histories) > 1 else ''}"


def draw_band(ax, x, values, *, color, marker="", **style):
    """The mean of several lines, and from the lowest to the highest."""
    values = np.array(values)
    if len(x) == 1:
        marker = marker or "."
    ax.plot(x, values.mean(0), color=color, marker=marker, markersize=4, **style)
    ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)

"""The figures of the paper (arXiv 2602.10994), drawn from what was measured.

1  accuracy over epochs             3  the six indicators over epochs
2  time of an epoch of training     4  the six indicators over layers

Lines are means over seeds, bands reach from the lowest to the highest seed. The paper
shows the indicators of SVDA, those of a spectrum of sigma; here those of softmax
attention stand beside them, and what has a spectrum is the score.
"""

import string

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svda_jax.look.style import KINDS
from svda_jax.models.indicators import INDICATORS, of_spectrum

NAMES = {"softmax": "softmax", "svda": "SVDA"}
_STYLES = {"softmax": "--", "svda": "-"}
_WIDTH = 7.2  # inches, two columns of print
matplotlib.rcParams["svg.hashsalt"] = "svda_jax"  # equal figures are equal files


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
    """Writes a figure as `<path>.svg` and `<path>.png`."""
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=160)


def accuracy(comparisons):
    """Accuracy on the evaluation split over epochs, a panel a data set."""
    columns = min(len(comparisons), 4)
    rows = -(-len(comparisons) // columns)
    size = (max(4.4, _WIDTH * columns / 3), 2.9 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, comparison in zip(axes.flat, comparisons, strict=False):
        for variant, color in zip(NAMES, KINDS, strict=False):
            histories = _finished(comparison, variant)
            if histories:
                values = [100 * history["eval_accuracy"] for history in histories]
                label = f"{NAMES[variant]}, {_count(histories)}"
                _band(ax, histories[0].epoch, values, color, _STYLES[variant], label)
        style_axes(ax, comparison.name, "epoch", "accuracy (%)")
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in axes.flat[len(comparisons) :]:
        ax.remove()
    return figure


def time_per_epoch(comparisons):
    """Seconds an epoch of training takes, and what SVDA adds to them."""
    figure = Figure(
        figsize=(max(3.6, _WIDTH * len(comparisons) / 3), 2.9), layout="constrained"
    )
    axes = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for ax, comparison in zip(axes, comparisons, strict=True):
        seconds = {v: comparison.values(v, epoch_seconds) for v in NAMES}
        for place, values in enumerate(seconds.values()):
            values = values[np.isfinite(values)]
            if len(values):
                ax.bar(place, values.mean(), 0.6, color=KINDS[place], alpha=0.75)
                ax.plot(
                    np.full(len(values), place), values, "k.", markersize=5, alpha=0.7
                )
        title = comparison.name
        if comparison.overhead:
            added = 100 * (comparison.overhead.median - 1)
            title += f"\na step in turn: {added:+.1f} % for SVDA"
        style_axes(ax, title, "", "seconds an epoch")
        ax.set_xticks(range(len(NAMES)), NAMES.values())
    return figure


def indicators(comparisons, over):
    """The indicators, SVDA and softmax attention side by side, then those of sigma.

    Those of a spectrum that stand side by side are of the score's own, one quantity for
    both attentions.

    Args:
      comparisons: as to `draw`.
      over: "epoch", with means over layers and heads, or "layer", with means over heads
        at the end of training.
    """
    figure = Figure(figsize=(1.35 * _WIDTH, 8.8), layout="constrained")
    axes = figure.subplots(4, 4)
    letters = iter(string.ascii_lowercase)
    for place, name in enumerate(INDICATORS):
        row, column = divmod(place, 2)
        pair = axes[row, 2 * column : 2 * column + 2]
        of_score = name in of_spectrum()
        for ax, variant in zip(pair, ("svda", "softmax"), strict=True):
            whose = f"of the score, {NAMES[variant]}" if of_score else NAMES[variant]
            title = f"({next(letters)}) {INDICATORS[name].label}\n{whose}"
            _draw(ax, comparisons, variant, name, over, of_score, title)
        low, high = zip(*(ax.get_ylim() for ax in pair), strict=True)
        for ax in pair:
            ax.set_ylim(min(low), max(high))
    for ax, name in zip(axes[3], of_spectrum(), strict=False):
        title = f"({next(letters)}) {INDICATORS[name].label}\nof sigma, {NAMES['svda']}"
        _draw(ax, comparisons, "svda", name, over, False, title)
    axes[3, 3].remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def _draw(ax, comparisons, variant, name, over, of_score, title):
    """An indicator of one attention, a line a data set."""
    for i, comparison in enumerate(comparisons):
        histories = _finished(comparison, variant)
        if not histories:
            continue
        chosen = [_read(history, name, of_score) for history in histories]
        if over == "epoch":
            x = histories[0].epoch
            values = [one.mean((1, 2)) for one in chosen]
        else:
            x = np.arange(1, 1 + histories[0].sizes["layer"])
            values = [one[-1].mean(-1) for one in chosen]
        marker = "osD^"[i % 4] if over == "layer" else ""
        style = ("-", "--", "-.", ":")[i % 4]
        _band(ax, x, values, KINDS[i], style, comparison.name, marker)
    style_axes(ax, title, over, INDICATORS[name].unit)
    if over == "layer":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


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
    axes[0, 0].text(1, 0.5, "|sigma|", ha="right", va="center", fontsize=8)
    shown = np.stack([maps[:, layer, head] for layer, head in heads], 1)
    for column, (layer, head) in enumerate(heads, start=1):
        size = -np.sort(-np.abs(spectrum[layer, head]))
        ax = axes[0, column]
        ax.bar(range(len(size)), size, 0.8, color=KINDS[0])
        ax.set_ylim(0, np.abs(spectrum).max())
        ax.set_title(f"layer {layer + 1}\nhead {head + 1}", fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[["top", "right"]].set_visible(False)
    for row, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        grey = image.shape[-1] == 1
        axes[row, 0].imshow(image[..., 0] if grey else image, cmap="gray")
        axes[row, 0].set_title(title, fontsize=7).set_parse_math(False)
        for column in range(1, 1 + len(heads)):
            picture = axes[row, column].imshow(
                shown[row - 1, column - 1], cmap="cividis", vmin=0, vmax=shown.max()
            )
        for ax in axes[row]:
            ax.set_axis_off()
    bar = figure.colorbar(picture, ax=axes[1:, :], shrink=0.8, pad=0.01)
    bar.set_label("attention (1 = uniform)", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def epoch_seconds(history):
    """Seconds that an epoch of training takes, the median over a run's evaluations."""
    return history["epoch_seconds"].median()


def _finished(comparison, variant):
    return [history for history in comparison.histories[variant] if history is not None]


def _count(histories):
    return f"{len(histories)} seed{'s' if len(histories) > 1 else ''}"


def _band(ax, x, values, color, style, label, marker=""):
    """The mean of several lines, and from the lowest to the highest."""
    values = np.array(values)
    if len(x) == 1:
        marker = marker or "."
    ax.plot(
        x, values.mean(0), style, color=color, label=label, marker=marker, markersize=4
    )
    ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)


def style_axes(ax, title, x, y):
    """Title and labels of a panel, in small print."""
    ax.set_title(title, fontsize=7.5).set_parse_math(False)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)

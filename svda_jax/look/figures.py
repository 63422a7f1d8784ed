"""Figures of what runs measured, for TensorBoard, reports and notebooks.

Each function takes runs as `Drawn`, or arrays, and returns a matplotlib figure that
belongs to no window. Compared runs lie in the same panels: a colour for each attention,
a line style for each run of it. Quantities of heads are in cividis, in the range that
theory gives them.
"""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from svda_jax.look.style import (
    COLORS,
    QUANTITY,
    STYLES,
    WIDTH,
    label_axes,
    legend_above,
    subplots,
)
from svda_jax.models.indicators import INDICATORS


class Drawn(NamedTuple):
    """A run as figures take it.

    Attributes:
      label: its name in legends.
      attention: a key of `COLORS`.
      history: arrays by the names of `run.history.VARIABLES`, an evaluation a row: a
        run's history, or a dict of what a figure reads.
      num_epochs: that the run trains for; None is the epoch of the last evaluation.
    """

    label: str
    attention: str
    history: Mapping
    num_epochs: float | None = None

    def last(self, name):
        """The array that the last evaluation measured."""
        return np.asarray(self.history[name][-1])


def curves(runs):
    """Loss and accuracy of `Drawn` runs over training."""
    figure, axes = subplots(1, 2, width=WIDTH, height=3.3)
    x, unit = _progress(runs)
    for ax, name, y in zip(
        axes[0], ("loss", "accuracy"), ("nats", "fraction"), strict=True
    ):
        for run, style, at in zip(runs, _styles(runs), x, strict=True):
            style |= _point_of(run)
            ax.plot(at, run.history[f"train_{name}"], lw=0.8, alpha=0.55, **style)
            ax.plot(at, run.history[f"eval_{name}"], label=run.label, **style)
        label_axes(ax, name, unit, y)
    legend_above(figure, axes[0, 0], "thick: evaluation split; thin: training batches")
    return figure


def indicators_by_epoch(runs):
    """The six indicators of `Drawn` runs over training."""
    figure, axes = _indicator_panels()
    x, unit = _progress(runs)
    for ax, name in zip(axes, INDICATORS, strict=True):
        for run, style, at in zip(runs, _styles(runs), x, strict=True):
            style |= _point_of(run)
            layers = _indicator(run, name).mean(-1)  # [step, L]
            for alpha, layer in zip(
                np.linspace(0.25, 0.75, layers.shape[1]), layers.T, strict=True
            ):
                ax.plot(at, layer, lw=0.7, alpha=alpha, **style)
            ax.plot(at, layers.mean(1), lw=2, label=run.label, **style)
        label_axes(ax, INDICATORS[name].label, unit, INDICATORS[name].unit)
    legend_above(
        figure,
        axes[0],
        "thick: mean over layers and heads; thin: a layer each, the first palest",
    )
    return figure


def indicators_by_layer(runs):
    """The six indicators of `Drawn` runs by layer, at first and at last."""
    figure, axes = _indicator_panels()
    for ax, name in zip(axes, INDICATORS, strict=True):
        for i, (run, style) in enumerate(zip(runs, _styles(runs), strict=True)):
            values = _indicator(run, name)  # [step, L, H]
            layers = np.arange(1, 1 + values.shape[1])
            layers = layers + 0.6 * (i - (len(runs) - 1) / 2) / max(len(runs), 5)
            mean, low, high = (f(values[-1], -1) for f in (np.mean, np.min, np.max))
            if len(values) > 1:
                ax.plot(layers, values[0].mean(-1), lw=1, alpha=0.4, **style)
            spread = np.maximum([mean - low, high - mean], 0)  # of one head: rounding
            style |= {"marker": "o", "markersize": 3, "capsize": 1.5, "elinewidth": 1}
            ax.errorbar(layers, mean, yerr=spread, label=run.label, **style)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_axes(ax, INDICATORS[name].label, "layer", INDICATORS[name].unit)
    legend_above(
        figure,
        axes[0],
        "points: mean over heads at the last evaluation; bars: lowest to highest head; "
        "pale: the first evaluation",
    )
    return figure


def heat_map(values, name, num_directions):
    """One indicator, layer by head, in the range that it can have.

    Args:
      values: `[L, H]`.
      name: of `INDICATORS`.
      num_directions: K of the heads.
    """
    figure, axes = _heat_map_panels(1, 1, len(values))
    _heat_map(axes[0, 0], values, name, num_directions)
    return figure


def heat_maps(values, num_directions):
    """All six indicators, layer by head: `[6, L, H]`; else as `heat_map`."""
    # Wide enough for the numbers in the cells.
    columns = 3 if values.shape[-1] <= 8 else 2
    figure, axes = _heat_map_panels(
        -(-len(INDICATORS) // columns), columns, values.shape[1]
    )
    for ax in axes.flat[len(INDICATORS) :]:
        ax.remove()
    for ax, name, one in zip(axes.flat, INDICATORS, values, strict=False):
        _heat_map(ax, one, name, num_directions)
    return figure


def spectra(runs):
    """The spectrum of each head of `Drawn` runs: `|sigma|`, or W_q W_k^T's.

    Where attentions differ it is relative to the head's largest value: sigma and
    singular values have no unit in common.
    """
    if len({run.attention for run in runs}) > 1:
        return _spectra(runs, "spectrum", "share of the head's largest", relative=True)
    return _spectra(runs, "spectrum", "|spectrum|")


def score_spectra(runs):
    """The spectrum of each head's score of `Drawn` runs, one ruler for all."""
    return _spectra(runs, "score_spectrum", "logits")


def _spectra(runs, name, unit, *, relative=False):
    """A panel a layer, a line a head; NaN where a layer has fewer directions."""
    sorted_sizes = [-np.sort(-np.abs(run.last(name)), axis=-1) for run in runs]
    if relative:
        sorted_sizes = [
            sizes / np.maximum(sizes[..., :1], 1e-30) for sizes in sorted_sizes
        ]
    num_layers = max(len(sizes) for sizes in sorted_sizes)
    figure, axes = _layer_panels(num_layers, 2.1, sharex=True, sharey=True)
    for run, style, sizes in zip(runs, _styles(runs), sorted_sizes, strict=True):
        directions = np.arange(1, 1 + sizes.shape[-1])
        for ax, heads in zip(axes, sizes, strict=False):
            lines = ax.plot(directions, heads.T, lw=1, alpha=0.75, **style)
            lines[0].set_label(run.label)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.tick_params(labelbottom=True)
    top = max(np.nanmax(sizes, initial=1e-6) for sizes in sorted_sizes)
    axes[0].set_ylim(0, 1.05 * top)
    figure.supxlabel("direction, by size", fontsize=8)
    figure.supylabel(unit, fontsize=8)
    legend_above(figure, axes[0], "a line a head")
    return figure


def kept_directions(spectrum, keep):
    """Which directions pruning took: a panel a layer, a row a head, crosses on those.

    Args:
      spectrum: `[H, K]` of each layer, before.
      keep: `[H, K]` bool of each layer.
    """
    squares = [np.square(np.asarray(one)) for one in spectrum]
    energy = [100 * s / np.maximum(s.sum(-1, keepdims=True), 1e-30) for s in squares]
    top = max(float(one.max()) for one in energy)
    figure, axes = _layer_panels(
        len(energy), 0.6 + 0.16 * max(len(one) for one in energy)
    )
    for ax, one, kept in zip(axes, energy, keep, strict=True):
        picture = _cells(ax, one, 0, top)
        heads, directions = np.nonzero(~np.asarray(kept))
        ax.plot(1 + directions, 1 + heads, "x", color="white", markersize=4)
    figure.supxlabel("direction (x: removed)", fontsize=8)
    figure.supylabel("head", fontsize=8)
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label("% of the head's energy", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _styles(runs):
    """Colour and line style of each run, dicts of one's own."""
    seen = collections.Counter()
    for run in runs:
        if run.attention not in COLORS:
            raise ValueError(f"attention={run.attention} must be {' or '.join(COLORS)}")
        style = STYLES[seen[run.attention] % len(STYLES)]
        seen[run.attention] += 1
        yield {"color": COLORS[run.attention], "ls": style}


def _progress(runs):
    """What training is drawn over, for each run, and its unit.

    Epochs, or the fraction of training where runs are not of one length.
    """
    epochs = [np.asarray(run.history["epoch"]) for run in runs]
    lengths = [
        max(run.num_epochs or 0, at[-1]) or 1  # the last step may end behind an epoch
        for run, at in zip(runs, epochs, strict=True)
    ]
    if max(lengths) - min(lengths) < 0.5:
        return epochs, "epoch"
    fractions = [at / length for at, length in zip(epochs, lengths, strict=True)]
    return fractions, "fraction of training"


def _point_of(run):
    """A marker, where a single evaluation makes no line."""
    return {"marker": "." if len(run.history["epoch"]) < 2 else ""}


def _indicator(run, name):
    """`[step, L, H]`."""
    return np.asarray(run.history["indicators"].sel(indicator=name))


def _indicator_panels():
    """A figure with a panel for each of `INDICATORS`, three a row, and these panels."""
    rows = -(-len(INDICATORS) // 3)
    figure, axes = subplots(rows, 3, width=WIDTH, height=0.5 + 2.4 * rows)
    for ax in axes.flat[len(INDICATORS) :]:
        ax.remove()
    return figure, axes.flat[: len(INDICATORS)]


def _layer_panels(num_layers, height, **options):
    """A figure with a panel of that height for each layer, at most four a row."""
    columns = min(num_layers, 4)
    rows = -(-num_layers // columns)
    figure, axes = subplots(
        rows, columns, width=WIDTH, height=0.7 + height * rows, **options
    )
    for layer, ax in enumerate(axes.flat, start=1):
        ax.set_title(f"layer {layer}", fontsize=9)
    for ax in axes.flat[num_layers:]:
        ax.remove()
    return figure, axes.flat[:num_layers]


def _heat_map_panels(rows, columns, num_layers):
    height = rows * max(2.3, 0.7 + 0.2 * num_layers)
    return subplots(rows, columns, width=WIDTH if columns > 1 else 4.5, height=height)


def _heat_map(ax, values, name, num_directions):
    indicator = INDICATORS[name]
    low, high = (end(num_directions) for end in indicator.range)
    _cells(ax, values, low, high)
    label_axes(ax, f"{indicator.label} ({low:.3g} to {high:.3g})", "head", "layer")
    width = _width(ax) / values.shape[1]
    if width < 13:  # points, of a cell: too little for numbers
        return
    style = {"ha": "center", "va": "center", "fontsize": min(8, width / 2.7)}
    for (layer, head), value in np.ndenumerate(values):
        bright = value - low > 0.5 * (high - low)
        text = f"{value:.{1 if high >= 10 else 2}f}"
        color = "#1a1a1a" if bright else "white"  # on every page the same
        if not np.isfinite(value):
            color = "black"  # the page's, on its empty cell
        ax.text(1 + head, 1 + layer, text, color=color, **style)


def _width(ax):
    """Of a panel in points, about."""
    columns = ax.get_subplotspec().get_gridspec().ncols
    return 72 * 0.8 * ax.figure.get_figwidth() / columns


def _cells(ax, values, low, high):
    """A cell for each value `[rows, columns]`, from 1 at the upper left."""
    edges = [np.arange(0.5, 1 + size) for size in values.shape]
    picture = ax.pcolormesh(*edges[::-1], values, cmap=QUANTITY, vmin=low, vmax=high)
    ax.invert_yaxis()
    rows, columns = values.shape
    ax.set_yticks(range(1, 1 + rows, -(-rows // 16)))
    room = int(_width(ax) / 15)  # for as many labels of two digits
    ax.set_xticks(range(1, 1 + columns, -(-columns // room)))
    return picture

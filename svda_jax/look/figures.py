"""Pictures of what a run measured, for TensorBoard, reports and notebooks.

Each function takes arrays or histories and returns a matplotlib figure that belongs to
no window. Colours: cividis for quantities, Okabe and Ito's for kinds; both survive
colour blindness.
"""

import io

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svda_jax.models.indicators import INDICATORS

KINDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_QUANTITY = "cividis"


def to_png(figure, dpi=100):
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_rgb(figure):
    """The figure as an array `[height, width, 3]` uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def share_scales(figures):
    """Gives what stands in the same place of several figures the same limits.

    Args:
      figures: of one function here.
    """
    for axes in zip(*(figure.axes for figure in figures), strict=False):
        pictures = [picture for ax in axes for picture in ax.images]
        limits = [picture.get_clim() for picture in pictures]
        for picture in pictures:
            picture.set_clim(_widest(limits))
        if not pictures and axes[0].get_label() != "<colorbar>":
            x, y = (
                _widest([ax.get_xlim() for ax in axes]),
                _widest([ax.get_ylim() for ax in axes]),
            )
            for ax in axes:
                ax.set(xlim=x, ylim=y)


def _widest(limits):
    lows, highs = zip(*limits, strict=True)
    return min(lows), max(highs)


def curves(histories):
    """Loss and accuracy over epochs.

    Args:
      histories: `xarray.Dataset`s as a run's history, by label.
    """
    figure, axes = _subplots(1, 2, width=9, height=3.2)
    for color, (label, history) in zip(KINDS, histories.items(), strict=False):
        for ax, name in zip(axes[0], ("loss", "accuracy"), strict=True):
            style = {"color": color, "marker": "." if history.sizes["step"] < 2 else ""}
            ax.plot(history.epoch, history[f"train_{name}"], ls=":", **style)
            ax.plot(history.epoch, history[f"eval_{name}"], label=label, **style)
    for ax, label in zip(axes[0], ("loss (nats)", "accuracy (fraction)"), strict=True):
        ax.set_xlabel("epoch", fontsize=8)
        ax.set_ylabel(label, fontsize=8)
    _keep_text(axes[0, 1].legend(frameon=False, fontsize=8, loc="lower right").texts)
    return figure


def indicators_by_epoch(history):
    """The six indicators over epochs: a line a layer, the mean over its heads."""
    figure, axes = _indicator_panels()
    num_layers = history.sizes["layer"]
    for ax, name in zip(axes, INDICATORS, strict=True):
        values = history["indicators"].sel(indicator=name).mean("head")  # [step, L]
        for layer in range(num_layers):
            ax.plot(
                history.epoch,
                values.isel(layer=layer),
                color=_shade(layer, num_layers),
                marker="." if history.sizes["step"] < 2 else "",
                label=f"layer {layer + 1}",
            )
        _label(ax, name, "epoch")
    _legend_outside(figure, axes[0])
    return figure


def indicators_by_layer(history):
    """The six indicators over layers at the first, middle and last evaluation.

    Points are means over heads, bars reach from the lowest to the highest head.
    """
    figure, axes = _indicator_panels()
    last = history.sizes["step"] - 1
    rows = sorted({0, last // 2, last})
    layers = np.arange(1, history.sizes["layer"] + 1)
    for ax, name in zip(axes, INDICATORS, strict=True):
        values = history["indicators"].sel(indicator=name)  # [step, L, H]
        for i, row in enumerate(rows):
            heads = values.isel(step=row)
            mean = heads.mean("head")
            spread = [mean - heads.min("head"), heads.max("head") - mean]
            ax.errorbar(
                layers + 0.08 * (i - (len(rows) - 1) / 2),
                mean,
                yerr=np.maximum(spread, 0),
                color=_shade(i, len(rows)),
                marker="o",
                markersize=4,
                capsize=2,
                label=f"epoch {float(history.epoch[row]):.0f}",
            )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label(ax, name, "layer")
    _legend_outside(figure, axes[0])
    return figure


def heat_map(values, name):
    """One indicator, layer by head.

    Args:
      values: `[L, H]`.
      name: of `INDICATORS`.
    """
    figure, axes = _subplots(1, 1, width=4.2, height=3.2)
    _heat_map(axes[0, 0], values, name)
    return figure


def heat_maps(values):
    """All six indicators, layer by head: `[6, L, H]`."""
    figure, axes = _indicator_panels()
    for ax, name, one in zip(axes, INDICATORS, values, strict=True):
        _heat_map(ax, one, name)
    return figure


def spectra(spectrum, label="|spectrum|"):
    """The spectrum of each head, sorted: a panel a layer, a line a head.

    Args:
      spectrum: `[L, H, K]`, NaN where a layer has fewer directions.
      label: of its values.
    """
    num_layers, num_heads, num_directions = spectrum.shape
    columns = min(num_layers, 4)
    rows = -(-num_layers // columns)
    figure, axes = _subplots(
        rows, columns, width=9, height=0.6 + 2.1 * rows, sharey=True
    )
    magnitude = -np.sort(-np.abs(spectrum), axis=-1)
    directions = np.arange(1, num_directions + 1)
    for ax, layer in zip(axes.flat, range(num_layers), strict=False):
        for head in range(num_heads):
            ax.plot(
                directions, magnitude[layer, head], color=_shade(head, num_heads), lw=1
            )
        ax.set_title(f"layer {layer + 1}", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0, 0].set_ylim(0, 1.05 * np.nanmax(magnitude, initial=1e-6))
    for ax in axes.flat[num_layers:]:
        ax.remove()
    figure.supxlabel("direction, by size", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def kept_directions(spectrum, keep):
    """Which directions pruning took: a panel a layer, a row a head, crosses on those.

    Args:
      spectrum: `[H, K]` of each layer, before.
      keep: `[H, K]` bool of each layer.
    """
    columns = min(len(spectrum), 4)
    rows = -(-len(spectrum) // columns)
    figure, axes = _subplots(rows, columns, width=9, height=0.7 + 1.5 * rows)
    squares = [np.square(np.asarray(one)) for one in spectrum]
    energy = [100 * s / np.maximum(s.sum(-1, keepdims=True), 1e-30) for s in squares]
    top = max(float(one.max()) for one in energy)
    for layer, (ax, one, kept) in enumerate(
        zip(axes.flat, energy, keep, strict=False), start=1
    ):
        num_heads, num_directions = one.shape
        picture = ax.imshow(
            one,
            cmap=_QUANTITY,
            vmin=0,
            vmax=top,
            aspect="auto",
            extent=(0.5, num_directions + 0.5, num_heads + 0.5, 0.5),
        )
        heads, directions = np.nonzero(~np.asarray(kept))
        ax.plot(1 + directions, 1 + heads, "x", color="white", markersize=4)
        ax.set_title(f"layer {layer}", fontsize=9)
        ax.set_yticks(range(1, 1 + num_heads))
    for ax in axes.flat[len(spectrum) :]:
        ax.remove()
    figure.supxlabel("direction (x: removed)", fontsize=9)
    figure.supylabel("head", fontsize=9)
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label("% of the head's energy", fontsize=8)
    return figure


def attention_grid(image, maps, title):
    """An image and the attention maps of every layer and head over it.

    Args:
      image: `[S, S, channels]`, 0 to 255.
      maps: `[L, H, g, g]`, 1 where attention is uniform.
      title: above the image.
    """
    num_layers, num_heads, grid, _ = maps.shape
    height = max(2.4, 9 * num_layers / (num_heads + 4))
    figure = Figure(figsize=(9, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, max(2, num_heads / 2)])
    show(left, image)
    _keep_text([left.set_title(title, fontsize=9)])
    # Tiles a pixel apart, as one picture: a few hundred axes would take seconds.
    tiles = np.full((num_layers * (grid + 1) - 1, num_heads * (grid + 1) - 1), np.nan)
    for layer in range(num_layers):
        for head in range(num_heads):
            top, start = layer * (grid + 1), head * (grid + 1)
            tiles[top : top + grid, start : start + grid] = maps[layer, head]
    picture = right.imshow(tiles, cmap=_QUANTITY, vmin=0, interpolation="nearest")
    middle = (grid - 1) / 2
    right.set_xticks(middle + (grid + 1) * np.arange(num_heads))
    right.set_xticklabels(range(1, num_heads + 1))
    right.set_yticks(middle + (grid + 1) * np.arange(num_layers))
    right.set_yticklabels(range(1, num_layers + 1))
    right.set(xlabel="head", ylabel="layer")
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=right, shrink=0.8)
    bar.set_label("attention (1 = uniform)", fontsize=8)
    return figure


def rollouts(images, maps, titles):
    """Images above their attention rollout.

    Args:
      images: `[B, S, S, channels]`, 0 to 255.
      maps: `[B, g, g]`, 1 where attention is uniform.
      titles: B lines.
    """
    figure, axes = _subplots(2, len(images), width=9, height=4)
    for column, (image, one, title) in enumerate(
        zip(images, maps, titles, strict=True)
    ):
        show(axes[0, column], image)
        _keep_text([axes[0, column].set_title(title, fontsize=8)])
        picture = axes[1, column].imshow(
            one, cmap=_QUANTITY, vmin=min(maps.min(), 0.99), vmax=max(maps.max(), 1.01)
        )
        axes[1, column].set_axis_off()
    bar = figure.colorbar(picture, ax=axes[1], shrink=0.8)
    bar.set_label("rollout (1 = uniform)", fontsize=8)
    return figure


def gallery(images, titles):
    """Images `[B, S, S, channels]` with a title each, six a row."""
    columns = 6
    rows = -(-len(images) // columns)
    figure, axes = _subplots(rows, columns, width=9, height=2.1 * rows)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        show(ax, image)
        _keep_text([ax.set_title(title, fontsize=8)])
    return figure


def _subplots(rows, columns, *, width, height, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _indicator_panels():
    """A figure with a panel for each of `INDICATORS`, three a row, and these panels."""
    rows = -(-len(INDICATORS) // 3)
    figure, axes = _subplots(rows, 3, width=9, height=2.5 * rows)
    for ax in axes.flat[len(INDICATORS) :]:
        ax.remove()
    return figure, axes.flat[: len(INDICATORS)]


def _shade(i, num):
    """The i-th of so many ordered colours, leaving out the palest."""
    return colormaps[_QUANTITY](0.9 * i / max(num - 1, 1))


def _label(ax, name, x):
    """Title and axis labels of an indicator's panel."""
    ax.set_title(INDICATORS[name].label, fontsize=9)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(INDICATORS[name].unit, fontsize=8)


def _legend_outside(figure, ax):
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _heat_map(ax, values, name):
    picture = ax.imshow(values, cmap=_QUANTITY, aspect="auto")
    ax.set_title(INDICATORS[name].label, fontsize=9)
    ax.set_xlabel("head", fontsize=8)
    ax.set_ylabel("layer", fontsize=8)
    for axis, size in ((ax.xaxis, values.shape[1]), (ax.yaxis, values.shape[0])):
        axis.set_ticks(range(size), range(1, size + 1))
    bar = ax.figure.colorbar(picture, ax=ax)
    bar.set_label(INDICATORS[name].unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _keep_text(texts):
    """Keeps names that come from outside from being read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def show(ax, image):
    """Shows an image of one or three channels."""
    if image.shape[-1] == 1:
        ax.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        ax.imshow(image.astype(np.uint8))
    ax.set_axis_off()

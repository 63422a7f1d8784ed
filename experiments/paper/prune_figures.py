"""The figures of `experiments.paper.prune`."""

import numpy as np
import scipy.stats

from experiments.paper.figures import BAND, NAMES, draw_band
from svda_jax.look.style import (
    COLORS,
    KINDS,
    label_axes,
    legend_above,
    legend_below,
    subplots,
)

# What is drawn: attention, key of "accuracy", what it is called, color, style.
MASKED = (
    ("svda", "score", "SVDA, score by data", COLORS["svda"], "o-"),
    ("svda", "weights", "SVDA, score by weights", COLORS["svda"], "D--"),
    ("svda", "sigma", "SVDA, |sigma|", COLORS["svda"], "^:"),
    ("svda", "random", "SVDA, at random", "0.5", "v-."),
    ("softmax", "score", "softmax, score by data", COLORS["softmax"], "s-"),
    ("softmax", "weights", "softmax, W_q W_k^T", COLORS["softmax"], "P--"),
)
SHRUNK = (
    ("svda", "score", "SVDA, masked", COLORS["svda"], "o-"),
    ("svda", "shrunk", "SVDA, shrunk, lengths kept", KINDS[3], "s--"),
    ("svda", "short", "SVDA, shrunk, lengths without what went", KINDS[2], "^:"),
)
_POINT = (0, 2, 3, 4)  # of `MASKED`
_POINTS = (2, 1, 0, -1, -2, -5, -10, -20, -50)


def removed(studies):
    """Change of accuracy over the share of directions removed, masked and shrunk."""
    figure, axes = subplots(1, 2, width=9, height=4.6, sharey=True)
    for ax, lines in zip(axes[0], (MASKED, SHRUNK), strict=True):
        for line in lines:
            _plot(ax, studies, *line)
        _label_accuracy(ax)
        legend_below(ax)
    legend_above(
        figure, None, f"{BAND}; a line names what decides: the least of it goes first"
    )
    return figure


def _plot(ax, studies, attention, name, label, color, style):
    runs = studies[attention]
    num_directions = np.shape(runs[0]["spectrum"])[-1]
    x = 100 * (1 - np.array(runs[0]["ranks"]) / num_directions)
    change = [100 * (np.array(s["accuracy"][name]) - s["original"]) for s in runs]
    draw_band(ax, x, change, color=color, ls=style[1:], marker=style[0], label=label)


def _label_accuracy(ax):
    ax.axhline(0, color="0.6", lw=0.8)
    label_axes(ax, "", "directions removed (%)", "change of accuracy (points)")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_yticks(_POINTS, map(str, _POINTS))
    ax.minorticks_off()


def point(studies):
    """The spectra of both attentions by one ruler, and what their directions carry."""
    figure, axes = subplots(1, 2, width=9, height=4)
    left, right = axes[0]
    for attention, style in {"softmax": "s", "svda": "o"}.items():
        spectrum = np.array([study["spectrum"] for study in studies[attention]])
        share = spectrum**2 / np.sum(spectrum**2, -1, keepdims=True)
        share = 100 * np.cumsum(share, -1).mean((1, 2))  # [seeds, K]
        x = np.arange(1, 1 + share.shape[-1])
        label, color = NAMES[attention], COLORS[attention]
        draw_band(left, x, share, color=color, marker=style, label=label)
    label_axes(
        left,
        "The score of a head lies in few of its directions",
        "directions of a head, strongest first",
        "energy of its score in them (%)",
    )
    legend_below(left)
    for place in _POINT:
        _plot(right, studies, *MASKED[place])
    _label_accuracy(right)
    right.set_title("Most can go, without any training", fontsize=9)
    legend_below(right)
    legend_above(
        figure, None, f"{BAND}; a line names what decides: the least of it goes first"
    )
    return figure


def directions(studies):
    """What the class logits do without a direction, over its size, layer by layer."""
    runs = studies["svda"]
    bases = {"sigma": "|sigma| / √K", "score": "size in the score (logits)"}
    num_layers = len(runs[0]["spectrum"])
    shown = np.unique(np.linspace(0, num_layers - 1, 4).round().astype(int))
    figure, axes = subplots(
        len(bases),
        len(shown),
        width=2.3 * len(shown),
        height=5,
        sharex="row",
        sharey=True,
    )
    for row, (basis, size) in zip(axes, bases.items(), strict=True):
        rank = np.mean(
            [correlations(s, basis, lambda alone: alone["moved"]) for s in runs], 0
        )
        for layer, ax in zip(shown, row, strict=True):
            for seed, study in enumerate(runs):
                alone = study["alone"][basis]
                ax.loglog(
                    np.ravel(alone["size"][layer]),
                    np.ravel(alone["moved"][layer]),
                    "osD^"[seed % 4],
                    color=COLORS["svda"],
                    markersize=2,
                    alpha=0.5,
                    label=f"SVDA, seed {seed}",
                )
            title = f"layer {layer + 1}: rank correlation {rank[layer]:.2f}"
            label_axes(ax, title, size, "class logits move by" if layer == 0 else "")
            ax.minorticks_off()
    legend_above(figure, axes[0, 0], "a point: one direction taken away alone")
    return figure


def correlations(study, basis, read):
    """Spearman's rank correlation of the directions' sizes with what read takes.

    Args:
      study: of `prune.study`.
      basis: a key of its "alone".
      read: a function from that to `[L, H, K]`.

    Returns:
      `[L]`, over the directions of all heads of a layer.
    """
    alone = study["alone"][basis]
    return [
        scipy.stats.spearmanr(np.ravel(size), np.ravel(other)).statistic
        for size, other in zip(alone["size"], read(alone), strict=True)
    ]

"""The figures of `experiments.paper.prune`."""

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from experiments.paper.figures import NAMES, style_axes
from svda_jax.look.style import KINDS

# Those of softmax attention and of SVDA, in all figures.
_COLORS = dict(zip(NAMES, KINDS, strict=False))
# What is drawn: attention, key of "accuracy", what it is called, color, style.
MASKED = (
    ("svda", "score", "SVDA, least of the score", _COLORS["svda"], "o-"),
    ("svda", "weights", "SVDA, of the score by weights", KINDS[4], "D-"),
    ("svda", "sigma", "SVDA, smallest |sigma|", KINDS[2], "^:"),
    ("svda", "random", "SVDA, at random", "0.5", "v-."),
    ("softmax", "score", "softmax, least of the score", _COLORS["softmax"], "s--"),
    ("softmax", "weights", "softmax, least of W_q W_k^T", KINDS[5], "P--"),
)
SHRUNK = (
    ("svda", "score", "masked", _COLORS["svda"], "o-"),
    ("svda", "shrunk", "shrunk, lengths kept", KINDS[3], "s--"),
    ("svda", "short", "shrunk, lengths without what went", KINDS[2], "^:"),
)
_POINT = (0, 2, 3, 4)  # of `MASKED`


def removed(studies):
    """Change of accuracy over the share of directions removed, masked and shrunk."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for ax, lines in zip(figure.subplots(1, 2), (MASKED, SHRUNK), strict=True):
        for line in lines:
            _plot(ax, studies, *line)
        ax.axhline(0, color="0.6", lw=0.8)
        style_axes(ax, "", "directions removed (%)", "change of accuracy (points)")
        ax.set_yscale("symlog", linthresh=1)
        ticks = [1, 0, -1, -2, -5, -10, -20, -50]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=7, loc="lower left")
    return figure


def _plot(ax, studies, attention, name, label, color, style):
    runs = studies[attention]
    num_directions = np.shape(runs[0]["spectrum"])[-1]
    x = 100 * (1 - np.array(runs[0]["ranks"]) / num_directions)
    change = 100 * np.array(
        [np.array(s["accuracy"][name]) - s["original"] for s in runs]
    )
    ax.plot(x, change.mean(0), style, color=color, label=label, markersize=4)
    ax.fill_between(x, change.min(0), change.max(0), color=color, alpha=0.15, lw=0)


def point(studies):
    """The spectra of both attentions by one ruler, and what their directions carry."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for attention, style in {"softmax": "s--", "svda": "o-"}.items():
        color = _COLORS[attention]
        spectrum = np.array([study["spectrum"] for study in studies[attention]])
        share = spectrum**2 / np.sum(spectrum**2, -1, keepdims=True)
        share = 100 * np.cumsum(share, -1).mean((1, 2))  # [seeds, K]
        x = np.arange(1, 1 + share.shape[-1])
        left.plot(
            x, share.mean(0), style, color=color, label=NAMES[attention], markersize=4
        )
        left.fill_between(x, share.min(0), share.max(0), color=color, alpha=0.2, lw=0)
    style_axes(
        left,
        "The score of a head lies in few of its directions",
        "directions of a head, strongest first",
        "energy of its score in them (%)",
    )
    left.legend(frameon=False, fontsize=8)
    for place in _POINT:
        _plot(right, studies, *MASKED[place])
    right.axhline(0, color="0.6", lw=0.8)
    right.set_ylim(-20, 2)
    style_axes(
        right,
        "Most can go, without any training",
        "directions removed (%)",
        "change of accuracy (points)",
    )
    right.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def directions(studies):
    """What the class logits do without a direction, over its size, layer by layer."""
    runs = studies["svda"]
    bases = ("sigma", "score")
    num_layers = len(runs[0]["spectrum"])
    shown = np.unique(np.linspace(0, num_layers - 1, 4).round().astype(int))
    figure = Figure(figsize=(2.3 * len(shown), 4.6), layout="constrained")
    axes = figure.subplots(len(bases), len(shown), squeeze=False)
    for row, basis in zip(axes, bases, strict=True):
        rank = np.mean(
            [correlations(s, basis, lambda alone: alone["moved"]) for s in runs], 0
        )
        for layer, ax in zip(shown, row, strict=True):
            for seed, study in enumerate(runs):
                alone = study["alone"][basis]
                ax.loglog(
                    np.ravel(alone["size"][layer]),
                    np.ravel(alone["moved"][layer]),
                    ".",
                    color=KINDS[seed % len(KINDS)],
                    markersize=3,
                    alpha=0.6,
                )
            name = {"sigma": "|sigma| / √K", "score": "size in the score (logits)"}[
                basis
            ]
            title = f"layer {layer + 1}: rank correlation {rank[layer]:.2f}"
            style_axes(ax, title, name, "class logits move by" if layer == 0 else "")
            ax.minorticks_off()
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

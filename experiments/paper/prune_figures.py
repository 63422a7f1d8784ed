"""The figures of `experiments.paper.prune`."""

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from svda_jax.look.figures import KINDS

_STYLES = ("o-", "s--", "^:", "v-.", "D--", "P:")


def removed(studies, criteria):
    """Change of accuracy over the share of directions removed, a line a criterion."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    for (criterion, label), color, style in zip(
        criteria.items(), KINDS, _STYLES, strict=True
    ):
        suffix = "_softmax" if criterion == "softmax" else ""
        x = 100 * np.mean([study[f"removed{suffix}"] for study in studies], axis=0)
        change = 100 * np.array(
            [s["accuracy"][criterion] - s[f"original{suffix}"] for s in studies]
        )
        ax.plot(x, change.mean(0), style, color=color, label=label, markersize=4)
        ax.fill_between(x, change.min(0), change.max(0), color=color, alpha=0.15, lw=0)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xlabel("directions removed (%)", fontsize=8)
    ax.set_ylabel("change of accuracy (percentage points)", fontsize=8)
    ax.set_yscale("symlog", linthresh=2)
    ticks = [0, -1, -2, -5, -10, -20, -50]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(top=1)
    _style(ax)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def directions(studies):
    """Loss that each direction adds when it is off against its energy, by layer."""
    num_layers = len(studies[0]["energy"])
    columns = min(num_layers, 4)
    rows = -(-num_layers // columns)
    figure = Figure(figsize=(9, 0.4 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    mean = np.mean([rank_correlations(study) for study in studies], axis=0)
    for layer, ax in zip(range(num_layers), axes.flat, strict=False):
        for seed, study in enumerate(studies):
            ax.plot(
                100 * study["energy"][layer].ravel(),
                study["added_loss"][layer].ravel(),
                ".",
                color=KINDS[seed % len(KINDS)],
                markersize=4,
                alpha=0.6,
                label=f"seed {seed}",
            )
        title = f"layer {layer + 1}, rank correlation {mean[layer]:.2f}"
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("% of the head's energy", fontsize=8)
        ax.set_ylabel("loss added (nats)", fontsize=8)
        _style(ax)
    for ax in axes.flat[num_layers:]:
        ax.remove()
    axes[0, 0].legend(frameon=False, fontsize=7)
    return figure


def finetuned(studies, rhos, tuned, epochs):
    """Accuracy before, after shrinking and after training again, by rho."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(tuned))
    rows = [rhos.index(rho) for rho in tuned]
    series = {
        "original": [[s["original"]] * len(tuned) for s in studies],
        "masked": [s["accuracy"]["energy"][rows] for s in studies],
        "shrunk": [s["accuracy"]["shrunk"][rows] for s in studies],
        f"shrunk, {epochs} epochs more": [s["tuned"] for s in studies],
    }
    for i, (label, values) in enumerate(series.items()):
        values = 100 * np.array(values)
        x = places + 0.12 * (i - 1.5)
        mean = values.mean(0)
        error = [mean - values.min(0), values.max(0) - mean]
        ax.errorbar(
            x,
            mean,
            yerr=np.maximum(error, 0),
            fmt="osD^"[i],
            color=KINDS[i],
            markersize=5,
            capsize=2,
            label=label,
        )
    ax.set_xticks(places, [f"rho = {rho:.2f}" for rho in tuned])
    ax.set_ylabel("accuracy (%)", fontsize=8)
    _style(ax)
    ax.legend(frameon=False, fontsize=8)
    return figure


def rank_correlations(study):
    """Spearman's, of energy with added loss: a number a layer."""
    return [
        scipy.stats.spearmanr(energy.ravel(), added.ravel()).statistic
        for energy, added in zip(study["energy"], study["added_loss"], strict=True)
    ]


def _style(ax):
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)

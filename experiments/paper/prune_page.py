"""The page of `experiments.paper.prune`."""

import numpy as np
import scipy.stats

from experiments.benchmarks.table import describe_machine
from experiments.paper import prune_figures
from experiments.paper.comparison import mean_and_interval, mean_and_spread
from experiments.paper.figures import NAMES, save
from svda_jax.models.indicators import INDICATORS, effective_rank

# Parts of the training after which indicators are held against limits.
PARTS = (0.1, 0.25, 0.5, 1.0)


def write(comparison, studies, out, command):
    """Writes the figures and README.md.

    Args:
      comparison: from `train`.
      studies: of `prune.study`, by attention, a seed each.
      out: folder that exists.
      command: that makes it again.
    """
    save(prune_figures.removed(studies), out / "figure_removed")
    save(prune_figures.directions(studies), out / "figure_directions")
    save(prune_figures.point(studies), out / "figure_spectra")
    lines = [
        *_head(comparison, studies, command),
        *_curves(studies),
        *_shrunk(studies),
        *_rules(studies),
        *_alone(studies),
        *_limits(comparison, studies),
    ]
    (out / "README.md").write_text("\n".join(lines) + "\n")


def _head(comparison, studies, command):
    original = {a: _values(studies[a], "original") for a in studies}
    said = ", ".join(f"{NAMES[a]} {mean_and_spread(original[a], 2)} %" for a in studies)
    ranks = {
        attention: np.array(
            [np.mean(effective_rank(np.float32(s["spectrum"]))) for s in runs]
        )
        for attention, runs in studies.items()
    }
    by_data = ", ".join(f"{NAMES[a]} {mean_and_spread(ranks[a], 2)}" for a in studies)
    return [
        f"# Pruning {comparison.name}",
        "",
        describe_machine(),
        "",
        f"    {command}",
        "",
        f"Seeds 0 to {len(studies['svda']) - 1}, no training after pruning. What goes "
        "is decided on the training images, accuracy is of the whole evaluation "
        f"split. Before: {said}. Effective rank of the score over the training "
        f"images: {by_data}. Differences in accuracy (percentage points) are to the "
        "same seed before, mean with 95 % confidence interval (Student's t). "
        "Every other ± is one standard deviation over seeds. "
        "`numbers.json` has every number, `pruned_*.md` what `python -m svda_jax "
        "prune` says of seed 0, with measured times.",
        "",
        "![the score's spectrum and accuracy](figure_spectra.png)",
        "",
    ]


def _curves(studies):
    columns = [
        (attention, name)
        for attention, names in (
            ("svda", ("score", "pooled", "weights", "sigma", "random")),
            ("softmax", ("score", "pooled", "weights", "random")),
        )
        for name in names
    ]
    labels = {
        "score": "score",
        "pooled": "score, one budget",
        "weights": "score by weights",
        "sigma": "sigma",
        "random": "at random",
    }
    lines = [
        "## Directions removed, masked",
        "",
        "Every head keeps as many directions, in order of the score over the data, "
        "of the score by weights alone (softmax attention: the SVD of W_q W_k^T), of "
        "sigma, or of the score at random; or all heads share a budget of as many.",
        "",
        "![change of accuracy over directions removed](figure_removed.png)",
        "",
        "| kept | removed (%) | "
        + " | ".join(f"{NAMES[a]}: {labels[n]}" for a, n in columns)
        + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for place, rank, removed in _ranks(studies):
        cells = [_change(studies[a], n, place) for a, n in columns]
        lines.append(f"| {rank} | {removed:.1f} | {' | '.join(cells)} |")
    return lines


def _shrunk(studies):
    lines = [
        "",
        "## The shrunk model",
        "",
        "SVDA in the score's directions, without training after it: the difference "
        "of the shrunk model to the masked one, with its lengths kept and with what "
        "went left out of the lengths; its parameters and multiplications; and how "
        "far scores move over the evaluation split against what the spectrum of the "
        "training images foresees (logits, root mean square over heads, layers and "
        "seeds).",
        "",
        "| kept | removed (%) | masked | shrunk - masked | without lengths - masked | "
        "parameters (%) | MACs (%) | moved | foreseen |",
        "|---" * 9 + "|",
    ]
    runs = studies["svda"]
    for place, rank, removed in _ranks(studies):
        accuracy = {
            name: 100 * np.array([s["accuracy"][name][place] for s in runs])
            for name in ("score", "shrunk", "short")
        }
        ratios = (
            mean_and_spread(100 * np.array([s[name][place] for s in runs]), 1)
            for name in ("parameters", "macs")
        )
        logits = (
            np.sqrt(np.mean([np.square(s[name][place]) for s in runs]))
            for name in ("moved", "foreseen")
        )
        cells = [
            _change(runs, "score", place),
            mean_and_interval(accuracy["shrunk"] - accuracy["score"], 2),
            mean_and_interval(accuracy["short"] - accuracy["score"], 2),
            *ratios,
            *(f"{value:.3f}" for value in logits),
        ]
        lines.append(f"| {rank} | {removed:.1f} | {' | '.join(cells)} |")
    return lines


def _rules(studies):
    lines = [
        "",
        "## Rules",
        "",
        "What `python -m svda_jax prune` removes. The follow-up (arXiv 2609.24370) "
        "reports of the first rule, without what went in the lengths: 24.5 to 53.7 % "
        "of the directions, 2.6 to 4.3 % of the parameters and 2.8 to 5.4 % of the "
        "MACs at -0.03 to +0.05 points.",
        "",
        "| | | removed (%) | masked | shrunk | without lengths | parameters (%) | MACs "
        "(%) |",
        "|---" * 8 + "|",
    ]
    for attention, runs in studies.items():
        for rule in runs[0]["rules"]:
            found = [study["rules"][rule] for study in runs]
            before = _values(runs, "original")
            cells = [mean_and_spread(_values(found, "removed"), 1)]
            for name in ("masked", "shrunk", "short"):
                after = _values(found, name)
                cells.append(mean_and_interval(after - before, 2))
            cells += [
                mean_and_spread(_values(found, n), 1) for n in ("parameters", "macs")
            ]
            lines.append(f"| {NAMES[attention]} | `{rule}` | {' | '.join(cells)} |")
    return lines


def _alone(studies):
    num_layers = len(studies["svda"][0]["spectrum"])
    layers = [f"layer {layer + 1}" for layer in range(num_layers)]
    lines = [
        "",
        "## Each direction alone",
        "",
        "A direction is switched off, all others stay: rank correlation (Spearman, "
        "over the directions of a layer's heads) of its size with the root mean square "
        "change of the class logits, with the loss that adds, and with how far the "
        "loss goes whether up or down.",
        "",
        "![what the class logits do without a direction](figure_directions.png)",
        "",
        f"| | basis | with | {' | '.join(layers)} |",
        "|---" * (3 + num_layers) + "|",
    ]
    for attention, runs in studies.items():
        for basis in runs[0]["alone"]:
            for name, read in (
                ("class logits", lambda alone: alone["moved"]),
                ("loss added", lambda alone: alone["added"]),
                ("its size, up or down", lambda alone: np.abs(alone["added"])),
            ):
                values = np.array(
                    [prune_figures.correlations(study, basis, read) for study in runs]
                )
                cells = [mean_and_spread(column, 2) for column in values.T]
                row = f"| {NAMES[attention]} | {basis} | {name} | {' | '.join(cells)} |"
                lines.append(row)
    return lines


def _limits(comparison, studies):
    """How well what is measured during training tells each head's limit at its end."""
    series = {
        INDICATORS[name].label: lambda h, name=name: h["indicators"].sel(indicator=name)
        for name in INDICATORS
    }
    series["effective rank of the score"] = lambda h: h["score_rank"]
    series["strength of the score"] = lambda h: h["score_strength"]
    parts = [f"{100 * part:.0f} %" for part in PARTS]
    lines = [
        "",
        "## What tells the limit of a head",
        "",
        "The limit is the fewest directions that a head can keep, all other heads "
        "whole, before the class logits move by more than 1 % of their root mean "
        "square. Rank correlation (Spearman, over all heads of a run) of what an "
        "evaluation measured of a head after so much of the training with its limit "
        "at the end.",
        "",
    ]
    for attention, runs in studies.items():
        limits = np.array([np.mean(study["limit"]) for study in runs])
        lines += [
            f"{NAMES[attention]}, limits {mean_and_spread(limits, 2)} directions in "
            "the mean:",
            "",
            f"| | {' | '.join(parts)} |",
            "|---" * (1 + len(PARTS)) + "|",
        ]
        for name, read in series.items():
            values = np.array(
                [
                    [_correlate(read(history), part, study["limit"]) for part in PARTS]
                    for history, study in zip(
                        comparison.histories[attention], runs, strict=True
                    )
                ]
            )
            cells = [mean_and_spread(column, 2) for column in values.T]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _correlate(series, part, limit):
    """Spearman's of the evaluation nearest to that part of the training; NaN if "
    "flat."""
    epochs = series.epoch.values
    value = series[np.abs(epochs - part * epochs[-1]).argmin()].values
    if np.ptp(value) == 0 or np.ptp(limit) == 0:
        return np.nan
    return scipy.stats.spearmanr(np.ravel(value), np.ravel(limit)).statistic


def _ranks(studies):
    """Place, rank, and share removed in percent of every rank."""
    study = studies["svda"][0]
    num_directions = np.shape(study["spectrum"])[-1]
    for place, rank in enumerate(study["ranks"]):
        yield place, rank, 100 * (1 - rank / num_directions)


def _values(found, name):
    """In percent, by seed."""
    return 100 * np.array([one[name] for one in found])


def _change(runs, name, place):
    after = 100 * np.array([study["accuracy"][name][place] for study in runs])
    return mean_and_interval(after - _values(runs, "original"), 2)

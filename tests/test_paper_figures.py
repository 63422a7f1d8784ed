"""The paper's figures: what is drawn is what was measured."""

import numpy as np
import pytest
import xarray as xr

from experiments.paper import figures as paper_figures
from experiments.paper.comparison import Comparison
from svda_jax.devices.timing import spread
from svda_jax.look.pictures import overlay
from svda_jax.look.style import COLORS
from svda_jax.models.indicators import INDICATORS


def make_history(accuracies, seconds, seed):
    """A history of two layers and three heads with known indicators."""
    steps = len(accuracies)
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "eval_accuracy": ("step", accuracies),
            "epoch_seconds": ("step", seconds),
            "indicators": (
                ("step", "indicator", "layer", "head"),
                rng.uniform(size=(steps, 6, 2, 3)),
            ),
            "score_spectrum": (
                ("step", "layer", "head", "direction"),
                rng.uniform(size=(steps, 2, 3, 4)),
            ),
        },
        coords={
            "step": range(steps),
            "epoch": ("step", np.arange(1.0, steps + 1)),
            "indicator": list(INDICATORS),
        },
    )


@pytest.fixture
def known():
    """A comparison of three seeds with known numbers; one run failed."""
    histories = {
        "softmax": [make_history([0.1, 0.5], [2, 2.0], s) for s in range(3)],
        "svda": [make_history([0.2, 0.6 + 0.1 * s], [2, 2.2], s) for s in range(2)],
    }
    histories["svda"].append(None)
    return Comparison("known", {}, histories, {}, spread([1.04, 1.05, 1.06]))


def score_rank(history):
    p = history.score_spectrum / history.score_spectrum.sum("direction")
    return np.exp(-(p * np.log(p)).sum("direction"))


def test_figures_show_the_histories(known):
    (ax,) = paper_figures.accuracy([known]).axes
    softmax, svda = ax.lines
    np.testing.assert_allclose(softmax.get_ydata(), [10, 50])
    np.testing.assert_allclose(svda.get_ydata(), [20, 65])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "softmax, 3 seeds",
        "SVDA, 2 seeds",
    ]
    (ax,) = paper_figures.time_per_epoch([known]).axes
    one, pairs, step, *_ = ax.lines
    assert one.get_ydata()[0] == 1
    np.testing.assert_allclose(pairs.get_ydata(), [1.05, 1.05, np.nan])
    assert step.get_ydata() == pytest.approx([1.05])


@pytest.mark.parametrize(
    ("over", "axes"), [("epoch", ("layer", "head")), ("layer", ("head",))]
)
def test_both_attentions_lie_in_the_panel_of_an_indicator(known, over, axes):
    figure = paper_figures.indicators([known], over)
    titles = [ax.get_title() for ax in figure.axes]
    for title, attentions, read in (
        ("(b) effective rank of the score", ("softmax", "svda"), score_rank),
        (
            "(d) angular alignment",
            ("softmax", "svda"),
            lambda h: h["indicators"].sel(indicator="angular_alignment"),
        ),
        (
            "(h) effective rank of sigma",
            ("svda",),
            lambda h: h["indicators"].sel(indicator="effective_rank"),
        ),
    ):
        lines = figure.axes[titles.index(title)].lines
        for line, attention in zip(lines, attentions, strict=True):
            runs = [h for h in known.histories[attention] if h is not None]
            chosen = [read(history).mean(axes) for history in runs]
            values = np.array([h if over == "epoch" else h[-1] for h in chosen])
            np.testing.assert_allclose(line.get_ydata(), values.mean(0), rtol=1e-5)
            assert line.get_color() == COLORS[attention]


def test_data_sets_have_line_styles_and_share_the_fraction_of_training(known):
    longer = [make_history([0.1, 0.2, 0.3], [1, 1, 1], s) for s in range(3)]
    other = Comparison("other", {}, {"softmax": longer, "svda": [None] * 3}, {})
    ax, *_ = paper_figures.indicators([known, other], "epoch").axes
    assert ax.get_xlabel() == "fraction of training"
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--"]
    np.testing.assert_allclose(ax.lines[2].get_xdata(), [1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(("num_layers", "channels"), [(1, 3), (3, 1)])
def test_picture_of_attention(num_layers, channels):
    rng = np.random.default_rng(0)
    spectrum = rng.normal(size=(num_layers, 2, 5))
    maps = rng.uniform(size=(3, num_layers, 2, 4, 4))
    images = rng.integers(0, 256, size=(3, 8, 8, channels)).astype(np.uint8)
    figure = paper_figures.attention(images, maps, spectrum, ["$a_{$", "b", "c"])
    columns = 1 + 2 * min(num_layers, 2)
    bars, last = figure.axes[columns - 1], figure.axes[4 * columns - 1]
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, np.sort(np.abs(spectrum[-1, 1]))[::-1])
    shown = last.images[0].get_array()
    over = overlay(images[2], maps[2, -1, 1], len(shown))
    np.testing.assert_array_equal(shown, over)


def test_figures_are_the_same_bytes_again(known, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paper_figures.save(paper_figures.accuracy([known]), tmp_path / folder / "it")
    for name in ("it.svg", "it.png"):
        first, second = (tmp_path / folder / name for folder in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
    assert ">accuracy (%)</text>" in (tmp_path / "one" / "it.svg").read_text()

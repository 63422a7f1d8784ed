"""Figures draw at every size, and show the numbers that they were given."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from svda_jax.look import figures, pictures, style
from svda_jax.look.figures import Drawn
from svda_jax.models.indicators import INDICATORS


def make_history(rng, num_steps=4, num_layers=3, num_heads=2):
    def draw(*shape):
        return np.float32(rng.uniform(0.1, 0.9, size=shape))

    scalars = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
    return xr.Dataset(
        {
            **{name: ("step", draw(num_steps)) for name in scalars},
            "indicators": (
                ("step", "indicator", "layer", "head"),
                draw(num_steps, 6, num_layers, num_heads),
            ),
        },
        coords={
            "step": np.arange(num_steps),
            "epoch": ("step", np.arange(num_steps) / 2),
            "indicator": list(INDICATORS),
        },
    )


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 2), (7, 12, 12)])
def test_histories_of_every_size(rng, sizes):
    runs = [
        Drawn("a", "svda", make_history(rng, *sizes)),
        Drawn("b", "softmax", make_history(rng, *sizes)),
    ]
    for figure in (
        figures.curves(runs),
        figures.indicators_by_epoch(runs),
        figures.indicators_by_layer(runs),
        figures.heat_maps(runs[0].last("indicators"), 16),
    ):
        assert style.to_png(figure).startswith(b"\x89PNG")


def test_lines_are_the_history(rng):
    history = make_history(rng)
    run = Drawn("SVDA", "svda", history)
    lines = [line.get_ydata() for line in figures.curves([run]).axes[1].lines]
    np.testing.assert_array_equal(lines[0], history["train_accuracy"])
    np.testing.assert_array_equal(lines[1], history["eval_accuracy"])
    figure = figures.indicators_by_epoch([run])
    for ax, name in zip(figure.axes, INDICATORS, strict=True):
        assert ax.get_title() == INDICATORS[name].label
        layers = history["indicators"].sel(indicator=name).mean("head")
        *thin, mean = [line.get_ydata() for line in ax.lines]
        np.testing.assert_allclose(thin, layers.T, rtol=1e-6)
        np.testing.assert_allclose(mean, layers.mean("layer"), rtol=1e-6)


def test_compared_runs_have_colours_by_attention_and_styles_by_run(rng):
    history = make_history(rng)
    runs = [
        Drawn(label, attention, history)
        for label, attention in (("a", "svda"), ("b", "softmax"), ("c", "svda"))
    ]
    lines = figures.curves(runs).axes[0].get_legend_handles_labels()[0]
    drawn = [(line.get_color(), line.get_linestyle()) for line in lines]
    svda, softmax = "#0072B2", "#D55E00"
    assert drawn == [(svda, "-"), (softmax, "-"), (svda, "--")]


def test_runs_of_different_length_are_drawn_over_the_fraction_of_training(rng):
    short, long = make_history(rng, 3), make_history(rng, 5)  # epochs 0 to 1, 0 to 2
    axes = [
        figures.curves([Drawn("a", "svda", short, end), Drawn("b", "svda", long)]).axes
        for end in (None, 2)  # finished, or half way
    ]
    assert [ax[0].get_xlabel() for ax in axes] == ["fraction of training", "epoch"]
    a, _, b, _ = (line.get_xdata() for line in axes[0][0].lines)
    np.testing.assert_allclose(a, [0, 0.5, 1])
    np.testing.assert_allclose(b, [0, 0.25, 0.5, 0.75, 1])


def test_run_that_was_not_trained_lies_at_the_start(rng):
    converted = make_history(rng, 1)
    assert float(converted.epoch[0]) == 0
    runs = [Drawn("a", "svda", converted), Drawn("b", "softmax", make_history(rng, 5))]
    ax = figures.curves(runs).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0])


def test_unknown_attention_is_named(rng):
    with pytest.raises(ValueError, match="attention=SVDA must be svda or softmax"):
        figures.curves([Drawn("a", "SVDA", make_history(rng))])


def test_heat_maps_have_the_range_of_theory_and_say_their_values(rng):
    values = np.float32(rng.uniform(0, 1, size=(6, 2, 3)))
    values[1] *= 16
    entropy, rank, *_ = figures.heat_maps(values, 16).axes
    assert entropy.collections[0].get_clim() == pytest.approx((0, np.log(16)))
    assert rank.collections[0].get_clim() == (1, 16)
    assert rank.get_title() == "effective rank (1 to 16)"
    assert [text.get_text() for text in rank.texts] == [
        f"{v:.1f}" for v in values[1].flat
    ]


def test_spectra_are_sorted_by_size(rng):
    spectrum = np.float32(rng.normal(size=(5, 2, 7)))
    figure = figures.spectra([Drawn("", "svda", {"spectrum": spectrum[None]})])
    assert len(figure.axes) == 5
    line = figure.axes[3].lines[1].get_ydata()
    np.testing.assert_array_equal(line, np.sort(np.abs(spectrum[3, 1]))[::-1])


def test_spectra_of_layers_with_fewer_directions(rng):
    spectrum = np.float32(rng.normal(size=(2, 3, 7)))
    spectrum[1, :, 4:] = np.nan
    figure = figures.spectra([Drawn("", "svda", {"spectrum": spectrum[None]})])
    assert np.isfinite(figure.axes[1].lines[0].get_ydata()).sum() == 4
    assert style.to_png(figure)


def test_crosses_are_on_what_pruning_took(rng):
    spectrum = [rng.normal(size=(3, k)) for k in (5, 4)]
    keep = [np.abs(one) > 0.5 for one in spectrum]
    figure = figures.kept_directions(spectrum, keep)
    for ax, one, kept in zip(figure.axes, spectrum, keep, strict=False):
        crosses = np.stack(ax.lines[0].get_data())  # [2, removed]
        assert {*zip(*crosses.tolist(), strict=True)} == {
            (1 + k, 1 + h) for h, k in zip(*np.nonzero(~kept), strict=True)
        }
        energy = 100 * one**2 / (one**2).sum(-1, keepdims=True)
        np.testing.assert_allclose(ax.collections[0].get_array(), energy)


@pytest.mark.parametrize("shape", [(8, 8, 1), (30, 30, 3), (224, 224, 3)])
@pytest.mark.parametrize(("num_layers", "num_heads", "grid"), [(1, 1, 1), (12, 12, 14)])
def test_attention_at_any_grid_and_resolution(rng, shape, num_layers, num_heads, grid):
    image = rng.integers(0, 256, size=shape).astype(np.uint8)
    maps = rng.uniform(0, 3, size=(num_layers, num_heads, grid, grid))
    figure = pictures.attention_grid(image, maps, "true: 3\npredicted: 5")
    rgb = style.to_rgb(figure)
    assert rgb.dtype == np.uint8
    assert rgb.shape[-1] == 3
    tiles = figure.axes[1].images[0].get_array()
    side = max(grid, min(160, 1000 // num_heads))
    np.testing.assert_array_equal(
        tiles[-side:, -side:, :3], pictures.overlay(image, maps[-1, -1], side)
    )
    rollouts = pictures.rollouts([image] * 3, maps[0, :1].repeat(3, 0), ["a"] * 3)
    assert style.to_png(rollouts)
    assert style.to_png(pictures.gallery([image] * 7, ["b"] * 7))


def test_class_names_are_text_not_markup(rng):
    image = np.zeros((8, 8, 1), np.uint8)
    figure = pictures.gallery([image], [r"$\frac{$ <b>"])
    assert style.to_png(figure)


def test_attention_is_over_its_image_and_uniform_attention_is_grey():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    attention = np.array([[1, 4], [1 / 4, 1]])
    picture = pictures.overlay(image, attention, 80)
    dark, bright = picture[10, 10], picture[70, 70]  # away from the edge between them
    assert np.ptp(dark) < 0.01
    assert np.ptp(bright) < 0.01
    assert dark.mean() < bright.mean()
    more, less = picture[10, 70], picture[70, 10]
    assert more.argmax() == 1  # green
    assert less.argmin() == 1  # purple


def test_svg_of_a_page(rng):
    run = Drawn("$a_{$ <b>", "svda", make_history(rng))
    svgs = [
        style.to_svg(figures.curves([run]), "curves of <b>"),
        style.to_svg(figures.indicators_by_layer([run]), "by layer"),
    ]
    ids = []
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("fill") == "currentColor"
        assert "#000000" not in svg
        assert "var(--svda, #0072b2)" in svg  # a dark page has a lighter one
        assert "<style" not in svg
        ids += [element.get("id") for element in root.iter() if element.get("id")]
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= set(ids)
    assert len(set(ids)) == len(ids)
    root = ElementTree.fromstring(svgs[0])
    assert root[0].text == "curves of <b>"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "$a_{$ <b>" in texts
    assert style.to_svg(figures.curves([run]), "curves of <b>") == svgs[0]


def overlapping(texts, renderer):
    """Pairs of texts that are drawn over each other."""
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts
        if text.get_text() and text.get_visible()
    ]
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if one.overlaps(other)
    ]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (20, 12, 12)])
def test_labels_do_not_collide(rng, sizes):
    history = make_history(rng, *sizes)
    _, num_layers, num_heads = sizes
    spectrum = rng.normal(size=(1, num_layers, num_heads, 64))
    runs = [
        Drawn("a longer name of a run-0", "svda", history),
        Drawn("a longer name of a run-1", "softmax", history),
    ]
    spectra = [
        Drawn(run.label, run.attention, {"score_spectrum": spectrum}) for run in runs
    ]
    heads = rng.normal(size=(num_layers, num_heads, 64))
    image = np.zeros((32, 32, 3), np.uint8)
    maps = rng.uniform(size=(num_layers, num_heads, 14, 14))
    for figure in (
        figures.curves(runs),
        figures.indicators_by_epoch(runs),
        figures.indicators_by_layer(runs),
        figures.heat_maps(64 * runs[0].last("indicators"), 64),
        figures.heat_map(runs[0].last("indicators")[0], "effective_rank", 64),
        figures.score_spectra(spectra),
        figures.kept_directions(heads, np.abs(heads) > 1),
        pictures.attention_grid(image, maps, "true: 3"),
    ):
        style.to_rgb(figure)
        renderer = figure.canvas.get_renderer()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for ax in figure.axes:
            texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                texts += [
                    tick.label1
                    for tick in axis.get_major_ticks()
                    if low <= tick.get_loc() <= high and tick.label1.get_visible()
                ]
        assert not overlapping(texts, renderer)

"""Figures draw at every size, and show the numbers that they were given."""

import numpy as np
import pytest
import xarray as xr

from svda_jax.look import figures
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


def test_figures_that_are_compared_share_their_scales(rng):
    small = np.float32(rng.uniform(size=(6, 2, 3)))
    one, two = figures.heat_maps(small), figures.heat_maps(3 * small)
    figures.share_scales([one, two])
    limits = [figure.axes[4].images[0].get_clim() for figure in (one, two)]
    assert limits[0] == limits[1] == (small[4].min(), 3 * small[4].max())
    one, two = figures.spectra(small[:2]), figures.spectra(5 * small[:2])
    top = two.axes[0].get_ylim()[1]
    figures.share_scales([one, two])
    assert one.axes[1].get_ylim() == (0, top)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 2), (7, 12, 12)])
def test_histories_of_every_size(rng, sizes):
    history = make_history(rng, *sizes)
    for figure in (
        figures.curves({"a": history, "b": history}),
        figures.indicators_by_epoch(history),
        figures.indicators_by_layer(history),
        figures.heat_maps(history["indicators"].values[-1]),
    ):
        assert figures.to_png(figure).startswith(b"\x89PNG")


def test_lines_are_the_history(rng):
    history = make_history(rng)
    figure = figures.curves({"SVDA": history})
    lines = [line.get_ydata() for line in figure.axes[1].lines]
    np.testing.assert_array_equal(lines[0], history["train_accuracy"])
    np.testing.assert_array_equal(lines[1], history["eval_accuracy"])
    figure = figures.indicators_by_epoch(history)
    for ax, name in zip(figure.axes, INDICATORS, strict=True):
        assert ax.get_title() == INDICATORS[name].label
        expected = history["indicators"].sel(indicator=name).mean("head")
        for layer, line in enumerate(ax.lines):
            np.testing.assert_array_equal(line.get_ydata(), expected[:, layer])


def test_spectra_are_sorted_by_size(rng):
    spectrum = np.float32(rng.normal(size=(5, 2, 7)))
    figure = figures.spectra(spectrum)
    assert len(figure.axes) == 5
    line = figure.axes[3].lines[1].get_ydata()
    np.testing.assert_array_equal(line, np.sort(np.abs(spectrum[3, 1]))[::-1])


def test_spectra_of_layers_with_fewer_directions(rng):
    spectrum = np.float32(rng.normal(size=(2, 3, 7)))
    spectrum[1, :, 4:] = np.nan
    figure = figures.spectra(spectrum)
    assert np.isfinite(figure.axes[1].lines[0].get_ydata()).sum() == 4
    assert figures.to_png(figure)


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
        np.testing.assert_allclose(ax.images[0].get_array(), energy)


@pytest.mark.parametrize("shape", [(8, 8, 1), (30, 30, 3), (224, 224, 3)])
@pytest.mark.parametrize(("num_layers", "num_heads", "grid"), [(1, 1, 1), (12, 12, 14)])
def test_attention_at_any_grid_and_resolution(rng, shape, num_layers, num_heads, grid):
    image = rng.integers(0, 256, size=shape).astype(np.uint8)
    maps = rng.uniform(0, 3, size=(num_layers, num_heads, grid, grid))
    figure = figures.attention_grid(image, maps, "true: 3\npredicted: 5")
    rgb = figures.to_rgb(figure)
    assert rgb.dtype == np.uint8
    assert rgb.shape[-1] == 3
    tiles = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(tiles[-grid:, -grid:], maps[-1, -1])
    rollouts = figures.rollouts([image] * 3, maps[0, :1].repeat(3, 0), ["a"] * 3)
    assert figures.to_png(rollouts)
    assert figures.to_png(figures.gallery([image] * 7, ["b"] * 7))


def test_class_names_are_text_not_markup(rng):
    image = np.zeros((8, 8, 1), np.uint8)
    figure = figures.gallery([image], [r"$\frac{$ <b>"])
    assert figures.to_png(figure)

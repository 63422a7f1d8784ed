"""Pictures of images and of the attention over them.

Attention is drawn over the image that it belongs to, on a logarithmic scale about what
uniform attention gives: where it is that, the image is grey; green is more, purple
less. The scale is the same in all pictures. Figures are matplotlib's, as in `figures`.
"""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from svda_jax.look.style import WIDTH, keep_text, label_axes, subplots

OCTAVES = 3  # doublings and halvings of uniform attention
# White between two colours of one lightness: neither end hides the image.
_MAP = LinearSegmentedColormap.from_list("attention", ["#8a3fb0", "white", "#1f9440"])
_SCALE = Normalize(-OCTAVES, OCTAVES)


def overlay(image, attention, side):
    """An image under the attention that its patches get.

    Args:
      image: `[S, S, channels]`, 0 to 255.
      attention: `[g, g]`, 1 where it is uniform.
      side: of the picture, in pixels; at least g.

    Returns:
      `[side, side, 3]` float in [0, 1]: the image in grey, from a half to 1, times the
      colour of attention.
    """
    pixels = np.asarray(image).astype(np.uint8)
    grey = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    # Pixels that are larger than those of the picture stay squares.
    finer = len(pixels) < side
    resample = Image.Resampling.NEAREST if finer else Image.Resampling.LANCZOS
    grey = np.asarray(grey.convert("L").resize((side, side), resample), np.float32)
    patch = np.arange(side) * len(attention) // side
    doublings = np.log2(np.maximum(attention, 1e-6))[np.ix_(patch, patch)]
    return (0.5 + grey[..., None] / 510) * _MAP(_SCALE(doublings))[..., :3]


def color_bar(figure, axes, label="attention (1 = uniform)"):
    """The scale of `overlay` beside axes."""
    bar = figure.colorbar(
        ScalarMappable(_SCALE, _MAP), ax=axes, shrink=0.8, extend="both"
    )
    octaves = range(-OCTAVES, 1 + OCTAVES)
    bar.set_ticks(
        octaves, labels=[f"{2**n}" if n >= 0 else f"1/{2**-n}" for n in octaves]
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def attention_grid(image, maps, title):
    """An image, and it under the attention maps of every layer and head.

    Args:
      image: `[S, S, channels]`, 0 to 255.
      maps: `[L, H, g, g]`, 1 where attention is uniform.
      title: above the image.
    """
    num_layers, num_heads, grid, _ = maps.shape
    # No wider than the maps need: TensorBoard shows it small, with what is written.
    width = min(WIDTH, 3.5 + num_heads)
    height = max(2.4, width * num_layers / (num_heads + 4))
    figure = Figure(figsize=(width, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, max(1, num_heads / 2)])
    show(left, image)
    keep_text([left.set_title(title, fontsize=9)])
    # Tiles a pixel apart, as one picture: a few hundred axes would take seconds.
    side = max(grid, min(160, 1000 // num_heads))
    step = side + max(side // 20, 1)
    gap = step - side
    tiles = np.zeros((num_layers * step - gap, num_heads * step - gap, 4))
    for layer, head in np.ndindex(num_layers, num_heads):
        top, start = layer * step, head * step
        tile = tiles[top : top + side, start : start + side]
        tile[..., :3], tile[..., 3] = overlay(image, maps[layer, head], side), 1
    right.imshow(tiles, interpolation="nearest")
    middle = (side - 1) / 2
    right.set_xticks(middle + step * np.arange(num_heads), range(1, num_heads + 1))
    right.set_yticks(middle + step * np.arange(num_layers), range(1, num_layers + 1))
    label_axes(right, "", "head", "layer")
    right.tick_params(length=0, labelsize=8)
    right.spines[:].set_visible(False)
    color_bar(figure, right)
    return figure


def rollouts(images, maps, titles):
    """Images above their attention rollout.

    Args:
      images: `[B, S, S, channels]`, 0 to 255.
      maps: `[B, g, g]`, 1 where attention is uniform.
      titles: B lines.
    """
    figure, axes = subplots(2, len(images), width=WIDTH, height=4)
    for (above, below), image, one, title in zip(
        axes.T, images, maps, titles, strict=True
    ):
        show(above, image)
        keep_text([above.set_title(title, fontsize=8)])
        below.imshow(overlay(image, one, max(len(one), 160)))
        below.set_axis_off()
    color_bar(figure, axes, "rollout (1 = uniform)")
    return figure


def gallery(images, titles):
    """Images `[B, S, S, channels]` with a title each, six a row."""
    columns = 6
    rows = -(-len(images) // columns)
    figure, axes = subplots(rows, columns, width=WIDTH, height=2.1 * rows)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        show(ax, image)
        keep_text([ax.set_title(title, fontsize=8)])
    return figure


def show(ax, image):
    """Shows an image of one or three channels."""
    if image.shape[-1] == 1:
        ax.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        ax.imshow(image.astype(np.uint8))
    ax.set_axis_off()


def to_levels(attention):
    """Attention on the scale of `overlay`, as indices of `colors`.

    Args:
      attention: of any shape, 1 where it is uniform.

    Returns:
      uint8 of that shape: 0 an eighth of uniform and less, 255 eight times and more.
    """
    doublings = np.log2(np.maximum(attention, 1e-6))
    return np.rint(255 * np.clip(_SCALE(doublings), 0, 1)).astype(np.uint8)


def colors():
    """The colours of `to_levels`: `[256, 3]` uint8."""
    return _MAP(np.arange(256), bytes=True)[:, :3]

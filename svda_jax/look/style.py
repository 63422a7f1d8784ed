"""The style of all figures, and the forms that they are written in.

A colour for each attention; all colours survive colour blindness.
"""

import hashlib
import html
import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's.
KINDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLORS = dict(zip(("svda", "softmax"), KINDS, strict=False))
STYLES = ("-", "--", ":", "-.")
QUANTITY = "cividis"
WIDTH = 9  # inches


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


def to_svg(figure, title):
    """The figure as an svg element of an HTML page.

    Text is text in the page's font. Black is the page's colour of text, the background
    is the page's, and a page may have colours of its own for the attentions.

    Args:
      figure: whose ink is black.
      title: what screen readers say; the ids of a page are unique if no two figures of
        it have title and contents in common.
    """
    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": title}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The page's font draws the text, whatever matplotlib's has.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", dpi=160, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Time and version; a style that would hold for the page.
    svg = re.sub(
        r"\s*(<metadata>.*?</metadata>|<style.*?</style>)", "", svg, flags=re.S
    )
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg).replace("#000000", "currentColor")
    for name, color in COLORS.items():
        svg = svg.replace(color.lower(), f"var(--{name}, {color.lower()})")
    name = "f" + hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(#|href="#)([\w.]+)', svg))
    svg = re.sub(
        r' id="([\w.]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        svg,
    )
    svg = re.sub(r'(url\(#|href="#)(?=[\w.]+)', rf"\g<1>{name}-", svg)
    return svg.replace(
        ' version="1.1">',
        ' role="img" fill="currentColor" stroke-linejoin="round">'
        f"<title>{html.escape(title)}</title>",
        1,
    )


def subplots(rows, columns, *, width, height, **options):
    """A figure of the house's style and its axes, `[rows, columns]`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label_axes(ax, title, x, y):
    """Title and labels of a panel, in small print; the title is no mathematics."""
    keep_text([ax.set_title(title, fontsize=9)])
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)


def shorten(text, length):
    """Text of at most so many letters; three dots stand for what is left out."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def keep_text(texts):
    """Keeps names that come from outside from being read as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def legend_above(figure, ax, note):
    """A note above the figure, and the labels of a panel, or of none."""
    handles, labels = ax.get_legend_handles_labels() if ax else ([], [])
    short = max(map(len, labels), default=0) < 30
    legend = figure.legend(
        handles,
        labels,
        title=note,
        loc="outside upper left",
        ncols=4 if short and figure.get_figwidth() > 8 else 1,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        alignment="left",
    )
    keep_text(legend.texts)


def legend_below(ax, handles=None, labels=None):
    """The labels of a panel, or those given, under it, where they cover nothing."""
    if handles is None:
        handles, labels = ax.get_legend_handles_labels()
    legend = ax.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(-0.08, -0.15),
        ncols=2 if max(map(len, labels)) < 30 else 1,
        columnspacing=1,
        frameon=False,
        fontsize=8,
    )
    keep_text(legend.texts)

"""Drawings as pixels, how alike they are, and the folder tree of their classes."""

import os
import shutil

import cv2
import numpy as np

from svda_jax import UserError

# Whose drawings test, and by whose options are chosen; all others' are trained on. Why
# these: "Who tests" in experiments/results/emoji/data.md.
SPLITS = {"openmoji": "test", "microsoft": "validation"}
NEAR = 6  # bits of 63 in which the hashes of near-duplicates differ at most


def split_of(drawing):
    """ "train", "validation" or "test"; all that a vendor drew is in one of them."""
    return SPLITS.get(drawing.vendor, "train")


def in_every_split(drawings):
    """The drawings of the classes of which every split has some.

    Raises:
      UserError: there are fewer than two.
    """
    splits = {}
    for drawing in drawings:
        splits.setdefault(drawing.subgroup, set()).add(split_of(drawing))
    kept = {name for name, found in splits.items() if len(found) == 3}
    if len(kept) < 2:
        raise UserError(f"{len(kept)} classes are in every split; two must be")
    return [drawing for drawing in drawings if drawing.subgroup in kept]


def render(svg, size):
    """A drawing on white as PNG, `[size, size]`, centred, as large as fits.

    Raises:
      UserError: resvg_py is not installed.
      ValueError: svg is no SVG.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("pip install resvg_py, which turns SVG into pixels") from None
    sized = svg.replace("<svg ", f'<svg width="{size}" height="{size}" ', 1)
    return bytes(
        resvg_py.svg_to_bytes(sized, background="white", skip_system_fonts=True)
    )


def hash_picture(png):
    """What a picture looks like in 63 bits, `[63]` float32 of -1 and 1.

    A bit says whether a coefficient of the lowest 8 x 8 of the cosine transform of the
    grey picture at 32 x 32, without the mean, is above their median: pHash. Of bits
    that differ, the number of two hashes is (63 - a b) / 2.
    """
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    grey = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(np.float32(grey))[:8, :8].ravel()[1:]
    return np.where(low > np.median(low), 1, -1).astype(np.float32)


def near(hashes, others):
    """Which of them are near-duplicates, `[n, m]` bool, of `[n, 63]` and `[m, 63]`."""
    return hashes @ others.T >= 63 - 2 * NEAR


def write_tree(drawings, out, size, render=render):
    """Writes <split>/<class>/<set>-<icon>.png of n drawings; their hashes, `[n, 63]`.

    Raises:
      UserError: out cannot be written.
    """
    part = out.with_name(f"{out.name}.incomplete")
    hashes = []
    try:
        shutil.rmtree(part, ignore_errors=True)
        for drawing in drawings:
            png = render(drawing.svg, size)
            folder = part / split_of(drawing) / drawing.subgroup
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{drawing.set}-{drawing.icon}.png").write_bytes(png)
            hashes.append(hash_picture(png))
        os.replace(part, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return np.array(hashes)

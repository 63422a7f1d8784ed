"""The page about the data: counts by vendor and class, licences, near-duplicates."""

import collections

import numpy as np

from experiments.emoji.packages import SETS, UNICODE
from experiments.emoji.pictures import NEAR, SPLITS, near, split_of

INTRODUCTION = """# Emoji

About a hundred classes of small colour pictures that anyone can have from packages of
npm: a rehearsal of the path that CIFAR-100 and ImageNet-100 take through this program.

**What it is.** The emoji of Unicode {version}, as several vendors draw them, on white.
The class is the subgroup that Unicode gives an emoji, such as `animal-bird`. All
drawings of a vendor are in one split, so what is asked is: what does a picture show, in
a hand that was never seen?

**What it is not.** No photographs, and no result of the paper's. Nearly every emoji of
the test split was trained on as others draw it, so it says nothing of emoji that were
never seen. Classes differ much in size, and some hold what only Unicode puts together.
Icons without code points are matched by name; a few may show something else than the
emoji of that name.

**What is left out.** Tones of skin, which are one drawing in other colours; flags, one
picture, whoever draws them; swatches; icons that are no emoji of Unicode
{version}; classes that a split lacks ({lacking}).

**Who tests.** Before anything was trained: of the vendors that draw at least 95 % of
these emoji, the one with the fewest near-duplicates in the others' drawings tests, and
the next is the validation split, by which options are chosen. The final runs train on
both train and validation.

    pip install resvg_py
    python -m experiments.emoji --out DIR
    python -m svda_jax prepare emoji --from DIR
    python -m experiments.paper --config=configs/emoji.py --seeds=3
"""

NEAR_DUPLICATES = """## Near-duplicates

Vendors look at each other's drawings, and some things can hardly be drawn in two ways:
letters, digits, arrows, discs. Two drawings are near-duplicates if at most {near} of
the 63 bits of their perceptual hashes differ (pHash, of the grey picture).
The table: of the emoji that two vendors draw, the part of which they have
near-duplicates, in per cent; and of all drawings of a vendor, the part that has a
near-duplicate in all others' together, of the same emoji and of another one. The last
is what plain shapes and chance give.

What the hash does not see: the same idea in other lines. Vendors keep to what readers
know from others, so a pose or a colour may be shared where no line is copied.
"""


def write_page(drawings, emoji, hashes):
    """The page, text.

    Args:
      drawings: n of them, from `packages.read_drawings`.
      emoji: from the same.
      hashes: `[n, 63]`, from `pictures.write_tree`.
    """
    head = INTRODUCTION.format(
        version=UNICODE[1], lacking=", ".join(_lacking(drawings, emoji)) or "none"
    )
    parts = [head, _sets(drawings, emoji), NEAR_DUPLICATES.format(near=NEAR)]
    parts += [_near_duplicates(drawings, hashes), _classes(drawings, emoji)]
    return "\n".join(parts)


def _lacking(drawings, emoji):
    """The classes of which there are no drawings."""
    found = {d.subgroup for d in drawings}
    return sorted({e.subgroup for e in emoji.values()} - found)


def _table(head, rows):
    """A Markdown table, its last line ended."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def vendors():
    """Every vendor, those to train on first."""
    found = dict.fromkeys(s.vendor for s in SETS.values())
    return sorted(found, key=lambda v: ("validation", "test").count(SPLITS.get(v)))


def _sets(drawings, emoji):
    rows = []
    for name, (version, vendor, licence, title) in SETS.items():
        codes = [d.codes for d in drawings if d.set == name]
        rows.append(
            (
                f"{title} (`@iconify-json/{name}` {version})",
                vendor,
                SPLITS.get(vendor, "train"),
                f"{len(codes):,}",
                f"{len(set(codes)) / len(emoji):.1%}",
                licence,
            )
        )
    head = ("set", "vendor", "split", "drawings", "of the emoji", "licence")
    counts = collections.Counter(map(split_of, drawings))
    sizes = ", ".join(f"{n:,} in {split}" for split, n in counts.items())
    largest = collections.Counter(d.subgroup for d in drawings if split_of(d) == "test")
    (name, count), *_ = largest.most_common(1)
    return "\n".join(
        [
            "## Sets\n",
            _table(head, rows),
            f"{len(emoji):,} emoji, {len({d.subgroup for d in drawings})} classes; "
            f"{sizes}. Who always says `{name}`, the largest class of the test split, "
            f"is right in {count / counts['test']:.1%}.",
            "",
            "The packages' JSON is converted from the vendors' own files. The table of "
            f"emoji is Unicode's, by `emoji.json` {UNICODE[1]} (MIT; Unicode licence). "
            "Nothing of the pictures is in this repository.",
            "",
        ]
    )


def _near_duplicates(drawings, hashes):
    vendor = np.array([d.vendor for d in drawings])
    codes = np.array([d.codes for d in drawings])
    names = vendors()
    rows = []
    for row in names:
        own = vendor == row
        cells = [
            "" if row == c else _share(own, vendor == c, codes, hashes) for c in names
        ]
        alike = near(hashes[own], hashes[~own])
        same = codes[own][:, None] == codes[~own]
        cells += [f"{100 * (alike & s).any(1).mean():.1f}" for s in (same, ~same)]
        rows.append((row, *cells))
    return _table(("", *names, "all: same emoji", "all: another"), rows)


def _share(own, other, codes, hashes):
    """Per cent of the emoji in both of which there are near-duplicates, as text."""
    same = codes[own][:, None] == codes[other]
    both = set(codes[own]) & set(codes[other])
    found = (near(hashes[own], hashes[other]) & same).any(1)
    return f"{100 * len(set(codes[own][found])) / len(both):.1f}" if both else "-"


def _classes(drawings, emoji):
    names = vendors()
    counts = collections.Counter((d.subgroup, d.vendor) for d in drawings)
    sizes = collections.Counter(e.subgroup for e in emoji.values())
    rows = [
        (name, sizes[name], *(counts[name, vendor] for vendor in names))
        for name in sorted({d.subgroup for d in drawings})
    ]
    return "## Classes\n\n" + _table(("class", "emoji", *names), rows)

"""Sets of emoji in packages of npm: fetched, read, their drawings named by Unicode."""

import collections
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from typing import NamedTuple

from svda_jax import UserError


class EmojiSet(NamedTuple):
    """Who drew the emoji of a package.

    Attributes:
      version: of the package @iconify-json/<set>.
      vendor: whose drawings these are; all sets of a vendor stay together.
      licence: of the drawings.
      title: the set's name, its version and its authors.
    """

    version: str
    vendor: str
    licence: str
    title: str


SETS = {
    "noto": EmojiSet("1.2.9", "google", "Apache 2.0", "Noto Emoji, Google"),
    "noto-v1": EmojiSet("1.2.5", "google", "Apache 2.0", "Noto Emoji 1, Google"),
    "twemoji": EmojiSet("1.2.5", "twitter", "CC BY 4.0", "Twemoji, Twitter and others"),
    "openmoji": EmojiSet(
        "1.2.29", "openmoji", "CC BY-SA 4.0", "OpenMoji, HfG Schwäbisch Gmünd"
    ),
    "fluent-emoji": EmojiSet(
        "1.2.7", "microsoft", "MIT", "Fluent Emoji, shaded, Microsoft"
    ),
    "fluent-emoji-flat": EmojiSet(
        "1.2.6", "microsoft", "MIT", "Fluent Emoji, flat, Microsoft"
    ),
    "emojione": EmojiSet("1.2.3", "emojione", "CC BY 4.0", "EmojiOne 2.3, Ranks.com"),
    "emojione-v1": EmojiSet(
        "1.2.3", "emojione", "CC BY-SA 4.0", "EmojiOne 1.5, Ranks.com"
    ),
    "fxemoji": EmojiSet("1.2.2", "mozilla", "Apache 2.0", "Firefox OS Emoji, Mozilla"),
    "streamline-emojis": EmojiSet(
        "1.2.4", "streamline", "CC BY 4.0", "Streamline Emojis, Webalys"
    ),
}
UNICODE = "emoji.json", "16.0.0"  # the table emoji-test.txt, version 16.0, as JSON

_SKIN = re.compile("1F3F[B-F]")
_LEFT_OUT = {"Component", "Flags"}


class Emoji(NamedTuple):
    """A sequence of code points, as Unicode describes it."""

    name: str
    subgroup: str


class Drawing(NamedTuple):
    """An emoji as a set draws it.

    Attributes:
      set: of `SETS`.
      icon: its name in the set.
      codes: the emoji, as "1f469-200d-1f3a4".
      subgroup: its class.
      svg: the picture, as text without a size.
    """

    set: str
    icon: str
    codes: str
    subgroup: str
    svg: str

    @property
    def vendor(self):
        """Whose drawing it is."""
        return SETS[self.set].vendor


def fetch(cache):
    """Packs what is missing in a folder by `npm pack`.

    Raises:
      UserError: there is no npm, or it fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [
        f"{package}@{version}"
        for package, version in _packages()
        if not _path(cache, package, version).exists()
    ]
    if not missing:
        return
    if not shutil.which("npm"):
        raise UserError(f"npm is not installed, and {cache} lacks {missing[0]}")
    command = ["npm", "pack", "--pack-destination", str(cache), *missing]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "npm" in line] or ["npm"]
        raise UserError(f"npm pack failed: {said[0]}")


def read_emoji(cache):
    """The emoji of Unicode by codes, without tones of skin, their swatches and flags.

    A flag is one picture, whoever draws it.
    """
    emoji = {}
    for row in _read(cache, *UNICODE, "emoji")["emoji"]:
        codes = _codes(row["codes"])
        if row["group"] not in _LEFT_OUT and not _SKIN.search(row["codes"]):
            emoji.setdefault(codes, Emoji(row["name"], row["subgroup"]))
    return emoji


def read_drawings(cache):
    """The drawings of all sets, a list, and the emoji, as `read_emoji` returns them.

    A set says which emoji an icon is by its codes, or else by the name alone; then it
    is the emoji that has this name now, had it in Unicode's list of characters, or in
    another set. What has no such name is left out.

    Raises:
      UserError: a package is missing or damaged.
    """
    emoji = read_emoji(cache)
    sets = {
        name: _read(
            cache, f"@iconify-json/{name}", SETS[name].version, "icons", "chars"
        )
        for name in SETS
    }
    names = _names(emoji, sets.values())
    drawings = []
    for name, data in sets.items():
        icons, size = data["icons"]["icons"], data["icons"]
        for icon, codes in _emoji_of(data, names).items():
            svg = _svg(icons[icon], size.get("width", 16), size.get("height", 16))
            if codes in emoji:
                drawings.append(Drawing(name, icon, codes, emoji[codes].subgroup, svg))
    return drawings, emoji


def _packages():
    yield UNICODE
    for name, emoji_set in SETS.items():
        yield f"@iconify-json/{name}", emoji_set.version


def _path(cache, package, version):
    """Where `npm pack` puts a package."""
    return cache / f"{package.strip('@').replace('/', '-')}-{version}.tgz"


def _read(cache, package, version, *names):
    """Files <name>.json of a package, by name.

    Raises:
      UserError: it is missing or damaged.
    """
    path = _path(cache, package, version)
    try:
        with tarfile.open(path) as tar:
            return {n: json.load(tar.extractfile(f"package/{n}.json")) for n in names}
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from None


def _codes(text):
    """Code points without selectors of a presentation, in lower case, by hyphens."""
    codes = re.split("[ -]", text.lower())
    return "-".join(c for c in codes if c not in ("fe0e", "fe0f"))


def _letters(name):
    """What of a name all spellings share."""
    plain = unicodedata.normalize("NFKD", name.lower()).replace("&", "and")
    return re.sub(r"[^a-z0-9#*]+", "", plain)


def _aliases(data):
    """The names of each icon, its own first; mirrored ones are other pictures."""
    names = collections.defaultdict(list)
    for alias, to in data["icons"].get("aliases", {}).items():
        if not to.keys() - {"parent", "hidden"}:
            names[to["parent"]].append(alias)
    return {icon: [icon, *names[icon]] for icon in data["icons"]["icons"]}


def _names(emoji, sets):
    """The codes of an emoji by `_letters` of its names, of which CLDR's go first."""
    found = {_letters(e.name): codes for codes, e in emoji.items()}
    for data in sets:
        names = _aliases(data)
        for codes, icon in data["chars"].items():
            for name in names.get(icon, ()):
                found.setdefault(_letters(name), _codes(codes))
    for codes in emoji:
        if "-" not in codes:
            name = unicodedata.name(chr(int(codes, 16)), codes)
            found.setdefault(_letters(name), codes)
    return found


def _emoji_of(data, names):
    """The codes of each icon of a set of which they are known."""
    aliases = _aliases(data)
    if data["chars"]:
        icons = {name: icon for icon, known in aliases.items() for name in known}
        return {
            icons[name]: _codes(codes)
            for codes, name in data["chars"].items()
            if name in icons
        }
    found = {}
    for icon, known in aliases.items():
        # Streamline numbers the two drawings that it has of some emoji.
        known = [*known, re.sub(r"-\d$", "", icon)]
        codes = [names[n] for n in map(_letters, known) if n in names]
        found |= {icon: codes[0]} if codes else {}
    return found


def _svg(icon, width, height):
    """An icon as SVG, of no size yet."""
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get("width", width), icon.get("height", height)]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )

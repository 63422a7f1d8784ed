"""Emoji as their vendors draw them, as folders of classes: train, validation, test.

    pip install resvg_py
    python -m experiments.emoji --out DIR
    python -m svda_jax prepare emoji --from DIR

fetches packages by `npm pack` into --cache, those that are there excepted, and writes
<split>/<class>/<set>-<icon>.png under --out. No picture is part of this repository.
Their licences: Noto Emoji and Firefox OS Emoji, Apache 2.0; Fluent Emoji, MIT; Twemoji,
EmojiOne 2.3 and Streamline Emojis, CC BY 4.0; EmojiOne 1.5 and OpenMoji, CC BY-SA 4.0.
What the data are is written to --page.
"""

import argparse
import pathlib
import shlex
import sys

from experiments.emoji.packages import fetch, read_drawings
from experiments.emoji.page import write_page
from experiments.emoji.pictures import in_every_split, write_tree
from svda_jax import UserError, local_path

PAGE = pathlib.Path(__file__).parents[1] / "results" / "emoji" / "data.md"


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.emoji",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="folder to be written")
    parser.add_argument(
        "--size", type=int, default=64, help="side of a picture, pixels"
    )
    parser.add_argument(
        "--cache", default="~/.cache/svda_jax/emoji", help="of packages"
    )
    parser.add_argument("--page", default=str(PAGE), help="about the data")
    args = parser.parse_args(argv)
    try:
        prepare(
            local_path(args.out),
            args.size,
            cache=local_path(args.cache),
            page=local_path(args.page),
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same line begins anew")
    line = "python -m svda_jax prepare emoji --from"
    print(f"import it with\n  {line} {shlex.quote(args.out)}")


def prepare(out, size, *, cache, page, **options):
    """Fetches what is missing, writes the tree and the page.

    Args:
      out: folder to be written.
      size: side of a picture, pixels.
      cache: folder of the packages.
      page: file of the page about the data.
      **options: of `pictures.write_tree`.

    Raises:
      UserError: size is less than 32, a package cannot be had or is damaged, out is
        there already, or something cannot be written.
    """
    if size < 32:
        raise UserError(f"--size={size} must be at least 32")
    if out.exists():
        raise UserError(f"{out} is there already; remove it to write it anew")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)  # before minutes of drawing
        fetch(cache)
        drawings, emoji = read_drawings(cache)
        drawings = in_every_split(drawings)
        hashes = write_tree(drawings, out, size, **options)
        page.write_text(write_page(drawings, emoji, hashes), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None


if __name__ == "__main__":
    main()

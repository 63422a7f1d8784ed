"""The picture of README.md: pieces of photographs, and what is drawn of two models."""

import sys

import numpy as np
import pytest
from PIL import Image

from experiments.paper import picture
from svda_jax.look.pictures import overlay


def test_pieces_are_squares_of_their_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "NUM_PIECES", {"train": 3, "val": 2})
    columns = np.arange(90, dtype=np.uint8)
    photographs = {"a": np.broadcast_to(columns[:, None], (50, 90, 3))}
    picture.cut(photographs, tmp_path)
    for split, count in picture.NUM_PIECES.items():
        pieces = sorted((tmp_path / split / "a").iterdir())
        assert len(pieces) == count
        for path in pieces:
            pixels = np.asarray(Image.open(path))
            assert pixels.shape == (picture.SIDE, picture.SIDE, 3)
            assert 16 <= np.ptp(pixels[..., 0]) <= 50  # of 0.35 to all of 50 columns
    picture.cut(photographs, tmp_path / "again")
    again = tmp_path / "again" / "train" / "a" / "0.png"
    assert again.read_bytes() == (tmp_path / "train" / "a" / "0.png").read_bytes()


def test_picture_shows_attention_and_spectra_of_both(rng):
    piece = Image.fromarray(rng.integers(0, 256, size=(60, 60, 3)).astype(np.uint8))
    image = np.asarray(piece.resize((32, 32)))
    found = {
        attention: (
            [(1, 0), (0, 1), (1, 2)],
            rng.uniform(0.1, 4, size=(3, 8, 8)),
            rng.uniform(0.1, 2, size=(2, 3, 5)),
        )
        for attention in ("svda", "softmax")
    }
    figure = picture.draw(image, piece, found)
    axes = {ax.get_title(): ax for ax in figure.axes}
    shown = axes["softmax, layer 1, head 2"].images[0].get_array()
    np.testing.assert_array_equal(shown, overlay(image, found["softmax"][1][1], 60))
    lines = axes["spectra of the scores (logits)"].lines
    thick = [line.get_ydata() for line in lines if line.get_linewidth() == 2]
    expected = np.sort(found["svda"][2][0, 1])[::-1]
    assert any(np.array_equal(one, expected) for one in thick)
    figure.canvas.draw()


def test_photographs_need_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(picture.UserError, match="pip install scikit-image"):
        picture.read_photographs()


def test_several_seeds_are_refused(capsys):
    with pytest.raises(SystemExit, match="--seeds=3: the picture is of a run of each"):
        picture.main(["picture", "--seeds=3"])

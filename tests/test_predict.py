"""What a run says of image files: lines, JSON, pictures, and files it cannot read."""

import io
import json
import os

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from svda_jax import UserError
from svda_jax.look import explain
from svda_jax.look.pictures import overlay
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.run import predict, runs


@pytest.fixture
def run(make_model_config, randomize, make_config):
    config = make_model_config(image_size=6, channels=1, mean=(0.3,), std=(0.4,))
    graphdef, params = nnx.split(ViT(config, rngs=nnx.Rngs(0)), nnx.Param)
    model = nnx.merge(graphdef, randomize(nnx.to_pure_dict(params)))
    names = tuple(f"class {i}" for i in range(config.num_classes))
    options = make_config(dataset__image_size=6)
    return runs.Run(options, model, step=0, history=None, class_names=names)


@pytest.fixture
def files(tmp_path, rng):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.bmp", "c.png"):
        pixels = rng.integers(0, 256, size=(9, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture
def say(run, monkeypatch, capsys):
    """The exit code of the command line, its lines, and its errors."""
    monkeypatch.setattr(explain.runs, "load", lambda workdir: run)

    def say(*argv):
        with pytest.raises(SystemExit) as exit_:
            explain.main(["--workdir=run", *map(str, argv)])
        out, err = capsys.readouterr()
        return exit_.value.code, out.splitlines(), err.splitlines()

    return say


def test_probabilities_are_the_models(run, files):
    images = predict.read_images(files, run.config)
    logits, _ = run.model(images)
    expected = np.asarray(nnx.softmax(logits))
    found = run.predict(files)
    for row, one in zip(expected, found, strict=True):
        assert list(one.values()) == sorted(one.values(), reverse=True)
        for label, name in enumerate(run.class_names):
            assert one[name] == pytest.approx(row[label], abs=1e-6)
    assert run.predict(str(files[0])) == pytest.approx(found[0], abs=1e-6)
    small = nnx.softmax(predict.predict_images(run.model, images, batch_size=2))
    np.testing.assert_allclose(small, expected, atol=1e-6)


def test_lines_of_files_folders_and_standard_input(run, files, say, monkeypatch):
    code, lines, errors = say(files[0].parent)
    assert (code, errors) == (0, [])
    best, share = next(iter(run.predict(files[1]).items()))
    assert lines[1].startswith(f"{files[1]}  ")
    assert f"{share:.1%} {best}" in lines[1]
    text = f"{files[2]}\r\n\n{files[0]}\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, lines, _ = say("--json", "--top=2", "-")
    said = [json.loads(line) for line in lines]
    assert [one["file"] for one in said] == [str(files[2]), str(files[0])]
    assert list(said[0]["classes"]) == list(run.predict(files[2]))[:2]


def test_others_go_on_where_a_file_cannot_be_read(files, say, tmp_path):
    files[1].write_text("no image")
    (tmp_path / "empty").mkdir()
    (files[0].parent / "link.png").symlink_to("nowhere")
    names = [tmp_path / "empty", "", "gs://x/a.png", files[0].parent, tmp_path / "no"]
    code, lines, errors = say(*names)
    assert code == 1
    assert [line.split("  ")[0] for line in lines] == [str(files[0]), str(files[2])]
    expected = [
        f"left out 1, a broken link: {files[0].parent}/link.png",
        f"error: {tmp_path}/empty has no images",
        "error: a path is empty; ",
        "error: gs://x/a.png: gs:// is not supported here; give a local path",
        f"error: {files[1]} cannot be read as an image: ",
        f"error: {tmp_path}/no cannot be read as an image: No such file",
    ]
    assert len(errors) == len(expected)
    for line, start in zip(errors, expected, strict=True):
        assert line.startswith(start)


def test_a_name_of_another_encoding_comes_by_standard_input(files, say, monkeypatch):
    path = os.fsencode(files[0].parent) + b"/caf\xe9.png"
    os.rename(files[0], path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path + b"\n")))
    code, lines, _ = say("--json", "-")
    assert (code, os.fsencode(json.loads(lines[0])["file"])) == (0, path)


def test_pictures(files, say, tmp_path):
    out = tmp_path / "out"
    folder = files[0].parent / "more"
    folder.mkdir()
    Image.open(files[0]).save(folder / "a.png")
    code, lines, _ = say(files[0], folder, "--explain", f"--out={out}")
    assert code == 0
    first = f"{folder.parent.name}-a"
    names = {path.name: path.read_bytes() for path in out.iterdir()}
    assert names.keys() == {f"{first}.png", "more-a.png"}
    assert lines[1].endswith(str(out / "more-a.png"))
    # Another time they are put beside these.
    assert say(files[0], "--explain", f"--out={out}")[0] == 0
    assert (out / f"{first}-2.png").exists()
    assert all((out / name).read_bytes() == data for name, data in names.items())
    with pytest.raises(UserError, match=r"a\.png is not a folder; give another --out"):
        say(files[0], "--explain", f"--out={files[0]}")
    with pytest.raises(OSError, match="/dev/null/x"):
        explain.main(["--workdir=run", str(files[0]), "--explain", "--out=/dev/null/x"])


def test_shares_that_are_no_numbers_are_null(run, files, say):
    run.model.head.bias[...] = np.nan
    (line,) = say("--json", "--top=1", files[0])[1]
    assert json.loads(line, parse_constant=pytest.fail)["classes"] == {"class 0": None}


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--top=0", "a.png"], "--top=0 must be"), (["--workdir=x", "a"], "x holds no")],
)
def test_bad_input(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        explain.main(["--workdir=run", *argv])


def test_effect_of_a_head_is_that_of_its_absence(run, files):
    image = predict.read_images(files[0], run.config)[0]
    graphdef = create_graphdef(run.model.config)
    params = nnx.to_pure_dict(nnx.state(run.model, nnx.Param))
    effects = explain.head_effects(params, image, 2, graphdef=graphdef)
    whole = run.model(image[None])[0][0, 2]
    for layer, head in np.ndindex(effects.shape):
        kernel = run.model.blocks[layer].attention.out.kernel
        before = kernel[...]
        kernel[...] = before.at[head].set(0)
        expected = whole - run.model(image[None])[0][0, 2]
        kernel[...] = before
        assert effects[layer, head] == pytest.approx(float(expected), abs=1e-4)
    assert np.abs(effects).max() > 1e-2


def test_picture_shows_the_heads_that_do_most(rng):
    image = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    maps = rng.uniform(0.1, 4, size=(2, 3, 3, 3))
    effects = np.array([[0.1, 3, -5], [2, 0, 1]])
    figure = explain.draw(image, maps[0, 0], maps, effects, "$a_{$")
    titles = [ax.get_title() for ax in figure.axes[:-1]]
    assert titles[2:] == [
        "layer 1, head 2\nworth +3.00 logits",
        "layer 2, head 1\nworth +2.00 logits",
        "layer 2, head 3\nworth +1.00 logits",
    ]
    shown = figure.axes[2].images[0].get_array()
    np.testing.assert_array_equal(shown, overlay(image, maps[0, 1], len(shown)))
    figure.canvas.draw()

"""How well a run classifies: splits, folders of classes, and what it refuses."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.metrics import confusion_matrix, log_loss

from svda_jax import UserError
from svda_jax.config import vit_config
from svda_jax.look import evaluate
from svda_jax.models.vit import ViT, create_graphdef
from svda_jax.run import runs

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def keep():
    """The run that one test made, for the next."""
    return {}


@pytest.fixture
def run(keep, make_config, randomize, monkeypatch):
    """Ten classes of digits, by a model of random parameters."""
    if not keep:
        config = make_config(model__depth=1)
        graphdef = create_graphdef(vit_config(config))
        model = nnx.eval_shape(lambda: ViT(vit_config(config), rngs=nnx.Rngs(0)))
        params = randomize(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        model = nnx.merge(graphdef, params)
        keep["run"] = runs.Run(config, model, 7, history=None, class_names=NAMES)
    monkeypatch.setattr(evaluate.runs, "load", lambda workdir: keep["run"])
    return keep["run"]


@pytest.fixture
def folder(tmp_path, rng):
    """Images of two of the ten classes, 3 and 2."""
    for name, count in (("c", 3), ("a", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, size=(9, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_summary_is_what_scikit_learn_says(rng):
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 6, size=50)
    found = evaluate.summarize(np.float32(logits), labels, NAMES[:7])
    predicted = logits.argmax(-1)
    expected = confusion_matrix(labels, predicted, labels=range(7))
    np.testing.assert_array_equal(found["confusion"], expected)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert found["loss"] == pytest.approx(log_loss(labels, shares, labels=range(7)))
    assert found["top_1"] == np.mean(predicted == labels)
    ranks = (logits > logits[np.arange(50), labels][:, None]).sum(-1)
    assert found["top_5"] == np.mean(ranks < 5)
    first, last = found["classes"][0], found["classes"][6]
    assert first["accuracy"] == np.mean(predicted[labels == 0] == 0)
    wrong = predicted[(labels == 0) & (predicted != 0)]
    assert first["times"] == np.bincount(wrong).max()
    assert first["taken_for"] == NAMES[np.bincount(wrong).argmax()]
    assert (last["images"], last["accuracy"], last["taken_for"]) == (0, None, None)


def test_splits_of_the_data_set(run, capsys):
    evaluate.main(["--workdir=x", "--json"])
    own = json.loads(capsys.readouterr().out)
    assert (own["images"], own["step"]) == (77, 7)
    assert own["data"] == "digits test[:77]"
    assert np.sum(own["confusion"]) == 77
    evaluate.main(["--workdir=x", "--split=train[:50]", "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == 50
    evaluate.main(["--workdir=x"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x, step 7, on digits test[:77]: 77 images"
    assert lines[1].startswith(f"top-1 {own['top_1']:.2%}, top-5 {own['top_5']:.2%}, ")
    assert len(lines) == 2 + 12 + 12
    with pytest.raises(UserError, match="eval_split=nope is no split of digits"):
        evaluate.main(["--workdir=x", "--split=nope"])


def test_folder_of_class_folders(run, folder, capsys):
    (folder / "a" / "no.png").write_text("no image")
    with pytest.raises(SystemExit, match="1"):
        evaluate.main(["--workdir=x", str(folder), "--json"])
    out, err = capsys.readouterr()
    assert err.startswith("left out 1, no image: ")
    found = json.loads(out)
    images = {row["name"]: row["images"] for row in found["classes"]}
    assert images == dict.fromkeys(NAMES, 0) | {"a": 2, "c": 3}
    paths = [folder / "c" / f"{i}.png" for i in range(3)]
    best = [NAMES.index(next(iter(one))) for one in run.predict(paths)]
    np.testing.assert_array_equal(
        found["confusion"][2], np.bincount(best, minlength=10)
    )


def no_class(folder):
    (folder / "c").rename(folder / "z")


def no_images(folder):
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_class, "photos/z is none of the run's classes, which are a, b, c, d, e, "),
        (no_images, "photos has no images in class folders that can be read"),
        (lambda folder: folder.rename(folder.parent / "x"), "photos is not a folder"),
    ],
)
def test_bad_folder(run, folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        evaluate.main(["--workdir=x", str(folder)])


def test_split_and_folder_are_one_line_and_code_2(folder, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        evaluate.main(["--workdir=x", "--split=train", str(folder)])
    error = capsys.readouterr().err
    assert error.startswith("error: argument DIR: not allowed with argument --split")
    assert error.count("\n") == 1


def test_confusion_is_drawn_as_shares_of_the_true_class():
    counts = np.array([[3, 1], [0, 0]])
    figure = evaluate.draw_confusion(counts, ["$a_{$", "b"])
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [text.get_text() for text in ax.texts] == ["3", "1"]
    figure.canvas.draw()

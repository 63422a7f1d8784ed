"""Images of one's own: what the recipe makes of them, and that it learns."""

import json
import shlex

import jax
import numpy as np
import pytest
from flax import nnx
from folders import run, write_images
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from svda_jax import UserError, main
from svda_jax.config import load, validate
from svda_jax.data import datasets, prepare
from svda_jax.data.image_folder import Measured
from svda_jax.data.splits import open_split
from svda_jax.devices import parallel
from svda_jax.models.vit import ViT
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

NAMES = ["astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel", "page"]
TILE = 56  # pixels


def cut(folder):
    """Ten photographs in tiles, of which those of the right third are the test split.

    A class is which photograph a tile is of, and no two tiles share a pixel.
    """
    pictures = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    pictures |= {name: getattr(photographs, name)() for name in NAMES}
    for name, picture in pictures.items():
        height, width = picture.shape[:2]
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
        for top in range(0, height - TILE + 1, TILE):
            for left in range(0, width - TILE + 1, TILE):
                split = "test" if left > 0.6 * width else "train"
                tile = picture[top : top + TILE, left : left + TILE]
                Image.fromarray(tile).save(folder / split / name / f"{top}-{left}.png")


@pytest.fixture
def machine(monkeypatch):
    """Makes the recipe see a machine."""

    def see(cores=2, accelerator=False):
        found = ["/dev/nvidia0"] if accelerator else []
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        monkeypatch.setattr("glob.glob", lambda pattern: found)
        monkeypatch.setenv("JAX_PLATFORMS", "cuda" if accelerator else "cpu")

    see()
    return see


@pytest.fixture
def measured(tmp_path, machine):
    """Makes a data set of which only what was measured is there; its `load`."""

    def make(num_images, *overrides, side=500, channels=3, **splits):
        found = {
            "num_classes": 7,
            "splits": {"train": num_images, **splits},
            "side": side,
            "mean": [0.5, 0.4, 0.3][:channels],
            "std": [0.2, 0.2, 0.2][:channels],
        }
        path = tmp_path / "mine" / "1.0.0" / "images.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        where = ("dataset.data_dir", str(tmp_path))
        return load("configs/folder.py:mine", [where, *overrides])

    return make


def test_ten_photographs_are_told_apart_by_regions_not_seen(tmp_path, see_devices):
    """Chance is 10 %; the whole recipe's model and 20 epochs reach 93.9 %."""
    see_devices(1)
    cut(tmp_path / "photographs")
    run(tmp_path / "photographs", tmp_path, name="photographs")
    overrides = {"dataset.data_dir": tmp_path / "tfds", "num_epochs": 8}
    overrides |= {"model.depth": 2, "eval_every_epochs": 8}
    config = load(
        "configs/folder.py:photographs", [(k, str(v)) for k, v in overrides.items()]
    )
    assert (config.dataset.image_size, config.model.patch_size) == (56, 7)
    train_and_evaluate(config, tmp_path / "run")
    assert runs.read_history(tmp_path / "run").eval_accuracy[-1] > 0.6


def test_the_line_printed_at_the_end_trains_as_it_stands(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    write_images(folder, ["a", "b"], num_images=20, size=(48, 40))
    monkeypatch.chdir(tmp_path)
    prepare.main(["pets", "--from", str(folder), "--data_dir", "with a space"])
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert line[:4] == ["python", "-m", "svda_jax", "train"]
    monkeypatch.chdir("/")
    config, workdir, _ = main.parse(line[3:])
    assert str(workdir) == "runs/pets-svda-0"
    assert config.batch_size == 8  # of 32 images
    validate(config, num_devices=8)
    mesh = parallel.create_mesh(jax.devices()[:1])
    for kind, count in (("train", 32), ("eval", 8)):
        data = datasets.load(config.dataset, kind, batch_size=8, mesh=mesh)
        assert data.num_images == count
        assert data.class_names == ("a", "b")
    other = main.parse([*line[3:], "--config.batch_size=5", "--config.augment.flip=0"])
    assert (other[0].batch_size, other[0].augment.flip) == (5, False)
    assert "batches of 5, " in other[0].note
    assert "mirrored" not in other[0].note


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_line_of_a_few_images_asks_for_no_more_than_there_are(
    count, tmp_path, capsys
):
    write_images(tmp_path / "images", ["a", "b"], num_images=count)
    builder = run(tmp_path / "images", tmp_path)
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    config = main.parse(line[3:])[0]
    validate(config, num_devices=1)
    for kind in ("train", "eval"):
        split = open_split(builder, config.dataset, kind)
        assert len(split) >= (config.batch_size if kind == "train" else 1)


@pytest.mark.parametrize(
    ("num_images", "machine_of", "expected"),
    [
        (40, {}, (64, 8, 128, 8, 300)),
        (2_000, {}, (64, 8, 128, 128, 150)),
        (2_000, {"cores": 64}, (64, 8, 128, 128, 300)),
        (10**6, {}, (64, 8, 128, 128, 10)),
        (9_999, {"accelerator": True}, (224, 16, 128, 512, 300)),
        (30_000, {"accelerator": True}, (224, 16, 192, 512, 300)),
        (10**6, {"accelerator": True}, (224, 16, 384, 512, 30)),
    ],
)
def test_rules_by_number_of_images_and_machine(
    measured, machine, num_images, machine_of, expected
):
    machine(**machine_of)
    config = measured(num_images, test=5)
    found = (config.dataset.image_size, config.model.patch_size, config.model.width)
    assert (*found, config.batch_size, config.num_epochs) == expected
    assert (config.augment.mixup > 0) == (num_images >= 5_000)
    assert f"for {num_images:,} images" in config.note
    validate(config, num_devices=1)


def test_size_by_the_size_of_images(measured):
    for side, expected in ((500, 64), (63, 56), (28, 24), (5, 8)):
        assert measured(100, test=5, side=side).dataset.image_size == expected


def test_grey_images_such_as_digits_are_not_mirrored(measured):
    colour, grey = measured(100), measured(100, channels=1)
    assert (colour.augment.flip, grey.augment.flip) == (True, False)
    assert "mirrored (--config.augment.flip=False where" in colour.note
    assert "mirrored" not in grey.note


def test_split_that_is_evaluated(measured):
    assert measured(100, test=5, validation=5).dataset.eval_split == "validation"
    assert measured(100, test=5).dataset.eval_split == "test"
    config = measured(100)
    assert config.dataset.holdout == 0.2
    assert config.batch_size == 8  # of 80


def test_numbers_of_parameters(measured, machine):
    for num_images, expected in ((100, 829_703), (20_000, 2_861_959)):
        machine(accelerator=num_images > 100)
        model_config = validate(measured(num_images), num_devices=1)
        model = nnx.eval_shape(lambda c=model_config: ViT(c, rngs=nnx.Rngs(0)))
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert sum(leaf.size for leaf in leaves) == expected


def test_mean_and_deviation_are_those_of_all_pixels(rng):
    images = rng.integers(0, 256, size=(5, 11, 7, 3)).astype(np.uint8)
    images[0] //= 3
    measured = Measured()
    for image in images:
        measured.add(image)
    found = measured.compute()
    # Rounded to four places.
    np.testing.assert_allclose(found["mean"], images.mean((0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(found["std"], images.std((0, 1, 2)) / 255, atol=1e-4)
    assert found["side"] == 7
    grey = Measured()
    grey.add(np.repeat(images[:1, ..., :1], 3, axis=-1)[0])
    assert len(grey.compute()["mean"]) == len(grey.compute()["std"]) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/folder.py", "which images[?] --config=configs/folder.py:NAME"),
        ("configs/folder.py:", "which images[?] --config=configs/folder.py:NAME"),
        ("configs/folder.py:none", "images.json; .* prepare none --from DIR"),
        ("configs/folder.py:bad", "bad/1.0.0/images.json is damaged"),
        ("configs/digits.py:mine", "digits.py takes no argument, such as :mine"),
        ("configs/nope.py:mine", "there is no config file configs/nope.py; there are"),
    ],
)
def test_what_stands_behind_the_colon_is_checked(path, message, tmp_path):
    (tmp_path / "bad" / "1.0.0").mkdir(parents=True)
    (tmp_path / "bad" / "1.0.0" / "images.json").write_text("{")
    with pytest.raises(UserError, match=message):
        load(path, [("dataset.data_dir", str(tmp_path))])

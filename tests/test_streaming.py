"""Order, shares, restart and faults of a data set that streams."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from svda_jax import UserError
from svda_jax.data import prepare, streaming
from svda_jax.data.streaming import Streaming
from svda_jax.devices import parallel
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

NUM_IMAGES, BATCH_SIZE = 23, 8


@pytest.fixture
def images():
    """Flat images of different sizes; each one's value says which it is."""
    return [np.full((5 + i % 3, 4 + i % 5, 3), 10 * i, np.uint8) for i in range(23)]


@pytest.fixture
def create(make_split, make_dataset_config, images):
    def create(num_devices=1, images=images, batch_size=BATCH_SIZE, **changes):
        split = make_split(images, range(len(images)), len(images))
        options = {"image_size": 3, "channels": 3, "streaming": True, "num_threads": 2}
        config = make_dataset_config(**{**options, **changes})
        mesh = parallel.create_mesh(jax.devices()[:num_devices])
        return Streaming(split, config, batch_size=batch_size, mesh=mesh)

    return create


def take(data, num_steps, first_step=0, seed=0):
    """Labels `[num_steps, B]` of the batches from first_step on."""
    batches = data.train_batches(jax.random.key(seed), first_step)
    labels = []
    for batch in itertools.islice(batches, num_steps):
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (data.batch_size, 3, 3, 3)
        label = np.asarray(batch["label"])
        np.testing.assert_array_equal(
            np.asarray(batch["image"])[:, 2, 1, 0], 10 * label
        )
        labels.append(label)
    return np.array(labels)


@pytest.mark.parametrize("batch_size", [8, NUM_IMAGES])
def test_each_image_comes_once_an_epoch(create, batch_size):
    data = create(batch_size=batch_size)
    labels = take(data, 5 * NUM_IMAGES // batch_size).ravel()
    epochs = labels[: 4 * NUM_IMAGES].reshape(4, NUM_IMAGES)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(NUM_IMAGES))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_are_a_function_of_seed_and_step(create):
    whole = take(create(), 12)
    for first_step in (1, 2, 3, 7):  # 2 and 3 lie on either side of an epoch's end
        np.testing.assert_array_equal(
            take(create(num_threads=1 + first_step), 12 - first_step, first_step),
            whole[first_step:],
        )
    assert not np.array_equal(take(create(), 12, seed=1), whole)


def photograph_crops(data, num_steps):
    batches = data.train_batches(jax.random.key(0), 0)
    return [np.asarray(b["image"]) for b in itertools.islice(batches, num_steps)]


def test_crops_are_a_function_of_seed_and_step(create, rng):
    noise = [rng.integers(0, 256, size=(9, 9, 3)).astype(np.uint8) for _ in range(8)]
    whole = photograph_crops(create(images=noise), 4)
    again = photograph_crops(create(images=noise, num_threads=5), 4)
    np.testing.assert_array_equal(whole, again)
    # Another epoch crops the same image elsewhere.
    assert len({image.tobytes() for batch in whole for image in batch}) == 32


def test_worker_processes_change_nothing(create):
    expected = take(create(), 5, first_step=2)
    found = take(create(num_workers=2), 5, first_step=2)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("first_step", [0, 5])
def test_processes_read_disjoint_shares(create, monkeypatch, first_step):
    expected = take(create(), 9, first_step)
    data = create()
    monkeypatch.setattr(streaming.jax, "process_count", lambda: 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr(
            streaming.jax, "process_index", lambda process=process: process
        )
        seed = int(jax.random.bits(jax.random.key(0)))
        reader = streaming._TrainReader(data._split, data._config, BATCH_SIZE, seed)
        steps = range(first_step, first_step + 9)
        shares.append(np.array([reader[step]["label"] for step in steps]))
        evaluation = streaming._EvalReader(data._split, data._config, BATCH_SIZE)
        assert len(evaluation) == 3
        batches = [evaluation[step] for step in range(3)]
        seen = [label for b in batches for label in b["label"][b["mask"]].tolist()]
        first = 4 * process
        assert seen == [
            i for i in range(NUM_IMAGES) if first <= i % BATCH_SIZE < first + 4
        ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), expected)


def test_devices_share_a_batch(create):
    batch = next(create(num_devices=4).train_batches(jax.random.key(0), 0))
    shares = [shard.data for shard in batch["label"].addressable_shards]
    assert [len(share) for share in shares] == [2] * 4
    np.testing.assert_array_equal(np.concatenate(shares), take(create(), 1)[0])


@pytest.mark.parametrize("num_images", [NUM_IMAGES, 16, 7])
def test_evaluation_sees_each_image_once(create, images, num_images):
    data = create(num_devices=2, images=images[:num_images])
    seen = []
    for batch in data.eval_batches():
        assert batch["label"].shape == (BATCH_SIZE,)
        mask = np.asarray(batch["mask"])
        label = np.asarray(batch["label"])[mask]
        np.testing.assert_array_equal(
            np.asarray(batch["image"])[mask, 1, 1, 1], 10 * label
        )
        seen.append(label)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(num_images))


def test_images_can_be_fetched_by_place(create):
    images, labels = create().get([4, 0, 22])
    np.testing.assert_array_equal(labels, [4, 0, 22])
    np.testing.assert_array_equal(images[:, 1, 2, 0], [40, 0, 220])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_image_names_itself_and_stops(create, images, num_workers):
    images[4] = b"no image"
    data = create(num_workers=num_workers)
    message = r"^corrupt image: toy train, example 4 \(n4.png\): not an image; mend"
    with pytest.raises(UserError, match=message):
        take(data, 4)
    with pytest.raises(UserError, match=message):
        list(data.eval_batches())


def test_corrupt_images_are_skipped_said_once_and_counted(create, images, capsys):
    clean = take(create(), 9).ravel()
    images[4] = images[17] = b"no image"
    data = create(skip_corrupt=True)
    labels = take(data, 9).ravel()
    bad = np.isin(clean, [4, 17])
    np.testing.assert_array_equal(labels[~bad], clean[~bad])
    # The next good one of the order stands in.
    for place in np.flatnonzero(bad[:-2]):
        following = clean[place + 1 :]
        assert labels[place] == following[~np.isin(following, [4, 17])][0]
    seen = np.concatenate(
        [np.asarray(b["label"])[np.asarray(b["mask"])] for b in data.eval_batches()]
    )
    np.testing.assert_array_equal(seen, np.delete(np.arange(NUM_IMAGES), [4, 17]))
    assert sorted(data.skipped) == [4, 17]
    assert capsys.readouterr().out.count("skipping a corrupt image: toy train") == 2


PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "immunohistochemistry",
    "moon",
    "rocket",
)


@pytest.fixture(scope="module")
def photograph_dir(tmp_path_factory):
    """A TFDS folder with pieces of eleven photographs, each a class, as JPEGs."""
    import skimage.data

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(skimage.data, name)())
        for split, count in (("train", 9), ("val", 3)):
            (path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                width, height = rng.integers(90, 250, size=2)
                left = rng.integers(picture.width - width)
                top = rng.integers(picture.height - height)
                piece = picture.crop((left, top, left + width, top + height))
                piece.save(path / "images" / split / name / f"{i}.jpg", quality=90)
    source, data_dir = str(path / "images"), str(path / "tfds")
    prepare.main(["photographs", "--from", source, "--data_dir", data_dir])
    return data_dir


@pytest.mark.usefixtures("two_devices")
def test_photographs_end_to_end(photograph_dir, make_config, tmp_path, monkeypatch):
    """Imported, trained, evaluated, stopped inside an epoch, resumed the same."""
    config = make_config(
        num_epochs=4,
        model__depth=1,
        batch_size=20,
        learning_rate=3e-3,
        eval_every_epochs=4,
        augment__affine=0.0,
        augment__crop_padding=0,
        augment__flip=True,
        augment__erase=0.25,
        dataset__name="photographs",
        dataset__data_dir=photograph_dir,
        dataset__train_split="train",
        dataset__eval_split="validation",
        dataset__image_size=16,
        dataset__channels=3,
        dataset__num_classes=11,
        dataset__mean=(0.5, 0.5, 0.5),
        dataset__std=(0.25, 0.25, 0.25),
        dataset__streaming=True,
        dataset__num_threads=2,
        dataset__min_crop_area=0.5,
    )
    train_and_evaluate(config, tmp_path / "whole")
    assert runs.load(tmp_path / "whole").class_names == PHOTOGRAPHS
    history = runs.read_history(tmp_path / "whole")
    assert history["step"].values.tolist() == [20]  # ceil(4 * 99 / 20)
    assert np.isfinite(history["eval_loss"]).all()

    real = Streaming.train_batches

    def stop_at_step_7(self, key, first_step):
        yield from itertools.islice(real(self, key, first_step), 7 - first_step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Streaming, "train_batches", stop_at_step_7)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "stopped")
    assert runs.load_config(tmp_path / "stopped") == runs.load_config(
        tmp_path / "whole"
    )
    train_and_evaluate(config, tmp_path / "stopped")  # from step 5, half an epoch done
    from flax import nnx

    whole, resumed = (
        nnx.to_pure_dict(nnx.state(runs.load(tmp_path / name).model, nnx.Param))
        for name in ("whole", "stopped")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)

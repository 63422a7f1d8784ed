"""Order, exactness and restart of the batches of a data set on the device."""

import itertools

import jax
import numpy as np
import pytest

from svda_jax import UserError
from svda_jax.data.in_memory import Examples, InMemory, decode_split
from svda_jax.devices import parallel

NUM_IMAGES, BATCH_SIZE = 23, 8


def create(num_devices=1, num_images=NUM_IMAGES, batch_size=BATCH_SIZE):
    # Each image says which one it is.
    labels = np.arange(num_images, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (num_images, 3, 3, 1))
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    examples = Examples(images.astype(np.uint8), labels, (), {})
    return InMemory(examples, batch_size=batch_size, mesh=mesh)


def take(data, num_steps, first_step=0, seed=0):
    """Labels `[num_steps, B]` of the batches from first_step on."""
    batches = data.train_batches(jax.random.key(seed), first_step)
    labels = []
    for batch in itertools.islice(batches, num_steps):
        assert batch["image"].dtype == np.uint8
        label = np.asarray(batch["label"])
        np.testing.assert_array_equal(np.asarray(batch["image"])[:, 2, 1, 0], label)
        labels.append(label)
    return np.array(labels)


@pytest.mark.parametrize("batch_size", [8, NUM_IMAGES])
def test_each_image_comes_once_an_epoch(batch_size):
    labels = take(create(batch_size=batch_size), 5 * NUM_IMAGES // batch_size).ravel()
    epochs = labels[: 4 * NUM_IMAGES].reshape(4, NUM_IMAGES)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(NUM_IMAGES))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_are_a_function_of_seed_and_step():
    data = create()
    whole = take(data, 12)
    for first_step in (1, 2, 3, 7, 11):
        np.testing.assert_array_equal(
            take(data, 12 - first_step, first_step), whole[first_step:]
        )
    assert not np.array_equal(take(data, 12, seed=1), whole)


def test_devices_share_a_batch():
    batch = next(create(num_devices=4).train_batches(jax.random.key(0), 0))
    shares = [shard.data for shard in batch["label"].addressable_shards]
    assert [len(share) for share in shares] == [2] * 4
    np.testing.assert_array_equal(np.concatenate(shares), take(create(), 1)[0])


def test_a_step_moves_nothing_to_the_device():
    batches = create().train_batches(jax.random.key(0), 0)
    next(batches)  # the start of an epoch moves two numbers
    with jax.transfer_guard_host_to_device("disallow"):
        next(batches)


@pytest.mark.parametrize("num_images", [NUM_IMAGES, 24, 7])
def test_evaluation_sees_each_image_once(num_images):
    data = create(num_devices=2, num_images=num_images)
    seen = []
    for batch in data.eval_batches():
        assert batch["label"].shape == (BATCH_SIZE,)
        seen.append(np.asarray(batch["label"])[np.asarray(batch["mask"])])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(num_images))
    assert data._take_eval._cache_size() == 1


def test_images_can_be_fetched_by_place():
    images, labels = create(num_devices=2).get([4, 0, 22])
    np.testing.assert_array_equal(labels, [4, 0, 22])
    np.testing.assert_array_equal(images[:, 1, 2, 0], [4, 0, 22])


def test_decoded_split(make_split, make_dataset_config, rng):
    images = rng.integers(0, 256, size=(7, 5, 5, 3)).astype(np.uint8)
    labels = rng.permutation(7)
    split = make_split(images, labels)
    examples = decode_split(split, make_dataset_config(image_size=5, channels=3))
    np.testing.assert_array_equal(examples.images, images)
    np.testing.assert_array_equal(examples.labels, labels)
    assert examples.class_names == split.class_names
    with pytest.raises(UserError, match=r"example 0 \(n0.png\): the image is 5 x 5; "):
        decode_split(split, make_dataset_config(image_size=6, channels=3))


def test_corrupt_images_stop_or_are_left_out(make_split, make_dataset_config, capsys):
    images = [np.full((3, 3, 1), i, np.uint8) for i in range(6)]
    images[2] = images[4] = b"no image"
    split = make_split(images, range(6))
    message = r"corrupt image: toy train, example 2 \(n2.png\): not an image; mend"
    with pytest.raises(UserError, match=message):
        decode_split(split, make_dataset_config(image_size=3))
    config = make_dataset_config(image_size=3, skip_corrupt=True)
    examples = decode_split(split, config)
    assert sorted(examples.skipped) == [2, 4]
    np.testing.assert_array_equal(examples.labels, [0, 1, 3, 5])
    np.testing.assert_array_equal(examples.images[:, 0, 0, 0], examples.labels)
    assert capsys.readouterr().out.count("skipping a corrupt image: toy train") == 2

"""Data sets that fit on the device: batches are gathered there, by compiled code.

The training examples form one endless sequence, the epochs' permutations one after the
other, and the batch of step k is its piece from k B on. So each example comes exactly
once in an epoch, a batch may reach from one epoch into the next, and the batch is a
function of (key, step) alone: a run resumes from the number of its step.
"""

import concurrent.futures
import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from svda_jax import UserError
from svda_jax.data.images import CorruptImageError, decode
from svda_jax.data.splits import corrupt_image, unknown_label
from svda_jax.devices import parallel

# Examples that a thread reads in one go.
_TOGETHER = 64


class Examples(NamedTuple):
    """A whole split, decoded.

    Attributes:
      images: `[n, S, S, channels]` uint8.
      labels: `[n]` int32.
      class_names: what each label stands for.
      skipped: what was wrong with each corrupt image that was left out, by its place.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: dict[int, str]


class InMemory:
    """One split on all devices of a mesh.

    Args:
      examples: `Examples`.
      batch_size: B, of all devices together; a multiple of their number.
      mesh: from `parallel.create_mesh`.

    Attributes:
      num_images: of the split, without those that were skipped.
      class_names: what each label stands for.
      skipped: what was wrong with each corrupt image that was skipped, by its place.
    """

    def __init__(self, examples, *, batch_size, mesh):
        images, labels, self.class_names, self.skipped = examples
        self.num_images = len(labels)
        self.batch_size = batch_size
        self._data = parallel.replicate({"image": images, "label": labels}, mesh)
        self._mesh = mesh
        self._order, self._take_train, self._take_eval = _compile(
            self.num_images, batch_size, mesh
        )

    def train_batches(self, key, first_step):
        """Yields the batches of steps first_step, first_step + 1, ... without end.

        Each is "image" `[B, S, S, C]` uint8 and "label" `[B]` int32, split over the
        devices. Nothing moves from host to device but at the start of an epoch.
        """
        position = first_step * self.batch_size
        while True:
            epoch, offset = divmod(position, self.num_images)
            order = self._order(key, np.int32(epoch))
            start = parallel.replicate(np.int32(offset), self._mesh)
            while position < (epoch + 1) * self.num_images:
                batch, start = self._take_train(self._data, order, start)
                position += self.batch_size
                yield batch

    def eval_batches(self):
        """Yields the split in order, each example once, the last batch filled up.

        As in training, and "mask" `[B]` bool, False where a batch is only filled up.
        """
        for start in range(0, self.num_images, self.batch_size):
            yield self._take_eval(self._data, np.int32(start))

    def get(self, places):
        """Images `[n, S, S, channels]` and labels `[n]` as evaluation sees them."""
        data = jax.device_get(jax.tree.map(lambda x: x[np.array(places)], self._data))
        return data["image"], data["label"]


def decode_split(split, config):
    """Decodes all images of a split.

    Args:
      split: `datasets.splits.Split`, of images of one size.
      config: the `dataset` section of a config.

    Returns:
      `Examples`.

    Raises:
      UserError: an image is not of the size that the config says, or is corrupt and
        `skip_corrupt` is off.
    """
    shape = (config.image_size, config.image_size, config.channels)
    images = np.empty((len(split), *shape), np.uint8)
    labels = np.empty(len(split), np.int32)
    skipped = {}

    def read(places):
        for place, (data, label) in zip(places, split.read(places), strict=True):
            if label < 0:
                raise unknown_label(split.describe(place))
            try:
                image = decode(data, channels=config.channels)
            except CorruptImageError as error:
                skipped[place] = f"{split.describe(place)}: {error}"
                continue
            if image.shape != shape:
                raise UserError(
                    f"{split.describe(place)}: the image is {image.shape[0]} x "
                    f"{image.shape[1]}; dataset.image_size={config.image_size} must be "
                    "that, or dataset.streaming=True, which scales images"
                )
            images[place], labels[place] = image, label

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, len(split), _TOGETHER)
        list(pool.map(read, [range(len(split))[i : i + _TOGETHER] for i in starts]))
    if not config.skip_corrupt and skipped:
        raise corrupt_image(skipped[min(skipped)])
    for place in sorted(skipped):
        print(f"skipping a corrupt image: {skipped[place]}", flush=True)
    if skipped:
        images, labels = (np.delete(x, list(skipped), axis=0) for x in (images, labels))
    return Examples(images, labels, split.class_names, skipped)


@functools.lru_cache(maxsize=8)
def _compile(num_images, batch_size, mesh):
    """The functions below, each of its sizes, placed on the mesh."""
    whole, split = parallel.replicated(mesh), parallel.split(mesh)
    return (
        jax.jit(
            functools.partial(_two_epochs, num_images=num_images), out_shardings=whole
        ),
        jax.jit(
            functools.partial(_take_train, batch_size=batch_size),
            out_shardings=(split, whole),
        ),
        jax.jit(
            functools.partial(_take_eval, batch_size=batch_size), out_shardings=split
        ),
    )


def _two_epochs(key, epoch, *, num_images):
    """The order of an epoch and of the next: `[2 n]` indices."""
    return jnp.concatenate(
        [
            jax.random.permutation(jax.random.fold_in(key, epoch + i), num_images)
            for i in range(2)
        ]
    )


def _take_train(data, order, start, *, batch_size):
    """The batch from that place of the order on, and the place behind it."""
    indices = jax.lax.dynamic_slice(order, (start,), (batch_size,))
    batch = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), data)
    return batch, start + batch_size


def _take_eval(data, start, *, batch_size):
    """The batch from that example on, with its mask."""
    indices = start + jnp.arange(batch_size)
    num_images = len(data["label"])
    batch = jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), data)
    return {**batch, "mask": indices < num_images}

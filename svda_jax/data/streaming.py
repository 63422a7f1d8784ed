"""Data sets that do not fit on the device: batches are decoded on the host, by Grain.

As in `in_memory`, the training examples form one endless sequence, the epochs'
permutations one after the other, and the batch of step k is its piece from k B on. The
crop of an image is drawn from (seed, place in that sequence). So the batch of a step is
a function of the seed and the step alone, whatever the threads, the worker processes
and the hosts, of which each reads its own share of every batch.
"""

import contextlib
import functools
import os
import sys

import grain
import jax
import numpy as np
from absl import flags

from svda_jax.data.images import (
    CorruptImageError,
    center_crop,
    decode,
    random_resized_crop,
)
from svda_jax.data.splits import corrupt_image, unknown_label
from svda_jax.devices import parallel

# Batches decoded ahead, beyond one for each thread.
_AHEAD = 2

# What random numbers are for.
_ORDER, _CROP = 0, 1


class Streaming:
    """One split, read and decoded while it is used.

    Args:
      split: `datasets.splits.Split`.
      config: the `dataset` section of a config.
      batch_size: B, of all devices together; a multiple of their number.
      mesh: from `parallel.create_mesh`.

    Attributes:
      num_images: of the split.
      skipped: what was wrong with each corrupt image that was skipped, by its place.
    """

    def __init__(self, split, config, *, batch_size, mesh):
        self.num_images = len(split)
        self.class_names = split.class_names
        self.batch_size = batch_size
        self.skipped = {}
        self._split = split
        self._config = config
        self._sharding = parallel.split(mesh)

    def train_batches(self, key, first_step):
        """Yields the batches of steps first_step, first_step + 1, ... without end.

        Each is "image" `[B, S, S, channels]` uint8 and "label" `[B]` int32, split over
        the devices.

        Raises:
          UserError: an image is corrupt and `skip_corrupt` is off.
        """
        seed = int(jax.random.bits(key))
        reader = _TrainReader(self._split, self._config, self.batch_size, seed)
        return self._batches(reader, first_step, self._config.num_workers)

    def eval_batches(self):
        """Yields the split in order, each example once, the last batch filled up.

        As in training, and "mask" `[B]` bool, False where a batch is only filled up or
        an image is corrupt.
        """
        return self._batches(_EvalReader(self._split, self._config, self.batch_size))

    def get(self, places):
        """Images `[n, S, S, channels]` and labels `[n]` as evaluation sees them."""
        reader = _EvalReader(self._split, self._config, self.batch_size)
        batch = reader.read(np.asarray(places))
        return batch["image"], batch["label"]

    def _batches(self, reader, first_step=0, num_workers=0):
        threads = self._config.num_threads or os.cpu_count()
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=threads + _AHEAD
        )
        # Whole batches before threads and workers part, so that these change nothing.
        batches = grain.MapDataset.source(reader)[first_step:].to_iter_dataset(options)
        if num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's own, at their defaults
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=num_workers)
            )
        to_devices = functools.partial(
            jax.make_array_from_process_local_data, self._sharding
        )
        with contextlib.closing(iter(batches)) as iterator:  # ends threads and workers
            for batch in iterator:
                self._check(batch.pop("corrupt"))
                yield jax.tree.map(to_devices, batch)

    def _check(self, corrupt):
        """Says which images were corrupt, or stops."""
        for place in corrupt[corrupt >= 0].tolist():
            if place in self.skipped:
                continue
            what = self._split.describe(place)
            data, label = self._split.read([place])[0]
            if label < 0:
                raise unknown_label(what)
            try:
                decode(data, channels=self._config.channels)
            except CorruptImageError as error:
                what += f": {error}"
            if not self._config.skip_corrupt:
                raise corrupt_image(what)
            self.skipped[place] = what
            print(f"skipping a corrupt image: {what}", flush=True)


class _Reader:
    """Random access for Grain to this process's shares of the batches."""

    def __init__(self, split, config, batch_size):
        self.split = split
        self.size = config.image_size
        self.channels = config.channels
        self.batch_size = batch_size
        self.share = batch_size // jax.process_count()
        self.first = self.share * jax.process_index()

    def positions(self, step):
        """Where in the sequence of all processes' examples this share is, `[share]`."""
        return step * self.batch_size + self.first + np.arange(self.share)

    def empty(self, num_images):
        """A batch with no image in it yet."""
        shape = (num_images, self.size, self.size, self.channels)
        return {
            "image": np.zeros(shape, np.uint8),
            "label": np.zeros(num_images, np.int32),
            "corrupt": np.full(num_images, -1),
        }

    def fill(self, batch, i, place, example, crop):
        """Crops an example into place i of a batch, or notes there that it is corrupt.

        Returns:
          Whether it is whole.
        """
        data, label = example
        try:
            if label < 0:
                raise CorruptImageError
            batch["image"][i] = crop(data, size=self.size, channels=self.channels)
        except CorruptImageError:  # `_check` says how
            batch["corrupt"][i] = place
            return False
        batch["label"][i] = label
        return True


class _TrainReader(_Reader):
    def __init__(self, split, config, batch_size, seed):
        super().__init__(split, config, batch_size)
        self.seed = seed
        self.min_area = config.min_crop_area

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, step):
        batch, positions = self.empty(self.share), self.positions(step).tolist()
        places = [self.place(position) for position in positions]
        for i, example in enumerate(self.split.read(places)):
            rng = np.random.default_rng([self.seed, _CROP, positions[i]])
            crop = functools.partial(
                random_resized_crop, rng=rng, min_area=self.min_area
            )
            # In the place of a corrupt image comes the next.
            for further in range(1, len(self.split) + 1):
                if self.fill(batch, i, places[i], example, crop):
                    break
                places[i] = self.place(positions[i] + further)
                (example,) = self.split.read(places[i : i + 1])
        return batch

    def place(self, position):
        epoch, place = divmod(position, len(self.split))
        return int(_order(self.seed, epoch, len(self.split))[place])


class _EvalReader(_Reader):
    def __init__(self, split, config, batch_size):
        super().__init__(split, config, batch_size)
        self.fraction = config.eval_crop

    def __len__(self):
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, step):
        return self.read(self.positions(step))

    def read(self, places):
        """The batch of these examples; those beyond the last leave it empty."""
        batch = {**self.empty(len(places)), "mask": np.zeros(len(places), bool)}
        crop = functools.partial(center_crop, fraction=self.fraction)
        inside = places[places < len(self.split)]
        for i, example in enumerate(self.split.read(inside)):
            batch["mask"][i] = self.fill(batch, i, inside[i], example, crop)
        return batch


@functools.lru_cache(maxsize=4)
def _order(seed, epoch, num_images):
    """The permutation of an epoch, `[n]`."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_images)

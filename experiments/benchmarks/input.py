"""The table `input` of `experiments.benchmarks`: streaming, beside tf.data."""

import functools
import importlib.util
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from experiments.benchmarks.table import Table
from svda_jax.config import recipe
from svda_jax.data import datasets
from svda_jax.data.prepare import import_files
from svda_jax.devices import parallel
from svda_jax.devices.timing import Spread


def input(repeats):
    """Images a second that streaming decodes, by threads and worker processes."""
    size, batch_size, num_batches = 224, 64, 24
    mesh = parallel.create_mesh()

    def ours(num_threads, num_workers):
        config = recipe("imagenet100").dataset
        config.update(name="photographs", data_dir=f"{folder}/tfds", num_classes=2)
        config.update(num_threads=num_threads, num_workers=num_workers)
        data = datasets.load(config, "train", batch_size=batch_size, mesh=mesh)
        return data.train_batches(jax.random.key(0), 0)

    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_photographs(pathlib.Path(folder, "files", "train"))
        import_files("photographs", f"{folder}/files", f"{folder}/tfds")
        variants = {
            f"Grain, {threads} threads, {workers} worker processes": functools.partial(
                ours, threads, workers
            )
            for threads, workers in ((1, 0), (2, 0), (4, 0), (1, 1), (1, 2))
        }
        if importlib.util.find_spec("tensorflow"):
            variants["tf.data, AUTOTUNE"] = functools.partial(
                _tf_data, f"{folder}/files", size, batch_size
            )
        rates = {name: [] for name in variants}
        for _ in range(repeats):
            for name, create in variants.items():
                batches = create()
                for i, _ in zip(range(num_batches), batches, strict=False):
                    if i == num_batches // 3:  # what was decoded ahead is used up
                        start = time.perf_counter()
                counted = num_batches - 1 - num_batches // 3
                rate = counted * batch_size / (time.perf_counter() - start)
                rates[name].append(rate)
                batches.close()
    first = np.median(next(iter(rates.values())))
    return Table(
        "Throughput of the streaming pipeline",
        f"JPEGs of 500 x 375, {num_bytes / 1000:.0f} kB on average, read, decoded, "
        f"cropped at random and scaled to {size} x {size}, in batches of {batch_size} "
        f"on the device. Median of {repeats} rounds, with the lowest and the highest. "
        "tf.data reads the same files one by one, decodes only the crop "
        "(decode_and_crop_jpeg) and scales it linearly.",
        ("", "images/s, lowest to highest", "over one thread"),
        [
            (
                name,
                Spread(min(rate), float(np.median(rate)), max(rate), decimals=0),
                round(float(np.median(rate) / first), 2),
            )
            for name, rate in rates.items()
        ],
        packages=("grain", "simplejpeg", "opencv-python-headless", "tensorflow"),
    )


def write_photographs(
    folder, *, size=(500, 375), num_classes=2, per_class=256, quality=95
):
    """Writes JPEGs cut from two photographs, a folder for each class.

    Args:
      folder: of the class folders.
      size: width and height, at most 640 x 427.
      num_classes: of folders, 0, 1, ...
      per_class: images.
      quality: of the JPEGs.

    Returns:
      Their mean size in bytes.
    """
    rng = np.random.default_rng(0)
    photographs, sizes = load_sample_images().images, []
    width, height = size
    for label in range(num_classes):
        photograph = photographs[label % len(photographs)]
        (folder / str(label)).mkdir(parents=True)
        for i in range(per_class):
            left, top = rng.integers(641 - width), rng.integers(428 - height)
            piece = photograph[top : top + height, left : left + width]
            path = folder / str(label) / f"{i}.jpg"
            Image.fromarray(piece).save(path, quality=quality)
            sizes.append(path.stat().st_size)
    return np.mean(sizes)


def _tf_data(folder, size, batch_size):
    """The peer: the same files, crops of the same distribution, by tf.data."""
    import tensorflow as tf  # optional: pip install tensorflow

    def crop(path):
        data = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(data)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)

    paths = sorted(str(path) for path in pathlib.Path(folder).glob("train/*/*.jpg"))
    batches = (
        tf.data.Dataset.from_tensor_slices(paths)
        .shuffle(len(paths))
        .repeat()
        .map(crop, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    for batch in batches.as_numpy_iterator():
        yield jax.device_put(batch)

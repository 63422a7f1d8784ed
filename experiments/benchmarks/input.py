"""The table `input` of `experiments.benchmarks`: streaming, beside tf.data and timm."""

import contextlib
import functools
import importlib.util
import pathlib
import tempfile
import time

import cv2
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

SIZE, BATCH_SIZE, NUM_BATCHES = 224, 64, 24

# Width and height of the files.
RESOLUTIONS = ((250, 188), (500, 375), (1280, 960))


def input(repeats):
    """Images a second that streaming decodes, by resolution and threads."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {size: f"{folder}/{size[0]}" for size in RESOLUTIONS}
        kilobytes = {}
        for size, where in folders.items():
            num_bytes = write_photographs(pathlib.Path(where, "train"), size=size)
            kilobytes[size] = round(num_bytes / 1000)
            import_files("photographs", where, f"{where}/tfds")
        variants = {
            "one thread": functools.partial(_ours, num_threads=1),
            "two threads": functools.partial(_ours, num_threads=2),
            "four threads": functools.partial(_ours, num_threads=4),
            "one worker process": functools.partial(_ours, num_workers=1),
            "two worker processes": functools.partial(_ours, num_workers=2),
        }
        if importlib.util.find_spec("timm"):
            variants["timm, one worker"] = functools.partial(_timm, workers=1)
            variants["timm, two workers"] = functools.partial(_timm, workers=2)
            importlib.import_module("timm.data")  # behind TensorFlow it crashes
        if importlib.util.find_spec("tensorflow"):
            variants["tf.data, one thread"] = functools.partial(_tf_data, threads=1)
            variants["tf.data, AUTOTUNE"] = _tf_data
        rates = {(name, size): [] for name in variants for size in RESOLUTIONS}
        for _ in range(repeats):
            for (name, size), found in rates.items():
                with contextlib.closing(variants[name](folders[size])) as batches:
                    found.append(_rate(batches))
    return Table(
        "Throughput of the streaming pipeline",
        "JPEGs by width and height, "
        + ", ".join(f"{w} x {h} ({kilobytes[w, h]} kB)" for w, h in RESOLUTIONS)
        + f", read, decoded, cropped at random and scaled to {SIZE} x {SIZE}, in "
        f"batches of {BATCH_SIZE} on the device: images a second, median of {repeats} "
        "rounds, with the lowest and the highest. The first rows are this project's; "
        "tf.data reads the same files one by one, decodes only the crop "
        "(decode_and_crop_jpeg) and scales it linearly; timm's loader decodes the "
        "files with Pillow and scales bilinearly, in worker processes.",
        ("", *(f"{w} x {h}, lowest to highest" for w, h in RESOLUTIONS)),
        [
            (name, *(_spread(rates[name, size]) for size in RESOLUTIONS))
            for name in variants
        ],
        packages=(
            "grain",
            "simplejpeg",
            "opencv-python-headless",
            "tensorflow",
            "tensorflow-cpu",
            "timm",
            "pillow",
        ),
    )


def _rate(batches):
    """Images a second, once what was decoded ahead is used up."""
    for i, _ in zip(range(NUM_BATCHES), batches, strict=False):
        if i == NUM_BATCHES // 3:
            start = time.perf_counter()
    counted = NUM_BATCHES - 1 - NUM_BATCHES // 3
    return counted * BATCH_SIZE / (time.perf_counter() - start)


def _spread(rates):
    return Spread(min(rates), float(np.median(rates)), max(rates), decimals=0)


def write_photographs(
    folder, *, size=(500, 375), num_classes=2, per_class=256, quality=95
):
    """Writes JPEGs cut from two photographs, a folder for each class.

    Args:
      folder: of the class folders.
      size: width and height; of files beyond 640 x 427 the photographs are enlarged.
      num_classes: of folders, 0, 1, ...
      per_class: images.
      quality: of the JPEGs.

    Returns:
      Their mean size in bytes.
    """
    rng = np.random.default_rng(0)
    photographs, sizes = load_sample_images().images, []
    width, height = size
    factor = max(1, width / 600, height / 400)
    photographs = [cv2.resize(p, None, fx=factor, fy=factor) for p in photographs]
    for label in range(num_classes):
        photograph = photographs[label % len(photographs)]
        (folder / str(label)).mkdir(parents=True)
        for i in range(per_class):
            top, left = (
                rng.integers(whole - part + 1)
                for whole, part in zip(photograph.shape, (height, width), strict=False)
            )
            piece = photograph[top : top + height, left : left + width]
            path = folder / str(label) / f"{i}.jpg"
            Image.fromarray(piece).save(path, quality=quality)
            sizes.append(path.stat().st_size)
    return np.mean(sizes)


def _ours(folder, num_threads=2, num_workers=0):
    config = recipe("imagenet100").dataset
    config.update(name="photographs", data_dir=f"{folder}/tfds", num_classes=2)
    config.update(num_threads=num_threads, num_workers=num_workers)
    mesh = parallel.create_mesh()
    data = datasets.load(config, "train", batch_size=BATCH_SIZE, mesh=mesh)
    return data.train_batches(jax.random.key(0), 0)


def _tf_data(folder, threads=None):
    """A peer: the same files, crops of the same distribution, by tf.data."""
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
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    paths = sorted(str(path) for path in pathlib.Path(folder).glob("train/*/*.jpg"))
    batches = (
        tf.data.Dataset.from_tensor_slices(paths)
        .shuffle(len(paths))
        .repeat()
        .map(crop, num_parallel_calls=threads or tf.data.AUTOTUNE)
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )
    for batch in batches.as_numpy_iterator():
        yield jax.device_put(batch)


def _timm(folder, workers):
    """A peer: the same files by timm's loader, as uint8, without colour changes."""
    import timm.data  # optional: pip install timm
    import torch

    loader = timm.data.create_loader(
        timm.data.create_dataset("", f"{folder}/train"),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH_SIZE,
        is_training=True,
        hflip=0.0,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        use_prefetcher=True,  # which leaves pixels as they are
        device=torch.device("cpu"),
        persistent_workers=True,
        use_multi_epochs_loader=True,  # workers go on from one epoch to the next
    ).loader  # before pixels are made floats
    while True:
        for images, _ in loader:
            yield jax.device_put(images.numpy())

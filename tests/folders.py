"""Folders of images, for tests that import them."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax.data import prepare


def write_images(folder, classes, num_images=2, size=(9, 7), seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(num_images):
            pixels = rng.integers(0, 256, size=(*size, 3)).astype(np.uint8)
            suffix = "JPEG" if i % 2 else "png"
            Image.fromarray(pixels).save(folder / name / f"{name}_{seed}{i}.{suffix}")


def run(folder, tmp_path, *options, name="insects"):
    prepare.main(
        [name, "--from", str(folder), "--data_dir", str(tmp_path / "tfds"), *options]
    )
    return tfds.builder(name, data_dir=str(tmp_path / "tfds"))


def read(builder, split):
    source = builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {example["file_name"].decode(): example for example in source}


def truncate(folder):
    path = folder / "train/bee/bee_00.png"
    path.write_bytes(path.read_bytes()[:-60])

"""Food-101's and ImageNet's archives in small, for tests that import them."""

import io
import tarfile

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from svda_jax.config import load
from svda_jax.run import runs
from svda_jax.train.loop import train_and_evaluate

FOODS = (
    tfds.core.tfds_path("image_classification/food-101_classes.txt").read_text().split()
)
WNIDS = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
# What makes of a recipe for photographs a run of seconds.
TINY = {
    "num_epochs": "1",
    "eval_every_epochs": "1",
    "checkpoint.every_epochs": "1",
    "batch_size": "16",  # a pair for each of eight devices
    "model.patch_size": "8",
    "model.width": "16",
    "model.depth": "1",
    "model.num_heads": "2",
    "model.mlp_dim": "16",
    "dataset.image_size": "16",
}


def train_once(config, workdir, data_dir, **dataset):
    """A run of one epoch; the accuracies of its evaluations."""
    dataset |= {"data_dir": data_dir}
    options = {f"dataset.{key}": str(value) for key, value in dataset.items()}
    train_and_evaluate(load(config, (options | TINY).items()), workdir)
    return runs.load(workdir).history.eval_accuracy


def encode(*seed, mode="RGB", kind="JPEG"):
    """A picture of 7 x 9, no two alike."""
    data = np.random.default_rng(seed).bytes(7 * 9 * len(mode))
    file = io.BytesIO()
    Image.frombytes(mode, (7, 9), data).save(file, kind)
    return file.getvalue()


def pack(file, files, mode="w"):
    """Writes an archive of (name, bytes, or a `tarfile.TarInfo` as it is)."""
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in files:
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def pack_inner(files):
    file = io.BytesIO()
    pack(file, files)
    return file.getvalue()


def write(path, files, mode="w:gz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        pack(file, files.items() if isinstance(files, dict) else files, mode)
    return path


def food_files():
    """Two images of a class to train on and one to evaluate; the lists come last."""
    files, lists = {"food-101/README.txt": b"read me"}, {"train": [], "test": []}
    for label, name in enumerate(FOODS):
        for i, split in enumerate(("train", "train", "test")):
            lists[split].append(f"{name}/{i}")
            files[f"food-101/images/{name}/{i}.jpg"] = encode(label, i)
    for split, names in lists.items():
        files[f"food-101/meta/{split}.txt"] = "\n".join(names).encode()
    return files


def imagenet_files():
    """An image of each class to train on and one to evaluate, in no order of labels.

    Returns:
      The files of each archive, by split or "devkit", and the WordNet ids of the
      validation split's images by name.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(WNIDS)  # by ILSVRC2012_ID
    truth = rng.permutation(1000) + 1
    fields = ("ILSVRC2012_ID", "WNID", "num_children", "num_train_images")
    synsets = [(i, wnid, 0, 1) for i, wnid in enumerate(order, start=1)]
    synsets.append((1001, "n00001740", 1000, 0))  # a node above the classes
    meta = io.BytesIO()
    kinds = [(field, object) for field in fields]
    scipy.io.savemat(meta, {"synsets": np.array(synsets, kinds)})
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 1001)]
    return {
        "train": {
            f"{wnid}.tar": pack_inner([(f"{wnid}_7.JPEG", encode(1, i))])
            for i, wnid in enumerate(order)
        },
        "validation": {name: encode(2, i) for i, name in enumerate(names)},
        "devkit": {
            META: meta.getvalue(),
            TRUTH: "".join(f"{i}\n" for i in truth).encode(),
        },
    }, dict(zip(names, order[truth - 1], strict=True))

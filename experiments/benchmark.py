"""Measures what a claim about cost rests on; one command a table.

    python -m experiments.benchmark indicators
    python -m experiments.benchmark augment
    python -m experiments.benchmark input

Variants are timed in turn, in one process, and compared by the ratio of neighbours, so
that what else the machine does falls on all of them. Results go to
experiments/results/benchmark_<name>.md.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from svda_jax.indicators import ATTENTIONAL, attentional_indicators
from svda_jax.models.vit import ViT, ViTConfig

OUT = pathlib.Path(__file__).parent / "results"


def measure(variants, repeats):
    """Times functions in turn.

    Args:
      variants: functions without arguments that return arrays, by name.
      repeats: rounds; in each, every variant runs once.

    Returns:
      Seconds `[repeats]` by name.
    """
    seconds = {name: [] for name in variants}
    for function in variants.values():
        jax.block_until_ready(function())  # compiles
    for _ in range(repeats):
        for name, function in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def indicators(repeats):
    """Evaluation with all indicators against evaluation without, both attentions."""
    lines = [
        "# Cost of the indicators",
        "",
        "Evaluation of a batch of 256 with the three indicators of attention over that "
        "without; the three of the spectrum and the baseline's singular values are "
        "computed once an evaluation. ViT of width 192, 9 layers, 12 heads, 64 "
        "tokens, float32. Median ratio of neighbouring pairs and its quartiles, "
        f"{repeats} rounds; peak memory as XLA plans it, temporaries and outputs.",
        "",
        *_where("indicators"),
        "| attention | time | same against itself | memory | logits |",
        "|---|---|---|---|---|",
    ]
    images = np.random.default_rng(0).integers(0, 256, size=(256, 32, 32, 3))
    images = jax.device_put(images.astype(np.uint8))
    for attention in ("softmax", "svda"):
        config = ViTConfig(
            image_size=32,
            channels=3,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            num_classes=10,
            patch_size=4,
            width=192,
            depth=9,
            num_heads=12,
            mlp_dim=384,
            attention=attention,
        )
        graphdef, params = nnx.split(ViT(config, rngs=nnx.Rngs(0)), nnx.Param)

        def without(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images)[0]

        def with_all(params, images, graphdef=graphdef):
            logits, traces = nnx.merge(graphdef, params)(images)
            layers = [
                attentional_indicators(
                    trace, jax.random.fold_in(jax.random.key(0), layer), 0.1
                )
                for layer, trace in enumerate(traces)
            ]
            return logits, [[layer[name] for name in ATTENTIONAL] for layer in layers]

        compiled = {
            function.__name__: jax.jit(function).lower(params, images).compile()
            for function in (without, with_all)
        }
        memory = {
            name: one.memory_analysis().temp_size_in_bytes
            + one.memory_analysis().output_size_in_bytes
            for name, one in compiled.items()
        }
        runs = {
            name: functools.partial(one, params, images)
            for name, one in compiled.items()
        }
        identical = np.array_equal(runs["without"](), runs["with_all"]()[0])
        seconds = measure({**runs, "again": runs["without"]}, repeats)
        lines.append(
            f"| {attention} | {_ratio(seconds['with_all'], seconds['without'])} "
            f"| {_ratio(seconds['again'], seconds['without'])} "
            f"| {memory['with_all'] / memory['without']:.2f} "
            f"| {'identical' if identical else 'differ'} |"
        )
    return lines


def augment(repeats):
    """The CIFAR recipe's training step with its augmentation against one without."""
    from configs import cifar10
    from svda_jax import parallel
    from svda_jax.config import validate
    from svda_jax.train import create_training

    mesh = parallel.create_mesh()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, size=(128, 32, 32, 3)).astype(np.uint8),
        "label": rng.integers(0, 10, size=128).astype(np.int32),
    }
    batch = jax.device_put(batch, parallel.split(mesh))
    key = jax.device_put(jax.random.key(1), parallel.replicated(mesh))

    def create(**changes):
        config = cifar10.get_config()
        config.augment.update(changes)
        model_config = validate(config, num_devices=mesh.size)
        _, init, step = create_training(config, model_config, num_steps=99, mesh=mesh)
        state = init(key)

        def run():
            nonlocal state
            state, finite = step(state, batch, key)
            return state, finite

        return run

    off = {"crop_padding": 0, "flip": False, "rand_augment": 0, "erase": 0.0}
    off |= {"mixup": 0.0, "cutmix": 0.0}
    variants = {"without": create(**off), "with": create(), "again": create(**off)}
    seconds = measure(variants, repeats)
    return [
        "# Cost of augmentation",
        "",
        "A training step of configs/cifar10.py (SVDA, batch of 128) with its "
        "augmentation, all compiled into the step, over one without any. Median ratio "
        f"of neighbouring steps and quartiles, {repeats} rounds.",
        "",
        *_where("augment"),
        "| crop, flip, RandAugment, erasing, mixup, cutmix | same against itself |",
        "|---|---|",
        f"| {_ratio(seconds['with'], seconds['without'])} "
        f"| {_ratio(seconds['again'], seconds['without'])} |",
    ]


def input_(repeats):
    """Images a second that streaming decodes, by threads and worker processes."""
    from configs import imagenet100
    from svda_jax import datasets, parallel
    from svda_jax.datasets.prepare import import_files

    size, batch_size, num_batches = 224, 64, 24
    mesh = parallel.create_mesh()

    def ours(num_threads, num_workers):
        config = imagenet100.get_config().dataset
        config.update(name="photographs", data_dir=f"{folder}/tfds", num_classes=2)
        config.update(num_threads=num_threads, num_workers=num_workers)
        data = datasets.load(config, "train", batch_size=batch_size, mesh=mesh)
        return data.train_batches(jax.random.key(0), 0)

    with tempfile.TemporaryDirectory() as folder:
        num_bytes = _write_photographs(pathlib.Path(folder, "files"))
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
    return [
        "# Throughput of the streaming pipeline",
        "",
        f"JPEGs of 500 x 375, {num_bytes / 1000:.0f} kB on average, read, decoded, "
        f"cropped at random and scaled to {size} x {size}, in batches of {batch_size} "
        f"on the device. Median of {repeats} rounds, with the lowest and the highest. "
        "tf.data reads the same files one by one, decodes only the crop "
        "(decode_and_crop_jpeg) and scales it linearly.",
        "",
        *_where("input"),
        "| | images/s | lowest, highest | over one thread |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.median(rate):,.0f} | {min(rate):,.0f}, {max(rate):,.0f} "
            f"| {np.median(rate) / first:.2f} |"
            for name, rate in rates.items()
        ),
    ]


def _write_photographs(folder):
    """Writes 512 JPEGs in two classes; returns their mean size in bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    sizes = []
    for label, photograph in enumerate(load_sample_images().images):
        (folder / "train" / str(label)).mkdir(parents=True)
        for i in range(256):
            left, top = rng.integers(640 - 500), rng.integers(427 - 375)
            picture = Image.fromarray(photograph[top : top + 375, left : left + 500])
            path = folder / "train" / str(label) / f"{i}.jpg"
            picture.save(path, quality=95)
            sizes.append(path.stat().st_size)
    return np.mean(sizes)


def _tf_data(folder, size, batch_size):
    """The peer: the same files, crops of the same distribution, by tf.data."""
    import tensorflow as tf

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


def _where(table):
    """The lines that say on what, with which versions and how it was measured."""
    devices = jax.devices()
    packages = ("jax", "flax", "numpy")
    if table == "input":
        packages += ("grain", "simplejpeg", "opencv-python-headless")
        packages += ("tensorflow",) if importlib.util.find_spec("tensorflow") else ()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} processor cores, "
        f"{', '.join(versions)}.",
        "",
        f"    python -m experiments.benchmark {table}",
        "",
    ]


def _ratio(seconds, baseline):
    """Median and quartiles of the ratio of neighbours."""
    low, middle, high = np.percentile(seconds / baseline, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main(argv=None):
    """Runs the command line."""
    tables = {"indicators": indicators, "augment": augment, "input": input_}
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark")
    parser.add_argument("table", choices=tables)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args(argv)
    text = "\n".join(tables[args.table](args.repeats)) + "\n"
    OUT.mkdir(exist_ok=True)
    (OUT / f"benchmark_{args.table}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

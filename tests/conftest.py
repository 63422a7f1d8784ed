"""Eight CPU devices for every test, small models, a small TFDS folder."""

import contextlib
import functools
import io
import os
import pathlib
import resource
import signal

# Before JAX starts. Unoptimised code takes two fifths off the suite, which mostly
# compiles small programs; the tests that start whole programs run them as users do.
# Without the larger pool several CPU devices in one process can deadlock in their
# collectives on a machine of few cores (JAX 0.10).
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["PJRT_NPROC"] = "32"
# What one test or one run of the suite compiled, the next reads.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import numpy as np
import pytest
from buckets import fake_bucket  # noqa: F401
from folders import write_images
from jax.experimental import pallas as pl
from machines import OPS
from ml_collections import config_dict
from PIL import Image
from selenium import webdriver
from toy_runs import Source

from svda_jax.config import recipe
from svda_jax.data.datasets import open_builder
from svda_jax.data.in_memory import Examples, InMemory
from svda_jax.data.splits import Split
from svda_jax.devices import parallel
from svda_jax.models.ops import tpu_kernels
from svda_jax.models.vit import ViTConfig

# Files whose tests take longest, first, so that both processes end at one time.
LONGEST = (
    "test_experiments",
    "test_prune_run",
    "test_faults",
    "test_notebook",
    "test_main",
)


def pytest_configure(config):
    if cache := getattr(config, "cache", None):  # not with -p no:cacheprovider
        path = str(cache.mkdir("jax"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = path  # of programs that tests start
        jax.config.update("jax_compilation_cache_dir", path)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def see_devices(monkeypatch):
    """Makes training see so many devices, the first, alone."""
    create_mesh = parallel.create_mesh

    def see(number):
        monkeypatch.setattr(
            parallel,
            "create_mesh",
            lambda devices=None: create_mesh(devices or jax.devices()[:number]),
        )

    return see


@pytest.fixture
def two_devices(see_devices):
    """Training sees two devices: eight on two cores mostly wait for each other."""
    see_devices(2)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A run in this process draws none: two seconds each; test_tensorboard has them."""
    blank = {"attention/image_1": np.zeros((1, 1, 3), np.uint8)}
    monkeypatch.setattr("svda_jax.train.compiled.draw_pictures", lambda *args: blank)


@pytest.fixture
def no_report_pictures(monkeypatch):
    """A report's pictures are empty: they take most of its time; see test_report."""
    monkeypatch.setattr("svda_jax.look.style.to_png", lambda figure, dpi: b"")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def full_disk():
    """A context manager under which no file can grow beyond 100 bytes."""

    @contextlib.contextmanager
    def full_disk():
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)

    return full_disk


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, driven by selenium, with its logs on."""
    binary, driver = "/usr/bin/chromium", "/usr/bin/chromedriver"
    if not pathlib.Path(binary).exists() or not pathlib.Path(driver).exists():
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,1000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def interpreted(monkeypatch):
    """There is no TPU; without one Pallas computes what a kernel says."""
    call = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(pl, "pallas_call", call)
    dot = tpu_kernels._dot

    def exact(a, b, axes):
        # Of bfloat16 into float32 not every XLA for CPUs has it; these are its numbers.
        return dot(*(x.astype(jax.numpy.float32) for x in (a, b)), axes)

    monkeypatch.setattr(tpu_kernels, "_dot", exact)


@pytest.fixture(params=OPS)
def ops(request, monkeypatch, interpreted):
    """The operations of a machine; XLA does what kernels of others would."""
    attend = jax.nn.dot_product_attention

    def kernel(*args, implementation, **options):
        assert implementation == "cudnn"
        assert args[0].shape[1] % 2 == 0  # its gradient raises for an odd number
        return attend(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return OPS[request.param]


@pytest.fixture(scope="session")
def output_dir():
    """Where tests leave pictures to look at; git ignores it."""
    path = pathlib.Path(__file__).parent / "output"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def make_model_config():
    """Makes a `ViTConfig` of distinct small sizes: 9 tokens, 3 heads, K = 5."""

    def make(**changes):
        options = {
            "image_size": 6,
            "channels": 2,
            "mean": (0.25, 0.5),
            "std": (0.5, 0.25),
            "num_classes": 7,
            "patch_size": 2,
            "width": 15,
            "depth": 2,
            "num_heads": 3,
            "mlp_dim": 11,
        }
        return ViTConfig(**{**options, **changes})

    return make


@pytest.fixture
def randomize():
    """Replaces every leaf of a parameter tree by normal numbers of that scale."""

    def randomize(params, scale=0.3, seed=1):
        leaves, treedef = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        return jax.tree.unflatten(
            treedef,
            [jax.numpy.float32(scale * rng.normal(size=leaf.shape)) for leaf in leaves],
        )

    return randomize


@pytest.fixture(scope="session")
def make_split():
    """Makes a `Split` of images (arrays or encoded bytes) in memory."""

    def make(images, labels, num_classes=10):
        source = [
            {"image": encode_png(image), "label": label, "file_name": b"n%d.png" % i}
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        names = tuple(f"class {label}" for label in range(num_classes))
        classes = np.arange(num_classes, dtype=np.int32)
        return Split(
            "toy train", Source(source), np.arange(len(source)), classes, names
        )

    return make


def encode_png(image):
    if isinstance(image, bytes):
        return image
    data = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def make_dataset_config():
    """Makes the dataset section of the digits config, with changes."""

    def make(**changes):
        config = recipe("digits").dataset
        config.update(changes)
        return config

    return make


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder with the digits in it."""
    path = str(tmp_path_factory.mktemp("tfds"))
    open_builder("digits", path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three classes, two images of each to train on, one to evaluate."""
    path = tmp_path / "images"
    write_images(path / "train", ["ant", "bee", "cat"])
    write_images(path / "val", ["ant", "bee", "cat"], num_images=1, seed=1)
    return path


@pytest.fixture
def make_config(data_dir):
    """Makes the digits config cut down to a run of seconds; keys with __ for a dot."""

    def make(**changes):
        config = recipe("digits")
        options = {
            "num_epochs": 2,
            "batch_size": 32,
            "eval_every_epochs": 1,
            "checkpoint__every_epochs": 1,
            "model__width": 16,
            "model__depth": 2,
            "model__num_heads": 2,
            "model__mlp_dim": 16,
            "model__patch_size": 4,
            "dataset__data_dir": data_dir,
            "dataset__train_split": "train[:100]",
            "dataset__eval_split": "test[:77]",
        }
        for name, value in {**options, **changes}.items():
            section, _, key = name.rpartition("__")
            holder = config[section] if section else config
            holder[key] = value
        assert isinstance(config, config_dict.ConfigDict)
        return config.lock()

    return make


@pytest.fixture
def arguments(tmp_path, data_dir):
    """The command line of a comparison that takes seconds."""

    def arguments(*flags, **options):
        options = {
            "num_epochs": 2,
            "eval_every_epochs": 1,
            "checkpoint.every_epochs": 1,
            "model.depth": 2,
            "model.width": 16,
            "model.num_heads": 2,
            "model.mlp_dim": 16,
            "model.patch_size": 4,
            "dataset.data_dir": data_dir,
            "batch_size": 32,
            "dataset.train_split": "train[:100]",
            "dataset.eval_split": "test[:77]",
            **options,
        }
        return [
            f"--runs={tmp_path / 'runs'}",
            f"--out={tmp_path / 'out'}",
            *flags,
            *(f"--config.{key}={value}" for key, value in options.items()),
        ]

    return arguments


@pytest.fixture
def images(rng):
    """Five small ones."""
    return rng.integers(0, 256, size=(5, 6, 6, 2)).astype(np.uint8)


@pytest.fixture
def data(images):
    """The split of these images, in two batches, the second partly masked."""
    examples = Examples(images, np.zeros(5, np.int32), (), {})
    mesh = parallel.create_mesh(jax.devices()[:1])
    return InMemory(examples, batch_size=3, mesh=mesh)

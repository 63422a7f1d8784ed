"""The package, installed into an environment of its own, trains from any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv

import pytest

import svda_jax

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ("svda_jax", "configs")
FILES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")

MINE = """
from svda_jax.config import defaults


def get_config():
    config = defaults()
    config.num_epochs = 1
    config.batch_size = 64
    config.model.width = 16
    config.model.depth = 1
    config.model.num_heads = 2
    config.model.mlp_dim = 16
    config.dataset.name = "digits"
    config.dataset.image_size = 8
    config.dataset.channels = 1
    config.dataset.num_classes = 10
    config.dataset.mean = (0.3054,)
    config.dataset.std = (0.3753,)
    return config
"""


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Python of an environment with the package; its dependencies are those here."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in SOURCES:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--no-index", "--no-deps", "-q")
    run(*pip, "wheel", *options, "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"svda_jax-{svda_jax.__version__}-py3-none-any.whl"
    venv.create(folder / "venv", with_pip=False)
    (site,) = folder.glob("venv/lib/*/site-packages")
    run(*pip, "install", *options, "--target", site, wheel)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "venv" / "bin" / "python"


def test_it_holds_every_file_and_no_other_top_level_name(installed):
    (site,) = installed.parent.parent.glob("lib/*/site-packages")
    found = {path.name for path in site.iterdir()}
    assert found == {
        "dependencies.pth",
        "svda_jax",
        f"svda_jax-{svda_jax.__version__}.dist-info",
    }

    def files(folder):
        paths = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
        return {path.relative_to(folder).as_posix() for path in paths}

    recipes = {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(site / "svda_jax") == files(ROOT / "svda_jax") | recipes
    (metadata,) = site.glob("*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert [
        line.removeprefix("Requires-Dist: ").replace(" ", "")
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ] == requirements
    assert "License-Expression: Apache-2.0" in lines


def test_every_folder_is_named_in_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("svda_jax/**/*.py")
    }
    named = project["tool"]["setuptools"]["packages"]
    assert set(named) == packages | {"svda_jax.configs"}


def test_it_trains_from_an_empty_folder(installed, tmp_path, data_dir):
    """With a file that builds on the defaults; and it knows the recipes."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {
        "TFDS_DATA_DIR": data_dir,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    options = {"cwd": tmp_path, "env": environment}
    where = run(
        installed,
        "-c",
        "import svda_jax; print(svda_jax.__file__, svda_jax.__version__)",
        **options,
    )
    assert where.startswith(str(installed.parent.parent))
    assert where.split()[1] == svda_jax.__version__
    (tmp_path / "mine.py").write_text(MINE)
    said = run(installed, "-m", "svda_jax", "train", "--config=mine.py", **options)
    assert "images/s" in said
    assert (tmp_path / "runs" / "mine-svda-0" / "history.nc").exists()
    recipe = (
        "from svda_jax.main import parse\n"
        "print(parse(['', '--config=configs/digits.py'])[0].num_epochs)"
    )
    assert run(installed, "-c", recipe, **options) == "200\n"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py", "runs"}

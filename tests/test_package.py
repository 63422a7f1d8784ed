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
from PIL import Image
from sklearn.datasets import load_sample_images

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
    run(*pip, "--python", folder / "venv", "install", *options, wheel)
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


def environment(installed, data_dir):
    """Of a program that knows the package as it is installed alone."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "TFDS_DATA_DIR": str(data_dir),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
        "PATH": os.pathsep.join([str(installed.parent), os.environ["PATH"]]),
    }


def test_the_console_script_is_the_package_as_a_program(installed, tmp_path):
    options = {"cwd": tmp_path, "env": environment(installed, tmp_path)}
    said = run(installed, "-m", "svda_jax", **options)
    assert run("svda", **options) == said
    done = subprocess.run(["svda", "verify"], capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_the_readmes_commands_for_images_of_ones_own(installed, tmp_path):
    """As they are written, in an empty folder with photographs."""
    pictures = load_sample_images().images
    for name, picture in zip(("daisies", "roses"), pictures, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, left in enumerate(range(0, 600, 100), start=1):
            tile = Image.fromarray(picture[100:200, left : left + 100])
            tile.save(tmp_path / "photos" / name / f"{i}.jpg")
    section = (ROOT / "README.md").read_text().partition("\n## Your own images\n")[2]
    commands = section.split("```")[1]
    assert len(commands.strip().splitlines()) == 4
    (tmp_path / "commands.sh").write_text(commands)
    options = {"cwd": tmp_path, "env": environment(installed, tmp_path / "tfds")}
    said = run("bash", "-e", "commands.sh", **options)
    assert "12 in train" in said
    assert "images/s" in said
    assert "most often taken for" in said
    assert said.splitlines()[-1].startswith("photos/roses/1.jpg  ")
    with Image.open(tmp_path / "explained" / "1.png") as picture:
        assert picture.width > 500


def test_it_trains_from_an_empty_folder(installed, tmp_path, data_dir):
    """With a file that builds on the defaults; and it knows the recipes."""
    options = {"cwd": tmp_path, "env": environment(installed, data_dir)}
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

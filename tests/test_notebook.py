"""The notebooks from top to bottom, offline, in kernels of their own."""

import json
import os
import re
import signal
import sys

import nbformat
import pytest
from flax import nnx
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import svda_jax
from experiments.faults.programs import ROOT
from svda_jax.models.vit import ViT, ViTConfig
from svda_jax.models.weights.write import write

NOTEBOOKS = ROOT / "experiments"


@pytest.fixture
def environment(tmp_path, data_dir):
    """What the kernel runs in; TensorBoard's server is stopped at the end."""
    names = os.environ.keys() - {"XLA_FLAGS", "PJRT_NPROC"}  # as a user has it
    here = os.path.dirname(sys.executable)
    yield {
        **{name: os.environ[name] for name in names},
        "PATH": os.pathsep.join([here, os.environ["PATH"]]),
        "TFDS_DATA_DIR": data_dir,
        "TMPDIR": str(tmp_path),
    }
    for path in tmp_path.glob(".tensorboard-info/pid-*.info"):
        os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


# A small model, compiled in half the time.
SHORT = {
    "SVDA_OPTIONS": "--config.num_epochs=10 --config.eval_every_epochs=5 "
    "--config.model.depth=2 --config.model.num_heads=2 --config.model.width=32 "
    "--config.model.patch_size=4 --config.learning_rate=0.005",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}


@pytest.mark.parametrize(
    ("changes", "accuracy"),
    [
        pytest.param(SHORT, 50, id="short"),
        pytest.param({}, 80, id="whole", marks=pytest.mark.slow),
    ],
)
def test_notebook_runs_from_top_to_bottom(
    tmp_path, environment, output_dir, changes, accuracy
):
    outputs = execute("svda_colab", tmp_path, environment | changes, output_dir)
    texts = "".join(out.get("text", "") for out in outputs)
    assert float(re.search(r"^accuracy ([\d.]+)%", texts, re.M)[1]) > accuracy
    kinds = [kind for out in outputs for kind in out.get("data", ())]
    assert kinds.count("image/png") == 10
    assert (tmp_path / "runs" / "notebook-softmax" / "history.nc").exists()


def test_photographs_and_pretrained_weights(tmp_path, environment, output_dir):
    """The second notebook, with a small model of random weights in a file of timm's."""
    sizes = {"image_size": 32, "patch_size": 8, "channels": 3, "num_classes": 7}
    sizes |= {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
    norms = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    config = ViTConfig(**sizes, **norms, attention="softmax", pool="cls", gelu="erf")
    params = nnx.to_pure_dict(nnx.state(ViT(config, rngs=nnx.Rngs(0)), nnx.Param))
    write(tmp_path / "vit.safetensors", params, config, family="timm")
    changes = {
        "SVDA_WEIGHTS": str(tmp_path / "vit.safetensors"),
        "SVDA_OPTIONS": "--config.num_epochs=2 --config.model.depth=2 "
        "--config.model.width=32 --config.model.num_heads=2 --config.model.mlp_dim=64 "
        "--config.dataset.image_size=32",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    outputs = execute("own_photographs", tmp_path, environment | changes, output_dir)
    texts = "".join(out.get("text", "") for out in outputs)
    assert re.search(r"^photographs/china/0.png: (china|flower)$", texts, re.M)
    assert "the head for 2 classes starts at 0; it was for 7" in texts
    shown = [out["data"] for out in outputs if "data" in out]
    assert sum("image/png" in data for data in shown) == 2
    (told,) = (d["text/markdown"] for d in shown if "text/markdown" in d)
    assert "SVDA" in told
    assert "srcdoc=" in shown[-1]["text/html"]
    assert (
        svda_jax.load(tmp_path / "runs" / "converted").config.model.attention == "svda"
    )


def test_a_failed_installation_says_so(tmp_path, environment):
    notebook = nbformat.read(NOTEBOOKS / "svda_colab.ipynb", as_version=4)
    notebook.cells = notebook.cells[2:3]
    (cell,) = notebook.cells
    cell.source = cell.source.replace("https://github.com/OWNER", f"file://{tmp_path}")
    with pytest.raises(CellExecutionError, match="svda-jax was not installed: is file"):
        client(notebook, tmp_path).execute(env=environment)


def execute(name, folder, environment, output_dir):
    """Runs a notebook in a folder; what its cells left."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stripped
    for linked in ("svda_jax", "configs", "requirements.txt"):
        (folder / linked).symlink_to(ROOT / linked)
    client(notebook, folder).execute(env=environment)
    nbformat.write(notebook, output_dir / f"{name}.ipynb")
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    told = "".join(o["text"] for o in outputs if o.get("name") == "stderr")
    # Progress bars go there too, and what libraries warn of.
    assert "Traceback" not in told, told
    return outputs


def client(notebook, folder):
    """What runs a notebook in a kernel that was started in a folder."""
    resources = {"metadata": {"path": folder}}
    return NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    )

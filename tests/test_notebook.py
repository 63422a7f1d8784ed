"""The notebook from top to bottom, offline, in a kernel of its own."""

import json
import os
import re
import signal
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.faults.programs import ROOT

NOTEBOOK = ROOT / "experiments" / "svda_colab.ipynb"


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
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stripped
    for name in ("svda_jax", "configs", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    ).execute(env=environment | changes)
    nbformat.write(notebook, output_dir / "svda_colab.ipynb")
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    errors = [out for out in outputs if out.get("name") == "stderr"]
    assert not errors, errors
    texts = "".join(out.get("text", "") for out in outputs)
    assert float(re.search(r"^accuracy ([\d.]+)%", texts, re.M)[1]) > accuracy
    kinds = [kind for out in outputs for kind in out.get("data", ())]
    assert kinds.count("image/png") == 11
    assert (tmp_path / "runs" / "notebook-softmax" / "history.nc").exists()

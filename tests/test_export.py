"""A run's model in a folder for other programs; one line where that cannot be."""

import importlib.util
import json
import pathlib
import shlex

import jax
import numpy as np
import pytest
from flax import nnx
from toy_runs import make_toy_run

from svda_jax import UserError
from svda_jax.__main__ import main
from svda_jax.models.attention import attention_weights
from svda_jax.models.vit import ViT
from svda_jax.models.weights.read import read
from svda_jax.run import export, runs

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def make_run(make_model_config, make_config):
    """Makes a run whose model has changes."""

    def make(evaluated=5, **changes):
        config = make_model_config(channels=1, mean=(0.3,), std=(0.4,), **changes)
        options = make_config(dataset__image_size=6, dataset__num_classes=7)
        return make_toy_run(config, options, evaluated=evaluated)

    return make


@pytest.fixture
def gray(rng):
    return rng.integers(0, 256, size=(7, 6, 6, 1)).astype(np.uint8)


@pytest.fixture
def command(make_run, monkeypatch, tmp_path):
    """Exports a run, as if it lay in runs/toy, into tmp_path / "out"."""

    def command(*argv, **changes):
        monkeypatch.setattr(export.runs, "load", lambda workdir: make_run(**changes))
        main(["export", "--workdir=runs/toy", f"--out={tmp_path / 'out'}", *argv])
        return tmp_path / "out"

    return command


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "svda"},
        {"attention": "softmax", "pool": "cls"},
        {"attention": "svda", "qk_dim": (2, 4)},
        {"attention": "softmax", "qk_dim": (2, 4), "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_program_gives_any_number_of_images_what_the_model_does(
    make_run, gray, changes
):
    model = make_run(**changes).model
    exported = jax.export.deserialize(export.to_stablehlo(model, attention=True))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    logits, traces = jax.jit(model)(gray)
    weights = [
        attention_weights(t.query, t.key, t.sigma, scale=t.scale) for t in traces
    ]
    expected = {
        "probabilities": jax.nn.softmax(logits),  # [7, C]
        "attention": np.stack(weights, axis=1),  # [7, L, H, N, N]
    }
    for size in (1, 3, 7):
        outputs = exported.call(gray[:size])
        assert outputs.keys() == expected.keys()
        for name, one in outputs.items():
            # Rounding: the programs may be compiled differently.
            tolerance = 3e-2 if "dtype" in changes else 1e-5
            np.testing.assert_allclose(one, expected[name][:size], atol=tolerance)


def test_the_folder_says_what_the_model_is(command, make_run, gray):
    out = command("--format=stablehlo")
    files = {path.name for path in out.iterdir()}
    assert files == {"model.stablehlo", "model.json", "README.md"}
    summary = json.loads((out / "model.json").read_text())
    assert summary["classes"] == [f"class {i}" for i in range(7)]
    assert summary["preprocessing"]["crop_fraction"] == 1
    assert summary["evaluation"] == {
        "data_set": "digits",
        "split": "test[:77]",
        "epoch": 2,
        "accuracy": 0.75,
        "cross_entropy": 0.5,
    }
    assert summary["config"]["model"]["width"] == 16
    assert summary["config"]["dataset"]["data_dir"] == ""  # of this machine alone
    card = (out / "README.md").read_text()
    assert "# toy\n" in card
    assert "| accuracy | 75.00 % on digits `test[:77]`, evaluated at that step" in card
    assert "attention = " not in card
    (out / "model.stablehlo").read_bytes()
    program = (out / "model.stablehlo").read_bytes()
    outputs = jax.export.deserialize(bytearray(program)).call(gray)
    assert outputs.keys() == {"probabilities"}


def test_an_accuracy_of_another_step_is_none(command):
    card = (command("--format=npz", evaluated=6) / "README.md").read_text()
    assert "| accuracy | not evaluated at that step |" in card


@pytest.mark.parametrize(
    ("format", "changes"),
    [
        ("npz", {"attention": "softmax", "qk_dim": (2, 4), "pool": "cls"}),
        ("npz", {"attention": "svda", "spectrum_init": "sqrt"}),
        ("safetensors", {"attention": "softmax"}),
        ("safetensors", {"attention": "svda", "qk_dim": (2, 4)}),
    ],
)
def test_parameters_are_read_back(command, make_run, gray, format, changes):
    weights = read(command(f"--format={format}", **changes) / f"model.{format}")
    model = make_run(**changes).model
    shape = ("width", "depth", "num_heads", "mlp_dim", "attention", "pool", "gelu")
    for name in shape:
        assert weights.says[name] == getattr(model.config, name)
    config = vars(model.config) | {"spectrum_init": "matched"} | weights.says
    again = ViT(type(model.config)(**config), rngs=nnx.Rngs(0))
    nnx.update(again, weights.params())
    tolerance = 1e-5  # the normalisation is another's, or sigma's start is
    found, expected = jax.jit(again)(gray)[0], jax.jit(model)(gray)[0]
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_what_other_names_cannot_say_is_in_a_file_of_ours(command):
    changes = {"attention": "svda", "pool": "avg", "gelu": "erf"}
    out = command("--format=safetensors", **changes)
    says = read(out / "model.safetensors").says
    assert says | changes == says
    assert not (out / "config.json").exists()


def test_a_softmax_model_is_timms(command):
    out = command("--format=safetensors", attention="softmax", pool="cls")
    config = json.loads((out / "config.json").read_text())
    arguments = config["model_args"]
    assert int(arguments["embed_dim"] * arguments["mlp_ratio"]) == 11
    assert arguments["global_pool"] == config["global_pool"] == "token"
    assert config["label_names"][:2] == ["class 0", "class 1"]
    assert config["pretrained_cfg"]["mean"] == [0.3054]
    assert "timm.create_model(" in (out / "README.md").read_text()


def test_every_width_of_the_mlps_is_what_timm_makes_of_the_ratio(make_model_config):
    for width in (15, 45, 192):
        for mlp_dim in range(1, 400):
            config = make_model_config(width=width, mlp_dim=mlp_dim)
            about = {"preprocessing": dict.fromkeys(("mean", "std"))}
            about["preprocessing"] |= {"crop_fraction": 1, "interpolation": ""}
            arguments = export.timm_config({"classes": [], **about}, config)
            assert int(width * arguments["model_args"]["mlp_ratio"]) == mlp_dim


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--format=pickle"], "--format=pickle must be one of stablehlo, onnx, safe"),
        (["--format=npz", "--attention"], "--attention is for stablehlo and onnx, not"),
        (["--format=npz", "--out=."], r"\. exists; give another --out or remove it"),
        (["--format=npz", "--out=az://x/y"], "az:// is not supported; gs://BUCKET"),
        (["--format=npz", "--workdir=/"], "/ holds no run"),
        (["--format=npz", "--workdir=empty"], "empty has no checkpoint yet"),
        (["--format=npz", "--out=x" + 300 * "y"], "File name too long"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    argv, message, make_config, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    runs.create_workdir(make_config(), tmp_path / "empty")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=f"^error: .*{message}.*$"):
        main(["export", "--workdir=nowhere", "--out=out", *argv])
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_not_there(command, full_disk, tmp_path):
    too_large = r"^error: cannot write .*: File too large$"
    with full_disk(), pytest.raises(SystemExit, match=too_large):
        command("--format=npz")
    no_folder = r"^error: cannot write /dev/null/x: File exists$"
    with pytest.raises(SystemExit, match=no_folder):
        command("--format=npz", "--out=/dev/null/x")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(command, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"^error: ONNX needs .*: pip install jax2onnx"
    ):
        command("--format=onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_for_onnx_is_refused(make_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "is there")
    monkeypatch.setattr(export, "count_parameters", lambda model: 2**30)
    with pytest.raises(UserError, match=r"^the model's 4\.0 GiB are more than the 2"):
        export.to_onnx(make_run().model, {})


def test_the_pages_lines_run(make_run, gray, monkeypatch, tmp_path):
    """Those of docs/export.md but for ONNX's, which test_export_interop runs."""
    blocks = (ROOT / "docs" / "export.md").read_text().split("```")[1::2]
    lines = blocks[0].strip().splitlines()
    assert [line.split("--format=")[1].split()[0] for line in lines] == [
        *("stablehlo", "onnx", "safetensors", "npz")
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export.runs, "load", lambda workdir: make_run())
    for line in lines:
        if "onnx" not in line:
            main(shlex.split(line, comments=True)[3:])
    scope = {"images": gray}
    exec(blocks[1].removeprefix("python"), scope)
    assert scope["outputs"]["attention"].shape == (7, 2, 3, 9, 9)

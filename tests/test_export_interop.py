"""Exported models in processes that do not know this program: the same answers."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from toy_runs import make_toy_run

from svda_jax.__main__ import main
from svda_jax.run import export

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow
SIZES = (1, 3, 7)
# What answers images, after the lines of a model card have loaded the model.
ANSWERS = {
    "stablehlo": "jax.jit(program.call)(some)['probabilities']",
    "onnx": "session.run(['probabilities'], {'images': some})[0]",
    "timm": "model(turn(some)).softmax(-1)",
    "transformers": "other(turn(some)).logits.softmax(-1)",
    "augreg": "model(turn(some)).softmax(-1)",
    "npz": "parameters[f'{layer}/sigma']",
    "safetensors": "parameters['blocks.0.attention.sigma']",
}
PROGRAM = """
import importlib.util
assert importlib.util.find_spec("svda_jax") is None
{card}
import numpy as np
images = np.load("images.npy")
{more}
for some in (images[:n] for n in {sizes}):
    np.save(f"found_{{len(some)}}.npy", {answer})
"""
MORE = {
    "timm": """
import torch
torch.set_grad_enabled(False)
turn = lambda some: torch.stack([transform(Image.fromarray(x[..., 0])) for x in some])
""",
}
MORE["transformers"] = f"""{MORE["timm"]}
import transformers
other = transformers.AutoModelForImageClassification.from_pretrained(".").eval()
"""
# AugReg's names; models of that kind take images from -1 to 1.
MORE["augreg"] = """
import timm, torch
from timm.models.vision_transformer import _load_weights
torch.set_grad_enabled(False)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=6, patch_size=2, in_chans=1, num_classes=7,
    embed_dim=15, depth=2, num_heads=3, mlp_ratio=11 / 15, act_layer="gelu_tanh",
    **{pooling},
).eval()
_load_weights(model, "model.npz")
turn = lambda some: torch.from_numpy(np.float32(some.transpose(0, 3, 1, 2)) / 127.5 - 1)
probabilities = model(turn(images[:1])).softmax(-1)
"""
POOLING = {
    "cls": {},
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
}


@pytest.fixture
def ask(make_model_config, make_config, monkeypatch, tmp_path, rng):
    """Exports a model; what it says elsewhere and here of seven images, and where."""

    def ask(format, library=None, **changes):
        config = make_model_config(channels=1, mean=(0.3,), std=(0.4,), **changes)
        options = make_config(
            dataset__image_size=6,
            dataset__num_classes=7,
            dataset__mean=config.mean,
            dataset__std=config.std,
        )
        run = make_toy_run(config, options)
        monkeypatch.setattr(export.runs, "load", lambda workdir: run)
        out = tmp_path / "out"
        attention = format in export.PROGRAMS
        export.export_run("toy", out, format=format, attention=attention)
        images = rng.integers(0, 256, size=(7, 6, 6, 1)).astype(np.uint8)
        np.save(out / "images.npy", images)
        exif = Image.Exif()
        exif[0x0112] = 6  # turned, as a camera's files may be
        lying = Image.fromarray(np.rot90(images[0, ..., 0]))
        lying.save(out / "image.png", exif=exif)
        card = (out / "README.md").read_text().split("```python")[1].split("```")[0]
        library = library or format
        pooling = str(POOLING.get(config.pool))
        more = MORE.get(library, "").replace("{pooling}", pooling)
        answer = ANSWERS[library]
        code = PROGRAM.format(card=card, more=more, answer=answer, sizes=SIZES)
        gives = "query" if library in ("npz", "safetensors") else "probabilities"
        for name in (gives, *["attention"] * attention):
            code += f"np.save('{name}.npy', {name})\n"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=out,
            env=environment | {"XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return run.model, images, out

    return ask


def assert_same(model, images, out, tolerance=1e-5):
    """All sizes of batches, and the picture that the model card reads."""
    expected = jax.nn.softmax(jax.jit(model)(images)[0])
    for size in SIZES:
        found = np.load(out / f"found_{size}.npy")
        np.testing.assert_allclose(found, expected[:size], rtol=0, atol=tolerance)
    found = np.load(out / "probabilities.npy")
    np.testing.assert_allclose(found, expected[:1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", export.PROGRAMS)
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "svda"},
        {"attention": "softmax", "pool": "cls"},
        {"attention": "svda", "qk_dim": (2, 4), "pool": "avg", "gelu": "erf"},
        {"attention": "softmax", "qk_dim": (2, 4), "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_program_runs_without_this_one(ask, format, changes):
    if format == "onnx":
        pytest.importorskip("jax2onnx")
    model, images, out = ask(format, **changes)
    exact = "dtype" not in changes
    assert_same(model, images, out, 1e-5 if exact else 3e-2)  # bfloat16 has 8 bits
    weights = np.load(out / "attention.npy")  # [1, L, H, N, N]
    tokens = 9 + (model.config.pool == "cls")
    assert weights.shape == (1, 2, 3, tokens, tokens)
    outputs = jax.jit(export.create_function(model, attention=True))(images[:1])
    tolerance = 1e-5 if exact else 3e-2
    np.testing.assert_allclose(weights, outputs["attention"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("pool", ["gap", "avg", "cls"])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_timm_and_transformers_open_a_softmax_model(ask, library, pool, gelu):
    pytest.importorskip(library)
    options = {"attention": "softmax", "pool": pool, "gelu": gelu}
    assert_same(*ask("safetensors", library, **options))


@pytest.mark.parametrize("pool", POOLING)
def test_timm_reads_an_npz_file_of_a_softmax_model(ask, pool):
    pytest.importorskip("timm")
    assert_same(*ask("npz", "augreg", attention="softmax", pool=pool))


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_the_card_finds_the_parameters_of_an_svda_model(ask, format):
    model, _, out = ask(format, attention="svda", spectrum_init="sqrt")
    attention = model.blocks[0].attention
    np.testing.assert_array_equal(np.load(out / "query.npy"), attention.query.kernel)
    sigma = np.float32(5**0.5) * attention.relative_sigma[...]  # of K = 5
    np.testing.assert_allclose(np.load(out / "found_1.npy"), sigma, rtol=1e-6)


def test_the_pages_line_for_onnx_writes_a_program(
    make_model_config, make_config, monkeypatch, tmp_path
):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    text = (ROOT / "docs" / "export.md").read_text()
    (line,) = (line for line in text.splitlines() if "--format=onnx" in line)
    run = make_toy_run(make_model_config(), make_config(dataset__image_size=6))
    monkeypatch.setattr(export.runs, "load", lambda workdir: run)
    monkeypatch.chdir(tmp_path)
    main(shlex.split(line, comments=True)[3:])
    (path,) = tmp_path.rglob("model.onnx")
    images = np.zeros((2, 6, 6, 2), np.uint8)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(["probabilities"], {"images": images})
    expected = jax.nn.softmax(jax.jit(run.model)(images)[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_onnx_file_says_what_it_is(ask):
    pytest.importorskip("jax2onnx")
    onnx = pytest.importorskip("onnx")
    _, _, out = ask("onnx", attention="svda")
    model = onnx.load(out / "model.onnx")
    found = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert found == json.loads((out / "model.json").read_text())
    (images,) = model.graph.input
    first, *shape = images.type.tensor_type.shape.dim
    assert first.dim_param == "b"
    assert [one.dim_value for one in shape] == [6, 6, 1]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == [
        *("probabilities", "attention")
    ]

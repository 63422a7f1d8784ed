"""Models of timm and transformers, read, give the logits that they give there."""

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from experiments.interop import (  # noqa: E402
    CASES,
    NPZ,
    SMALL,
    compare,
    compare_npz,
    create,
    create_hugging_face,
    randomize,
    save_pretrained,
    save_state,
)
from svda_jax.models.vit import ViTConfig  # noqa: E402
from svda_jax.models.weights.read import read  # noqa: E402
from svda_jax.models.weights.write import rename, write  # noqa: E402
from svda_jax.run.start import resample  # noqa: E402


@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_file_equal_those_of_its_library(tmp_path, name):
    expected, found = compare(CASES[name], tmp_path)
    assert expected.std() > 0.1  # far above the tolerance, 50 times what is measured
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NPZ)
def test_timm_reads_what_is_written_as_augregs(tmp_path, name):
    theirs, ours = compare_npz(tmp_path, NPZ[name])
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [3, 5, 7, 12])
def test_position_embeddings_are_resampled_as_by_timm(rng, size):
    embedding = np.float32(rng.normal(size=(1, 50, 6)))
    expected = timm.layers.resample_abs_pos_embed(
        torch.from_numpy(embedding), [size, size], num_prefix_tokens=1
    )
    np.testing.assert_allclose(resample(embedding, size), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ],
)
def test_timm_finds_in_a_file_of_ours_what_it_had_written(tmp_path, options):
    model = randomize(create(**SMALL, **options))
    weights = read(save_state(model, tmp_path))
    says = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "num_heads": 3, **weights.says}
    found = rename(weights.params(3), ViTConfig(**says), family="timm")
    state = model.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)


def test_transformers_loads_a_file_of_ours(tmp_path):
    model = randomize(create_hugging_face())
    weights = read(save_pretrained(model, tmp_path))
    config = ViTConfig(mean=(0.5,) * 3, std=(0.5,) * 3, **weights.says)
    path = tmp_path / "model.safetensors"
    write(path, weights.params(), config, family="huggingface")
    again = type(model).from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again[name], value)

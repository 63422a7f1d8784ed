"""The Vision Transformer: its config, shapes, counts, dropout, dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svda_jax import UserError
from svda_jax.models.ops import PLAIN, choose
from svda_jax.models.vit import Dropout, PatchEmbed, ViT

B = 5


def make(config):
    return ViT(config, rngs=nnx.Rngs(0))


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(B, 6, 6, 2)).astype(np.uint8)


def count(config):
    params = nnx.state(nnx.eval_shape(lambda: make(config)), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def randomized(config, randomize, scale=0.3):
    graphdef, params = nnx.split(make(config), nnx.Param)
    return nnx.merge(graphdef, randomize(nnx.to_pure_dict(params), scale))


@pytest.mark.parametrize("attention", ["svda", "softmax"])
@pytest.mark.parametrize("pool", ["gap", "avg", "cls"])
def test_parameter_count(make_model_config, attention, pool):
    config = make_model_config(attention=attention, pool=pool)
    width, hidden, tokens, classes = 15, 11, 9 + (pool == "cls"), 7
    block = 4 * (width * width + width)  # query, key, value, out
    block += (width * hidden + hidden) + (hidden * width + width)  # MLP
    block += 2 * 2 * width  # two LayerNorms
    block += width * (attention == "svda")  # sigma: H * K
    expected = (2 * 2 * 2 * width + width) + tokens * width + 2 * block
    expected += width * (pool == "cls") + 2 * width + (width * classes + classes)
    assert count(config) == expected


def test_attention_changes_h_k_l_parameters(make_model_config):
    svda, softmax = (make_model_config(attention=a) for a in ("svda", "softmax"))
    assert count(svda) - count(softmax) == 3 * 5 * 2


@pytest.mark.parametrize("attention", ["svda", "softmax"])
@pytest.mark.parametrize(("pool", "tokens"), [("gap", 9), ("avg", 9), ("cls", 10)])
def test_logits_and_traces(make_model_config, images, attention, pool, tokens):
    model = make(make_model_config(attention=attention, pool=pool))
    logits, traces = model(images)
    assert logits.shape == (B, 7)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, 0)  # the head starts at zero
    assert len(traces) == 2
    for trace in traces:
        assert trace.query.shape == trace.key.shape == (B, tokens, 3, 5)
        assert trace.scale == 5**-0.5
    assert all(block.attention.spectrum.shape == (3, 5) for block in model.blocks)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_the_head_is_given_the_norm_of_the_mean_or_the_mean_of_norms(
    make_model_config, images, randomize, attention, scan
):
    options = {"attention": attention, "scan": scan, "depth": 3}
    found = {}
    for pool in ("gap", "avg"):
        model = randomized(make_model_config(**options, pool=pool), randomize)
        seen, norm = [], model.norm
        model.norm = lambda x, norm=norm, seen=seen: seen.append(x) or norm(x)
        found[pool] = model(images)[0], seen[0], model.head, norm
    tokens = found["gap"][1]  # [B, N, D]
    logits, mean, head, norm = found["avg"]
    np.testing.assert_allclose(mean, tokens.mean(1), atol=1e-5)
    np.testing.assert_allclose(logits, head(norm(tokens.mean(1))), atol=1e-5)
    assert np.abs(logits - found["gap"][0]).max() > 0.01


def test_gelu_by_erf_and_by_tanh(make_model_config, rng):
    x = np.float32(rng.normal(size=(B, 15)))
    for gelu, approximate in (("erf", False), ("tanh", True)):
        mlp = make(make_model_config(gelu=gelu)).blocks[0].mlp
        expected = mlp.out(jax.nn.gelu(mlp.hidden(x), approximate=approximate))
        np.testing.assert_allclose(mlp(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_layers_can_have_fewer_directions(
    make_model_config, images, randomize, attention
):
    config = make_model_config(attention=attention, qk_dim=(4, 2))
    model = randomized(config, randomize)
    logits, traces = model(images)
    assert logits.shape == (B, 7)
    for block, trace, directions in zip(model.blocks, traces, (4, 2), strict=True):
        assert trace.query.shape == trace.key.shape == (B, 9, 3, directions)
        assert block.attention.spectrum.shape == (3, directions)
        assert trace.scale == 5**-0.5  # that of all directions


def test_patch_embed_takes_patches_row_by_row(make_model_config, rng, ops):
    embed = PatchEmbed(make_model_config(), ops=ops, rngs=nnx.Rngs(0))
    images = np.float32(rng.normal(size=(B, 6, 6, 2)))
    tokens = embed(images)
    for token in range(9):
        row, column = divmod(token, 3)
        patch = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = embed.projection(patch.reshape(B, -1))
        np.testing.assert_allclose(tokens[:, token], expected, rtol=0, atol=1e-6)


def test_images_are_normalised_inside(make_model_config, images, randomize):
    config = make_model_config()
    raw = randomized(config, randomize)(images)[0]
    plain = make_model_config(mean=(0.0, 0.0), std=(1 / 255, 1 / 255))
    normalised = (np.float32(images) / 255 - config.mean) / config.std
    expected = randomized(plain, randomize)(np.float32(normalised))[0]
    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.float32(x) / 255, "values from .* to 1; the model takes them as"),
        (lambda x: np.float32(x) / 100 - 1, "values from -.*; the model takes them as"),
        (lambda x: x[:, :4], r"shape \[.*, 4, 6, 2\]; the model takes \[B, 6, 6, 2\]"),
        (lambda x: x[0], r"shape \[6, 6, 2\]; the model takes \[B, 6, 6, 2\]"),
        (lambda x: x[..., :1], r"6, 1\]; the model takes \[B, 6, 6, 2\]"),
        (lambda x: x.tolist(), "images are a list; the model takes an array"),
        (lambda x: None, "images are a NoneType; the model takes an array"),
    ],
)
def test_images_that_are_not_those_of_the_model_are_refused(
    make_model_config, images, randomize, change, message
):
    model = randomized(make_model_config(), randomize)
    images = images.copy()
    images[0, 0, 0] = 0, 255
    with pytest.raises(UserError, match=message):
        model(change(images))
    np.testing.assert_array_equal(model(np.float32(images))[0], model(images)[0])


def test_images_do_not_see_each_other(make_model_config, images, randomize):
    model = randomized(make_model_config(), randomize)
    alone = jnp.concatenate([model(images[i : i + 1])[0] for i in range(B)])
    np.testing.assert_allclose(model(images)[0], alone, rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(make_model_config, images, randomize):
    expected = randomized(make_model_config(), randomize)(images)[0]
    model = randomized(make_model_config(dtype="bfloat16"), randomize)
    logits, traces = model(images)
    assert logits.dtype == jnp.float32
    assert traces[0].query.dtype == jnp.bfloat16
    assert traces[0].sigma.dtype == jnp.float32
    assert model.blocks[0].mlp.hidden.kernel[...].dtype == jnp.float32
    # Logits of order one through some ten roundings to 8 bits.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.1)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    keys = jax.random.split(jax.random.key(0), 100)
    x = Dropout(PLAIN.draw(keys, 401))(jnp.ones((100, 401)), 0.25, (401,))
    np.testing.assert_allclose(np.unique(x), [0, 1 / 0.75])
    # 40,100 draws: the standard error of the rate is 0.002.
    assert np.mean(x == 0) == pytest.approx(0.25, abs=0.01)


def test_drop_path_drops_whole_images():
    keys = jax.random.split(jax.random.key(0), 1000)
    x = Dropout(PLAIN.draw(keys, 1))(jnp.ones((1000, 3, 2)), 0.5, (1, 1))
    assert set(np.asarray(x).reshape(1000, 6).sum(-1)) == {0.0, 12.0}
    assert np.mean(x == 0) == pytest.approx(0.5, abs=0.06)


def test_every_place_drops_differently():
    drop = Dropout(PLAIN.draw(jax.random.split(jax.random.key(0), 7), 4000))
    first, second = (drop(jnp.ones((7, 2000)), 0.5, (2000,)) for _ in range(2))
    # Agreement of independent halves: 14,000 draws, standard error 0.004.
    assert np.mean(first == second) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"drop_path": 0.5}])
def test_dropout_is_a_function_of_the_images_key(
    make_model_config, images, randomize, rates
):
    model = randomized(make_model_config(**rates), randomize)
    keys = jax.random.split(jax.random.key(0), B)
    logits = model(images, dropout_keys=keys)[0]
    np.testing.assert_allclose(
        model(images[3:], dropout_keys=keys[3:])[0], logits[3:], rtol=0, atol=1e-5
    )
    others = jax.random.split(jax.random.key(1), B)
    assert not np.allclose(model(images, dropout_keys=others)[0], logits)
    assert not np.allclose(model(images)[0], logits)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_a_model_can_be_built_for_a_machine(
    make_model_config, images, randomize, attention
):
    config = make_model_config(attention=attention)
    quick = ViT(config, ops=choose(jax.devices()[0]), rngs=nnx.Rngs(0))
    graphdef, start = nnx.split(quick, nnx.Param)
    plain = nnx.state(make(config), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, start, plain)
    params = randomize(nnx.to_pure_dict(start), 0.3)
    expected = randomized(config, randomize)(images)[0]
    assert (quick.ops, make(config).ops) == (choose(jax.devices()[0]), PLAIN)
    # Float32 rounding through two layers; logits of order one.
    logits = nnx.merge(graphdef, params)(images)[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_plain_differentiates_forwards_and_twice(
    make_model_config, images, randomize, attention
):
    model = randomized(make_model_config(attention=attention), randomize)
    x, step = np.float32(images[:1]), np.float32(images[1:2])

    @jax.jit  # a fifth of the time
    def along(t):
        return model(x + t * step)[0]

    logits, slope = jax.jvp(along, (0.0,), (1.0,))
    np.testing.assert_allclose(logits, model(x)[0], rtol=0, atol=1e-5)
    # Central differences at 1e-2 in float32: errors of step^2 and 1e-6 / step.
    differences = (along(1e-2) - along(-1e-2)) / 2e-2
    np.testing.assert_allclose(slope, differences, rtol=0, atol=2e-3)
    curve = jax.jit(jax.hessian(lambda t: along(t)[0, 0]))(0.0)
    gradient = jax.jit(jax.grad(lambda t: along(t)[0, 0]))
    slopes = [gradient(t) for t in (1e-2, -1e-2)]
    np.testing.assert_allclose(curve, (slopes[0] - slopes[1]) / 2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["svda", "softmax"])
@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_plain_is_exported_for_any_batch(
    make_model_config, images, randomize, attention, pool, dtype
):
    config = make_model_config(attention=attention, pool=pool, dtype=dtype)
    model = randomized(config, randomize)
    (batch,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(lambda images: model(images)[0]))(
        jax.ShapeDtypeStruct((batch, 6, 6, 2), np.uint8)
    )
    exported = jax.export.deserialize(exported.serialize())
    for size in (1, B):
        expected = jax.jit(model)(images[:size])[0]
        # Rounding: the programs may be compiled differently.
        tolerance = 1e-5 if dtype == "float32" else 3e-2
        logits = exported.call(images[:size])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attention", ["svda", "softmax"])
def test_plain_is_written_as_onnx(
    make_model_config, images, randomize, tmp_path, attention
):
    jax2onnx = pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = randomized(make_model_config(attention=attention), randomize)
    path = tmp_path / "model.onnx"
    jax2onnx.to_onnx(
        lambda images: model(images)[0],
        [("B", 6, 6, 2)],
        return_mode="file",
        output_path=str(path),
    )
    session = runtime.InferenceSession(path)
    for size in (1, B):
        x = np.float32(images[:size])
        (logits,) = session.run(None, {session.get_inputs()[0].name: x})
        # Float32 rounding of another runtime; logits of order one.
        np.testing.assert_allclose(logits, model(x)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "^num_heads=4 must divide width=15$"),
        ({"patch_size": 4}, "^patch_size=4 must divide image_size=6$"),
        ({"qk_dim": (4,)}, r"^qk_dim=\(4,\) must .* for each layer of depth=2$"),
        ({"mean": (0.5,)}, r"^mean=.* must have one value for each of channels=2$"),
        ({"std": (0.5,)}, r"^std=.* must have one value for each of channels=2$"),
    ],
)
def test_values_that_do_not_fit_each_other_are_named(
    make_model_config, changes, message
):
    with pytest.raises(UserError, match=message):
        make_model_config(**changes)

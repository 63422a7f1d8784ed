"""SVDA in a Flax model of one's own: NNX and Linen, as attention_fn and as a layer."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import svda_jax.linen
import svda_jax.nnx
from svda_jax import UserError
from svda_jax.models.attention import Attention
from svda_jax.models.general import svda_attention

B, N, M, H, K = 2, 7, 5, 3, 4
D = H * K

# Float32 sums over D = 12 before and after attention, of numbers of order one.
TOLERANCE = 5e-6


def assert_close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def flax_nnx(attention_fn=None, **options):
    fn = attention_fn or svda_jax.nnx.SvdaAttention(H, K)
    options = {"decode": False, "rngs": nnx.Rngs(0), **options}
    return nnx.MultiHeadAttention(H, D, attention_fn=fn, **options)


def flax_linen(attention_fn=svda_jax.linen.svda_attention, **options):
    return nn.MultiHeadDotProductAttention(H, attention_fn=attention_fn, **options)


def own_nnx(**options):
    return svda_jax.nnx.MultiHeadAttention(H, D, rngs=nnx.Rngs(0), **options)


def own_linen(**options):
    return svda_jax.linen.MultiHeadAttention(H, **options)


LAYERS = {
    "flax nnx": flax_nnx,
    "flax linen": flax_linen,
    "own nnx": own_nnx,
    "own linen": own_linen,
}


def apply(layer, params, *inputs, **options):
    """The layer's output, compiled, with parameters by the names of NNX."""
    if isinstance(layer, nnx.Module):
        graphdef, _, rest = nnx.split(layer, nnx.Param, ...)

        def call(params, rest, *inputs):
            return nnx.merge(graphdef, nnx.State(params), rest)(*inputs, **options)

        return jax.jit(call)(params, rest, *inputs)
    variables = {"params": rename(params)}
    return jax.jit(functools.partial(layer.apply, **options))(variables, *inputs)


def rename(params):
    """Parameters by the names that they have in Linen."""
    return {("Sigma_0" if k == "attention_fn" else k): v for k, v in params.items()}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


@pytest.fixture(params=["own nnx", "own linen"])
def make_own(request):
    return LAYERS[request.param]


def params_of(layer, randomize):
    return randomize(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))


@pytest.fixture
def params(randomize):
    return params_of(own_nnx(), randomize)


@pytest.fixture
def x(rng):
    return np.float32(rng.normal(size=(B, N, D)))


@pytest.fixture
def y(rng):
    return np.float32(rng.normal(size=(B, M, D)))


def test_constant_sigma_and_unit_queries_are_softmax_attention(x, params):
    """Projections that only cut the inputs into heads of unit length."""
    x = x.reshape(B, N, H, K)
    x = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(B, N, D)
    for name in ("query", "key"):
        params[name]["kernel"] = np.eye(D, dtype=np.float32).reshape(D, H, K)
        params[name]["bias"] = np.zeros((H, K), np.float32)
    params["attention_fn"]["relative_sigma"] = np.ones((H, K), np.float32)
    out = [apply(make(), params, x) for make in LAYERS.values()]
    params["query"]["kernel"] = K * params["query"]["kernel"]  # sigma starts at K
    del params["attention_fn"]
    softmax = flax_nnx(nnx.dot_product_attention)
    for one in out:
        assert_close(one, apply(softmax, params, x))


def test_it_equals_the_attention_of_the_vision_transformer(make, x, params):
    ours = Attention(D, H, spectrum_init="matched", rngs=nnx.Rngs(0))
    names = {k: v for k, v in params.items() if k != "attention_fn"}
    nnx.update(ours, nnx.State(names | params["attention_fn"]))
    assert_close(apply(make(), params, x), ours(x)[0])


def test_other_starts_scale_sigma(x, params):
    fns = (
        svda_jax.nnx.SvdaAttention(H, K, spectrum_init="ones"),
        functools.partial(svda_jax.linen.svda_attention, spectrum_init="ones"),
    )
    layers = (
        *(make(fn) for make, fn in zip((flax_nnx, flax_linen), fns, strict=True)),
        *(make(spectrum_init="ones") for make in (own_nnx, own_linen)),
    )
    out = [apply(layer, params, x) for layer in layers]
    params["attention_fn"]["relative_sigma"] /= K
    for one in out:
        assert_close(one, apply(own_nnx(), params, x))


def test_masks_and_other_keys_reach_the_attention(make, x, y, params, rng):
    mask = rng.random(size=(B, H, N, M)) < 0.7
    out = apply(make(), params, x, y, mask=mask)
    assert_close(out, compose(params, x, y, mask=mask))


@functools.partial(jax.jit, static_argnames="is_causal")
def compose(params, x, y, v=None, **options):
    """The layer as its parts: projections, SVDA, output."""

    def project(name, x):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        axes = kernel.ndim - bias.ndim
        return jnp.tensordot(x, kernel, axes) + bias

    query, key = project("query", x), project("key", y)
    sigma = query.shape[-1] * params["attention_fn"]["relative_sigma"]
    value = project("value", y if v is None else v)
    return project("out", svda_attention(query, key, value, sigma, **options))


def test_a_layer_of_other_widths_groups_biases_and_leading_axes(
    make_own, rng, randomize
):
    heads = {"qk_features": 2 * D, "v_features": 5 * H, "num_kv_heads": 1}
    options = heads | {"out_features": 11}
    params = params_of(own_nnx(in_kv_features=13, **options), randomize)
    x = np.float32(rng.normal(size=(3, B, N, D)))
    y, v = np.float32(rng.normal(size=(2, 3, B, M, 13)))
    if make_own is own_nnx:
        options["in_kv_features"] = 13
    bias = np.float32(rng.normal(size=(H, N, M)))
    for more in ({"bias": bias}, {"is_causal": True}):
        out = apply(make_own(**options), params, x, y, v, **more)
        assert out.shape == (3, B, N, 11)
        assert_close(out, compose(params, x, y, v, **more))


def test_bfloat16(make, x, params):
    out = apply(make(dtype=jnp.bfloat16), params, x)
    assert out.dtype == jnp.bfloat16
    # Eight bits in every operand, sums over D = 12 of products of order one.
    assert_close(np.float32(out), apply(make(), params, x), 0.1)


def test_dropout_is_there_in_training_alone(make, x, params):
    layer, plain = make(dropout_rate=0.5), apply(make(), params, x)
    key = {"rngs": {"dropout": jax.random.key(1)}}  # an NNX layer keeps a stream
    key = {} if isinstance(layer, nnx.Module) else key
    train = functools.partial(apply, layer, params, x, **key)
    assert_close(train(deterministic=True), plain)
    assert np.abs(train(deterministic=False) - plain).max() > 0.01
    with pytest.raises(ValueError, match="deterministic"):
        train()


def test_eval_and_train_switch_the_dropout_of_nnx(x):
    layer = own_nnx(dropout_rate=0.5)
    call = nnx.jit(lambda layer: layer(x))
    layer.eval()
    np.testing.assert_array_equal(call(layer), call(layer))
    layer.train()
    assert (call(layer) != call(layer)).any()
    np.testing.assert_array_equal(
        *(layer(x, rngs=rngs) for rngs in (nnx.Rngs(1), nnx.Rngs(1).dropout))
    )


def test_sown_weights_are_those_of_the_attention(make, x, params):
    layer = make()
    if isinstance(layer, nnx.Module):
        graphdef, _ = nnx.split(layer, nnx.Param)
        layer = nnx.merge(graphdef, nnx.State(params))
        _, seen = nnx.capture(layer, nnx.Intermediate)(x, sow_weights=True)
        (weights,) = nnx.to_pure_dict(seen)["attention_weights"]
    else:
        _, state = apply(layer, params, x, sow_weights=True, mutable="intermediates")
        (weights,) = state["intermediates"]["attention_weights"]
    query, key = (
        jnp.tensordot(x, params[name]["kernel"], 1) + params[name]["bias"]
        for name in ("query", "key")
    )
    sigma = K * params["attention_fn"]["relative_sigma"]
    assert_close(weights, svda_jax.nnx.svda_weights(query, key, sigma))


@pytest.mark.parametrize("make", [flax_nnx, flax_linen])
def test_decoding_by_flax_gives_what_causal_attention_gives(make, x, params):
    expected = apply(own_nnx(), params, x, is_causal=True)
    layer = make(decode=True)
    if make is flax_nnx:
        layer.init_cache(x.shape)
        nnx.update(layer, nnx.State(params))
        call = nnx.jit(lambda layer, x: layer(x))
        steps = [call(layer, x[:, i : i + 1]) for i in range(N)]
    else:
        cache = layer.init(jax.random.key(0), x)["cache"]
        call, steps = jax.jit(functools.partial(layer.apply, mutable="cache")), []
        for i in range(N):
            variables = {"params": rename(params), "cache": cache}
            out, state = call(variables, x[:, i : i + 1])
            cache = state["cache"]
            steps.append(out)
    assert_close(jnp.concatenate(steps, axis=1), expected)


def test_each_linen_layer_has_a_sigma_of_its_own(x):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = x + flax_linen()(x)
            return x

    params = Model().init(jax.random.key(0), x)["params"]
    assert sum("Sigma_0" in layer for layer in params.values()) == 2
    gradient = jax.jit(
        jax.grad(lambda p: jnp.sum(jnp.square(Model().apply({"params": p}, x))))
    )(params)
    for layer in gradient.values():
        assert (layer["Sigma_0"]["relative_sigma"] != 0).all()


def test_gradients_by_jit_and_vmap_of_nnx(x, params):
    graphdef = nnx.graphdef(own_nnx())

    def loss(params, x):
        return jnp.sum(jnp.square(nnx.merge(graphdef, nnx.State(params))(x)))

    whole = jax.jit(jax.grad(loss))(params, x)
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x)
    assert (whole["attention_fn"]["relative_sigma"] != 0).all()
    for one, parts in zip(*map(jax.tree.leaves, (whole, each)), strict=True):
        assert_close(one, parts.sum(0), 1e-4)  # sums over 84 squares of order one


def test_an_optimizer_of_nnx_takes_the_labels(x):
    layer = flax_nnx()
    kernel = layer.query.kernel[...]
    rates = {"sigma": optax.adam(0.5), "rest": optax.sgd(0.0)}
    rates = optax.multi_transform(rates, svda_jax.nnx.label_sigma)
    optimizer = nnx.Optimizer(layer, rates, wrt=nnx.Param)
    gradient = nnx.jit(nnx.grad(lambda layer: jnp.sum(jnp.square(layer(x)))))(layer)
    optimizer.update(layer, gradient)
    assert_close(np.abs(layer.attention_fn.relative_sigma[...] - 1), 0.5, 1e-3)
    np.testing.assert_array_equal(layer.query.kernel[...], kernel)


MISTAKES = {
    "qk_features=10 must be a multiple": {"qk_features": 10},
    "v_features=0 must be a multiple": {"v_features": 0},
    "num_kv_heads=2 must divide 3 heads": {"num_kv_heads": 2},
    "num_kv_heads=0 must be at least 1": {"num_kv_heads": 0},
    "spectrum_init=K must be one of matched, sqrt, ones": {"spectrum_init": "K"},
    "decode=True is what Flax's own layer does": {"decode": True},
    "dropout_rate=1.5 must be at least 0": {"dropout_rate": 1.5},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_an_option_is_one_line(make_own, x, params, message):
    with pytest.raises(UserError, match=message):
        apply(make_own(deterministic=True, **MISTAKES[message]), params, x)


def test_mistakes_in_a_call_are_one_line(make_own, x, params):
    layer = make_own()
    with pytest.raises(UserError, match="inputs_v needs inputs_k"):
        apply(layer, params, x, None, x)
    with pytest.raises(UserError, match=r"mask has shape \[2, 7, 7\]"):
        apply(layer, params, x, mask=np.ones((B, N, N), bool))


def test_einsums_that_svda_would_not_use_are_refused(x):
    layer = flax_linen(
        qk_attn_weights_einsum_cls=lambda: jnp.einsum,
        attn_weights_value_einsum_cls=lambda: jnp.einsum,
    )
    with pytest.raises(UserError, match=r"leave \*_einsum_cls out"):
        layer.init(jax.random.key(0), x)


def test_the_blocks_of_the_page_run():
    root = pathlib.Path(__file__).parent.parent
    page = (root / "docs" / "own_model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == names["x"].shape
    assert names["found"]["score_rank"].shape == (4,)

"""Blocks as a loop, and what gradients keep of them: the values stay what they are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from machines import OPS, assert_close

from svda_jax.models.stack import REMATS
from svda_jax.models.vit import abstract_params, create_graphdef

DEPTH = 3


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(3, 6, 6, 2)).astype(np.uint8)


@pytest.fixture
def run(images, randomize):
    """Logits, traces and gradients of a model, with its dropout."""

    def run(config, ops):
        params = randomize(abstract_params(config))
        keys = jax.random.split(jax.random.key(0), len(images))

        def loss(params):
            model = nnx.merge(create_graphdef(config, ops), params)
            logits, traces = model(images, dropout_keys=keys)
            assert {type(trace.scale) for trace in traces} == {float}
            arrays = [trace._replace(scale=None) for trace in traces]
            return jnp.mean(jnp.square(logits)), (logits, arrays)

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return out, grads

    return run


_, PRODUCTS, INPUTS = REMATS
CASES = {  # of the model; operations; scan and remat
    "svda": ({}, "plain", [(True, "none"), (False, INPUTS), (True, PRODUCTS)]),
    "bfloat16": ({"pool": "cls", "dtype": "bfloat16"}, "cpu", [(True, INPUTS)]),
    "pruned": ({"attention": "softmax", "qk_dim": (3, 3, 5)}, "cpu", [(True, "none")]),
    "kernel": ({}, "tpu", [(True, PRODUCTS)]),
}


@pytest.mark.parametrize("case", CASES)
def test_neither_changes_a_value(make_model_config, run, case, interpreted):
    changes, ops, hows = CASES[case]
    config = make_model_config(depth=DEPTH, dropout=0.2, drop_path=0.3, **changes)
    expected, slopes = run(config, OPS[ops])
    for scan, remat in hows:
        changed = dataclasses.replace(config, scan=scan, remat=remat)
        out, grads = run(changed, OPS[ops])
        assert jax.tree.structure(out) == jax.tree.structure(expected)
        # Compiled in other pieces: the last bit, through three blocks.
        tolerance = 1e-5 if config.dtype == "float32" else 2**-6
        for actual, wanted in ((out, expected), (grads, slopes)):
            close = functools.partial(assert_close, tolerance=tolerance)
            jax.tree.map(close, actual, wanted)


@pytest.mark.parametrize(
    ("qk_dim", "lengths"), [((), [3]), ((3, 3, 5), [2]), ((3, 5, 3), [])]
)
def test_neighbours_of_one_shape_are_one_loop(
    make_model_config, images, qk_dim, lengths
):
    config = make_model_config(depth=DEPTH, qk_dim=qk_dim, scan=True)
    params, graphdef = abstract_params(config), create_graphdef(config)

    def apply(params):
        return nnx.merge(graphdef, params)(images)[0]

    equations = jax.make_jaxpr(apply)(params).eqns
    found = [e.params["length"] for e in equations if e.primitive.name == "scan"]
    assert found == lengths


@pytest.mark.parametrize("scan", [False, True])
def test_less_is_kept_for_gradients(make_model_config, images, randomize, scan):
    config = make_model_config(depth=DEPTH, scan=scan)
    params = randomize(abstract_params(config))

    def kept(remat):
        graphdef = create_graphdef(dataclasses.replace(config, remat=remat))

        def apply(params):
            return nnx.merge(graphdef, params)(images)[0]

        _, pull_back = jax.vjp(apply, params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull_back))

    everything, products, inputs = map(kept, REMATS)
    assert inputs < products < everything


def test_a_loop_differentiates_forwards(make_model_config, images, randomize):
    slopes = []
    for changes in ({}, {"scan": True, "remat": "nothing_saveable"}):
        config = make_model_config(depth=DEPTH, **changes)
        model = nnx.merge(create_graphdef(config), randomize(abstract_params(config)))
        x = np.float32(images)

        @jax.jit
        def along(t, model=model, x=x):
            return model(x + t)[0]

        slopes.append(jax.jvp(along, (0.0,), (1.0,))[1])
    assert_close(*slopes, 1e-5)

"""What compilers say of steps for accelerators that are not there."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from experiments.benchmarks.compilers import MANY_NUMBERS, read_program

PROGRAM = """HloModule step

%inner (x: f32[2]) -> f32[2] {
  %fusion.1 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"7"}
  ROOT %call.1 = f32[2]{0} custom-call(%x), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/attend_forward/pallas_call"}
}

%pixels (x: f32[2]) -> f32[2] {
  %gather.1 = f32[MANY]{0} gather(%x, %i), slice_sizes={1}
  ROOT %gather.2 = f32[3,2]{1,0} gather(%x, %i), slice_sizes={1}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %fusion.2 = f32[2]{0} fusion(%x), calls=%pixels, \
backend_config={"estimated_cycles":"5"}
  %all-reduce.1 = f32[2]{0} all-reduce(%x), to_apply=%sum
  %while.1 = f32[2]{0} while(%x), condition=%c, body=%inner, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_a_program_is_read_with_its_loops():
    text = PROGRAM.replace("MANY", str(MANY_NUMBERS))
    assert read_program(text, {"attend_forward": 11}, passes=2) == {
        "cycles": 5 + 3 * (7 + 2 * 11),
        "kernel_cycles": 3 * 2 * 11,
        "kernels": {"attend_forward": 3},
        "collectives": {"all-reduce": 1},
        "loops": 1,
        "gathers": 1,
    }


def ask(code):
    """What a process that can compile for a TPU finds."""
    code = f"import json\n{code}print(json.dumps(found))\n"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_on_a_tpu_ours_costs_less_than_linen():
    """As the compiler says, of two blocks; experiments/results has twelve."""
    pytest.importorskip("libtpu")
    found = ask(
        "from experiments.benchmarks import accelerators as A\n"
        "config = A.create_vit_s(depth=2)\n"
        "found = {k: v._asdict() for k, v in A.estimate_steps(config, 128).items()}\n"
        "found |= zip(('without', 'measured'),\n"
        "    (one._asdict() for one in A.estimate_evaluation(config, 128)))\n"
    )
    linen = found["Flax Linen, softmax"]
    softmax, svda = found["ours, softmax"], found["ours, svda"]
    for one in (softmax, svda):
        assert one["cycles"] < 0.8 * linen["cycles"]
        assert one["bytes"] < 0.8 * linen["bytes"]
        assert one["temporaries"] < 0.95 * linen["temporaries"]
        assert one["kernels"] == {"attend_forward": 2, "attend_backward": 2}
    assert svda["cycles"] < 1.05 * softmax["cycles"]
    without, measured = found["without"], found["measured"]
    assert measured["cycles"] < 1.25 * without["cycles"]
    assert measured["temporaries"] < 1.15 * without["temporaries"]
    assert measured["kernels"] == {"attend_observe": 2}
    for one in found.values():
        assert (one["loops"], one["gathers"], one["collectives"]) == (0, 0, {})


@pytest.mark.slow
def test_on_sixteen_tpus_a_split_state_moves_as_parameters_and_gradients_alone():
    """Gathered in the activations' type. Gradients are summed once; where links go in
    two directions the compiler makes all-reduces of reduce-scatters."""
    pytest.importorskip("libtpu")
    found = ask(
        "import jax\n"
        "from experiments.benchmarks import compilers as C\n"
        "from svda_jax.config import recipe, validate\n"
        "from svda_jax.devices import parallel\n"
        "from svda_jax.train.compiled import create_training\n"
        "from svda_jax.train.memory import abstract_arguments\n"
        "C.MACHINES['pod'] = C.MACHINES['v5e']._replace(topology='v5e:4x4')\n"
        "mesh = parallel.create_mesh(C.describe_devices('pod'))\n"
        "config = recipe('digits')\n"
        "config.batch_size, config.fsdp = 128, True\n"
        "config.augment.crop_padding = 0\n"
        "config.model.update(depth=1, width=128, mlp_dim=512, dtype='bfloat16')\n"
        "model = validate(config, num_devices=mesh.size)\n"
        "init, step = create_training(config, model, num_steps=9, mesh=mesh)\n"
        "key = jax.eval_shape(lambda: jax.random.key(0))\n"
        "state = jax.eval_shape(init, key)\n"
        "arguments = abstract_arguments(state, config, mesh)\n"
        "key = C.place(key, parallel.replicated(mesh))\n"
        "compiled = step.lower(*arguments, key).compile()\n"
        "shardings = parallel.shard(state.params, mesh, fsdp=True)\n"
        "sizes = [(leaf.size, s.is_fully_replicated) for leaf, s in\n"
        "    zip(*map(jax.tree.leaves, (state.params, shardings)))]\n"
        "found = {\n"
        "    'text': compiled.as_text(),\n"
        "    'held': compiled.memory_analysis().argument_size_in_bytes,\n"
        "    'split': [size for size, whole in sizes if not whole],\n"
        "    'whole': [size for size, whole in sizes if whole],\n"
        "}\n"
    )
    gathered, summed = [], []
    for shapes, name in re.findall(
        r"= (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\(", found["text"]
    ):
        for dtype, sizes in re.findall(r"\b(\w+)\[([\d,]*)\]", shapes):
            size = math.prod(map(int, filter(None, sizes.split(","))))
            (gathered if name == "all-gather" else summed).append((dtype, size))
    assert {dtype for dtype, _ in gathered} == {"bf16"}
    assert {size for _, size in gathered} == set(found["split"])
    gradients = sum(size for dtype, size in summed if dtype == "f32" and size > 1)
    assert gradients <= sum(found["split"]) + sum(found["whole"])
    # Three arrays a parameter, of four bytes; what is whole is padded to tiles.
    assert found["held"] < 0.2 * 12 * sum(found["split"])

"""What compilers say of steps for accelerators that are not there."""

import json
import os
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


@pytest.mark.slow
def test_on_a_tpu_ours_costs_less_than_linen():
    """As the compiler says, of two blocks; experiments/results has twelve."""
    pytest.importorskip("libtpu")
    code = (
        "import json\n"
        "from experiments.benchmarks import accelerators as A\n"
        "config = A.create_vit_s(depth=2)\n"
        "found = {k: v._asdict() for k, v in A.estimate_steps(config, 128).items()}\n"
        "found |= zip(('without', 'measured'),\n"
        "    (one._asdict() for one in A.estimate_evaluation(config, 128)))\n"
        "print(json.dumps(found))\n"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
    )
    found = json.loads(done.stdout.splitlines()[-1])
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

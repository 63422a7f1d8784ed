"""What compilers for accelerators that are not there say of a program.

TPUs need libtpu, GPUs JAX's CUDA wheels: requirements-benchmark.txt. Nothing is timed
but the compiler itself.
"""

import functools
import importlib.util
import os
import re
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.benchmarks.hlo import count_bytes
from svda_jax import UserError
from svda_jax.devices import parallel
from svda_jax.train.memory import held_bytes

# A gather or scatter of as many numbers goes pixel by pixel, a slow path of TPUs.
MANY_NUMBERS = 2**16

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


class Machine(NamedTuple):
    """An accelerator, as its maker describes it.

    Attributes:
      name: its own.
      topology: the smallest that a compiler takes.
      clock: cycles a second; None where the compiler estimates no cycles.
      flops: a second, of bfloat16 products added up in float32.
      bandwidth: of its memory, bytes a second.
      memory: bytes.
      options: of the compiler.
    """

    name: str
    topology: str
    clock: float | None
    flops: float
    bandwidth: float
    memory: float
    options: dict[str, Any] | None = None


MACHINES = {
    "v5e": Machine("TPU v5e", "v5e:2x2", 1.5e9, 197e12, 819e9, 16e9),
    "v6e": Machine("TPU v6e", "v6e:2x2", 1.75e9, 918e12, 1640e9, 32e9),
    # Products by cuBLAS: XLA's own are chosen by trying them on the device.
    "h100": Machine(
        "NVIDIA H100 SXM",
        "1x1x1",
        None,
        989e12,
        3350e9,
        80e9,
        {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0},
    ),
}

# The card, as XLA writes one down that is there (`gpu_device_info`).
_H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 shared_memory_per_core: 233472
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
dnn_version_info { major: 9 minor: 28 } runtime_version { major: 12 minor: 9 patch: 0 }
"""


class Estimate(NamedTuple):
    """What a compiler says of a program.

    Attributes:
      cycles: estimated, of its fusions, and of the kernels; loops as often as they run.
        0 for a GPU, as the next.
      kernel_cycles: those of the kernels, see `kernels.count_cycles`.
      bytes: accessed; a kernel's operands and results count once. For a GPU, those of
        `hlo.count_bytes`.
      arguments: bytes that the device holds of them.
      temporaries: bytes beside arguments and results.
      code: bytes of the program; 0 for a GPU, whose compiler does not say.
      held: bytes of a device's memory while it runs, see `held_bytes`.
      kernels: how often each is called, by name: those of attention, and of libraries.
      collectives: how many of each, by name.
      loops: how many.
      gathers: of `MANY_NUMBERS` and more, scatters among them.
      seconds: that compiling took.
    """

    cycles: float
    kernel_cycles: float
    bytes: float
    arguments: int
    temporaries: int
    code: int
    held: int
    kernels: dict[str, int]
    collectives: dict[str, int]
    loops: int
    gathers: int
    seconds: float


@functools.cache
def describe_devices(name, topology=None):
    """Devices of one of `MACHINES`, of which none need be here.

    Args:
      name: of the machine.
      topology: of several TPUs; None is the smallest.

    Raises:
      UserError: its compiler is not installed.
    """
    jax.config.update("jax_platforms", "cpu")  # there is no device to wait for
    topology = topology or MACHINES[name].topology
    if name == "h100":
        _require("jax_cuda12_plugin", f'"jax[cuda12]=={jax.__version__}"', name)
        describe = functools.partial(
            topologies.get_topology_desc, platform="cuda", topology_name=name
        )
        return describe(topology=topology, target_config=_H100).devices
    _require("libtpu", "libtpu", name)
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # nor to ask for,
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor to lock
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def _require(module, package, name):
    if importlib.util.find_spec(module) is None:
        machine = MACHINES[name].name
        raise UserError(f"no compiler for the {machine}: pip install {package}")


def estimate(function, args, name, kernels=None):
    """Compiles a jitted function.

    Args:
      function: jitted.
      args: pytrees of `jax.ShapeDtypeStruct`, from `place`.
      name: of one of `MACHINES`, whose devices args are on.
      kernels: cycles of a call of each, from `kernels.count_cycles`.

    Returns:
      An `Estimate`.
    """
    start = time.perf_counter()
    compiled = function.lower(*args).compile(compiler_options=MACHINES[name].options)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Estimate(
        bytes=cost["bytes accessed"] if cost else count_bytes(text),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        held=held_bytes(compiled),
        seconds=seconds,
        **read_program(text, kernels or {}),
    )


def place(tree, sharding):
    """The shapes of a pytree's arrays, with a sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def place_batch(config, batch_size, mesh, **more: Any):
    """Shapes of images and labels, and of what else `eval_step` reads, on a mesh."""
    side = config.image_size
    shapes = {
        "image": ((batch_size, side, side, config.channels), "uint8"),
        "label": ((batch_size,), "int32"),
        **{name: ((batch_size,), dtype) for name, dtype in more.items()},
    }
    shapes = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return place(shapes, parallel.split(mesh))


def read_program(text, cycles_of):
    """What a compiled program's text says.

    Args:
      text: of all computations.
      cycles_of: a call of each kernel, by name.

    Returns:
      A dict of the `Estimate`'s counts.
    """
    computations, name = {}, None
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = "ENTRY" if start[1] else start[2]
            computations[name] = []
        elif name:
            computations[name].append(line)

    def count_turns(line):
        """Of a loop, where the compiler knows; else 1. For TPUs its condition says."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.-]+)", line)[1]
        condition = "\n".join(computations.get(condition, []))
        limits = re.findall(r" s32\S* constant\((\d+)\)", condition)
        counted = re.search(r"ROOT .* compare\(.*direction=LT", condition)
        return int(limits[0]) if counted and len(limits) == 1 else 1

    def count(name):
        """Cycles of a computation, those of its kernels, and these kernels."""
        cycles, in_kernels, kernels = 0, 0, {}
        for line in computations[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += int(found[1])
            kernel = None
            if '"tpu_custom_call"' in line:
                kernel = re.search(r"attend_[a-z]+", line)[0]
                in_kernels += cycles_of[kernel]
            elif library := re.search(r'custom_call_target="(__[\w$]+)"', line):
                kernel = library[1]
            if kernel:
                kernels[kernel] = kernels.get(kernel, 0) + 1
            if loop := re.search(r" while\(.*body=%?([\w.-]+)", line):
                times = count_turns(line)
                more = count(loop[1])
                cycles, in_kernels = (
                    cycles + times * more[0],
                    in_kernels + times * more[1],
                )
                for kernel, number in more[2].items():
                    kernels[kernel] = kernels.get(kernel, 0) + times * number
        return cycles, in_kernels, kernels

    cycles, in_kernels, kernels = count("ENTRY")
    gathers = re.findall(r"= \w+\[([\d,]*)\]\S* (?:gather|scatter)\(", text)
    sizes = [functools.reduce(int.__mul__, map(int, s.split(",")), 1) for s in gathers]
    collectives = {c: len(re.findall(rf" {c}(?:-start)?\(", text)) for c in COLLECTIVES}
    return {
        "cycles": cycles + in_kernels,
        "kernel_cycles": in_kernels,
        "kernels": kernels,
        "collectives": {c: number for c, number in collectives.items() if number},
        "loops": len(re.findall(r" while\(", text)),
        "gathers": sum(size >= MANY_NUMBERS for size in sizes),
    }

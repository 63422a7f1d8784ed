"""What compilers for machines that are not here say of a config's training step.

All figures are estimates of a compiler or follow from them; none was measured.
"""

from experiments.benchmarks.accelerators import estimate_training
from experiments.benchmarks.compilers import MACHINES, describe_devices
from experiments.benchmarks.speed import count_flops
from experiments.benchmarks.table import describe_machine
from experiments.paper.comparison import ATTENTIONS, configure, read_commit
from svda_jax import UserError
from svda_jax.config import validate

# What a config is compiled for: one of `MACHINES`, its topology, how many devices.
TARGETS = {"v5e": ("v5e:2x4", 8), "h100": (None, 1)}
PACKAGES = ("libtpu", "jax-cuda12-plugin", "nvidia-cudnn-cu12", "optax")


def estimate_targets(path, argv):
    """Estimates of a config's training step with each attention, by machine.

    Args:
      path: of the config.
      argv: options of it, as on the command line.

    Returns:
      A dict from machine to "where" and at which "commit" it was compiled, and what
      `_estimate` returns, by attention; a machine whose compiler is not installed is
      missing.
    """
    found = {}
    for machine, (topology, count) in TARGETS.items():
        try:
            devices = describe_devices(machine, topology)[:count]
        except UserError as error:
            print(f"not at hand: {error}", flush=True)
            continue
        found[machine] = {
            "where": describe_machine(PACKAGES),
            "commit": read_commit(),
        }
        for attention, options in ATTENTIONS.items():
            print(f"compiling {attention} for {describe_target(machine)}", flush=True)
            config = configure(path, argv, options, 0)
            found[machine][attention] = _estimate(config, machine, devices)
    return found


def describe_target(machine):
    """How many of what, such as "8 x TPU v5e"."""
    return f"{TARGETS[machine][1]} x {MACHINES[machine].name}"


def _estimate(config, machine, devices):
    """Estimates of one training step.

    Returns:
      A dict: "seconds" of the step, from the compiler's cycles, or where it counts
      none the least that products and memory take, "bound" by which; "cycles",
      "bytes" and "held" of one device; "compiling", in seconds, the one that was timed;
      or {"refused": what the compiler said} where the program does not fit.
    """
    maker = MACHINES[machine]
    try:
        one = estimate_training(config, machine, devices)
    except Exception as error:  # XLA's own, of a program too large
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error).splitlines()[0]}
    model_config = validate(config, num_devices=len(devices))
    flops = count_flops(model_config, config.batch_size // len(devices))
    floors = {
        "products": flops / maker.flops,
        "memory": one.bytes / maker.bandwidth,
    }
    bound = max(floors, key=floors.get)
    return {
        "seconds": one.cycles / maker.clock if maker.clock else floors[bound],
        "bound": bound,
        "cycles": one.cycles,
        "bytes": one.bytes,
        "held": one.held,
        "compiling": one.seconds,
    }


def device_hours(step, config, machine, num_images):
    """Hours of all devices that a run's training alone takes, by a step's estimate.

    Args:
      step: from `_estimate`.
      config: of the run, a dict.
      machine: of `TARGETS`.
      num_images: to train on.
    """
    steps = config["num_epochs"] * num_images / config["batch_size"]
    return step["seconds"] * steps * TARGETS[machine][1] / 3600

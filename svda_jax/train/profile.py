"""A profile of some steps of a run."""

import jax
from tqdm import tqdm

from svda_jax.devices import processes

# Steps before those that are recorded, which compile, and how many are recorded.
FIRST, NUM_STEPS = 20, 10


def profiled(batches, workdir):
    """Yields batches; the first process records what happens during some of them.

    Args:
      batches: of a run, a generator.
      workdir: the run's folder; the profile will be in plugins/profile there, where
        TensorBoard's profile plugin and xprof look for it.
    """
    if not processes.is_primary():
        yield from batches
        return
    running, i = False, 0
    try:
        for i, batch in enumerate(batches):
            if i == FIRST:
                jax.profiler.start_trace(str(workdir))
                running = True
            if i == FIRST + NUM_STEPS:
                running = False
                jax.profiler.stop_trace()
                tqdm.write(f"profile of {NUM_STEPS} steps in {workdir}/plugins/profile")
            with jax.profiler.StepTraceAnnotation("train", step_num=i):
                yield batch
    finally:
        if running:
            jax.profiler.stop_trace()
        elif i < FIRST:
            tqdm.write(f"no profile: the run ended before its step {FIRST + 1}")
        batches.close()

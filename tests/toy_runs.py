"""Runs that nobody trained, of random parameters."""

import jax
import numpy as np
import xarray as xr
from flax import nnx

from svda_jax.models.vit import ViT
from svda_jax.run import runs


class Source(list):
    """Examples in memory, read as TFDS's data sources are."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def make_toy_run(config, options, *, evaluated=5):
    """A `Run` at step 5.

    Args:
      config: the `ViTConfig` of its model.
      options: the run's config.
      evaluated: step of the last evaluation, an accuracy of 0.75.
    """
    model, rng = ViT(config, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    values = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), params)
    nnx.update(model, values)
    measured = {"eval_accuracy": 0.75, "eval_loss": 0.5, "epoch": 2.0}
    history = xr.Dataset(
        {name: ("step", [0.0, value]) for name, value in measured.items()},
        coords={"step": [3, evaluated]},
    )
    names = tuple(f"class {i}" for i in range(config.num_classes))
    return runs.Run(options, model, step=5, history=history, class_names=names)

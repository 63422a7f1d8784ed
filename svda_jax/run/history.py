"""A run's history: what every evaluation measured, one labelled file."""

import numpy as np
import xarray as xr

from svda_jax import UserError
from svda_jax.models.indicators import INDICATORS
from svda_jax.run.runs import (
    history_path,
    read_class_names,
    read_history,
    write_atomically,
)

_PAIRS = ("true", "predicted")

# What an evaluation measures: axes beside "step", unit, meaning.
VARIABLES = {
    "train_loss": (
        (),
        "nats",
        "cross-entropy with label smoothing, mean over the training batches since the "
        "last evaluation",
    ),
    "train_accuracy": ((), "fraction", "accuracy on the same batches, as augmented"),
    "eval_loss": ((), "nats", "cross-entropy, mean over the evaluation split"),
    "eval_accuracy": ((), "fraction", "accuracy on the evaluation split"),
    "learning_rate": ((), "1", "learning rate of the last step"),
    "skipped_steps": ((), "1", "steps skipped so far, loss or gradient not finite"),
    "images_per_second": ((), "1/s", "images trained on, without evaluation"),
    "epoch_seconds": ((), "s", "time that an epoch of training takes at that rate"),
    "orthonormality": (
        (),
        "1",
        "mean over layers, heads, query and key of ||W_hat^T W_hat - I||_F^2 / K",
    ),
    "indicators": (
        ("indicator", "layer", "head"),
        "see svda_jax.models.indicators",
        "the six indicators of each head, averaged over the evaluation split",
    ),
    "retained_rank": (
        ("layer", "head"),
        "1",
        "directions that hold 90 % of the energy of the spectrum",
    ),
    "spectrum": (
        ("layer", "head", "direction"),
        "1",
        "sigma, or the singular values of W_q W_k^T for softmax attention",
    ),
    "score_spectrum": (
        ("layer", "head", "direction"),
        "logits",
        "singular values of the score over the evaluation split, largest first",
    ),
    "weight_spectrum": (
        ("layer", "head", "direction"),
        "logits",
        "the same by the weights alone, see svda_jax.models.score.weigh_moments",
    ),
    "score_entropy": (("layer", "head"), "nats", "entropy of the score's spectrum"),
    "score_rank": (("layer", "head"), "directions", "its effective rank"),
    "score_sparsity": (("layer", "head"), "1", "its sparsity"),
    "score_retained_rank": (
        ("layer", "head"),
        "directions",
        "those that hold 90 % of its energy",
    ),
    "score_strength": (
        ("layer", "head"),
        "logits",
        "root mean square of the score of a query and a centred key of any image",
    ),
    "class_accuracy": (
        ("class",),
        "fraction",
        "accuracy on the images of each class, missing where there is none",
    ),
}
# Of the last evaluation alone, since the file is written anew at each: of 1000 classes
# one takes 4 MB.
CONFUSION = "images of the evaluation split, by true and predicted class"


class History:
    """The measurements of a run's evaluations, `history.nc` in its workdir.

    Args:
      workdir: of the run.
      last_step: later evaluations, of an attempt that was cut off, are forgotten.
      attrs: what holds for the whole run, by name; strings.

    Attributes:
      data: `xarray.Dataset` of `VARIABLES` over the coordinate "step", with "epoch"
        beside it, and "confusion" `[true, predicted]` of the last evaluation, int32,
        for models of at most `train.metrics.MAX_CONFUSED` classes.
    """

    def __init__(self, workdir, *, last_step, attrs):
        self.path = history_path(workdir)
        self.attrs = attrs
        self.class_names = read_class_names(workdir)
        self.data = None
        if self.path.exists():
            data = read_history(workdir).drop_dims(_PAIRS, errors="ignore")
            data = data.isel(step=data.step.values <= last_step)
            self.data = data if data.sizes["step"] else None

    def append(self, step, epoch, values):
        """Adds an evaluation and writes the file.

        Args:
          step: updates made so far.
          epoch: passes over the training split so far, a float.
          values: arrays by the names of `VARIABLES`; numbers that are missing, as those
            of training where none was, become NaN.
        """
        variables = {
            name: (
                ("step", *axes),
                np.asarray(values.get(name, np.nan), np.float32)[None],
                {"units": unit, "long_name": meaning},
            )
            for name, (axes, unit, meaning) in VARIABLES.items()
        }
        row = xr.Dataset(
            variables,
            coords={
                "step": ("step", np.asarray([step], np.int32)),
                "epoch": ("step", np.asarray([epoch], np.float64)),
                "indicator": list(INDICATORS),
            },
        )
        names = list(self.class_names) or range(row.sizes["class"])
        row = row.assign_coords({"class": names})
        # Orbax, which may have been saving, makes a folder again that was taken away.
        if self.data is not None and not self.path.exists():
            raise UserError(f"cannot write {self.path}: what was written is gone")
        if self.data is not None:
            row = xr.concat([self.data.drop_dims(_PAIRS, errors="ignore"), row], "step")
        if "confusion" in values:
            counts = np.asarray(values["confusion"], np.int32)
            row["confusion"] = (_PAIRS, counts, {"units": "1", "long_name": CONFUSION})
            row = row.assign_coords(dict.fromkeys(_PAIRS, names))
        self.data = row
        self.data.attrs = self.attrs
        write_atomically(self.path, self.data.to_netcdf(engine="scipy"))

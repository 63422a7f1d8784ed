"""What a run leaves to look at: its history, and events for TensorBoard."""

import numpy as np
import tensorboardX
import xarray as xr
from tensorboardX.summary import hparams

from svda_jax import figures
from svda_jax.config import flatten
from svda_jax.indicators import INDICATORS
from svda_jax.runs import history_path, read_history, write_atomically

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
    "images_per_second": ((), "1/s", "images trained on, without evaluation"),
    "epoch_seconds": ((), "s", "time that an epoch of training takes at that rate"),
    "orthonormality": (
        (),
        "1",
        "mean over layers, heads, query and key of ||W_hat^T W_hat - I||_F^2 / K",
    ),
    "indicators": (
        ("indicator", "layer", "head"),
        "see svda_jax.indicators",
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
}

# TensorBoard's tag for each of them that is a number.
SCALARS = {
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/learning_rate": "learning_rate",
    "train/images_per_second": "images_per_second",
    "eval/loss": "eval_loss",
    "eval/accuracy": "eval_accuracy",
    "model/orthonormality": "orthonormality",
}


class History:
    """The measurements of a run's evaluations, `history.nc` in its workdir.

    Args:
      workdir: of the run.
      last_step: later evaluations, of an attempt that was cut off, are forgotten.
      attrs: what holds for the whole run, by name; strings.

    Attributes:
      data: `xarray.Dataset` of `VARIABLES` over the coordinate "step", with "epoch"
        beside it.
    """

    def __init__(self, workdir, *, last_step, attrs):
        self.path = history_path(workdir)
        self.attrs = attrs
        self.data = None
        if self.path.exists():
            data = read_history(workdir)
            data = data.isel(step=data.step.values <= last_step)
            self.data = data if data.sizes["step"] else None

    def append(self, step, epoch, values):
        """Adds an evaluation and writes the file.

        Args:
          step: updates made so far.
          epoch: passes over the training split so far, a float.
          values: arrays by the names of `VARIABLES`.
        """
        variables = {
            name: (
                ("step", *axes),
                np.asarray(values[name], np.float32)[None],
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
        self.data = row if self.data is None else xr.concat([self.data, row], "step")
        self.data.attrs = self.attrs
        write_atomically(self.path, self.data.to_netcdf(engine="scipy"))


class EventWriter:
    """Writes TensorBoard events into a run's workdir.

    Args:
      workdir: of the run.
      config: of the run; its values become hyperparameters.
      last_step: TensorBoard drops what an attempt that was cut off wrote behind it.
    """

    def __init__(self, workdir, config, *, last_step):
        self._writer = tensorboardX.SummaryWriter(
            str(workdir),
            purge_step=last_step + 1 if last_step else None,
            filename_suffix=f".{last_step}",  # else the same name within a second
        )
        values = {
            key: value if isinstance(value, (str, bool, int, float)) else str(value)
            for key, value in flatten(config).items()
        }
        for summary in hparams(values, {"eval/loss": None, "eval/accuracy": None}):
            self._writer.file_writer.add_summary(summary)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._writer.close()

    def write(self, step, values):
        """Writes the numbers of an evaluation, given as to `History.append`."""
        for tag, name in SCALARS.items():
            self._writer.add_scalar(tag, float(values[name]), step)
        for name, indicator in zip(INDICATORS, values["indicators"], strict=True):
            self._writer.add_scalar(f"indicators/{name}", indicator.mean(), step)
            for layer, heads in enumerate(indicator, start=1):
                tag = f"indicators/{name}/layer_{layer}"
                self._writer.add_scalar(tag, heads.mean(), step)
        for layer, spectrum in enumerate(values["spectrum"], start=1):
            tag = f"spectrum/layer_{layer}"
            self._writer.add_histogram(tag, np.asarray(spectrum).ravel(), step)
        self._writer.flush()

    def write_pictures(self, step, values, images, maps, titles):
        """Draws an evaluation.

        Args:
          step: updates made so far.
          values: as to `History.append`.
          images: `[n, S, S, channels]` uint8, a fixed handful.
          maps: their attention maps, `[n, L, H, g, g]`.
          titles: a line for each: true and predicted class.
        """
        pictures = {
            f"indicators/{name}/heads": figures.heat_map(indicator, name)
            for name, indicator in zip(INDICATORS, values["indicators"], strict=True)
        }
        pictures["spectrum/heads"] = figures.spectra(values["spectrum"])
        for i, (image, one, title) in enumerate(
            zip(images, maps, titles, strict=True), start=1
        ):
            picture = figures.attention_grid(image, one, title)
            pictures[f"attention/image_{i}"] = picture
        for tag, figure in pictures.items():
            rgb = figures.to_rgb(figure)
            self._writer.add_image(tag, rgb, step, dataformats="HWC")
        self._writer.flush()

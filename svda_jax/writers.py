"""What a run leaves to look at: its history, and events for TensorBoard."""

import contextlib
import pathlib
import time

import numpy as np
import xarray as xr
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from svda_jax import UserError, figures
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
    "train/skipped_steps": "skipped_steps",
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
        # Orbax, which may have been saving, makes a folder again that was taken away.
        if self.data is not None and not self.path.exists():
            raise UserError(f"cannot write {self.path}: what was written is gone")
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
        self._workdir = workdir
        # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and what
        # waits for it waits for ever.
        self._file = EventsWriter(
            str(pathlib.Path(workdir, "events")),
            filename_suffix=f".{last_step}",  # else the same name within a second
        )
        if last_step:
            start = SessionLog(status=SessionLog.START)
            self._add(last_step + 1, session_log=start)
        values = {
            key: value if isinstance(value, (str, bool, int, float)) else str(value)
            for key, value in flatten(config).items()
        }
        metrics = {"eval/loss": None, "eval/accuracy": None}
        for description in summary.hparams(values, metrics):
            self._add(0, summary=description)
        self._flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        with contextlib.suppress(OSError):  # all that was written is flushed
            self._file.close()

    def write(self, step, values):
        """Writes the numbers of an evaluation, given as to `History.append`.

        Raises:
          UserError: the file cannot be written.
        """
        for tag, name in SCALARS.items():
            if name in values:
                self._add_scalar(step, tag, values[name])
        for name, indicator in zip(INDICATORS, values["indicators"], strict=True):
            self._add_scalar(step, f"indicators/{name}", indicator.mean())
            for layer, heads in enumerate(indicator, start=1):
                tag = f"indicators/{name}/layer_{layer}"
                self._add_scalar(step, tag, heads.mean())
        for layer, spectrum in enumerate(values["spectrum"], start=1):
            tag = f"spectrum/layer_{layer}"
            there = np.asarray(spectrum)
            there = there[np.isfinite(there)]
            self._add(step, summary=summary.histogram(tag, there, bins=30))
        self._flush()

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
            self._add(step, summary=summary.image(tag, rgb, dataformats="HWC"))
        self._flush()

    def _add_scalar(self, step, tag, value):
        self._add(step, summary=summary.scalar(tag, float(value)))

    def _add(self, step, **content):
        event = Event(wall_time=time.time(), step=step, **content)
        self._guard(self._file.write_event, event)

    def _flush(self):
        self._guard(self._file.flush)

    def _guard(self, function, *args):
        try:
            function(*args)
        except OSError as error:
            raise UserError(
                f"cannot write events to {self._workdir}: {error.strerror}"
            ) from None

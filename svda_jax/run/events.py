"""A run's events for TensorBoard."""

import contextlib
import math
import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from svda_jax import UserError
from svda_jax.config import flatten
from svda_jax.models.indicators import INDICATORS

# TensorBoard's tag for each of them that is a number, or the mean of one of each head.
SCALARS = {
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/learning_rate": "learning_rate",
    "train/skipped_steps": "skipped_steps",
    "train/images_per_second": "images_per_second",
    "eval/loss": "eval_loss",
    "eval/accuracy": "eval_accuracy",
    "model/orthonormality": "orthonormality",
    "score/spectral_entropy": "score_entropy",
    "score/effective_rank": "score_rank",
    "score/spectral_sparsity": "score_sparsity",
    "score/retained_rank": "score_retained_rank",
    "score/strength": "score_strength",
}


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
        """Writes an evaluation's finite numbers, given as to `History.append`.

        Raises:
          UserError: the file cannot be written.
        """
        for tag, name in SCALARS.items():
            if name in values:
                self._add_scalar(step, tag, np.mean(values[name]))
        for name, indicator in zip(INDICATORS, values["indicators"], strict=True):
            self._add_scalar(step, f"indicators/{name}", indicator.mean())
            for layer, heads in enumerate(indicator, start=1):
                tag = f"indicators/{name}/layer_{layer}"
                self._add_scalar(step, tag, heads.mean())
        for name in ("spectrum", "score_spectrum"):
            for layer, spectrum in enumerate(values[name], start=1):
                there = np.float64(spectrum)  # whose sum is finite too
                there = there[np.isfinite(there)]
                # None is there, or all are one number with no room for bins about it.
                with contextlib.suppress(ValueError):
                    tag = f"{name}/layer_{layer}"
                    self._add(step, summary=summary.histogram(tag, there, bins=30))
        self._flush()

    def write_step(self, step, values):
        """Writes numbers of one training step, by name, those that are finite."""
        for name, value in values.items():
            self._add_scalar(step, f"step/{name}", value)
        self._flush()

    def write_pictures(self, step, pictures):
        """Writes pictures `[height, width, 3]` uint8 by tag."""
        for tag, picture in pictures.items():
            self._add(step, summary=summary.image(tag, picture, dataformats="HWC"))
        self._flush()

    def _add_scalar(self, step, tag, value):
        if math.isfinite(value):
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

"""A run's events for TensorBoard."""

import contextlib
import math
import pathlib
import re
import time

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from svda_jax import UserError
from svda_jax.config import RECIPES, defaults, flatten, recipe
from svda_jax.models.indicators import INDICATORS
from svda_jax.run.runs import MAY_DIFFER

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
# What TensorBoard's table of hyperparameters shows of each run.
METRICS = ("eval/accuracy", "eval/loss", "score/effective_rank")
_COMPARED = ("model.attention", "seed")


def scalars(values):
    """An evaluation's finite numbers by tag, given as to `History.append`.

    Of an indicator there are the mean over all heads and that over each layer's.
    """
    found = {
        tag: np.mean(values[name]) for tag, name in SCALARS.items() if name in values
    }
    for name, indicator in zip(INDICATORS, values["indicators"], strict=True):
        found[f"indicators/{name}/mean"] = indicator.mean()
        for layer, heads in enumerate(indicator, start=1):
            found[f"indicators/{name}/layer_{layer}"] = heads.mean()
    return _finite(found)


def step_scalars(values):
    """Finite numbers of one training step by TensorBoard's tag, given by name."""
    return _finite({f"step/{name}": value for name, value in values.items()})


def _finite(scalars):
    return {tag: float(x) for tag, x in scalars.items() if math.isfinite(x)}


def _layout():
    """Charts of all runs together; a chart takes what its regular expressions find."""
    tags = [
        *("eval/loss", "train/loss", "eval/accuracy", "train/accuracy"),
        *(f"indicators/{name}/mean" for name in INDICATORS),
        *("score/effective_rank", "score/spectral_entropy"),
    ]
    return {
        "runs": {tag: _chart(re.escape(tag)) for tag in tags},
        "layers": {
            name: _chart(rf"indicators/{name}/layer_\d+") for name in INDICATORS
        },
    }


def _chart(pattern):
    return "Multiline", [f"{pattern}$"]


def _hyperparameters(config):
    """The summaries of a config's values: first attention, seed, and what makes the
    run another than its recipe's."""
    name = config.dataset.name
    named = {file.stem for file in RECIPES.glob("*.py")} - {"folder"}
    usual = flatten(recipe(name) if name in named else defaults())
    flat = flatten(config)
    values = {
        key: value if isinstance(value, (str, bool, int, float)) else str(value)
        for key, value in flat.items()
    }
    experiment, *others = summary.hparams(values, dict.fromkeys(METRICS))
    # TensorBoard orders by a field that tensorboardX does not know.
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        changed = info.name not in MAY_DIFFER and flat[info.name] != usual.get(
            info.name
        )
        info.differs = info.name in _COMPARED or changed
    plugin.content = content.SerializeToString()
    return [experiment, *others]


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
        for description in (
            *_hyperparameters(config),
            summary.custom_scalars(_layout()),
        ):
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
        self._add_scalars(step, scalars(values))
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
        self._add_scalars(step, step_scalars(values))
        self._flush()

    def write_pictures(self, step, pictures):
        """Writes pictures `[height, width, 3]` uint8 by tag."""
        for tag, picture in pictures.items():
            self._add(step, summary=summary.image(tag, picture, dataformats="HWC"))
        self._flush()

    def _add_scalars(self, step, scalars):
        for tag, value in scalars.items():
            self._add(step, summary=summary.scalar(tag, value))

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

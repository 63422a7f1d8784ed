"""When something is due, in steps of a run."""

import math
import time

from svda_jax import UserError
from svda_jax.devices import processes


class Due:
    """What is to be done after which step.

    Evaluations, pictures and checkpoints each have an interval of their own, and come
    after the last step too.

    Args:
      config: of the run.
      num_images: of the training split.

    Attributes:
      num_steps: of the whole run.

    Raises:
      UserError: a batch is larger than the training split.
    """

    def __init__(self, config, num_images):
        if config.batch_size > num_images:
            raise UserError(
                f"batch_size={config.batch_size} must not exceed the {num_images} "
                f"images to train on, dataset.train_split={config.dataset.train_split}"
            )
        self._num_images = num_images
        self._batch_size = config.batch_size
        self._num_epochs = config.num_epochs
        self.num_steps = math.ceil(config.num_epochs * num_images / config.batch_size)
        policy = config.checkpoint
        self._evaluations = self._epochs(config.eval_every_epochs)
        self._pictures = self._epochs(config.pictures_every_epochs)
        self._checkpoints = self._epochs(policy.every_epochs) | self._steps(
            policy.every_steps
        )
        self._logs = self._steps(config.log_every_steps)
        self._minutes = policy.every_minutes
        self._saved_at = time.monotonic()

    def _epochs(self, every):
        """The steps at which so many epochs, twice as many, ... and all are done."""
        ends = range(every, self._num_epochs, every) if every else ()
        steps = {math.ceil(e * self._num_images / self._batch_size) for e in ends}
        return steps | {self.num_steps}

    def _steps(self, every):
        return set(range(every, self.num_steps, every)) if every else set()

    def evaluation(self, step):
        """Whether to evaluate after that step."""
        return step in self._evaluations

    def pictures(self, step):
        """Whether to draw pictures after that step."""
        return step in self._pictures

    def log(self, step):
        """Whether to write what that training step said."""
        return step in self._logs

    def checkpoint(self, step, *, stopping):
        """Whether to save after that step, asked by all processes after each.

        Args:
          step: the step.
          stopping: whether the run has been asked to stop.
        """
        due = stopping or step in self._checkpoints
        if self._minutes and not due:
            minutes = (time.monotonic() - self._saved_at) / 60
            due = processes.agree(minutes >= self._minutes, step)
        if due:
            self._saved_at = time.monotonic()
        return due

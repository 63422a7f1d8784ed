"""A run's metrics and pictures, sent to Weights & Biases or MLflow.

What these do, or fail to do, is no part of training: all of it happens in a thread.
"""

import importlib.util
import json
import logging
import os
import queue
import secrets
import threading
import time
from typing import Protocol

from svda_jax import UserError
from svda_jax.config import flatten
from svda_jax.run.events import scalars, step_scalars
from svda_jax.run.runs import tracker_path, write_atomically

PROJECT = "svda-jax"
PATIENCE = 60.0  # seconds that the end of a run waits for what is not sent yet


class Writer(Protocol):
    """Takes what a run measures; `EventWriter` and `Tracker` are such."""

    def write(self, step, values):
        """Writes an evaluation, given as to `History.append`."""

    def write_step(self, step, values):
        """Writes numbers of one training step, by name."""

    def write_pictures(self, step, pictures):
        """Writes pictures `[height, width, 3]` uint8 by tag."""


def check(name):
    """Raises UserError where a tracker, or "" for none, has no package installed."""
    if not name:
        return
    # A folder of that name, such as wandb leaves, is a package without origin.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(
            f"tracker={name} needs a package that is not installed: pip install {name}"
        )


class Tracker:
    """Sends a run to the tracker of its config, by the same tags as in TensorBoard.

    A run that goes on does so at the tracker too: its id there is in tracker.json. The
    first failure is said in one line; nothing is sent after it, and training goes on.

    Args:
      workdir: the run's folder.
      config: of the run.
      say: prints a line.
    """

    def __init__(self, workdir, config, *, say):
        self._name = config.tracker
        self._say = say
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._send, args=(workdir, config), daemon=True
        )
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc_info):
        self._waiting.put(("close", kind is not None))
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._say(f"tracker={self._name} did not take all within {PATIENCE:.0f} s")

    def write(self, step, values):
        """See `Writer`."""
        self._put("log", step, scalars(values))

    def write_step(self, step, values):
        """See `Writer`."""
        self._put("log", step, step_scalars(values))

    def write_pictures(self, step, pictures):
        """See `Writer`."""
        self._put("log_pictures", step, pictures)

    def _put(self, *call):
        if self._thread.is_alive():
            self._waiting.put(call)

    def _send(self, workdir, config):
        """Does what is put, in that order, until the run is closed or it fails."""
        try:
            ids = _read_ids(workdir)
            service = SERVICES[self._name](workdir, config, ids.get(self._name))
            if service.id != ids.get(self._name):
                ids[self._name] = service.id
                path = tracker_path(workdir)
                write_atomically(path, json.dumps(ids).encode())
            method = None
            while method != "close":
                method, *arguments = self._waiting.get()
                getattr(service, method)(*arguments)
        except BaseException as error:  # SystemExit too: nothing may come of it
            said = (str(error).splitlines() or [""])[0]
            self._say(
                f"tracker={self._name} is left out from here on: "
                f"{type(error).__name__}: {said}"
            )


def _read_ids(workdir):
    """The run's id by the tracker's name."""
    path = tracker_path(workdir)
    return json.loads(path.read_text()) if path.exists() else {}


class _Wandb:
    """A run at Weights & Biases; WANDB_MODE, WANDB_PROJECT and the like count."""

    def __init__(self, workdir, config, id):
        import wandb

        settings = wandb.setup(wandb.Settings(silent=True)).settings
        online = settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise UserError(  # it would ask in the middle of training
                "nobody is logged in: `wandb login` does it, WANDB_MODE=offline needs "
                "none"
            )
        self._image = wandb.Image
        self.id = id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            dir=workdir,
            id=self.id,
            resume="allow",
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=20, finish_timeout=20
            ),
        )
        self._run.config.update(flatten(config), allow_val_change=True)

    def log(self, step, scalars):
        self._run.log(scalars, step=step)

    def log_pictures(self, step, pictures):
        images = {tag: self._image(picture) for tag, picture in pictures.items()}
        self._run.log(images, step=step)

    def close(self, failed):
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    """A run at MLflow; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like count.

    Its parameters stay those that the run began with: MLflow changes none.
    """

    def __init__(self, workdir, config, id):
        import mlflow
        from mlflow.entities import Metric, Param

        # It tells of each of its tries; what comes of them is said here.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._client, self._metric = mlflow.MlflowClient(), Metric
        self.id = id
        if id:
            self._client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(name)
        )
        run = self._client.create_run(experiment, run_name=workdir.name)
        self.id = run.info.run_id
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        self._client.log_batch(self.id, params=params)

    def log(self, step, scalars):
        now = int(1000 * time.time())
        metrics = [self._metric(tag, x, now, step) for tag, x in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def log_pictures(self, step, pictures):
        for tag, picture in pictures.items():
            self._client.log_image(self.id, picture, f"{tag}/step_{step}.png")

    def close(self, failed):
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


SERVICES = {"wandb": _Wandb, "mlflow": _Mlflow}

"""What a run's folder, its workdir, holds.

config.json     the config, as it was
classes.json    the names of the classes, by label
checkpoints/    Orbax checkpoints of the training state
history.nc      every evaluation's measurements, one labelled xarray data set
events.out...   the same and more for TensorBoard
tracker.json    the run's id at each tracker it was sent to
pruning.json    for a pruned run, what was taken from which run
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib

import jax
import numpy as np
import xarray as xr
from flax import nnx
from ml_collections import config_dict

from svda_jax import UserError, is_address
from svda_jax.config import check, flatten, to_json, vit_config
from svda_jax.data.bucket import Bucket
from svda_jax.devices import parallel
from svda_jax.models.vit import ViT, abstract_params, create_graphdef
from svda_jax.options import OPTIONS
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.mirror import reading
from svda_jax.run.predict import predict_images, read_images

# What a run may go on with another value of: its length, where data lies, how it is
# read, what is written and shown, what memory it takes. The rest says what the run is.
MAY_DIFFER = (
    "compile_cache",
    "eval_every_epochs",
    "fsdp",
    "log_every_steps",
    "max_skipped_in_a_row",
    "note",
    "num_epochs",
    "pictures_every_epochs",
    "profile",
    "tracker",
    "dataset.data_dir",
    "dataset.num_threads",
    "dataset.num_workers",
    "dataset.skip_corrupt",
    "model.remat",
    "model.scan",
    *(key for key in OPTIONS if key.startswith("checkpoint.")),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back.

    Attributes:
      config: its config.
      model: the `ViT` with the parameters that were evaluated at the newest checkpoint
        (their moving average where one is kept); `logits, traces = model(images)`.
      step: of that checkpoint.
      history: `xarray.Dataset` of its evaluations.
      class_names: what each label stands for; () for a run that did not keep it.
    """

    config: config_dict.ConfigDict
    model: ViT
    step: int
    history: xr.Dataset
    class_names: tuple[str, ...] = ()

    @property
    def names(self):
        """What each label is called: a number where the run did not keep it."""
        numbers = map(str, range(self.config.dataset.num_classes))
        return self.class_names or tuple(numbers)

    def predict(self, files):
        """What the model says of a file that `predict.read_images` reads, or several.

        Returns:
          A dict from class to probability, most probable first, or a list of them.
          Classes without names are numbers.
        """
        found = self.classify(self.read_images(files))
        return found[0] if isinstance(files, (str, os.PathLike)) else found

    def read_images(self, files):
        """Files as the model takes them, by `predict.read_images`, `[n, S, S, C]`."""
        return read_images(files, self.config)

    def classify(self, images):
        """The same of images, `[n, S, S, channels]`, 0 to 255: a list."""
        rows = np.asarray(jax.nn.softmax(predict_images(self.model, images)))
        order, names = np.argsort(-rows, axis=-1, kind="stable"), self.names
        return [
            {names[label]: float(row[label]) for label in labels}
            for row, labels in zip(rows, order, strict=True)
        ]


def name_out(workdir, ending):
    """`<workdir>-<ending>`, beside the run's folder."""
    named = workdir if workdir.name.strip(".") else workdir.resolve()
    return named.parent / f"{named.name}-{ending}"


def config_path(workdir):
    """Path of the run's config."""
    return pathlib.Path(workdir, "config.json")


def checkpoints_path(workdir):
    """Path of the folder of the run's checkpoints."""
    return pathlib.Path(workdir, "checkpoints")


def history_path(workdir):
    """Path of the run's history."""
    return pathlib.Path(workdir, "history.nc")


def tracker_path(workdir):
    """Path of the run's ids at trackers."""
    return pathlib.Path(workdir, "tracker.json")


def pruning_path(workdir):
    """Path of what was pruned, in a run that `svda_jax prune` made."""
    return pathlib.Path(workdir, "pruning.json")


def load(workdir):
    """Reads a finished or unfinished run.

    Raises:
      UserError: there is no run in workdir, or it has no checkpoint yet.
    """
    with reading(workdir) as folder:
        return Run(
            *load_model(folder),
            history=read_history(folder),
            class_names=read_class_names(folder),
        )


def load_model(workdir):
    """Config, model and step of a run that has a checkpoint.

    Raises:
      UserError: there is no run in workdir, or it has no checkpoint yet.
    """
    config = load_config(workdir)
    model_config = dataclasses.replace(vit_config(config), scan=False, remat="none")
    graphdef = create_graphdef(model_config)
    with Checkpoints(checkpoints_path(workdir)) as checkpoints:
        device = jax.sharding.SingleDeviceSharding(parallel.local_device())
        params = abstract_params(model_config)
        name = "ema" if config.ema_decay else "params"
        step, restored = checkpoints.restore_newest(
            {name: params}, device, set_aside=False
        )
    if not restored:
        raise UserError(f"{workdir} has no checkpoint yet")
    return config, nnx.merge(graphdef, restored[name]), step


def load_config(workdir):
    """The config of the run in workdir.

    Raises:
      UserError: there is no run, or its config is damaged.
    """
    path = config_path(workdir)
    if not path.exists():
        raise UserError(f"{workdir} holds no run (no {path.name})")
    try:
        return check(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_history(workdir):
    """The `xarray.Dataset` of a run's history.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = history_path(workdir)
    try:
        return xr.load_dataset(path, engine="scipy")
    except FileNotFoundError:
        raise UserError(f"{workdir} has no evaluation yet (no {path.name})") from None
    except Exception as error:  # scipy raises whatever the damaged byte leads to
        raise UserError(f"{path} is damaged: {error}") from None


def is_finished(workdir, config=None):
    """Whether the run in workdir, if any, has been trained and saved to its end.

    Args:
      workdir: the run's folder.
      config: in place of the folder's own; it may say another number of epochs.

    Raises:
      UserError: its config or its history is damaged.
    """
    if not config_path(workdir).exists() or not history_path(workdir).exists():
        return False
    config = config or load_config(workdir)
    last = read_history(workdir).isel(step=-1)
    with Checkpoints(checkpoints_path(workdir)) as checkpoints:
        saved = int(last["step"]) in checkpoints.steps()
    return saved and float(last["epoch"]) >= config.num_epochs


def check_workdir(config, workdir):
    """Refuses a folder that holds a run, or results, of another config.

    Returns:
      The keys that differ and may, with both values; {} where there is no run.

    Raises:
      UserError: naming each key that differs and may not, with both values.
    """
    if not config_path(workdir).exists():
        return {}
    found, wanted = flatten(load_config(workdir)), flatten(check(config))
    differ = {k: (found[k], wanted[k]) for k in sorted(found) if found[k] != wanted[k]}
    refused = [
        f"{key}={old}, not {new}"
        for key, (old, new) in differ.items()
        if key not in MAY_DIFFER
    ]
    if refused:
        raise UserError(
            f"{workdir} holds a run with {'; with '.join(refused)}; give another "
            "folder or remove it"
        )
    return differ


def write_class_names(workdir, names):
    """Keeps what each label stands for with the run."""
    path = pathlib.Path(workdir, "classes.json")
    if not path.exists():
        write_atomically(path, json.dumps(list(names)).encode())


def read_class_names(workdir):
    """What each label stands for, or () where the run did not keep it."""
    path = pathlib.Path(workdir, "classes.json")
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_text())
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError("it is no list of names")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return tuple(names)


@contextlib.contextmanager
def hold(workdir):
    """Keeps other processes from training in workdir, which holds a run.

    The lock goes with the process, however that ends.

    Raises:
      UserError: another process holds it.
    """
    with open(config_path(workdir)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {workdir}") from None
        except OSError:
            pass  # a file system without locks
        yield


def create_workdir(config, workdir):
    """Makes the folder with its config.json, unless they are there and the same.

    Returns:
      Whether config.json was written.

    Raises:
      UserError: workdir cannot be written.
    """
    path = config_path(workdir)
    try:
        os.makedirs(workdir, exist_ok=True)
        if not path.exists() or path.read_text() != to_json(config):
            write_atomically(path, to_json(config).encode())
            return True
        if not os.access(workdir, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write workdir {workdir}: {error.strerror}") from None
    return False


def write_atomically(path, data):
    """Writes a file so that at any moment the old or the new one is there, whole.

    Args:
      path: of the file, or its address in a bucket.
      data: its bytes.

    Raises:
      UserError: it cannot be written; the old one stays.
    """
    if is_address(path):
        Bucket(path.parent).write(path.name, data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None

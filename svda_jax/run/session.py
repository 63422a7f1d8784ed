"""A run while it goes on: its lock, checkpoints, history, events and console."""

import contextlib

from svda_jax import UserError
from svda_jax.devices import processes
from svda_jax.run import console, runs, trackers
from svda_jax.run.checkpoints import Checkpoints
from svda_jax.run.events import EventWriter
from svda_jax.run.history import History
from svda_jax.run.mirror import Mirror, named


class Session:
    """All that a run writes and says; a context manager.

    Every process of a run has one and calls the same methods: all save their share of a
    checkpoint, the first alone writes the rest and prints.

    Args:
      config: of the run.
      workdir: the run's folder or address.

    Attributes:
      folder: the local folder, which is workdir unless that is an address.
      last_saved: step of the newest checkpoint that is whole, 0 for none.

    Raises:
      UserError: when it is entered, workdir holds another run, another process is
        training in it, or the tracker's package is not installed.
    """

    def __init__(self, config, workdir):
        self.config = config
        self.workdir = workdir
        self.last_saved = 0
        self._first = processes.is_primary()
        self._writers = []  # `trackers.Writer`s, of the first process alone

    def __enter__(self):
        if self._first:
            trackers.check(self.config.tracker)
        with contextlib.ExitStack() as stack:
            self._mirror = stack.enter_context(Mirror(self.workdir))
            self.folder = self._mirror.folder
            with named(self.folder, self.workdir):
                self._changed = runs.check_workdir(self.config, self.folder)
            if self._first and runs.config_path(self.folder).exists():
                stack.enter_context(runs.hold(self.folder))
            policy = self.config.checkpoint
            checkpoints = Checkpoints(
                runs.checkpoints_path(self.folder),
                together=self.folder == self.workdir,
                keep_last=policy.keep_last,
                keep_every_steps=policy.keep_every_steps,
            )
            self._checkpoints = stack.enter_context(checkpoints)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        return self._stack.__exit__(*exc_info)

    def is_finished(self):
        """Whether there is nothing left to train, which is said then."""
        finished = runs.is_finished(self.folder, self.config)
        if finished and self._first:
            console.say_finished(self.workdir)
        return finished

    def restore(self, target, sharding):
        """The newest whole checkpoint, as `Checkpoints.restore_newest` returns it."""
        self.last_saved, restored = self._checkpoints.restore_newest(target, sharding)
        return self.last_saved, restored

    def open(self, mesh, params, train_data, eval_data, num_steps):
        """Says what is trained. Nothing is written yet.

        Raises:
          UserError: the run in the folder is longer already.
        """
        step = self.last_saved
        if step > num_steps:
            raise UserError(
                f"num_epochs={self.config.num_epochs} are {num_steps:,} steps, and the "
                f"run in {self.workdir} has made {step:,}"
            )
        if self._first:
            console.say_start(
                self.config, self.workdir, mesh, params, train_data, eval_data
            )
            if step:
                print(f"resuming at step {step:,} of {num_steps:,}")
                for key, (old, new) in self._changed.items():
                    print(f"{key} is {new} from here on, it was {old}")
                if "num_epochs" in self._changed:
                    print("the learning rate goes on as in a run of the new length")

    def begin(self, mesh, class_names, num_steps):
        """Makes the folder where there is none, and opens what is written into it.

        Raises:
          UserError: the folder cannot be written.
        """
        step = self.last_saved
        if self._first:
            renewed = runs.create_workdir(self.config, self.folder)
            runs.write_class_names(self.folder, class_names)
            if renewed:
                # The lock is on the file, which is a new one.
                self._stack.enter_context(runs.hold(self.folder))
            devices = console.describe_devices(mesh)
            self._history = History(self.folder, last_step=step, attrs=devices)
            events = EventWriter(self.folder, self.config, last_step=step)
            self._writers.append(self._stack.enter_context(events))
        processes.synchronize("workdir")
        self._bar = self._stack.enter_context(
            console.progress_bar(
                num_steps, step, self.config.batch_size, hidden=not self._first
            )
        )
        if self._first and self.config.tracker:
            tracker = trackers.Tracker(self.folder, self.config, say=self.say)
            self._writers.append(self._stack.enter_context(tracker))

    def say(self, line):
        """Prints a line above the progress bar."""
        if self._first:
            self._bar.write(line)

    def advance(self, num_images):
        """Moves the progress bar."""
        self._bar.update(num_images)

    def log(self, step, values):
        """Writes numbers of one training step, by name."""
        for writer in self._writers:
            writer.write_step(step, values)

    def lacks(self, step):
        """Whether the evaluation at that step is missing, asked when it is resumed."""
        path = runs.history_path(self.folder)
        return not path.exists() or step not in runs.read_history(self.folder).step

    def record(self, step, epoch, values):
        """Writes an evaluation, given as to `History.append`, and says it."""
        if self._first:
            self._history.append(step, epoch, values)
            for writer in self._writers:
                writer.write(step, values)
            self.say(console.evaluation_line(step, epoch, values))

    def picture(self, step, pictures):
        """Writes pictures `[height, width, 3]` uint8, by TensorBoard's tag."""
        for writer in self._writers:
            writer.write_pictures(step, pictures)

    def save(self, step, state):
        """Saves a dict of pytrees in the background."""
        self._mirror.check()
        self._checkpoints.save(step, state)
        self.last_saved = step

    def last_checkpoint(self):
        """Path of the newest checkpoint, or "none"."""
        path = self._checkpoints.path / str(self.last_saved)
        return str(path) if self.last_saved else "none"

    def say_end(self, step, num_steps, train_data, eval_data):
        """Says how the run ended, after all is written: stopped, or where to look."""
        if self._first and step < num_steps:
            print(
                f"stopped at step {step:,} of {num_steps:,}, saved; the same line "
                "goes on"
            )
        elif self._first:
            console.say_end(self.workdir, train_data, eval_data)

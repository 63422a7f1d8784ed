"""A run in a bucket: it works in a folder on this machine, which is sent as it grows.

The folder is the user's cache's. One process trains in it and sends what changed every
few seconds; the file that makes a checkpoint whole goes last. So the bucket may go away
meanwhile: training goes on, and what could not be sent is sent later, by a line that is
said if need be.
"""

import contextlib
import re
import secrets
import shlex
import shutil
import sys
import threading

from svda_jax import UserError, is_address, place
from svda_jax.data.bucket import Bucket, alone, copy_path, fetch
from svda_jax.devices import processes
from svda_jax.run import lock

# What is taken back from a bucket, which may hold files of others.
_OF_RUN = re.compile(
    r"(config|classes|pruning|tracker)\.json|history\.nc|(prune|convert)\.md|"
    r"events\.out\.[^/]+|"
    r"checkpoints/(?P<step>\d+)/.+|checkpoints/\d+\.damaged\d*/.+"
)
_LAST = "_CHECKPOINT_METADATA"  # Orbax's, in a checkpoint's folder
_LISTED = re.compile(rf"(.*/)?(config\.json|history\.nc|{_LAST})")


@contextlib.contextmanager
def reading(workdir, *, listed=False):
    """The folder to read a run from: workdir, or a copy of what is in the bucket.

    Args:
      workdir: the run's folder or address.
      listed: workdir is one of runs, of which only what tells how they ended is read.

    Yields:
      The local folder. A `UserError` raised meanwhile speaks of workdir.

    Raises:
      UserError: the bucket cannot be read.
    """
    workdir = place(workdir)
    if not is_address(workdir):
        yield workdir
        return
    bucket = Bucket(workdir)
    folder = copy_path(workdir, "runs")
    owner = _owner(folder)
    if owner is None or lock.newest(bucket)[1].get("owner") != owner:
        folder = copy_path(workdir, "listed" if listed else "read")
        select = _listed if listed else _whole
        with alone(folder, wait=True):
            for _ in range(9):  # the run, which goes on, removes checkpoints
                if fetch(bucket, folder, select(bucket.list())):
                    break
    with named(folder, workdir):
        yield folder


@contextlib.contextmanager
def named(folder, workdir):
    """Errors that name a copy's folder name the run's workdir."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(workdir))) from None


def exists(path):
    """Whether there is something at a path or an address."""
    return bool(Bucket(path).list()) if is_address(path) else path.exists()


class Mirror:
    """The folder that a run is trained in, sent to its bucket; a context manager.

    Of several processes the first alone locks and sends; the others read the copy of
    their machine. A workdir that is a folder is that folder, and nothing happens.

    Args:
      workdir: the run's folder or address.

    Attributes:
      folder: the local folder.

    Raises:
      UserError: when it is entered, the bucket cannot be written or another process
        trains there; when it is left, not all could be sent: it stays in `folder`.
    """

    def __init__(self, workdir):
        self.workdir = workdir
        self.folder = workdir
        self._stack = contextlib.ExitStack()
        self._sends = is_address(workdir) and processes.is_primary()
        self._sent = {}

    def __enter__(self):
        if not is_address(self.workdir):
            return self
        with contextlib.ExitStack() as stack:
            if self._sends:
                self._start(stack)
            processes.synchronize("bucket")
            if not self._sends:
                self.folder = stack.enter_context(reading(self.workdir))
            self._stack = stack.pop_all()
        return self

    def _start(self, stack):
        self._bucket = Bucket(self.workdir)
        self.folder = copy_path(self.workdir, "runs")
        self._lock = lock.Lock(self._bucket)
        try:
            stack.enter_context(alone(self.folder, wait=False))
        except BlockingIOError:
            raise self._lock.refused("on this machine") from None
        if not self._lock.wait(_owner(self.folder)):
            self._begin_folder()
        self._lock.take(_owner(self.folder))
        stack.callback(self._release)
        found = _whole(self._bucket.list())
        fetch(self._bucket, self.folder, found, keep=True)
        # What a checkpoint holds never changes; the rest is sent anew.
        self._sent = {
            name: stamp
            for name, stamp in self._scan().items()
            if name.startswith("checkpoints/") and found.get(name, [-1])[0] == stamp[0]
        }
        self._ending = threading.Event()
        self._send()  # what a process that was killed did not, for others to read
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._keep_lock, self._keep_sending)
        ]
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind, *exc_info):
        with self._stack:
            failed = self._end() if self._sends else None
        if failed and kind is None:
            raise failed
        if failed:
            print(failed, file=sys.stderr)

    def _end(self):
        """Sends the rest; returns None, or why it cannot."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        try:
            self._lock.renew()
            self._send()
        except UserError as error:
            options = f"--config={self.folder}/config.json", f"--workdir={self.workdir}"
            line = shlex.join(["python", "-m", "svda_jax", "train", *options])
            return UserError(
                f"{error}; the run is kept in {self.folder}: {line} sends it and goes "
                "on"
            )
        return None

    def check(self):
        """Raises UserError if another process has taken the run over."""
        if self._sends and self._lock.lost:
            raise self._lock.lost

    def _begin_folder(self):
        """Makes an empty folder; what the bucket lacks of an old one is kept aside."""
        steps = [_newest_step(_files(self.folder)), _newest_step(self._bucket.list())]
        if steps[0] > steps[1]:
            aside = self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(3)}")
            self.folder.rename(aside)
            print(
                f"{self.workdir} has step {steps[1]:,} and was trained in from "
                f"elsewhere since; this machine's step {steps[0]:,} is now in {aside}"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / ".owner").write_text(secrets.token_hex(16))

    def _release(self):
        with contextlib.suppress(UserError):
            self._lock.release(begun=(self.folder / "config.json").exists())

    def _keep_lock(self):
        while not self._ending.wait(lock.BEAT) and not self._lock.lost:
            with contextlib.suppress(UserError):  # sending says it
                self._lock.renew()

    def _keep_sending(self):
        said = False
        while not self._ending.wait(lock.BEAT) and not self._lock.lost:
            try:
                self._send()
                said = False
            except UserError as error:
                if not said:
                    print(
                        f"{error}; the run goes on in {self.folder}, and is sent when "
                        "the bucket is there again",
                        file=sys.stderr,
                    )
                said = True

    def _send(self):
        """Sends what has changed since the last time."""
        found = self._scan()
        changed = [name for name in found if found[name] != self._sent.get(name)]
        for name in sorted(changed, key=_is_last):
            self._lock.check()
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # a checkpoint goes meanwhile
                if name.startswith("checkpoints/"):
                    self._bucket.upload(path, name)
                else:
                    self._bucket.write(name, path.read_bytes())
                self._sent[name] = found[name]
        gone = self._sent.keys() - found.keys()
        for name in sorted(gone, key=_is_last, reverse=True):
            self._lock.check()
            self._bucket.remove(name)
            del self._sent[name]

    def _scan(self):
        """Size and time of each file that is sent, by name."""
        found = {}
        for name in _files(self.folder):
            with contextlib.suppress(FileNotFoundError):
                stat = (self.folder / name).stat()
                found[name] = stat.st_size, stat.st_mtime_ns
        return found


def _files(folder):
    """Names of the files in a folder, without those that are being written."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [n for n in names if not re.search(r"(^|/)\.|orbax-checkpoint-tmp", n)]


def _owner(folder):
    """What a folder that a run is trained in is known by, or None."""
    path = folder / ".owner"
    return path.read_text() if path.exists() else None


def _is_last(name):
    return name.endswith(f"/{_LAST}")


def _newest_step(names):
    found = [_OF_RUN.fullmatch(name) for name in names if _is_last(name)]
    return max((int(match["step"]) for match in found if match), default=0)


def _whole(found):
    """Of the objects in a bucket those of a run, without checkpoints half sent."""
    whole = {}
    for name in found:
        match = _OF_RUN.fullmatch(name)
        if match and (
            not match["step"] or f"checkpoints/{match['step']}/{_LAST}" in found
        ):
            whole[name] = found[name]
    return whole


def _listed(found):
    return {name: found[name] for name in found if _LISTED.fullmatch(name)}

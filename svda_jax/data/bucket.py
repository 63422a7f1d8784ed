"""Objects in a bucket, by fsspec: every call ends in bounded time or in one line.

What a run does with them is in `svda_jax.run.mirror`.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import threading
import urllib.parse

from svda_jax import SCHEMES, UserError, place
from svda_jax.devices.compile_cache import cache_folder

_SECONDS = 20  # that a call may take, and one more for every megabyte
_FIRST = 10  # that the first call may, which tells whether there is a network


class Bucket:
    """The objects below an address, by their names relative to it.

    Args:
      address: such as gs://bucket/folder, from `svda_jax.place`.

    Raises:
      UserError: here and in every method: a package is missing, there is no such
        bucket, no right, no network, or no answer in time. One line that names the
        address.
    """

    def __init__(self, address):
        self.address = str(address)
        scheme, _, self._root = self.address.partition("://")

        def connect():
            import fsspec  # a tenth of a second, for addresses alone

            # What they log as an error, with a traceback, they raise as well.
            for name in ("gcsfs", "s3fs"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            create = functools.partial(
                fsspec.filesystem,
                scheme,
                use_listings_cache=False,
                skip_instance_cache=True,
            )
            if scheme != "gs" or any("token" in c for c in fsspec.config.conf.values()):
                return create()
            try:
                return create(token="google_default")
            except Exception:
                # Left to itself gcsfs would ask again, for 18 s, for a server that only
                # Google's machines have.
                os.environ["NO_GCE_CHECK"] = "true"
                return create()

        self._seconds = _SECONDS
        self._fs = self._call(connect)
        self._seconds = _FIRST

    def list(self, folder=""):
        """All objects, or those of a folder: name to size in bytes and version."""
        found = self._call(self._fs.find, self._path(folder), detail=True)
        return {
            path.strip("/").removeprefix(f"{self._root}/"): (
                info["size"],
                hashlib.sha256(repr(sorted(info.items())).encode()).hexdigest(),
            )
            for path, info in found.items()
            if info["type"] == "file"
        }

    def read(self, name):
        """An object's bytes; None where there is none of that name."""
        with contextlib.suppress(FileNotFoundError):
            return self._call(self._fs.cat_file, self._path(name), missing=True)

    def write(self, name, data):
        """Writes an object whole, over the one that is there."""
        self._call(self._fs.pipe_file, self._path(name), data, size=len(data))

    def create(self, name, data):
        """Writes an object unless there is one of that name; returns whether it did."""
        try:
            self._call(self._fs.pipe_file, self._path(name), data, mode="create")
        except FileExistsError:  # or an answer was lost, and it asked again
            return self.read(name) == data
        return True

    def download(self, name, path, size):
        """Copies an object to a file; returns whether it was still there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        get = self._fs.get_file
        try:
            self._call(get, self._path(name), str(part), size=size, missing=True)
        except FileNotFoundError:
            part.unlink(missing_ok=True)
            return False
        os.replace(part, path)
        return True

    def upload(self, path, name):
        """Copies a file, which does not change meanwhile, to an object."""
        size = path.stat().st_size
        try:
            self._call(self._fs.put_file, str(path), self._path(name), size=size)
        except UserError:
            path.stat()  # FileNotFoundError, if that is why
            raise

    def remove(self, name):
        """Removes an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._call(self._fs.rm_file, self._path(name), missing=True)

    def _path(self, name):
        return f"{self._root}/{name}".rstrip("/")

    def _call(self, function, *args, size=0, missing=False, **options):
        """Calls in a thread that is not waited for longer than the call may take."""
        result, error = [], []

        def run():
            try:
                result.append(function(*args, **options))
            except BaseException as raised:
                error.append(raised)

        seconds = self._seconds + size / 1e6
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        if result or error:  # something answers
            self._seconds = _SECONDS
        if result:
            return result[0]
        raised = error[0] if error else TimeoutError(f"no answer in {seconds:.0f} s")
        if isinstance(raised, FileExistsError) or _is_of_disk(raised):
            raise raised
        if isinstance(raised, FileNotFoundError) and missing:
            raise raised
        raise UserError(f"{self.address}: {self._explain(raised)}") from None

    def _explain(self, error):
        """What is wrong, in a line."""
        if isinstance(error, ImportError):
            needed = SCHEMES[self.address.partition(":")[0]]
            return f"it needs a package: pip install '{needed}'"
        said = " ".join(str(error).split())[:200] or type(error).__name__
        bucket = self._root.partition("/")[0]
        status = str(getattr(error, "code", "") or getattr(error, "status", ""))
        if isinstance(error, PermissionError) or status in ("401", "403"):
            return f"no right to use the bucket {bucket}: {said}"
        if isinstance(error, FileNotFoundError) or status == "404":
            return f"there is no bucket {bucket}, or no right to see it: {said}"
        return f"the bucket cannot be reached: {said}"


def _is_of_disk(error):
    """Whether what failed is this machine's disk."""
    full = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS
    return isinstance(error, OSError) and error.errno in full


def copy_path(address, use):
    """Where the copy of what lies at an address is kept on this machine.

    Args:
      address: from `svda_jax.place`.
      use: a word; copies of different use are different folders.
    """
    scheme, _, rest = str(address).partition("://")
    above, _, name = rest.rpartition("/")
    above = urllib.parse.quote(above, safe="").replace("%", "=")
    return cache_folder() / "buckets" / use / scheme / above / name


@contextlib.contextmanager
def alone(folder, *, wait):
    """Keeps other processes of this machine from a copy.

    Args:
      folder: from `copy_path`.
      wait: whether to wait for another that holds it.

    Raises:
      BlockingIOError: another holds it, and wait is False.
      UserError: the folder cannot be written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield


def fetch(bucket, folder, found, *, keep=False):
    """Makes a folder hold what a bucket does, copying what is not there yet.

    Args:
      bucket: a `Bucket`.
      folder: that this function alone writes into, unless `keep`.
      found: what it shall hold, as from `Bucket.list`.
      keep: whether files that are there stay, whatever the bucket has.

    Returns:
      Whether all of it was still there.
    """
    notes = folder / ".fetched.json"  # which version of each object is here
    known, complete = {}, True
    if not keep and notes.exists():
        known = json.loads(notes.read_text())
    try:
        for name in known.keys() - found.keys():
            (folder / name).unlink(missing_ok=True)
            del known[name]
            with contextlib.suppress(OSError):  # a folder that is not empty
                for above in (folder / name).relative_to(folder).parents:
                    (folder / above).rmdir()
        for name, (size, version) in found.items():
            path = folder / name
            if path.exists() and (keep or known.get(name) == version):
                continue
            if bucket.download(name, path, size):
                known[name] = version
            else:
                complete = False
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        if not keep and folder.is_dir():
            notes.write_text(json.dumps(known))
    return complete


def fetch_data(data_dir, name):
    """The local folder to read a data set from.

    Args:
      data_dir: the folder that TFDS keeps data sets in; an address in a bucket, or
        anything else, which is returned as it is.
      name: of the data set. From a bucket it is copied whole, once.

    Raises:
      UserError: it is not in the bucket, or cannot be read.
    """
    if "://" not in data_dir:
        return data_dir
    folder = copy_path(place(data_dir), "data")
    top = name.partition(":")[0].partition("/")[0]
    bucket = Bucket(f"{data_dir}/{top}")
    found = bucket.list()
    if not any(one.endswith("dataset_info.json") for one in found):
        raise UserError(
            f"{data_dir} holds no data set {name}; prepare it in a local folder and "
            f"copy that folder's {top} there"
        )
    with alone(folder, wait=True):
        fetch(bucket, folder / top, found)
    return str(folder)

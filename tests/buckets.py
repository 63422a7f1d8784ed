"""A bucket in memory that goes wrong as it is told to."""

import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

CALLS = ("find", "cat_file", "pipe_file", "get_file", "put_file", "rm_file")


class FakeBucket(MemoryFileSystem):
    """Stands for gs://; what is in it is the class's.

    Attributes:
      error: what every call raises, or None.
      seconds: what every call takes.
      broken: names of calls that raise `error`.
    """

    protocol = "gs"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    error = None
    seconds = 0
    broken = CALLS


def _faulty(name):
    call = getattr(MemoryFileSystem, name)

    def method(self, *args, **options):
        time.sleep(self.seconds)
        if self.error and name in self.broken:
            raise self.error
        return call(self, *args, **options)

    return method


for name in CALLS:
    setattr(FakeBucket, name, _faulty(name))


@pytest.fixture
def fake_bucket(monkeypatch, tmp_path):
    """Addresses gs:// lie in a `FakeBucket`; their copies are this test's."""
    monkeypatch.setattr(FakeBucket, "store", {})
    monkeypatch.setitem(_registry, "gs", FakeBucket)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return FakeBucket

"""Objects in a bucket: what an address is, and errors in one line and bounded time."""

import os
import time

import fsspec
import pytest
from buckets import FakeBucket

from svda_jax import UserError, place
from svda_jax.data import bucket as bucket_module
from svda_jax.data.bucket import Bucket, copy_path, fetch
from svda_jax.data.datasets import open_builder


@pytest.fixture
def bucket(fake_bucket):
    return Bucket("gs://b/run")


@pytest.mark.parametrize(
    "path",
    ["gs://b", "gs://b/", "gs:/b/x", "gs:///x", "gs://b//x", "gs://b/../x", "gs://"],
)
def test_half_an_address_is_refused(path):
    with pytest.raises(UserError, match="must be gs://BUCKET/FOLDER or s3://"):
        place(path)


@pytest.mark.parametrize(
    "path", ["hdfs:/b/x", "file:///x", "memory://b/x", "gcs://b/x"]
)
def test_an_address_of_another_kind_is_refused_by_name(path):
    with pytest.raises(
        UserError, match=f"{path.partition(':')[0]}:// is not supported"
    ):
        place(path)


def test_an_address_keeps_its_slashes_and_has_a_name_and_a_parent():
    path = place("gs://b/a/run/")
    assert (str(path), path.name, str(path.parent)) == (
        "gs://b/a/run",
        "run",
        "gs://b/a",
    )
    assert str(path / "config.json") == "gs://b/a/run/config.json"


def test_objects_are_written_listed_and_read(bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    bucket.upload(tmp_path / "file", "checkpoints/7/file")
    bucket.write("a", b"1")
    assert {name: size for name, (size, _) in bucket.list().items()} == {
        "a": 1,
        "checkpoints/7/file": 5,
    }
    assert list(bucket.list("checkpoints")) == ["checkpoints/7/file"]
    assert (bucket.read("a"), bucket.read("b")) == (b"1", None)
    assert bucket.download("checkpoints/7/file", tmp_path / "x/copy", 5)
    assert (tmp_path / "x/copy").read_bytes() == b"12345"
    assert not bucket.download("gone", tmp_path / "x/gone", 5)
    bucket.remove("a")
    bucket.remove("a")
    assert list(bucket.list()) == ["checkpoints/7/file"]


def test_an_object_is_created_once(bucket):
    assert bucket.create("lock", b"mine")
    assert not bucket.create("lock", b"other")
    assert bucket.create("lock", b"mine")  # whose answer was lost
    assert bucket.read("lock") == b"mine"


def test_credentials_are_the_machines_or_none(fake_bucket, monkeypatch):
    """A configured token is left to fsspec; Google's own server is asked once."""
    monkeypatch.setenv("NO_GCE_CHECK", "false")
    tried, create = [], fsspec.filesystem

    def filesystem(scheme, token=None, **options):
        tried.append((token, os.environ["NO_GCE_CHECK"]))
        if token == "google_default":
            raise ValueError("no credentials")
        return create(scheme, **options)

    monkeypatch.setattr("fsspec.filesystem", filesystem)
    assert Bucket("gs://b/run").list() == {}
    assert tried == [("google_default", "false"), (None, "true")]
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "key.json"})
    Bucket("gs://b/run")
    assert tried[2:] == [(None, "true")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("b"), "there is no bucket b, or no right to see it"),
        (PermissionError("denied"), "no right to use the bucket b: denied"),
        (
            OSError("no route\nto host"),
            "the bucket cannot be reached: no route to host",
        ),
        (ImportError("gcsfs"), r"needs a package: pip install 'svda-jax\[gcs\]'"),
    ],
)
def test_what_fails_is_said_in_a_line_that_names_the_address(
    bucket, monkeypatch, error, said
):
    monkeypatch.setattr(FakeBucket, "error", error)
    for call in (bucket.list, lambda: bucket.write("a", b"")):
        with pytest.raises(UserError, match=f"^gs://b/run: .*{said}") as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("answered", [False, True])
def test_a_slow_answer_is_not_waited_for(fake_bucket, monkeypatch, answered):
    """The first least of all: that is most often a machine without a network."""
    monkeypatch.setattr(bucket_module, "_SECONDS", 0.2 if answered else 9)
    monkeypatch.setattr(bucket_module, "_FIRST", 9 if answered else 0.2)
    bucket = Bucket("gs://b/run")
    if answered:
        bucket.list()
    monkeypatch.setattr(FakeBucket, "seconds", 5)
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached: no answer in"):
        bucket.list()
    assert time.monotonic() - start < 3


def test_a_copy_takes_what_changed_and_drops_what_went(bucket, tmp_path, monkeypatch):
    for name in ("a", "b", "7/c"):
        bucket.write(name, name.encode())
    folder = tmp_path / "copy"
    assert fetch(bucket, folder, bucket.list())
    bucket.write("b", b"B")  # of the same size
    bucket.remove("7/c")
    took = []
    download = bucket.download
    monkeypatch.setattr(
        bucket,
        "download",
        lambda name, *args: took.append(name) or download(name, *args),
    )
    assert fetch(bucket, folder, bucket.list())
    assert took == ["b"]
    assert (folder / "b").read_bytes() == b"B"
    assert not (folder / "7").exists()
    assert not fetch(bucket, folder, {**bucket.list(), "gone": (1, "")})


def test_copies_of_different_addresses_are_different_folders():
    addresses = (
        "gs://b/a/run",
        "gs://b/a=2F/run",
        "gs://b/run",
        "s3://b/run",
        "gs://b/a",
    )
    folders = [copy_path(place(address), "runs") for address in addresses]
    assert len(set(folders)) == len(folders)
    assert not any(one in two.parents for one in folders for two in folders)


def test_a_data_set_is_read_from_a_bucket(fake_bucket, data_dir):
    with pytest.raises(
        UserError, match="gs://b/data holds no data set digits; prepare"
    ):
        open_builder("digits", "gs://b/data")
    fsspec.filesystem("gs").put(f"{data_dir}/digits", "b/data/digits", recursive=True)
    builder = open_builder("digits", "gs://b/data")
    assert builder.info.splits["train"].num_examples == 1437
    assert len(builder.as_data_source("train")) == 1437

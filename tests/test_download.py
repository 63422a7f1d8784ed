"""Downloads: that they arrive, go on where they ended, and what can be wrong."""

import http.server
import threading

import pytest
from cifar_files import PER_CLASS, pack, write_files

from svda_jax import UserError
from svda_jax.data import cifar, datasets, download, prepare

NAME = cifar.VERSIONS["cifar10"][1].archive


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; counts what is asked for.

    Attributes:
      data: the file.
      cut: bytes after which the connection breaks; None sends all.
      ranges: whether it can begin in the middle.
      status: of every answer, 200 or an error.
      asked: the headers "Range" that came.
    """

    data, cut, ranges, status = b"", None, True, 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if start >= len(server.data) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else server.status)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        self.wfile.write(server.data[start : server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Has CIFAR-10's binary version in small."""
    monkeypatch.setattr(cifar, "PER_CLASS", PER_CLASS)
    folder = write_files(tmp_path / "files", "cifar10", "binary")
    with Server() as server:
        server.data = pack(folder, monkeypatch, "cifar10", "binary").read_bytes()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(cifar.Cifar, "URL", address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def obtain(tmp_path):
    def obtain():
        return datasets.open_builder("cifar10", str(tmp_path / "tfds"))

    return obtain


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "tfds/downloads/cifar10"


def test_a_missing_data_set_is_downloaded_once(server, obtain, downloads, tmp_path):
    assert obtain().info.splits["train"].num_examples == 150
    assert [path.name for path in downloads.iterdir()] == [NAME]
    (tmp_path / "tfds/cifar10").rename(tmp_path / "away")
    obtain()
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(
    server, obtain, downloads, ranges, monkeypatch
):
    monkeypatch.setattr(download, "_BLOCK", 100)
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(UserError, match=f"cannot download http.*{NAME}: ") as error:
        obtain()
    assert "\n" not in str(error.value)
    assert (downloads / f"{NAME}.part").stat().st_size == 1000
    server.cut = None
    obtain()
    asked = [None, "bytes=1000-"]
    assert server.asked == asked if ranges else [*asked, None]
    assert [path.name for path in downloads.iterdir()] == [NAME]


def test_a_download_that_was_complete_but_not_named_is_repeated(
    server, obtain, downloads
):
    downloads.mkdir(parents=True)
    (downloads / f"{NAME}.part").write_bytes(server.data)
    obtain()
    assert server.asked == [f"bytes={len(server.data)}-", None]


def test_another_file_than_expected_is_one_line_and_not_kept(server, obtain, downloads):
    good = server.data
    for data in (b"<html>log in first</html>", good[:-1] + b"x", b""):
        server.data = data
        with pytest.raises(
            UserError,
            match=f"of MD5 .*; downloaded from http.*{NAME}, and removed",
        ) as error:
            obtain()
        assert "\n" not in str(error.value)
        assert not list(downloads.iterdir())
    server.data = good
    obtain()


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses_is_one_line(server, obtain, downloads, status):
    server.status = status
    with pytest.raises(UserError, match=f"cannot download .*: {status} ") as error:
        obtain()
    assert "\n" not in str(error.value)
    assert not list(downloads.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "food101"])
def test_without_a_network_prepare_says_so_at_once(tmp_path, monkeypatch, name):
    builder = getattr(datasets.BUILDERS[name], "func", datasets.BUILDERS[name])
    monkeypatch.setattr(builder, "URL", "http://127.0.0.1:1/x")  # nobody listens
    with pytest.raises(
        SystemExit, match=f"there is no network to get it; .*prepare {name} --from DIR"
    ) as exit_:
        prepare.main([name, "--data_dir", str(tmp_path / "tfds")])
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "tfds").exists()


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/tfds"):
        with pytest.raises(SystemExit, match=r"cannot (read|write) .*file") as exit_:
            prepare.main(["cifar10", "--data_dir", str(folder)])
        assert "\n" not in str(exit_.value)
    assert server.asked == []


def test_three_at_once_download_once(server, obtain):
    threads = [threading.Thread(target=obtain) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [None]


def test_what_came_is_kept_where_a_server_refuses_for_a_while(
    server, obtain, downloads
):
    downloads.mkdir(parents=True)
    part = downloads / f"{NAME}.part"
    part.write_bytes(server.data[:1000])
    server.ranges, server.status = False, 503
    with pytest.raises(UserError, match=r"cannot download .*: 503 "):
        obtain()
    assert part.read_bytes() == server.data[:1000]

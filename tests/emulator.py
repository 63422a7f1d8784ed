"""Google Cloud Storage on this machine, which fails as it is told to."""

import contextlib
import socket
import time

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.storage import Storage


class Emulator(Storage):
    """What is stored, and the server of it, with the bucket "b"; a context manager.

    Attributes:
      url: of the server, for STORAGE_EMULATOR_HOST.
      refusals: so many requests from here on are answered with 503.
      seconds: that every request takes.
      create_only: whether the request at hand may write over nothing, which the
        emulator itself does not know.
    """

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.refusals = self.seconds = 0
        self.create_only = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = free.getsockname()
        self.url = "http://{}:{}".format(*self._address)
        server.buckets.create_bucket("b", self)

    def __enter__(self):
        self._thread = server.APIThread(*self._address, self)
        self._thread.start()
        self._thread.is_running.wait()
        return self

    def __exit__(self, *exc_info):
        self._thread.join()

    @contextlib.contextmanager
    def away(self):
        """It cannot be reached meanwhile."""
        self.__exit__()
        yield
        self.__enter__()

    def create_file(self, bucket, name, *args, **options):
        if self.create_only:
            with contextlib.suppress(NotFound):
                self.get_file_obj(bucket, name)
                raise FileExistsError
        return super().create_file(bucket, name, *args, **options)


_handle = server.Router.handle


def _handle_with_faults(router, method):
    request = router._request_handler
    emulator = request.storage
    time.sleep(emulator.seconds)
    if emulator.refusals:
        emulator.refusals -= 1
        return request.send_error(503)
    emulator.create_only = "ifGenerationMatch=0" in request.path
    try:
        return _handle(router, method)
    except FileExistsError:
        return request.send_error(412)


server.Router.handle = _handle_with_faults

"""Files from the network, whole or not at all."""

import contextlib
import pathlib

import requests
from tqdm import tqdm

from svda_jax import UserError

_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 16  # bytes; what broke off is kept but for the last block


@contextlib.contextmanager
def source_files(builder, urls, dl_manager):
    """The source of a data set, or a folder that its files are downloaded to.

    A download that broke off is taken up again. Where the body raises a `UserError`,
    what came is something else: it is removed, or the next attempt would find it.

    Args:
      builder: with a source, or None for it.
      urls: of the files.
      dl_manager: knows TFDS's folder for downloads.

    Yields:
      The path of the source, or of the folder.

    Raises:
      UserError: a file cannot be had.
    """
    if builder.source:
        yield builder.source
        return
    folder = pathlib.Path(dl_manager.download_dir, builder.name)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {url: folder / url.rpartition("/")[2] for url in urls}
    for url, path in paths.items():
        if not path.is_file():
            _fetch(url, path)
    try:
        yield folder
    except UserError as error:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise UserError(f"{error}; downloaded from {urls[0]}, and removed") from None


def _fetch(url, path):
    part = path.with_name(f"{path.name}.part")
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with requests.get(
            url, stream=True, timeout=_TIMEOUT, headers=headers
        ) as response:
            if start and response.status_code in (200, 416):
                part.unlink()  # the server cannot go on from there
                return _fetch(url, path)
            response.raise_for_status()
            size = start + int(response.headers.get("Content-Length", 0))
            options = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
            with (
                open(part, "ab") as file,
                tqdm(desc=path.name, initial=start, total=size, **options) as bar,
            ):
                for block in response.iter_content(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except requests.exceptions.RequestException as error:
        raise UserError(f"cannot download {url}: {error}") from None
    part.rename(path)

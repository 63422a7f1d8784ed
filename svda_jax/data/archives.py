"""Images in tar archives, read in the archive's order and never unpacked."""

import collections
import contextlib
import io
import pathlib
import tarfile
import zlib

import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from svda_jax import UserError
from svda_jax.data.image_folder import as_text
from svda_jax.data.images import CorruptImageError, decode


class ImageArchives(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of TFDS's whose images come out of archives.

    Names of examples are TFDS's, and so is their order on disk, which is by hash of the
    name: splits such as "train[:90%]" are the same images.

    Args:
      source: an archive, or a folder with those that are needed.
      strict: refuses an image that does not decode, which else is left out.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.

    Attributes:
      left_out: the names of images that were not taken, by reason.
    """

    def __init__(self, *, source=None, strict=False, **kwargs):
        self.source, self.strict = source, strict
        self.left_out = collections.defaultdict(list)
        super().__init__(**kwargs)

    def _generate_examples(self, split, images):
        """Examples of (name, bytes of the file, label)."""
        features, taken = self.info.features, set()
        for name, data, label in images:
            try:
                example = {"image": io.BytesIO(as_jpeg(data)), "label": label}
            except CorruptImageError as error:
                if self.strict:
                    raise UserError(f"{name} is not taken: {error}") from None
                self.left_out[str(error)].append(name)
                continue
            if "file_name" in features:
                example["file_name"] = name
            taken.add(label)
            yield name, example
        for label, name in enumerate(features["label"].names):
            if label not in taken:
                raise UserError(f"class {name} has no image in {split} that decodes")


def as_jpeg(data):
    """The bytes of an image as JPEG of grey or RGB, as they are where they are that.

    Raises:
      CorruptImageError: see `images.decode`.
    """
    pixels = decode(data, channels=3)
    with contextlib.suppress(ValueError):
        if simplejpeg.decode_jpeg_header(data)[2] in ("Gray", "YCbCr", "RGB"):
            return data
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=100, subsampling=0)
    return jpeg.getvalue()


def find_archive(source, name):
    """The path of an archive: the source itself, or in that folder by its name."""
    for path in (pathlib.Path(source), pathlib.Path(source, name)):
        if path.is_file():
            return path
    raise UserError(f"{source} is not {name}, nor a folder with it")


def members(path, file=None):
    """The files of a tar archive, compressed or not, one after another.

    Args:
      path: of the archive; for messages alone where `file` is given.
      file: the archive as an open file, as of one in another.

    Yields:
      The name of each and the open file, for `read`, before the next.

    Raises:
      UserError: the archive is no tar, is damaged or truncated, or holds a link, a
        device, a name that leads out of it or one that comes twice.
    """
    seen = set()
    with _reading(path), tarfile.open(None if file else path, fileobj=file) as archive:
        bar = {"desc": f"reading {path.name}", "unit": " files", "leave": False}
        for member in tqdm(archive, disable=True if file else None, **bar):
            name = pathlib.PurePosixPath(member.name)
            fault = None
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                fault = "is a link or a device"
            elif name.is_absolute() or ".." in name.parts:
                fault = "leads out of the archive"
            elif name in seen and not member.isdir():
                fault = "comes twice"
            if fault:
                raise UserError(f"{path}: {as_text(name)} {fault}")
            seen.add(name)
            if not member.isdir():
                yield str(name), archive.extractfile(member)
        while archive.fileobj.read(1 << 20):  # gzip's checksum stands at the end
            pass


def read(path, file):
    """The bytes of an archive's member.

    Raises:
      UserError: the archive, of that path, is damaged or truncated.
    """
    with _reading(path):
        return file.read()


@contextlib.contextmanager
def _reading(path):
    """Makes what a damaged archive raises one line."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        if "\n" in str(error):  # what each kind of compression says
            error = "it is no tar archive, or its beginning is damaged"
        raise UserError(f"cannot read {path}: {error}") from None

"""Pickles of dicts, lists, texts, numbers and arrays, read without calling anything.

An unpickler calls whatever a file names. This one knows the names alone that NumPy's
arrays are pickled by, and puts something inert in their place.
"""

import io
import pickle

import numpy as np

from svda_jax import UserError

_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class Array:
    """What a pickle holds of an array."""

    state = None

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.state = state

    def read(self):
        """The array, `[rows, columns]` uint8.

        Raises:
          ValueError: it is of another kind.
        """
        try:
            _, shape, _, by_column, data = self.state
            rows, columns = map(int, shape)
            values = np.frombuffer(data, np.uint8)
            return values.reshape(rows, columns, order="F" if by_column else "C")
        except TypeError as error:
            raise ValueError(str(error)) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in _NAMES:
            return Array
        raise ValueError(f"it names {module}.{name}, which is not called")


def read_pickle(path, data):
    """The dict that a pickle holds, with bytes for its texts and an `Array` for arrays.

    Args:
      path: of the file, for messages.
      data: its bytes.

    Raises:
      UserError: it is damaged, or no dict of such things.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # whatever the bytes lead to
        raise UserError(f"{path}: not taken as a pickle: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not taken as a pickle: it holds no dict")
    return found

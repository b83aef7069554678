"""Copy records between an array and any offsets of a buffer."""

from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]


def everywhere(data: Buffer, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a view with the record of type *dtype* at every byte offset of *data*.

    Each overlaps the next ones: of records that are written at once, the later ones win.
    """
    dtype = np.dtype(dtype)
    return np.ndarray((_size_bytes(data) - dtype.itemsize + 1,), dtype, data, strides=(1,))


def each_row(data: Buffer, dtype: npt.DTypeLike, at_byte: int, row_bytes: int) -> npt.NDArray[Any]:
    """Return a view with the record at byte *at_byte* of each row of *data*."""
    return np.ndarray((_size_bytes(data) // row_bytes,), dtype, data, at_byte, (row_bytes,))


def gather(data: Buffer, at: npt.NDArray[np.int64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the records of type *dtype* at the byte offsets *at*, which need no alignment.

    All of them lie within *data*; if *at* is empty, *data* may be shorter than one record.
    """
    dtype = np.dtype(dtype)
    if not len(at):
        return np.empty(0, dtype)
    # As opaque bytes: numpy copies a record with fields four times more slowly.
    copied = np.dtype(f"V{dtype.itemsize}") if dtype.fields else dtype
    return everywhere(data, copied)[at].view(dtype)


def _size_bytes(data: Buffer) -> int:
    return data.nbytes if isinstance(data, np.ndarray) else len(data)

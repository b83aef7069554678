"""Copy records from any offsets of a buffer into one array."""

from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview


def gather(data: Buffer, at: npt.NDArray[np.int64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the records of type *dtype* at the byte offsets *at*, which need no alignment.

    All of them lie within *data*; if *at* is empty, *data* may be shorter than one record.
    """
    dtype = np.dtype(dtype)
    if not len(at):
        return np.empty(0, dtype)
    # As opaque bytes: numpy copies a record with fields four times more slowly.
    copied = np.dtype(f"V{dtype.itemsize}") if dtype.fields else dtype
    room = len(data) - dtype.itemsize + 1
    everywhere: npt.NDArray[Any] = np.ndarray((room,), copied, data, strides=(1,))
    return everywhere[at].view(dtype)

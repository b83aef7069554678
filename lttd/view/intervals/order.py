"""Sort keys fast, and walk what has one key: the common part of all collectors."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# numpy sorts numbers of 16 bits by radix, ten times as fast as longer ones.
_DIGIT: Final = 1 << 16
# 2^64 divided by the golden ratio, and a prime: near values get far hashes.
_MULTIPLY: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_SHIFT: Final = np.uint64(32)


def stable_order(keys: I64) -> I64:
    """Return the order that sorts keys; equal ones stay in their order."""
    if not len(keys):
        return np.empty(0, np.int64)
    low = int(keys.min())
    span = int(keys.max()) - low
    if span >= _DIGIT * _DIGIT:
        return np.argsort(keys, kind="stable")
    offset = keys - low
    order = np.argsort(offset.astype(np.uint16), kind="stable")  # the low 16 bits
    if span >= _DIGIT:
        high = (offset >> 16).astype(np.uint16)[order]
        order = order[np.argsort(high, kind="stable")]
    return order


def hashed(columns: list[Column]) -> I64:
    """Return a key for each row of some columns, of which the first has few bits.

    Two rows of other values have the same key once in 2^64; where only the last column differs,
    never.
    """
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        number = of_text(column) if column.dtype.kind in "SO" else column
        key = (key ^ (key >> _SHIFT)) * _MULTIPLY + number.astype(np.int64).view(np.uint64)
    return key.view(np.int64)


def of_text(column: Column) -> I64:
    """Return a number for each string, the same for equal ones in all batches."""
    from hashlib import blake2b  # noqa: PLC0415  (few keys have strings)

    texts, which = np.unique(column.astype(np.bytes_), return_inverse=True)
    numbers = [int.from_bytes(blake2b(one, digest_size=8).digest(), "little", signed=True)
               for one in texts.tolist()]  # fmt: skip
    found: I64 = np.array(numbers, np.int64)[which.reshape(-1)]
    return found


def firsts_of(keys: Column) -> Mask:
    """Return which rows of sorted keys are the first with their key."""
    first = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    return first


def lasts_of(keys: Column) -> Mask:
    """Return which rows of sorted keys are the last with their key."""
    last = np.ones(len(keys), np.bool_)
    last[:-1] = keys[1:] != keys[:-1]
    return last


def latest(which: Mask, first: Mask) -> I64:
    """Return for each row the last marked one up to it with the same key, itself included; or -1.

    *first* marks the first row of each key.
    """
    rows = np.arange(len(which))
    found = np.maximum.accumulate(np.where(which, rows, -1))
    begin = np.maximum.accumulate(np.where(first, rows, 0))
    return np.where(found >= begin, found, -1)

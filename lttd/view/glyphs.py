"""Convert whole columns of numbers to digits, by table look-up.

A strip is a list of parts of a line, side by side.  A part is constant bytes, or an array with the
same number of bytes for each row.  NUL is not a character here: it pads short values to the width
of their column, and is removed when a line is made.

Rule: the paths of common formats make no Python object per row.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.terminal import printable_bytes

Column = npt.NDArray[Any]
U64 = npt.NDArray[np.uint64]
Strip = list[bytes | Column]

_GROUP: Final = 10_000
_SMALL_RANGE: Final = 1 << 16
_DELETE: Final = 0x7F


@cache
def _decimal_tables() -> tuple[Column, Column]:
    """Return two tables of 4-digit groups: [n] without leading zeros, [n + 10000] with them.

    For 0 the first table has nothing; the second, for the last group of a number, has ``0``.
    """
    number = np.arange(_GROUP, dtype=np.uint16)
    digits = np.stack([number // 10**at % 10 for at in (3, 2, 1, 0)], axis=1).astype(np.uint8)
    padded = digits + np.uint8(ord("0"))
    return _with_and_without(digits, padded)


@cache
def _hex_tables(alphabet: bytes) -> tuple[Column, Column]:
    """Return the same for groups of 4 hex digits, 65536 each."""
    number = np.arange(1 << 16, dtype=np.uint32)
    digits = np.stack([number >> at & 15 for at in (12, 8, 4, 0)], axis=1).astype(np.uint8)
    return _with_and_without(digits, np.frombuffer(alphabet, np.uint8)[digits])


def _with_and_without(digits: Column, padded: Column) -> tuple[Column, Column]:
    begun = np.logical_or.accumulate(digits != 0, axis=1)
    middle = np.where(begun, padded, np.uint8(0))
    last = middle.copy()
    last[0, -1] = ord("0")
    return _words(np.concatenate((middle, padded))), _words(np.concatenate((last, padded)))


def _words(matrix: Column) -> Column:
    """Return a matrix of bytes as a column of opaque words."""
    return np.ascontiguousarray(matrix).view(f"V{matrix.shape[1]}").reshape(-1)


@cache
def _top(
    tables: Callable[[], tuple[Column, Column]], width: int, last: bool, padded: bool
) -> Column:
    """Return the table for a first group of at most *width* digits."""
    table = tables()[int(last)]
    half = len(table) // 2
    matrix = (table[half:] if padded else table[:half]).view(np.uint8).reshape(-1, 4)
    fits = 10**width if tables is _decimal_tables else 16**width
    return _words(matrix[:fits, 4 - width :])


def decimal(values: Column, zeros: int = 0) -> Strip:
    """Return integers in decimal, negative ones with a sign; at least *zeros* digits."""
    strip: Strip = []
    if values.dtype.kind == "i":
        negative = values < 0
        if negative.any():
            strip.append(np.array([b"\0", b"-"], "V1")[negative.view(np.uint8)])
            values = np.where(negative, -values.astype(np.int64), values).astype(np.int64)
    if not len(values):
        return [*strip, b""]
    most = int(values.view(np.uint64).max()) if values.dtype.itemsize == 8 else int(values.max())
    width = len(str(most))
    if width <= 4 and not zeros:
        return [*strip, _top(_decimal_tables, width, True, False)[values]]
    narrow: Any = np.uint32 if most < 1 << 32 else np.uint64
    rest: Column = values.astype(narrow)
    groups: list[Column] = []
    for _ in range((max(width, zeros) - 1) // 4):
        quotient = rest // narrow(_GROUP)
        groups.append((rest - quotient * narrow(_GROUP)).astype(np.int32))
        rest = quotient
    return [*strip, *_grouped(rest, groups[::-1], _decimal_tables, width, zeros)]


def hexadecimal(values: Column, zeros: int = 0, *, upper: bool = False) -> Strip:
    """Return integers in hex, as unsigned of their width; at least *zeros* digits."""
    if not len(values):
        return [b""]
    unsigned = values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "i" else values
    width = max((int(unsigned.max()).bit_length() + 3) // 4, 1)
    tables = _upper if upper else _lower
    # A group is two bytes of the number, so a view replaces shift and mask.
    pairs = np.ascontiguousarray(unsigned, f"<u{max(unsigned.dtype.itemsize, 2)}").view("<u2")
    pairs = pairs.reshape(len(unsigned), -1)
    nothing = np.zeros(len(unsigned), np.int32)
    groups = [
        pairs[:, at].astype(np.int32) if at < pairs.shape[1] else nothing
        for at in range((max(width, zeros) - 1) // 4 + 1)
    ]
    return _grouped(groups[-1], groups[-2::-1] if len(groups) > 1 else [], tables, width, zeros)


def _lower() -> tuple[Column, Column]:
    return _hex_tables(b"0123456789abcdef")


def _upper() -> tuple[Column, Column]:
    return _hex_tables(b"0123456789ABCDEF")


def _grouped(
    first: Column,
    groups: Sequence[Column],
    tables: Callable[[], tuple[Column, Column]],
    width: int,
    zeros: int,
) -> Strip:
    """Look up the groups of numbers, from the group *first* on."""
    most = max(width, zeros)
    top_width = (most - 1) % 4 + 1
    first = first.astype(np.int32, copy=False)
    strip: Strip = [_top(tables, top_width, not groups, zeros >= most)[first]]
    if most > zeros > most - top_width:
        strip[0] = _zeroed(strip[0], top_width - (most - zeros))
    middle, last = tables()
    half = len(middle) // 2
    padded = middle[half:]
    begun = first > 0
    for number, group in enumerate(groups):
        behind = 4 * (len(groups) - number)
        table = last if number == len(groups) - 1 else middle
        if zeros >= behind or bool(begun.all()):
            strip.append(padded[group])
        else:
            column = table[group + half * begun]
            strip.append(_zeroed(column, zeros - behind + 4) if zeros > behind - 4 else column)
        begun = begun | (group > 0)
    return strip


def _zeroed(column: bytes | Column, digits: int) -> Column:
    """Write ``0`` in the last *digits* places of a column that are empty."""
    assert isinstance(column, np.ndarray)
    matrix = column.view(np.uint8).reshape(len(column), -1).copy()
    last = matrix[:, matrix.shape[1] - digits :]
    last[last == 0] = ord("0")
    return _words(matrix)


def words_of(column: Column) -> Column:
    """Return strings (dtype S) as a column of a strip."""
    return np.ascontiguousarray(column).view(f"V{max(column.dtype.itemsize, 1)}")


def printable_words(column: Column) -> Column:
    """Return strings of a trace (dtype S), escaped by lttd.terminal, as a column of a strip."""
    return words_of(printable_strings(column))


def printable_strings(column: Column) -> Column:
    """Return strings (dtype S) with control characters escaped for a terminal.

    The column is searched as one array of bytes.  Only rows with a control character or a byte
    beyond ASCII become Python objects, one for each distinct content.
    """
    raw = np.ascontiguousarray(column).view(np.uint8)
    unsafe = (raw < ord(" ")) & (raw != 0) & (raw != ord("\t"))
    if raw.max(initial=0) < _DELETE and not unsafe.any():
        return column
    unsafe |= raw >= _DELETE
    rows = unsafe.reshape(len(column), -1).any(axis=1)
    escaped = per_distinct(column[rows], printable_bytes)
    found = column.astype(f"S{max(column.dtype.itemsize, escaped.dtype.itemsize)}")
    found[rows] = escaped
    return found


def strings_of(told: Sequence[bytes]) -> Column:
    """Return bytes objects as strings (dtype S)."""
    return np.array(told, np.bytes_) if told else np.empty(0, "S1")


def right_aligned(strip: Strip, count: int, width: int) -> Strip:
    """Put blanks before values that are shorter than *width*."""
    matrix = matrix_of(strip, count)
    if matrix.shape[1] < width:
        room = np.zeros((count, width - matrix.shape[1]), np.uint8)
        matrix = np.concatenate((room, matrix), axis=1)
    # NULs may also be inside, after a sign: a stable sort by "is NUL" moves them to one side.
    order = np.argsort(matrix != 0, axis=1, kind="stable")
    closed = np.take_along_axis(matrix, order, axis=1)
    last = closed[:, closed.shape[1] - width :]
    last[last == 0] = ord(" ")
    return [_words(closed)]


def matrix_of(strip: Strip, count: int) -> npt.NDArray[np.uint8]:
    """Return a strip as one matrix of bytes: shape (count, width)."""
    width = width_of(strip)
    matrix = np.empty((count, width), np.uint8)
    at = 0
    for column in strip:
        size = len(column) if isinstance(column, bytes) else column.dtype.itemsize
        if not size:
            continue
        place = np.ndarray((count,), f"V{size}", matrix, at, (width,))
        place[:] = np.void(column) if isinstance(column, bytes) else column
        at += size
    return matrix


def width_of(strip: Strip) -> int:
    """Return the bytes of a row."""
    return sum(len(c) if isinstance(c, bytes) else c.dtype.itemsize for c in strip)


def settled(strip: Strip, count: int) -> Strip:
    """Replace parts that are the same in every row by constant bytes."""
    if count == 1 or not any(isinstance(c, np.ndarray) and len(c) == 1 for c in strip):
        return strip
    return [
        c.tobytes().replace(b"\0", b"") if isinstance(c, np.ndarray) and len(c) == 1 else c
        for c in strip
    ]


def joined(strip: Strip) -> Strip:
    """Join adjoining constants."""
    parts: Strip = []
    for column in strip:
        last = parts[-1] if parts else None
        if isinstance(column, bytes) and isinstance(last, bytes):
            parts[-1] = last + column
        else:
            parts.append(column)
    return parts


def distinct(values: Column) -> tuple[Column, Column]:
    """Return the distinct values, and for each row the number of its value."""
    if len(values) > 64 and values.dtype.kind in "iu":
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        low = values.min()
        span = int(values.max()) - int(low)
        if span < _SMALL_RANGE:
            # Compute modulo 2^n, as unsigned of the values' width: there is no larger dtype for a
            # kernel address (2^63 and more), nor for the span of a narrow signed type.
            unsigned = np.dtype(f"u{values.dtype.itemsize}")
            least = low.view(unsigned)
            offset = (values.view(unsigned) - least).astype(np.int32)
            number = np.zeros(span + 1, np.int32)
            number[offset] = 1
            found = np.flatnonzero(number)
            number[found] = np.arange(len(found), dtype=np.int32)
            return (found.astype(unsigned) + least).view(values.dtype), number[offset]
    uniques, inverse = np.unique(values, return_inverse=True)
    return uniques, inverse.reshape(-1)


def distinct_rows(matrix: npt.NDArray[np.uint8]) -> tuple[Column, Column]:
    """Return one row number for each distinct content, and for each row its content's number."""
    count, width = matrix.shape
    words = np.zeros((count, -(-width // 8)), np.uint64)
    words.view(np.uint8)[:, :width] = matrix
    which: Column = np.zeros(count, np.int64)
    for word in words.T:
        values, number = distinct(np.ascontiguousarray(word))
        _, which = distinct(which * len(values) + number)
    first = np.zeros(int(which.max(initial=-1)) + 1, np.int64)
    first[which] = np.arange(count)
    return first, which


def per_distinct(values: Column, told: Callable[[Any], bytes]) -> Column:
    """Return strings (dtype S), made once for each distinct value."""
    uniques, inverse = distinct(values)
    made = [told(value) for value in uniques.tolist()]
    table: Column = np.array(made or [b""], np.bytes_)
    picked: Column = table[inverse]
    return picked

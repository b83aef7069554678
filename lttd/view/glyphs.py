"""Convert whole columns of numbers to digits, by table look-up, and strings to printable ones.

Rule: the paths of common formats make no Python object per row.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.gather import each_row, everywhere
from lttd.terminal import printable_bytes
from lttd.view.strips import Column, Length, Strip, words_of

_GROUP_DIGITS: Final = 4
_SMALL_RANGE: Final = 1 << 16
_SLOT_BITS: Final = 16
# 2^64 divided by the golden ratio: near values get slots that are far apart.
_HASH: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_DELETE: Final = 0x7F
# Below this number of rows, fewer calls of numpy are faster than less work.
_FEW: Final = 1024


class _Base(NamedTuple):
    """A base of numbers, with tables of its groups of 4 digits."""

    base: int
    padded: Column
    """Each group with leading zeros."""
    shortest: Column
    """Each group without leading zeros; ``0`` for 0."""


@cache
def _base(alphabet: bytes) -> _Base:
    base = len(alphabet)
    number = np.arange(base**_GROUP_DIGITS, dtype=np.int32)
    digits = np.stack([number // base**at % base for at in (3, 2, 1, 0)], axis=1)
    padded = np.frombuffer(alphabet, np.uint8)[digits]
    words = padded.view("V4").reshape(-1)
    return _Base(base, words, _last_digits([words], digit_count(number, base, 1)))


def decimal(values: Column, zeros: int = 0) -> Strip:
    """Return integers in decimal, negative ones with a sign; at least *zeros* digits."""
    strip: Strip = []
    if values.dtype.kind == "i":
        negative = values < 0
        if negative.any():
            strip.append(np.array([b"\0", b"-"], "V1")[negative.view(np.uint8)])
            values = np.where(negative, -values.astype(np.int64), values).astype(np.int64)
        values = values.view(f"u{values.dtype.itemsize}")
    return [*strip, _digits(values, _base(b"0123456789"), max(zeros, 1))]


def hexadecimal(values: Column, zeros: int = 0, *, upper: bool = False) -> Strip:
    """Return integers in hex, as unsigned of their width; at least *zeros* digits."""
    native = values.astype(f"u{values.dtype.itemsize}", copy=False)
    alphabet = b"0123456789ABCDEF" if upper else b"0123456789abcdef"
    return [_digits(native, _base(alphabet), max(zeros, 1))]


def _digits(values: Column, base: _Base, zeros: int) -> bytes | Column:
    """Return unsigned numbers; at least *zeros* digits, which are at least 1."""
    if not len(values):
        return b""
    group = len(base.padded)
    most = int(values.max())
    if most < group and zeros == 1:
        return base.shortest.take(values.astype(np.int64))
    if zeros == 1 and len(values) > _FEW:
        wide = values >= group
        if 2 * np.count_nonzero(wide) < len(values):
            return _mostly_small(values, np.flatnonzero(wide), base)
    counts = digit_count(values, base.base, zeros)
    groups: list[Column] = []
    # Division by a constant is faster in 32 bits.
    rest: Column = values.astype(np.uint32 if most < 1 << 32 else np.uint64)
    for _ in range((int(np.max(counts)) - 1) // _GROUP_DIGITS):
        rest, last = _divided(rest, group)
        groups.append(last.astype(np.int64))
    groups.append(rest.astype(np.int64))
    return _last_digits([base.padded.take(one) for one in reversed(groups)], counts)


def _divided(values: Column, group: int) -> tuple[Column, Column]:
    """Return quotients and remainders; for a power of two without a division."""
    unsigned = values.dtype.type
    if group & (group - 1) == 0:
        return values >> unsigned(group.bit_length() - 1), values & unsigned(group - 1)
    quotient = values // unsigned(group)
    return quotient, values - quotient * unsigned(group)


def _mostly_small(values: Column, wide: Column, base: _Base) -> Column:
    """Return numbers of which only those in the rows *wide* have more than one group of digits."""
    told = _digits(values[wide], base, 1)
    assert isinstance(told, np.ndarray)
    column = np.zeros(len(values), told.dtype)
    place = each_row(column, "V4", 0, told.dtype.itemsize)
    group = len(base.padded)
    place[:] = base.shortest.take(np.minimum(values, values.dtype.type(group - 1)).astype(np.int64))
    column[wide] = told
    return column


def digit_count(values: Column, base: int, least: int) -> Length:
    """Return the number of digits of each unsigned number, at least *least*; there is one."""
    fewest, most = (_digit_count_of(int(end), base, least) for end in (values.min(), values.max()))
    if fewest == most:
        return most
    counts = np.full(len(values), fewest, np.int64)
    for digits in range(fewest, most):
        counts += values >= values.dtype.type(base**digits)
    return counts


def _digit_count_of(value: int, base: int, least: int) -> int:
    while value >= base**least:
        least += 1
    return least


def _last_digits(groups: list[Column], counts: Length) -> Column:
    """Join groups of padded digits, and return the last *counts* of them."""
    width, rows = _GROUP_DIGITS * len(groups), len(groups[0])
    row = width if isinstance(counts, int) else 2 * width  # NULs follow the digits
    room = np.zeros(rows * row, np.uint8)
    for at, column in enumerate(groups):
        each_row(room, "V4", _GROUP_DIGITS * at, row)[:] = column
    if isinstance(counts, int):
        return each_row(room, f"V{counts}", width - counts, row)
    starts = np.arange(width, width + rows * row, row) - counts
    found: Column = everywhere(room, f"V{int(counts.max())}")[starts]
    return found


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
        if len(values) > _FEW:
            return _distinct_by_hash(values)
    uniques, inverse = np.unique(values, return_inverse=True)
    return uniques, inverse.reshape(-1)


def _distinct_by_hash(values: Column) -> tuple[Column, Column]:
    """Return what distinct() does, for integers that are far apart, such as addresses.

    Few values occur often: a table with a slot for each hash finds them without sorting all rows.
    """
    wide = values.view(f"u{values.dtype.itemsize}").astype(np.uint64, copy=False)
    slot = ((wide * _HASH) >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
    table = np.zeros(1 << _SLOT_BITS, values.dtype)
    table[slot] = values
    clash = table.take(slot) != values
    if np.count_nonzero(clash) > len(values) // 4:
        uniques, inverse = np.unique(values, return_inverse=True)
        return uniques, inverse.reshape(-1)
    used = np.zeros(1 << _SLOT_BITS, np.bool_)
    used[slot] = True
    slots = np.flatnonzero(used)
    uniques = np.unique(np.concatenate([table[slots], values[clash]]))
    number = np.zeros(1 << _SLOT_BITS, np.int64)
    number[slots] = np.searchsorted(uniques, table[slots])
    inverse = number.take(slot)
    inverse[clash] = np.searchsorted(uniques, values[clash])
    return uniques, inverse


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

"""Texts of many rows as strips, and a strip as one word per row.

A strip is a list of parts of a line, side by side.  A part is constant bytes, or a column of words
(opaque, dtype V) with the text of each row.  NULs follow a text that is shorter than its word; they
are not part of a line.

    [b"pid=", [b"7\0\0", b"123"], b"\n"]  becomes the words  [b"pid=7\n\0\0", b"pid=123\n"]

Rule: a word is copied as a whole, with its NULs, and the next part is put where its text ends.  So
texts of any length take no loop over rows, and no NUL has to be searched in lines.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.gather import each_row, everywhere

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Length = int | I64
"""Of the text of each row; one number if all are equal."""
Strip = list[bytes | Column]


class Sized(NamedTuple):
    """A column of words whose lengths are known: unlike those of text, they may hold NULs."""

    words: Column
    length: Length


Part = bytes | Column | Sized
"""One of the parts of a row that ``packed`` joins."""

_MATRIX_BYTES: Final = 1 << 26
MOST_TEXT_BITS: Final = 7
"""The most growth of a row as text: an element of a list of bits takes 16 bytes."""


def words_of(column: Column) -> Column:
    """Return strings (dtype S) as a column of a strip."""
    return np.ascontiguousarray(column).view(f"V{max(column.dtype.itemsize, 1)}")


def strings_of(told: Sequence[bytes]) -> Column:
    """Return bytes objects as strings (dtype S)."""
    return np.array(told, np.bytes_) if told else np.empty(0, "S1")


def length_of(words: Column) -> Length:
    """Return the length of each text."""
    if not len(words):
        return words.dtype.itemsize
    found = np.strings.str_len(words.view(f"S{words.dtype.itemsize}"))
    least = int(found.min())
    return least if least == int(found.max()) else found


def width_of(strip: Sequence[Part]) -> int:
    """Return the bytes of a row, NULs included."""
    return sum(map(_size_of, strip))


def _size_of(part: Part) -> int:
    if isinstance(part, bytes):
        return len(part)
    return (part.words if isinstance(part, Sized) else part).dtype.itemsize


def packed(strip: Sequence[Part], count: int) -> tuple[Column, Length]:
    """Return the words of *count* rows, and the length of each text."""
    width = max(width_of(strip), 1)
    room = np.zeros(count * width, np.uint8)
    starts: I64 | None = None
    at: Length = 0
    for part in strip:
        size = _size_of(part)
        if not size:
            continue
        words, length = _sized(part)
        if isinstance(at, int):
            each_row(room, f"V{size}", at, width)[:] = words
        else:
            everywhere(room, f"V{size}")[at] = words
        if starts is None and not isinstance(length, int):
            starts = np.arange(0, count * width, width)
            at = at + starts
        at = at + length
    return room.view(f"V{width}"), at if starts is None else at - starts


def _sized(part: Part) -> tuple[Column | np.void, Length]:
    if isinstance(part, bytes):
        return np.void(part), len(part)
    return part if isinstance(part, Sized) else (part, length_of(part))


def of_similar_size(sizes_bytes: I64, growth_bits: int) -> Iterator[I64]:
    """Yield the numbers of rows of similar size, so many that memory can hold their words.

    A row of text takes about 2^growth_bits bytes for each byte that it prints.
    """
    group = np.frexp(sizes_bytes.astype(np.float64))[1]
    for one in np.flatnonzero(np.bincount(group)).tolist():
        some = np.flatnonzero(group == one)
        step = max(_MATRIX_BYTES >> (one + growth_bits), 1)
        for first in range(0, len(some), step):
            yield some[first : first + step]


def settled(strip: Strip, count: int) -> Strip:
    """Replace parts that are the same in every row by constant bytes."""
    if count == 1 or not any(isinstance(c, np.ndarray) and len(c) == 1 for c in strip):
        return strip
    return [
        c.tobytes().rstrip(b"\0") if isinstance(c, np.ndarray) and len(c) == 1 else c for c in strip
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


def right_aligned(strip: Strip, count: int, width: int) -> Strip:
    """Put blanks before texts that are shorter than *width*."""
    words, length = packed(strip, count)
    if isinstance(length, int):
        return [b" " * (width - length), words]
    widest = max(words.dtype.itemsize, width)
    # Blanks, then the text: a text of n bytes is read from byte n on, and so begins with blanks.
    row = width + widest
    room = np.zeros(count * row, np.uint8)
    each_row(room, f"V{width}", 0, row)[:] = np.void(b" " * width)
    each_row(room, words.dtype, width, row)[:] = words
    from_byte = np.arange(0, count * row, row) + np.minimum(length, width)
    return [everywhere(room, f"V{widest}")[from_byte]]

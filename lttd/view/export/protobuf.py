"""Encode protobuf messages: single ones from values, and columns of them at once.

    message = field*           field = tag value
    tag     = varint(number << 3 | type)
    value   = varint (type 0) | 8 bytes (type 1) | varint(length) bytes (type 2)
    varint  = 7 bits per byte, the least significant ones first; bit 7 is set in all but the last

Source: https://protobuf.dev/programming-guides/encoding/

Rule: a negative number is sign-extended to 64 bits, so it takes ten bytes.
Rule: a column of messages is made without a Python object per message: see ``strips.packed``.
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.gather import each_row
from lttd.view.columns import inside
from lttd.view.strips import Column, Length, Part, Sized, packed

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_ALL: Final = (1 << 64) - 1
_SMALL: Final = 1 << 7
_WORD: Final = 8
_HALVES: Final = {
    4: ((14, 0x0000_3FFF, 2), (7, 0x007F_007F, 1)),
    8: (
        (28, 0x0000_0000_0FFF_FFFF, 4),
        (14, 0x0000_3FFF_0000_3FFF, 2),
        (7, 0x007F_007F_007F_007F, 1),
    ),
}
"""By bytes of a word: bits of a half, the lower halves, the distance to move the upper ones."""
_MORE: Final = {
    word: np.array(
        [sum(_SMALL << 8 * at for at in range(max(length - 1, 0))) for length in range(word + 2)],
        f"u{word}",
    )
    for word in _HALVES
}
"""By bytes of a word and of a varint: bit 7 of all bytes that another one follows."""


def varint(value: int) -> bytes:
    """Return an integer of at most 64 bits, signed or not, as a varint."""
    rest, out = value & _ALL, bytearray()
    while rest >= _SMALL:
        out.append(rest & (_SMALL - 1) | _SMALL)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Return a field with an integer, an enum or a bool."""
    return varint(field << 3 | _VARINT) + varint(value)


def double(field: int, value: float) -> bytes:
    """Return a field with a double."""
    return varint(field << 3 | _FIXED64) + struct.pack("<d", value)


def content(field: int, value: bytes | str) -> bytes:
    """Return a field with a string, bytes or a message."""
    raw = value.encode() if isinstance(value, str) else value
    return head(field, len(raw)) + raw


def head(field: int, size_bytes: int) -> bytes:
    """Return what precedes the content of a string, bytes or a message."""
    return varint(field << 3 | _BYTES) + varint(size_bytes)


def varints(values: Column, tag: bytes = b"") -> Sized:
    """Return a column of integers as varints, each after the constant *tag*."""
    if values.dtype.kind == "i":
        wide = values.astype(np.int64).view(np.uint64)
    else:
        wide = values.astype(np.uint64)
    before, most = len(tag), int(wide.max(initial=0))
    size = max(-(-most.bit_length() // 7), 1)
    length = np.full(len(wide), before + 1, np.uint8)
    for groups in range(1, size):
        length += wide >= np.uint64(1 << 7 * groups)
    word = next(each for each in (1, 4, 8) if size <= each or each == _WORD)
    row = before + max(word, size)
    room = np.empty((len(wide), row), np.uint8)
    room[:, :before] = np.frombuffer(tag, np.uint8)
    if word == 1:
        room[:, before] = wide
    else:
        dtype = np.dtype(f"u{word}")
        some = (wide & np.uint64((1 << 7 * word) - 1)).astype(dtype)
        each_row(room, dtype.newbyteorder("<"), before, row)[:] = _spread(some, length - before)
    if size > _WORD:
        rest = varints(wide >> np.uint64(7 * _WORD)).words
        told = f"V{size - _WORD}"
        each_row(room, told, before + _WORD, row)[:] = each_row(rest, told, 0, rest.itemsize)
    return Sized(room.reshape(-1).view(f"V{row}"), _one_if_equal(length))


def _spread(values: Column, length: U8) -> Column:
    """Return numbers of 28 bits (u4) or 56 bits (u8) as varints, each in 4 or 8 bytes.

    *length*: the number of bytes of each varint, which may be more than that.  Each step halves
    groups of bits, and moves the upper halves apart.
    """
    word, number_of = values.itemsize, values.dtype.type
    for bits, low, shift in _HALVES[word]:
        upper = (values & number_of(low << bits)) << number_of(shift)
        values = (values & number_of(low)) | upper
    more: Column = _MORE[word].take(np.minimum(length, word + 1))
    return values | more


def numbers(field: int, values: Column) -> Sized:
    """Return a field with an integer, for each value."""
    return varints(values, varint(field << 3 | _VARINT))


def texts(field: int, column: Column) -> list[Part]:
    """Return a field with a string, for each one of a column (dtype S)."""
    words = np.ascontiguousarray(column).view(f"V{max(column.dtype.itemsize, 1)}")
    return contents(field, Sized(words, np.strings.str_len(column).astype(np.int64)))


def contents(field: int, column: Sized) -> list[Part]:
    """Return a field with bytes or a message, for each one of a column."""
    if isinstance(column.length, int):
        return [head(field, column.length), column]
    return [varints(column.length, varint(field << 3 | _BYTES)), column]


def messages(field: int, parts: Sequence[Part], count: int) -> list[Part]:
    """Return a field with a message, whose fields are *parts*, for each of *count* rows."""
    return contents(field, Sized(*packed(parts, count)))


def cut_out(data: memoryview, begin: I64, length: I64) -> Sized:
    """Return bytes of a buffer, from *begin* on, for each row."""
    width = max(int(length.max(initial=0)), 1)
    room = np.zeros((len(begin), width), np.uint8)
    flat: U8 = np.frombuffer(data, np.uint8)
    at = inside(length)
    row = np.repeat(np.arange(len(begin)), length)
    room[row, at] = flat[begin[row] + at]
    return Sized(room.view(f"V{width}").reshape(-1), length)


def _one_if_equal(length: U8) -> Length:
    """Return one number if all lengths are equal: what follows then takes the fast way."""
    if not len(length):
        return 0
    least = int(length.min())
    return least if least == int(length.max()) else length.astype(np.int64)

"""Print strings and arrays of characters as babeltrace2 prints them in quotes.

Names of tasks are in nearly every event, and a trace has few of them: a text that was printed
before is found by its bytes.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_nodes import Text
from lttd.abi.gather import everywhere, gather
from lttd.terminal import printable_bytes
from lttd.view.glyphs import per_distinct
from lttd.view.strips import Column, words_of

U64 = npt.NDArray[np.uint64]

KNOWN_WIDTHS: Final = (8, 16, 24, 32)
"""Of arrays of characters, in bytes."""
_SLOT_BITS: Final = 12
# Any odd numbers without a pattern: the fractions of the golden ratio and of some square roots.
_FACTORS: Final = (0x9E3779B97F4A7C15, 0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0xA54FF53A5F1D36F1)
_ESCAPES: Final = {
    **{at: b"\\x%02x" % at for at in (*range(32), 127)},
    **{ord(one): f"\\{one}".encode() for one in "\\'\"?"},
    **{at: b"\\%c" % to for at, to in zip(b"\a\b\x1b\f\n\r\t\v", b"abefnrtv", strict=True)},
}  # fmt: skip
# Bytes beyond ASCII may be C1 controls, or no characters at all.
_ESCAPED: Final = np.isin(np.arange(256), [*(one for one in _ESCAPES if one), *range(128, 256)])


def escaped(text: bytes) -> bytes:
    """Return a text as babeltrace2 prints it in quotes, without control characters."""
    return printable_bytes(b"".join(_ESCAPES.get(one, bytes((one,))) for one in text))


def quoted(node: Text) -> Column:
    """Return strings, escaped."""
    strings = strings_of(node)
    raw = strings.view(np.uint8).reshape(len(strings), -1)
    unsafe = _ESCAPED[raw].any(axis=1)
    if not unsafe.any():
        return words_of(strings)
    told = per_distinct(strings[unsafe], escaped)
    found = strings.astype(f"S{max(strings.dtype.itemsize, told.dtype.itemsize)}")
    found[unsafe] = told
    return words_of(found)


def strings_of(node: Text) -> npt.NDArray[Any]:
    """Return the bytes of strings (dtype S)."""
    length = node.end - node.begin
    width = max(int(length.max(initial=0)), 1)
    raw = node.bits.raw
    view = everywhere(raw, f"V{width}")
    inside = node.begin < len(view)
    found = np.zeros(len(length), f"V{width}")
    found[inside] = view[node.begin[inside]]
    for row in np.flatnonzero(~inside).tolist():  # the last few of the buffer
        found[row] = raw[node.begin[row] : node.end[row]].tobytes().ljust(width, b"\0")
    matrix = found.view(np.uint8).reshape(len(length), width)
    matrix[np.arange(width) >= length[:, np.newaxis]] = 0
    return matrix.reshape(-1).view(f"S{width}")


class KnownTexts:
    """The texts of arrays of one width that were printed before."""

    def __init__(self, width_bytes: int) -> None:
        self._width_bytes = width_bytes
        self._factors = [np.uint64(one) for one in _FACTORS[: width_bytes // 8]]
        # An array of NULs is an empty text: so each slot is true from the begin.
        self._keys = [np.zeros(1 << _SLOT_BITS, np.uint64) for _ in self._factors]
        self._texts: npt.NDArray[Any] = np.zeros(1 << _SLOT_BITS, f"S{width_bytes}")

    def quoted(self, node: Text) -> Column:
        """Return what ``quoted`` does."""
        last = int(node.begin.max(initial=0)) + self._width_bytes
        if last > len(node.bits.raw) or not len(node.begin):
            return quoted(node)
        content = gather(node.bits.raw, node.begin, f"V{self._width_bytes}")
        words = content.view(np.uint64).reshape(len(content), -1)
        columns = [words[:, at] for at in range(len(self._factors))]
        mixed = np.zeros(len(content), np.uint64)
        for column, factor in zip(columns, self._factors, strict=True):
            mixed ^= column * factor
        slot = (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
        new = np.zeros(len(content), np.bool_)
        for column, key in zip(columns, self._keys, strict=True):
            new |= key.take(slot) != column
        rows = np.flatnonzero(new)
        found = self._texts.take(slot)
        if not len(rows):
            return words_of(found)
        made = quoted(Text(node.bits, node.begin[rows], node.limit[rows]))
        told = made.view(f"S{made.dtype.itemsize}")
        if told.dtype.itemsize > self._texts.dtype.itemsize:
            self._texts, found = self._texts.astype(told.dtype), found.astype(told.dtype)
        found[rows] = told
        # Of two new texts in one slot it keeps the last one.
        self._texts[slot[rows]] = told
        for column, key in zip(columns, self._keys, strict=True):
            key[slot[rows]] = column[rows]
        return words_of(found)

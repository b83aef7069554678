"""Read integers, floats and strings at any bits of a buffer, for arrays of places.

Rule: no place makes this module raise: one that is not within the buffer reads other bytes of it,
so callers check the ends of fields.
"""

import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_classes import ByteOrder, Float, Integer
from lttd.abi.gather import everywhere

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

WORD_BITS: Final = 64
_SIGNS: Final = {"little": "<", "big": ">"}
_WHOLE: Final = (8, 16, 32, 64)
# A string is searched in so many bytes at once, and what is longer with the C library's search.
_SEARCHED_BYTES: Final = (32, 96, 256)


def mask_of(size_bits: int) -> np.uint64:
    """Return the largest number of *size_bits*."""
    return np.uint64((1 << size_bits) - 1)


class Bits:
    """A buffer as bits; offsets count them from its begin."""

    def __init__(self, buffer: bytes | bytearray | memoryview) -> None:
        self.buffer: Final = buffer
        if len(buffer) < WORD_BITS // 8 + 1:
            buffer = bytes(buffer) + bytes(WORD_BITS // 8 + 1)
        self.raw: Final[U8] = np.frombuffer(buffer, np.uint8)
        self._views: dict[str, Column] = {}
        self._bytes: bytes | None = None

    def view(self, dtype: str) -> Column:
        """Return an array with the number of type *dtype* at every byte.

        Index it; ``take`` would copy all of it first.
        """
        if dtype not in self._views:
            self._views[dtype] = everywhere(self.raw, dtype)
        return self._views[dtype]

    def unsigned(self, at: I64, size_bits: int, byteorder: ByteOrder) -> U64:
        """Return unsigned numbers of at most 64 bits."""
        sign = _SIGNS[byteorder]
        if size_bits in _WHOLE and not (at & 7).any():
            view = self.view(f"{sign}u{size_bits // 8}")
            found: U64 = view[np.minimum(at >> 3, len(view) - 1)].astype(np.uint64)
            return found
        byte = np.clip(at >> 3, 0, len(self.raw) - WORD_BITS // 8)
        word = self.view(f"{sign}u8")[byte].astype(np.uint64)
        place = np.clip(at - (byte << 3), 0, WORD_BITS - 1)
        over = place + (size_bits - WORD_BITS)
        if byteorder == "little":
            found = word >> place.astype(np.uint64)
        else:
            found = word >> np.maximum(-over, 0).astype(np.uint64)
        rows = np.flatnonzero(over > 0)
        if len(rows):  # at most 7 bits are in the byte after the word
            last = self.raw.take(byte[rows] + 8, mode="clip").astype(np.uint64)
            if byteorder == "little":
                found[rows] |= last << (WORD_BITS - place[rows]).astype(np.uint64)
            else:
                excess = over[rows].astype(np.uint64)
                found[rows] = (word[rows] << excess) | (last >> (np.uint64(8) - excess))
        masked: U64 = found & mask_of(size_bits)
        return masked

    def integers(self, at: I64, of: Integer) -> Column:
        """Return numbers of a class: u64, or i64 if the class is signed."""
        found = self.unsigned(at, of.size_bits, of.byteorder)
        if not of.signed:
            return found
        spare = np.uint64(WORD_BITS - of.size_bits)
        signed: Column = (found << spare).view(np.int64) >> spare.astype(np.int64)
        return signed

    def floats(self, at: I64, of: Float) -> Column:
        """Return numbers of a class of 32 or 64 bits."""
        size = of.size_bits
        found = self.unsigned(at, size, of.byteorder)
        native = "<" if sys.byteorder == "little" else ">"
        return (
            found.astype(f"{native}u{size // 8}").view(f"{native}f{size // 8}").astype(np.float64)
        )

    def nuls(self, begin: I64, end: I64) -> I64:
        """Return the byte offset of the first NUL from *begin* on; *end*, where there is none."""
        width = _SEARCHED_BYTES[0]
        if len(begin) and int(begin.max()) <= len(self.raw) - width:  # most strings are short
            zero = everywhere(self.raw, f"V{width}")[begin].view(np.uint8).reshape(-1, width) == 0
            found = begin + zero.argmax(axis=1)
            if not self.raw.take(found).any():
                nearest: I64 = np.minimum(found, np.maximum(end, begin))
                return nearest
        found = end.copy()
        left = np.flatnonzero(begin < end)
        at = begin if len(left) == len(begin) else begin[left]
        for width in _SEARCHED_BYTES:
            if not len(left) or len(self.raw) < width:
                break
            place, first, has = self._nul_within(at, width)
            ends = place + first
            done = left[has]
            found[done] = np.minimum(ends[has], end[done])
            if len(done) == len(left):
                return found
            goes_on = ~has & (place + width < end[left])
            left, at = left[goes_on], place[goes_on] + width
        return self._searched(found, left, at)

    def _nul_within(self, at: I64, width: int) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
        """Look for a NUL in the *width* bytes from some places on.

        Return from where on it was looked for, which byte is the first NUL, and whether there is.
        """
        most = len(self.raw) - width
        place = np.minimum(at, most)
        zero = everywhere(self.raw, f"V{width}")[place].view(np.uint8).reshape(-1, width) == 0
        if int(at.max()) > most:  # bytes before the string are no NULs of it
            clipped = np.flatnonzero(place < at)
            before = at[clipped] - place[clipped]
            zero[clipped] &= np.arange(width) >= before[:, np.newaxis]
        first = zero.argmax(axis=1)
        has = zero.reshape(-1).take(np.arange(0, zero.size, width) + first)
        return place, first, has

    def _searched(self, found: I64, left: I64, at: I64) -> I64:
        if len(left) and self._bytes is None:
            self._bytes = bytes(self.buffer)
        assert self._bytes is not None or not len(left)
        for row, begin in zip(left.tolist(), at.tolist(), strict=True):
            place = self._bytes.find(0, begin, int(found[row])) if self._bytes else -1
            if place >= 0:
                found[row] = place
        return found

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
# A string is searched in words, and what is longer than this with the C library's search.
_SEARCHED_WORDS: Final = 8
_ONES: Final = np.uint64(0x0101010101010101)
_TOPS: Final = np.uint64(0x8080808080808080)


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
        found = end.copy()
        left = np.flatnonzero(begin < end)
        at = begin[left]
        words, most = self.view("<u8"), len(self.raw) - WORD_BITS // 8
        for _ in range(_SEARCHED_WORDS):
            if not len(left):
                return found
            place = np.minimum(at, most)
            word = words[place].astype(np.uint64)
            # Bytes before the string are no NULs of it.
            skipped = ((at - place) << 3).astype(np.uint64)
            word |= (np.uint64(1) << skipped) - np.uint64(1)
            zero = (word - _ONES) & ~word & _TOPS
            ends = zero != 0
            first = np.bitwise_count((zero & (~zero + np.uint64(1))) - np.uint64(1)) >> 3
            behind = place + first.astype(np.int64)
            done = left[ends]
            found[done] = np.minimum(behind[ends], end[done])
            goes_on = ~ends & (place + 8 < end[left])
            left, at = left[goes_on], place[goes_on] + 8
        return self._searched(found, left, at)

    def _searched(self, found: I64, left: I64, at: I64) -> I64:
        if len(left) and self._bytes is None:
            self._bytes = bytes(self.buffer)
        assert self._bytes is not None or not len(left)
        for row, begin in zip(left.tolist(), at.tolist(), strict=True):
            place = self._bytes.find(0, begin, int(found[row])) if self._bytes else -1
            if place >= 0:
                found[row] = place
        return found

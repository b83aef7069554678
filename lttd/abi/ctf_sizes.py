"""The sizes of CTF events by their ids, for any places of a buffer; places that look like events.

Rule: no place makes this module raise; one beyond the buffer has the size of another place.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits, mask_of
from lttd.abi.ctf_heads import Packets
from lttd.abi.ctf_plan import UNKNOWN, Quick

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

# A chain of events is looked for at each of so many first bytes.
_TRIED_BYTES: Final = 128
_LIKELY_EVENTS: Final = 6
_FIXED_EVENTS: Final = 2


class Sizes:
    """Sizes of events by table, for any places."""

    def __init__(self, bits: Bits, packets: Packets, quick: Quick, step: int) -> None:
        self._quick = quick
        self._view = bits.view(quick.dtype)
        self._most = len(self._view) - 1
        self._base = packets.offset_bytes
        self._bits = bits
        self._step = step
        width = quick.time[1].size_bits if quick.time else 1
        self._time_mask = mask_of(width)
        self._half = np.uint64(1 << (width - 1))
        self._table = quick.table
        # All bits of the number are its index, if there is no phase.
        self._direct = quick.phases == 1
        if self._direct:
            numbers = np.arange(1 << (8 * np.dtype(quick.dtype).itemsize))
            self._table = quick.table[(numbers >> quick.shift) & quick.mask]

    def sizes(self, at: I64, packet: I64) -> I64:
        """Return the sizes of the events at some bytes; 0: the table has none."""
        quick = self._quick
        told = self._view[np.minimum(at + quick.at_byte, self._most)]
        if self._direct:
            found: I64 = self._table.take(told)
            return found
        number = ((told.astype(np.int64) >> quick.shift) & quick.mask) * quick.phases
        return self._table.take(number + ((at - self._base[packet]) & (quick.phases - 1)))

    def likely(self, begin: I64, stop: I64, packet: I64) -> I64:
        """Return the first place of each row from which on several events seem to follow.

        They have ids, and their times do not step back.
        """
        tried = np.arange(0, _TRIED_BYTES, self._step)
        row = np.repeat(np.arange(len(begin)), len(tried))
        first = np.minimum((begin[:, np.newaxis] + tried).reshape(-1), stop[row] - 1)
        at, left = first, np.arange(len(row))
        times = self._times(at)
        for number in range(_LIKELY_EVENTS):
            last = stop[row[left]] - 1
            ended = at >= last
            size = self.sizes(at, packet[row[left]])
            at = np.minimum(at + size, last)
            later = self._times(at)
            good = (size > 0) & ((later - times) & self._time_mask < self._half)
            if number >= _FIXED_EVENTS:  # an event of any size says nothing of the next one
                good |= size == 0
            good |= (at >= last) & (size != UNKNOWN) | ended
            left, at, times = left[good], at[good], later[good]
        found = begin.copy()
        found[row[left[::-1]]] = first[left[::-1]]
        return found

    def _times(self, at: I64) -> U64:
        if self._quick.time is None:
            return np.zeros(len(at), np.uint64)
        place, of = self._quick.time
        return self._bits.unsigned((at << 3) + place, of.size_bits, of.byteorder)

"""The events of CTF packets as arrays: their classes, their times, and where their bodies begin.

A header states the low bits of a time.  The clock begins with the packet's begin; where the bits
are less than those of the clock, they have wrapped once.  64 bits replace it.

Source: The Common Trace Format 1.8.3, section 8; babeltrace2 src/plugins/ctf/common/msg-iter,
update_default_clock.

Rule: no bytes make this module raise; see ``lttd.abi.ctf_walk`` for damage.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.ctf_bits import WORD_BITS, Bits, mask_of
from lttd.abi.ctf_heads import Heads, Packets, heads_of
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_walk import find_events

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

BATCH_BYTES: Final = 8 << 20
"""The most content in a batch, but at least a packet."""


class Walked(NamedTuple):
    """The events of some packets in stream order, and the result for each packet."""

    first_row: int
    """The number of the first of these packets, from which ``row`` and ``damage`` count."""
    time: U64
    """In cycles."""
    number: I64
    """The number of the event in its plan."""
    at: I64
    """The begin of the event, in bytes from the begin of the buffer."""
    row: I64
    row_events: I64
    row_end: U64
    """Per packet: the time of its last event, or of its begin."""
    damage: list[Damage]


def walk(bits: Bits, packets: Packets, plan: Plan) -> Iterator[Walked]:
    """Yield the events of packets of one stream, a bounded batch at a time."""
    filled = np.cumsum((packets.end_bits >> 3) - packets.offset_bytes)
    first = 0
    while first < len(filled):
        so_far = int(filled[first - 1]) if first else 0
        behind = max(int(np.searchsorted(filled, so_far + BATCH_BYTES, "right")), first + 1)
        yield _walked(bits, packets.some(slice(first, behind)), first, plan)
        first = behind


def _walked(bits: Bits, packets: Packets, first_row: int, plan: Plan) -> Walked:
    found = find_events(bits, packets, plan)
    base = packets.offset_bytes[found.row] << 3
    heads = heads_of(bits, found.at << 3, base, packets.end_bits[found.row], plan)
    counts = np.bincount(found.row, minlength=len(packets.begin)).astype(np.int64)
    time = _times(heads, found.row, counts, packets.begin)
    row_end = packets.begin.copy()
    filled = counts > 0
    row_end[filled] = time[np.cumsum(counts)[filled] - 1]
    damage = [one._replace(row=one.row + first_row) for one in found.damage]
    return Walked(
        first_row, time, heads.number, found.at, found.row + first_row, counts, row_end, damage
    )


def _times(heads: Heads, row: I64, counts: I64, begin: U64) -> U64:
    """Return complete times."""
    if not len(row):
        return np.empty(0, np.uint64)
    widths = set(np.flatnonzero(np.bincount(heads.time_bits)).tolist())
    partial = widths - {WORD_BITS}
    if len(partial) > 1 or 0 in partial:
        return _one_by_one(heads, row, begin)
    if not partial:
        return heads.time
    (width,) = partial
    return _wrapped(heads, width, counts, begin)


def _wrapped(heads: Heads, width: int, counts: I64, begin: U64) -> U64:
    """Return the times of headers that state 64 bits or *width*."""
    mask = mask_of(width)
    low = heads.time & mask
    whole = heads.time_bits == WORD_BITS
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    before = np.empty_like(low)
    before[1:] = low[:-1]
    before[firsts] = begin[counts > 0] & mask
    wraps = low < before
    wraps[whole] = False
    passed = np.cumsum(wraps)
    told = np.zeros(len(low), np.uint64)
    told[firsts] = begin[counts > 0]
    told[whole] = heads.time[whole]
    known = whole.copy()
    known[firsts] = True
    last = np.cumsum(known) - 1
    since: I64 = passed - (passed - wraps)[known][last]
    high = told[known][last] & ~mask
    times: U64 = high + (since.astype(np.uint64) << np.uint64(width)) + low
    return times


def _one_by_one(heads: Heads, row: I64, begin: U64) -> U64:
    """Return the times of headers that state several widths, or none."""
    found = np.empty(len(row), np.uint64)
    clock, last = 0, -1
    columns = (row, heads.time, heads.time_bits)
    for at, (packet, low, width) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        if packet != last:
            clock, last = int(begin[packet]), packet
        mask = (1 << width) - 1
        if low < clock & mask:
            clock += mask + 1
        clock = (clock & ~mask | low) & ((1 << WORD_BITS) - 1)
        found[at] = clock
    return found

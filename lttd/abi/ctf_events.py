"""The events of CTF packets as arrays: their classes, their times, and where their bodies begin.

A header states the low bits of a time.  The clock begins with the packet's begin; where the bits
are less than those of the clock, they have wrapped once.  64 bits replace it.

Source: The Common Trace Format 1.8.3, section 8; babeltrace2 src/plugins/ctf/common/msg-iter,
update_default_clock.

Rule: no bytes make this module raise; see ``lttd.abi.ctf_walk`` for damage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.ctf_bits import WORD_BITS, Bits, mask_of
from lttd.abi.ctf_heads import Packets, Stated, stated
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_walk import Found, find_events

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

BATCH_BYTES: Final = 24 << 20
"""The most content in a batch, but at least a packet; a whole piece of lttv (18 MiB) has room."""
_PART_EVENTS: Final = 1 << 21
"""About the most events that are found at once, if packets are walked in parts."""
NOTHING: Final[Mapping[int, Sequence["Part"]]] = MappingProxyType({})


class Part(NamedTuple):
    """A part of a packet that was walked before."""

    at_bytes: int
    """Where its first event begins, from the begin of the packet."""
    begin: int
    """The time before it, in cycles."""
    least: int
    most: int
    """The times of its events, in cycles."""


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
    row_events: I64
    row_behind: I64
    """Per packet: where its last event ends, in bytes; the content's end, if all was walked."""
    row_end: U64
    """Per packet: the time of its last event, or of its begin."""
    header_bytes: int | I64 | None
    """The size of the header, of each event if they differ; None: it is not known."""
    damage: list[Damage]
    part: Part | None = None
    """The part of the packet that this is; None: there are whole packets."""

    @property
    def row(self) -> I64:
        """The row of each event."""
        rows = np.arange(self.first_row, self.first_row + len(self.row_events))
        return np.repeat(rows, self.row_events)


def walk(bits: Bits, packets: Packets, plan: Plan) -> Iterator[Walked]:
    """Yield the events of packets of one stream, a bounded batch of whole packets at a time."""
    for rows in _batches(packets, BATCH_BYTES):
        some = packets.some(rows)
        yield _walked(bits, some, rows.start, plan, find_events(bits, some, plan))


def walk_parts(
    bits: Bits, packets: Packets, plan: Plan, known: Mapping[int, Sequence[Part]] = NOTHING
) -> Iterator[Walked]:
    """Yield the events of packets as ``walk`` does, but of a large packet some at a time.

    So memory is bounded, however small events are.

    *known*: the only parts to walk, for the rows of packets that were walked before.
    """
    part_bytes = min(BATCH_BYTES, _PART_EVENTS * plan.least_bytes)
    for rows in _batches(packets, part_bytes):
        some = packets.some(rows)
        if (
            rows.stop - rows.start > 1
            or int(some.end_bits[0] - some.first_bits[0]) >> 3 <= part_bytes
        ):
            yield _walked(bits, some, rows.start, plan, find_events(bits, some, plan))
        else:
            yield from _parts(bits, some, rows.start, plan, part_bytes, known.get(rows.start))


def _batches(packets: Packets, most_bytes: int) -> Iterator[slice]:
    """Yield adjoining packets with so many bytes at most, but at least one."""
    filled = np.cumsum((packets.end_bits >> 3) - packets.offset_bytes)
    first = 0
    while first < len(filled):
        so_far = int(filled[first - 1]) if first else 0
        behind = max(int(np.searchsorted(filled, so_far + most_bytes, "right")), first + 1)
        yield slice(first, behind)
        first = behind


def _parts(
    bits: Bits,
    packet: Packets,
    row: int,
    plan: Plan,
    part_bytes: int,
    known: Sequence[Part] | None,
) -> Iterator[Walked]:
    """Yield the events of a packet, some at a time."""
    base, end = packet.offset_bytes, (packet.end_bits + 7) >> 3
    for part in known or ():
        time = np.array([part.begin], np.uint64)
        here = packet._replace(first_bits=(base + part.at_bytes) << 3, begin=time)
        yield _part(bits, here, row, plan, part_bytes)
    while known is None:
        walked = _part(bits, packet, row, plan, part_bytes)
        yield walked
        if walked.damage or walked.row_behind[0] >= end[0]:
            return
        packet = packet._replace(first_bits=walked.row_behind << 3, begin=walked.row_end)


def _part(bits: Bits, packet: Packets, row: int, plan: Plan, part_bytes: int) -> Walked:
    first = packet.first_bits >> 3
    walked = _walked(bits, packet, row, plan, find_events(bits, packet, plan, first + part_bytes))
    begin = int(packet.begin[0])
    times = (int(walked.time.min()), int(walked.time.max())) if len(walked.time) else (begin, begin)
    return walked._replace(part=Part(int((first - packet.offset_bytes)[0]), begin, *times))


def _walked(bits: Bits, packets: Packets, first_row: int, plan: Plan, found: Found) -> Walked:
    counts = found.row_events

    def row() -> I64:
        return np.repeat(np.arange(len(counts)), counts)

    heads = stated(bits, found.at, row, packets, plan)
    time = _times(heads, row, counts, packets.begin)
    row_end = packets.begin.copy()
    filled = counts > 0
    row_end[filled] = time[np.cumsum(counts)[filled] - 1]
    damage = [one._replace(row=one.row + first_row) for one in found.damage]
    return Walked(
        first_row,
        time,
        heads.number,
        found.at,
        counts,
        found.row_behind,
        row_end,
        heads.header_bytes,
        damage,
    )


def _times(heads: Stated, row: Callable[[], I64], counts: I64, begin: U64) -> U64:
    """Return complete times."""
    width, others = heads.time_bits, heads.others
    if not len(heads.time) or (width == WORD_BITS and not len(others)):
        return heads.time
    if (heads.other_bits != WORD_BITS).any() or width in (0, WORD_BITS):
        widths = np.full(len(heads.time), width)
        widths[others] = heads.other_bits
        if (widths == WORD_BITS).all():
            return heads.time
        return _one_by_one(heads.time, widths, row(), begin)
    return _wrapped(heads, counts, begin)


def _wrapped(heads: Stated, counts: I64, begin: U64) -> U64:
    """Return the times of headers that state some bits of them, and a few all 64."""
    mask = mask_of(heads.time_bits)
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    low = heads.time & mask if len(heads.others) else heads.time
    passed = np.empty_like(low)
    passed[1:] = low[1:] - low[:-1]
    passed[firsts] = low[firsts] - (begin[counts > 0] & mask)
    passed &= mask
    since = np.cumsum(passed)
    # The time of an event is known from a packet's begin on, or from the last event with all bits.
    known = firsts
    times = begin[counts > 0] + passed[firsts]
    if len(heads.others):
        is_whole = np.isin(firsts, heads.others)
        known = np.concatenate((firsts[~is_whole], heads.others))
        order = np.argsort(known)
        times = np.concatenate((times[~is_whole], heads.time[heads.others]))[order]
        known = known[order]
    lengths = np.diff(np.append(known, len(low)))
    since += np.repeat(times - since[known], lengths)
    return since


def _one_by_one(time: U64, widths: I64, row: I64, begin: U64) -> U64:
    """Return the times of headers that state several widths, or none."""
    found = np.empty(len(row), np.uint64)
    clock, last = 0, -1
    columns = (row, time, widths)
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

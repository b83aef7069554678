"""Compare a stream's index, gaps and data, entry by entry, for ``check`` and recovery.

``StoredStream`` compares a single entry with the data; here entries are also compared with each
other and with the gaps.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lttd.blocks import bytes_of
from lttd.index import Entries, RecordFile
from lttd.manifest import StreamRecord
from lttd.plausible import MOST_COUNT
from lttd.stored import CHUNK_ENTRIES, StoredStream
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Unit

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
_Int = TypeVar("_Int", np.int64, np.uint64)


def lost_before(gaps: Sequence[Gap], first: int, behind: int) -> U64:
    """Return, per row in ``[first:behind)``, the events that the kernel lost just before it."""
    lost = np.zeros(behind - first, np.uint64)
    for gap in gaps:
        known = gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS
        if known and gap.count and first <= gap.row < behind:
            lost[gap.row - first] += np.uint64(gap.count)
    return lost


class Agreement(NamedTuple):
    """The result of comparing entries; ``size`` and ``begin`` are also true if unknown."""

    adjoins: Mask
    """The entry begins where the one before it ends, and its size is possible."""
    inside: Mask
    """The entry's bytes are in the data file."""
    in_order: Mask
    """Begin, end and sequence do not step back, and the end is not before the begin."""
    ours: Mask
    """The entry names this stream."""
    counted: Mask
    """events_discarded grows from the entry before by the events of the gaps."""
    size: Mask
    """The sub-buffer's header parses and has the same sizes."""
    begin: Mask
    """The sub-buffer's header has the same begin, or an earlier one (running maximum)."""

    @property
    def right(self) -> Mask:
        """Tell whether all of this is true."""
        right: Mask = np.logical_and.reduce(self)
        return right


def baseline_of(record: StreamRecord, entries: Entries | RecordFile, gaps: Sequence[Gap]) -> int:
    """Return ``events_discarded`` at the end of the segment before.

    The first entry shows it if the manifest was written before that segment had ended.
    """
    if record.subbuffers_before is not None or not len(entries):
        return record.baseline_discarded
    first = int(entries[0]["events_discarded"]) - int(lost_before(gaps, 0, 1)[0])
    return first if 0 <= first <= MOST_COUNT // 2 else record.baseline_discarded


def agreement(
    stream: StoredStream, entries: Entries | RecordFile, gaps: list[Gap], first: int, behind: int
) -> Agreement:
    """Compare entries ``[first:behind)`` with each other, the gaps and the data."""
    some, before = entries[first:behind], entries[max(first - 1, 0) : behind - 1]
    headless = first == 0
    offset, size = bytes_of(some)
    earlier_offset, earlier_size = bytes_of(before)
    expected = _shifted(earlier_offset + earlier_size, 0, headless)
    most, content = stream.info.subbuffer_bytes, some["content_bits"].astype(np.uint64)
    possible = (size > 0) & (some["packet_bits"] & np.uint64(7) == 0)
    possible &= content <= some["packet_bits"]
    possible &= (size == stream.slot_bytes) if stream.slot_bytes else (size <= (most or size))
    begin, end = some["begin"].astype(np.uint64), some["end"].astype(np.uint64)
    last_begin = _shifted(before["begin"].astype(np.uint64), 0, headless)
    in_order = (begin <= end) & (begin >= last_begin)
    in_order &= end >= _shifted(before["end"].astype(np.uint64), 0, headless)
    sequence = some["sequence"].astype(np.uint64)
    in_order[1 if headless else 0 :] &= sequence[1 if headless else 0 :] > before[
        "sequence"
    ].astype(np.uint64)
    ours = some["stream_id"] == np.uint64(stream.info.ctf_stream_id)
    ours &= some["instance_id"] == np.uint64(stream.info.id.cpu)
    discarded = some["events_discarded"].astype(np.uint64)
    base = baseline_of(stream.record, entries, gaps) if headless else 0
    so_far = _shifted(before["events_discarded"].astype(np.uint64), base, headless)
    counted = discarded == so_far + lost_before(gaps, first, behind)
    inside = stream.holds(offset, size)
    yes = np.ones(len(some), np.bool_)
    head = _heads(stream, some, last_begin, headless) if stream.abi else (yes, yes)
    adjoins = possible & (offset == expected)
    return Agreement(adjoins, inside, in_order, ours, counted, *head)


def _heads(
    stream: StoredStream, some: Entries, last_begin: U64, headless: bool
) -> tuple[Mask, Mask]:
    headers = stream.headers(some)
    _, size = bytes_of(some)
    same = headers.payload_bytes > 0
    same &= headers.content_bytes == (some["content_bits"] >> np.uint64(3)).astype(np.int64)
    if not stream.slot_bytes:
        same &= headers.payload_bytes == size
    begin = some["begin"].astype(np.uint64)
    timely = begin == np.maximum(headers.begin, last_begin)
    if headless and len(some):  # the segment before may have a later end
        timely[0] = begin[0] >= headers.begin[0]
    return same, timely


def _shifted(earlier: npt.NDArray[_Int], start: int, headless: bool) -> npt.NDArray[_Int]:
    """Return the value of the entry before each; *start* for the very first."""
    if not headless:
        return earlier
    return np.concatenate((np.array([start], earlier.dtype), earlier))


def agreements(
    stream: StoredStream, entries: Entries | RecordFile, gaps: list[Gap], first: int = 0
) -> Iterator[tuple[int, Agreement]]:
    """Yield, chunk by chunk, the number of the first entry and the comparison of the chunk."""
    for at in range(first, len(entries), CHUNK_ENTRIES):
        behind = min(at + CHUNK_ENTRIES, len(entries))
        yield at, agreement(stream, entries, gaps, at, behind)

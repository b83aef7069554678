"""One stream of a segment on disk: the content of its files, and whether they agree.

Rule: files are read on first use, and never written.
Invariant: a packed data file has the sub-buffers of the index one after the other and nothing else;
a sparse one has each in its slot.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Headers
from lttd.abi.table import abi_of
from lttd.beneath import Place, place_of
from lttd.errors import TraceDamagedError, reason_of
from lttd.files import size_bytes
from lttd.index import Entries, SeekIndex, read_gaps
from lttd.manifest import Manifest, StreamRecord
from lttd.stats import StreamStats, StreamSummary, summarize
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Unit
from lttd.tracedir import SegmentPaths, StreamPaths

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
_Int = TypeVar("_Int", np.int64, np.uint64)

# The number of entries that are compared at a time: their arrays stay below some 20 MB.
CHUNK_ENTRIES: Final = 65536


def map_file(where: Place | Path) -> memoryview:
    """Map a file for reading; an absent file counts as empty."""
    place = place_of(where)
    try:
        return place.map()
    except FileNotFoundError:
        return memoryview(b"")
    except OSError as error:
        raise TraceDamagedError(Path(place.path), 0, reason_of(error)) from None


class StoredStream:
    """The data, index and gaps files of one stream."""

    def __init__(self, segment: SegmentPaths, manifest: Manifest, record: StreamRecord) -> None:
        self.segment = segment
        self.record = record
        self.info = record.info
        self.name = record.name
        self.source_name = manifest.source_name
        self.byteorder = manifest.machine.get("byteorder", "little")
        self.slot_bytes = self.info.subbuffer_bytes if manifest.layout == "sparse" else 0
        """The distance of sub-buffers in sparse data; 0: packed."""
        self.abi = abi_of(self.info, self.byteorder)

    @cached_property
    def paths(self) -> StreamPaths:
        """Its files; of a trace of many segments most are never looked at."""
        return self.segment.stream(self.name)

    @cached_property
    def data(self) -> memoryview:
        """The data file, mapped."""
        return map_file(self.segment.place(self.paths.data))

    @cached_property
    def index(self) -> SeekIndex:
        """The index, mapped.

        Raises:
            TraceDamagedError: it is absent, not an index, or too large for the data.
        """
        return self._mapped_index()

    def ends(self) -> tuple[int, int] | None:
        """Return when the first sub-buffer begins and the last one ends; None: there is none.

        An index that is not in use is mapped only meanwhile, since a process has few mappings.

        Raises:
            TraceDamagedError: see index.
        """
        index = self.__dict__.get("index") or self._mapped_index()
        if not len(index):
            return None
        entries = index.entries()
        return int(entries["begin"][0]), int(entries["end"][-1])

    def _mapped_index(self) -> SeekIndex:
        try:
            index = SeekIndex(self.segment.index_place(self.name))
        except FileNotFoundError:
            reason = "no index; lttv check --repair makes it again"
            raise TraceDamagedError(self.paths.index, 0, reason) from None
        # In this order, because the data file of a live trace is ahead of its index.  If the size
        # is unknown, mapping the data reports why.
        data_bytes = size_bytes(self.segment.data_place(self.name)) or len(self.data)
        index.refuse_more_than(data_bytes, self._least_bytes)
        return index

    @property
    def _least_bytes(self) -> int:
        """The least size of a sub-buffer in the data file."""
        return max(self.slot_bytes, self.info.header_bytes, 1)

    @cached_property
    def gaps(self) -> list[Gap]:
        """The known losses.

        Raises:
            TraceDamagedError: the file does not parse.
        """
        return read_gaps(self.segment.place(self.paths.gaps))

    def headers(self, entries: Entries) -> Headers:
        """Read the sub-buffers' own headers where *entries* say that they are."""
        if self.abi is None:
            raise AssertionError(f"{self.info.abi} sub-buffers do not state their size")
        return _without_repeats(self.abi.headers(self.data, entries))

    def summary(self) -> StreamSummary:
        """Return the totals: those of the manifest if the segment is closed, else derived ones."""
        if self.record.summary is not None:
            return self.record.summary
        return self.derived_summary(self.index.entries(), self.gaps)

    def derived_summary(self, entries: Entries, gaps: list[Gap]) -> StreamSummary:
        """Return the totals by *entries* and *gaps*.

        A damaged entry cannot make them larger than the data file allows.
        """
        stats = StreamStats(self.info.id, self.source_name)
        stats.subbuffers = stats.stored_subbuffers = len(entries)
        stats.stored_bytes = self._payload_bytes(entries, gaps)
        delivered_bytes = self._delivered_bytes(entries, stats.stored_bytes)
        stats.padding_bytes = max(delivered_bytes - stats.stored_bytes, 0)
        for gap in gaps:
            stats.lost(gap)
        return summarize(stats)

    def _delivered_bytes(self, entries: Entries, payload_bytes: int) -> int:
        """Return the bytes that the kernel delivered for *entries*; the stored ones if unknown."""
        page_bytes = self.info.page_bytes
        if not page_bytes:
            return len(entries) * self.info.subbuffer_bytes or payload_bytes
        return sum(
            int((-(-content // page_bytes) * page_bytes).sum())
            for at in range(0, len(entries), CHUNK_ENTRIES)
            for content in [_content_bytes(entries[at : at + CHUNK_ENTRIES])]
        )

    def _payload_bytes(self, entries: Entries, gaps: list[Gap]) -> int:
        if not len(entries):
            return 0
        if not self.slot_bytes:  # they adjoin, so the last one's end is the sum
            end = int(entries["offset_bytes"][-1]) + (int(entries["packet_bits"][-1]) >> 3)
            return min(end, len(self.data))
        total = sum(
            int(np.minimum(_content_bytes(entries[at : at + CHUNK_ENTRIES]), self.slot_bytes).sum())
            for at in range(0, len(entries), CHUNK_ENTRIES)
        )
        # After its content, a sub-buffer may have the count of events lost before it.
        rows = sorted({gap.row for gap in gaps if gap.row < len(entries)})
        if rows and self.abi is not None:
            headers = self.headers(entries[rows])
            total += int(np.maximum(headers.payload_bytes - headers.content_bytes, 0).sum())
        return total


def _content_bytes(entries: Entries) -> I64:
    return (entries["content_bits"] >> np.uint64(3)).astype(np.int64)


def _without_repeats(headers: Headers) -> Headers:
    """Ignore sub-buffers inside of earlier ones, if there are many.

    Otherwise an index of a few MB could name the same bytes a million times.  After one wrong
    offset the other sub-buffers are kept.
    """
    offset, size = headers.offset_bytes, headers.payload_bytes
    there = size > 0
    if not there.any():
        return headers
    ends = np.where(there, offset + size, 0)
    named_bytes = int(ends.max()) - int(offset[there].min())
    if int(size.sum()) <= 2 * named_bytes:
        return headers
    behind = np.concatenate(([0], np.maximum.accumulate(ends)[:-1]))
    return headers._replace(payload_bytes=np.where(offset >= behind, size, 0))


def lost_before(gaps: list[Gap], first: int, behind: int) -> U64:
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
        """Whether all of this is true."""
        right: Mask = np.logical_and.reduce(self)
        return right


def agreement(
    stream: StoredStream, entries: Entries, gaps: list[Gap], first: int, behind: int
) -> Agreement:
    """Compare entries ``[first:behind)`` with each other, the gaps and the data."""
    some, before = entries[first:behind], entries[max(first - 1, 0) : behind - 1]
    headless = first == 0
    offset, size = _bytes_of(some)
    earlier_offset, earlier_size = _bytes_of(before)
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
    base = stream.record.baseline_discarded
    so_far = _shifted(before["events_discarded"].astype(np.uint64), base, headless)
    counted = discarded == so_far + lost_before(gaps, first, behind)
    inside = (offset >= 0) & (size <= len(stream.data)) & (offset <= len(stream.data) - size)
    yes = np.ones(len(some), np.bool_)
    head = _heads(stream, some, last_begin, headless) if stream.abi else (yes, yes)
    adjoins = possible & (offset == expected)
    return Agreement(adjoins, inside, in_order, ours, counted, *head)


def _heads(
    stream: StoredStream, some: Entries, last_begin: U64, headless: bool
) -> tuple[Mask, Mask]:
    headers = stream.headers(some)
    _, size = _bytes_of(some)
    same = headers.payload_bytes > 0
    same &= headers.content_bytes == (some["content_bits"] >> np.uint64(3)).astype(np.int64)
    if not stream.slot_bytes:
        same &= headers.payload_bytes == size
    begin = some["begin"].astype(np.uint64)
    timely = begin == np.maximum(headers.begin, last_begin)
    if headless and len(some):  # the segment before may have a later end
        timely[0] = begin[0] >= headers.begin[0]
    return same, timely


def _bytes_of(entries: Entries) -> tuple[I64, I64]:
    """Return offsets and sizes; values beyond any file become negative."""
    offset = entries["offset_bytes"].astype(np.int64)
    return offset, (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)


def _shifted(earlier: npt.NDArray[_Int], start: int, headless: bool) -> npt.NDArray[_Int]:
    """Return the value of the entry before each; *start* for the very first."""
    if not headless:
        return earlier
    return np.concatenate((np.array([start], earlier.dtype), earlier))


def agreements(
    stream: StoredStream, entries: Entries, gaps: list[Gap], first: int = 0
) -> Iterator[tuple[int, Agreement]]:
    """Yield, chunk by chunk, the number of the first entry and the comparison of the chunk."""
    for at in range(first, len(entries), CHUNK_ENTRIES):
        behind = min(at + CHUNK_ENTRIES, len(entries))
        yield at, agreement(stream, entries, gaps, at, behind)


def sound_headers(
    stream: StoredStream, entries: Entries
) -> Iterator[tuple[npt.NDArray[np.intp], Headers, U64]]:
    """Yield numbers, headers and ends of entries whose header parses; others were found already."""
    for first in range(0, len(entries), CHUNK_ENTRIES):
        some = entries[first : first + CHUNK_ENTRIES]
        headers = stream.headers(some)
        sound = np.flatnonzero(headers.payload_bytes > 0)
        ends = some["end"].astype(np.uint64)[sound]
        yield sound + first, headers.some(sound), ends

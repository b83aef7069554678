"""Decide the content of a stream's files after a crash; nothing is written here.

Rule: recovery reads and changes only what the synced record does not cover (in a closed segment,
whose repair a user requested, it reads all).
Rule: a torn tail is the end, and is counted.  Damage before it stays, for the viewer to report, and
the data after it is kept.  The index is a cache: if it disagrees with the data, the data is right.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Headers
from lttd.agreement import agreements, baseline_of, lost_before
from lttd.index import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    INDEX_HEADER,
    Entries,
    RecordFile,
    refuse_too_many_gaps,
    salvage_gaps,
)
from lttd.manifest import Position
from lttd.readfile import ReadFile, data_extents
from lttd.stored import StoredStream
from lttd.subbuffer import Gap, Reason, Unit

# The smallest block of any disk: zeros after a power loss begin at a multiple of it.
DISK_BLOCK_BYTES: Final = 512
_CHUNK_BYTES: Final = 1 << 20

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plan:
    """The future content of a stream's files; it is complete before anything is written."""

    keep: int
    """The number of first entries of the index that stay."""
    entries: Entries
    """The entries after them."""
    rebuilt: int
    data_bytes: int
    torn_bytes: int
    gaps: tuple[Gap, ...]
    cut_data: bool
    new_gaps: bool
    new_index: bool
    baseline: int
    """``events_discarded`` at the end of the segment before."""
    first_sequence: int
    """Of the first entry; 0 without one."""

    @property
    def changed(self) -> bool:
        """Tell whether any file is to be changed."""
        return self.cut_data or self.new_gaps or self.new_index

    @property
    def position(self) -> Position:
        """The end of the files after the recovery."""
        return Position(self.keep + len(self.entries), self.data_bytes, len(self.gaps))


class Planner:
    """Decide on the future content of a stream's files.

    Sub-buffers have the numbers of index entries.  ``[0, floor)`` are not read.  ``[floor, right)``
    have entries that are right in everything.  ``[right, chained)`` have entries that adjoin and
    are in the data.  Later ones are found by walking the data.
    """

    def __init__(
        self,
        stream: StoredStream,
        vouched: Position | None,
        *,
        power_kept: bool,
        ring_freed: bool = False,
    ) -> None:
        """*vouched* is the durable part; None: trust nothing, but cut nothing that is valid.

        *ring_freed*: the kernel freed the ring, with whatever the crashed recorder had not stored.
        """
        self._stream = stream
        self._data_bytes = stream.data_bytes
        self._old = RecordFile(stream.index_file(), ENTRY_DTYPE)
        gaps = ReadFile.if_there(stream.segment.place(stream.paths.gaps))
        refuse_too_many_gaps(stream.paths.gaps, gaps.size_bytes if gaps else 0)
        raw_gaps = gaps.read(0, gaps.size_bytes) if gaps else b""
        self._gaps, self._gaps_differ = salvage_gaps(raw_gaps)
        self._baseline = baseline_of(stream.record, self._old, self._gaps)
        self._floor = self._trusted(vouched) if vouched else 0
        self._judge()
        if (vouched is None or not power_kept) and self._find_missing_gaps():
            self._judge()
        if vouched is None:
            self._floor = self._right
        # An entry is written after its data; only after a power loss it can exist without data.
        self._cut_no_lower = self._right if power_kept else self._floor
        self._zeros_are_torn = not power_kept
        self._ring_freed = ring_freed

    def _trusted(self, vouched: Position) -> int:
        """Return the number of trusted entries; 0 if a file is shorter than its durable part."""
        there = len(self._old) >= vouched.entries and self._data_bytes >= vouched.data_bytes
        return (
            vouched.entries
            if there and self._end_of(vouched.entries) == (vouched.data_bytes)
            else 0
        )

    def _end_of(self, count: int) -> int:
        """Return the end of the first *count* entries in the data."""
        if not count:
            return 0
        last = self._old[count - 1]
        return int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3)

    def _judge(self) -> None:
        self._right = self._chained = self._floor
        self._claimed_bytes = self._end_of(self._floor)
        all_right, within = True, True
        for at, found in agreements(self._stream, self._old, self._gaps, self._floor):
            chain = found.adjoins & found.in_order
            length = _leading(chain)
            self._claimed_bytes = self._end_of(at + length)
            if all_right:
                good = _leading(found.right)
                self._right = at + good
                all_right = good == len(chain)
            if within:
                inside = _leading(chain & found.inside)
                self._chained = at + inside
                within = inside == len(chain)
            if length < len(chain):
                if found.adjoins[length] and not found.in_order[length]:
                    # The entry before may be the wrong one: its end may be too late.
                    self._right = max(min(self._right, at + length - 1), self._floor)
                return

    def _find_missing_gaps(self) -> bool:
        """Make gaps again for losses that the index counts and the gaps file lacks."""
        first, behind = self._floor, self._chained
        counts = self._old[max(first - 1, 0) : behind]["events_discarded"].astype(np.int64)
        if not first:
            counts = np.insert(counts, 0, self._baseline)
        known = lost_before(self._gaps, first, behind).astype(np.int64)
        missing = np.diff(counts) - known
        rows = np.flatnonzero(missing)
        # A smaller or absurdly larger count is a damaged entry.
        if not len(rows) or missing.min() < 0 or missing.max() >= 1 << 32:
            return False
        summary = self._stream.record.summary
        if summary and int(counts[-1] - counts[0]) > summary.events_lost:
            return False
        for row in rows.tolist():
            begin, count = int(self._old[first + row]["begin"]), int(missing[row])
            lost = Gap(first + row, Reason.DISCARDED, Unit.EVENTS, count, begin, begin)
            self._gaps.append(lost)
        self._gaps.sort(key=lambda gap: gap.row)
        self._gaps_differ = True
        return True

    def plan(self) -> Plan:
        """Return the plan for all files of the stream."""
        headers, old, witnessed = self._subbuffers()
        count = self._without_torn_tail(headers, witnessed)
        total = self._floor + count
        headers = headers.some(slice(count))
        data_bytes = self._end_of(self._floor)
        if count:
            size = self._stream.slot_bytes or int(headers.payload_bytes[-1])
            data_bytes = int(headers.offset_bytes[-1]) + size
        torn_bytes = max(self._data_bytes, self._claimed_bytes) - data_bytes
        keep = min(self._right, total)
        skip = keep - self._floor
        rebuild = witnessed[skip:count]
        entries = self._entries(keep, headers.some(slice(skip, None)), old[skip:count], rebuild)
        gaps = self._all_gaps(total, torn_bytes, entries)
        whole_bytes = len(INDEX_HEADER) + total * ENTRY_BYTES
        first = self._old[:1] if keep else entries[:1]
        return Plan(
            keep=keep,
            entries=entries,
            rebuilt=int(rebuild.sum()),
            data_bytes=data_bytes,
            torn_bytes=torn_bytes,
            gaps=gaps,
            cut_data=data_bytes != self._data_bytes,
            new_gaps=self._gaps_differ or list(gaps) != self._gaps,
            new_index=self._old.size_bytes != whole_bytes
            or self._old.header != INDEX_HEADER
            or self._old[keep:total].tobytes() != entries.tobytes(),
            baseline=self._baseline,
            first_sequence=int(first["sequence"][0]) if len(first) else 0,
        )

    def _subbuffers(self) -> tuple[Headers, Entries, Mask]:
        """Return the sub-buffers from the floor on, their entries (zero: none), and a mask.

        The mask is true if a sub-buffer's own header is valid; the others are known by their entry.
        """
        stream = self._stream
        entries = self._old[self._floor : self._chained]
        offset = entries["offset_bytes"].astype(np.int64)
        size = (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
        content = (entries["content_bits"] >> np.uint64(3)).astype(np.int64)
        by_entry = Headers(offset, size, content, entries["begin"].astype(np.uint64))
        if stream.abi is None:
            return by_entry, entries, np.zeros(len(entries), np.bool_)
        stated = stream.headers(entries)
        valid = stated.payload_bytes > 0
        if not stream.slot_bytes:
            valid &= stated.payload_bytes == size
        count = int(np.flatnonzero(valid)[-1]) + 1 if valid.any() else 0
        known = Headers(
            *(np.where(valid, a, b)[:count] for a, b in zip(stated, by_entry, strict=True))
        )
        start = self._end_of(self._floor)
        if count:
            start = int(offset[count - 1] + size[count - 1])
        walked = stream.walk(start)
        headers = Headers(*(np.concatenate(pair) for pair in zip(known, walked, strict=True)))
        more = len(walked.begin)
        # Not concatenate(), which would change the fields to the machine's byte order.
        old = np.zeros(count + more, ENTRY_DTYPE)
        old[:count] = entries[:count]
        return headers, old, np.concatenate((valid[:count], np.ones(more, np.bool_)))

    def _without_torn_tail(self, headers: Headers, witnessed: Mask) -> int:
        """Return the number of sub-buffers without incomplete ones at the end."""
        stream, count = self._stream, len(witnessed)
        lowest = self._cut_no_lower - self._floor
        if self._zeros_are_torn:
            written = self._written_bytes()
            ends = headers.offset_bytes + headers.payload_bytes
            torn = np.flatnonzero(ends[lowest:] > written)
            count = lowest + int(torn[0]) if len(torn) else count
        while count > lowest and stream.abi is not None:
            if witnessed[count - 1] and not stream.decode(headers, count - 1).damage:
                break
            count -= 1
        return count

    def _written_bytes(self) -> int:
        """Return the begin of the zeros at the end of the data, which may be unwritten."""
        start = self._end_of(self._floor)
        written = start
        extents = data_extents(self._stream.segment.place(self._stream.paths.data), start)
        # A hole is zeros that need not be read.
        for first, behind in reversed(extents):
            written = _behind_nonzero(self._stream, first, min(behind, self._data_bytes))
            if written > first:
                break
        else:
            written = start
        return -(-written // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES

    def _entries(self, keep: int, headers: Headers, old: Entries, rebuild: Mask) -> Entries:
        """Return the entries from number *keep* on."""
        stream, count = self._stream, len(rebuild)
        entries = old.copy()
        if not count:
            return entries
        before = self._old[keep - 1] if keep else None
        size = stream.slot_bytes or headers.payload_bytes[rebuild]
        entries["offset_bytes"][rebuild] = headers.offset_bytes[rebuild]
        entries["packet_bits"][rebuild] = np.uint64(8) * np.asarray(size, np.uint64)
        entries["content_bits"][rebuild] = headers.content_bytes[rebuild] * 8
        entries["stream_id"] = stream.info.ctf_stream_id
        entries["instance_id"] = stream.info.id.cpu
        begin = np.where(rebuild, headers.begin, entries["begin"].astype(np.uint64))
        begin = _running(begin, int(before["begin"]) if before is not None else 0)
        end = np.where(rebuild, self._ends(headers, begin, rebuild), entries["end"].astype("u8"))
        entries["begin"] = begin
        end = np.maximum(end, begin)
        entries["end"] = _running(end, int(before["end"]) if before is not None else 0)
        lost = np.cumsum(lost_before(self._gaps, keep, keep + count))
        base = before["events_discarded"] if before is not None else self._baseline
        entries["events_discarded"] = lost + np.uint64(base)
        last = int(before["sequence"]) if before is not None else -1
        entries["sequence"] = self._numbers(headers, entries, rebuild, last)
        return entries

    def _numbers(self, headers: Headers, entries: Entries, rebuild: Mask, before: int) -> I64:
        """Return the number of each sub-buffer: the tracer's own if these rise, else in a row."""
        stream, known = self._stream, entries["sequence"].astype(np.int64)
        stated = stream.numbers(headers) if stream.abi is not None and rebuild.any() else None
        if stated is not None:
            numbers = np.where(rebuild, stated.astype(np.int64), known)
            if (np.diff(numbers, prepend=before) > 0).all():
                return numbers
        return _in_a_row(known, rebuild, before)

    def _ends(self, headers: Headers, begin: U64, rebuild: Mask) -> U64:
        """Return the end of each sub-buffer: from its header, else the begin of the next one.

        The end of the last one comes from its events, if its entry is to be rebuilt.
        """
        stream = self._stream
        stated = stream.closed_at(headers) if stream.abi is not None else None
        if stated is not None:
            return stated
        ends = np.append(begin[1:], begin[-1])
        if rebuild[-1] and stream.abi is not None:
            ends[-1] = max(ends[-1], stream.decode(headers, len(begin) - 1).end[0])
        return ends

    def _all_gaps(self, total: int, torn_bytes: int, entries: Entries) -> tuple[Gap, ...]:
        gaps = [replace(gap, row=min(gap.row, total)) for gap in self._gaps]
        last = entries[-1:] if len(entries) else self._old[max(total - 1, 0) : total]
        end = int(last["end"][0]) if len(last) else 0
        found = [Gap(total, Reason.TORN, Unit.BYTES, torn_bytes, end, end)] if torn_bytes else []
        if self._ring_freed:
            found.append(Gap(total, Reason.ABANDONED, Unit.SUBBUFFERS, None, end, end))
        # A recovery that crashed may have stored them already, torn bytes with the larger size.
        known = {(gap.row, gap.reason, gap.unit) for gap in gaps}
        gaps += [gap for gap in found if (gap.row, gap.reason, gap.unit) not in known]
        return tuple(gaps)


def _behind_nonzero(stream: StoredStream, start: int, end: int) -> int:
    """Return the begin of the zeros that reach to *end*; *start* if there are only zeros."""
    for behind in range(end, start, -_CHUNK_BYTES):
        first = max(behind - _CHUNK_BYTES, start)
        nonzero = np.flatnonzero(np.frombuffer(stream.read(first, behind), np.uint8))
        if len(nonzero):
            return first + int(nonzero[-1]) + 1
    return start


def _leading(mask: Mask) -> int:
    """Return the number of true values before the first false one."""
    return len(mask) if mask.all() else int(mask.argmin())


def _running(values: U64, start: int) -> U64:
    maxima: U64 = np.maximum.accumulate(np.maximum(values, np.uint64(start)))
    return maxima


def _in_a_row(known: I64, rebuild: Mask, before: int) -> I64:
    """Number rebuilt entries from the last one that was not rebuilt."""
    numbers = np.arange(len(known), dtype=np.int64)
    last = np.maximum.accumulate(np.where(rebuild, -1, numbers))
    base = np.where(last >= 0, known[last] - last, before + 1)
    return base + numbers

"""``lttv cut``: a smaller trace, of whole sub-buffers that are copied and never decoded.

Rule: what a window costs is what it holds: a bisection per stream, a copy in the kernel, and the
index entries of the window alone.
Invariant: the cut is an ordinary, closed trace.  A loss is kept where it touches the window, or
stands just before the first sub-buffer that was kept (its own header may tell of it); all that was
lost earlier is in the baseline, so that the index's running totals hold.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from lttd.clock import Snapshot
from lttd.errors import NotATraceError, TraceDamagedError
from lttd.files import Disk
from lttd.index import (
    ENTRY_BYTES,
    GAPS_HEADER,
    INDEX_HEADER,
    Entries,
    encode_gaps,
)
from lttd.stored import CHUNK_ENTRIES, StoredStream
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Unit
from lttd.tracedir import MANIFEST, SYNCED, Manifest, SegmentPaths, StreamRecord
from lttd.view.info import seconds
from lttd.view.output import new_output
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace

# Written by lttd about the whole recording, so not true of a part of it.
_OF_THE_WHOLE: Final = ("per_cpu",)


def cut(trace: Trace, window: Window, out: Path, disk: Disk | None = None) -> Trace:
    """Copy what *window* holds to a new trace at *out*; return it opened.

    Raises:
        UsageError: *out* is there already.
        NotATraceError: nothing was recorded within the window.
        TraceDamagedError: an index cannot be used; ``lttv check --repair`` makes it again.
        StorageError: *out* could not be written; nothing is left of it.
    """
    disk = disk or Disk()
    with new_output(out, disk) as made:
        disk.make_directory(made)
        kept = 0
        for segment in trace.segments:
            parts = _parts(segment, window)
            if any(not part.empty for part in parts):
                _cut_segment(segment, parts, window, made, disk)
                kept += 1
        if not kept:
            raise NotATraceError(_nothing_there(trace))
    return Trace(out)


def _nothing_there(trace: Trace) -> str:
    span = trace.span
    words = f"{trace.path}: nothing was recorded within these times"
    if span is None:
        return words
    return f"{words}; it has {seconds(span.begin)} to {seconds(span.end)}"


class _Part:
    """What of one stream lies in the window: entries ``[first:behind)``, and gaps."""

    def __init__(self, stream: StoredStream, begin: int, end: int) -> None:
        self.stream = stream
        index = stream.index
        self.first = index.first_at_or_after(begin)
        self.behind = max(index.first_beginning_after(end), self.first)
        self.entries: Entries = index.entries(self.first, self.behind)
        self.gaps = [
            replace(gap, row=min(gap.row, self.behind) - self.first)
            for gap in _gaps_at(stream.gaps, self.first, self.behind)
            if self._keeps(gap, begin, end)
        ]

    @property
    def empty(self) -> bool:
        return not len(self.entries) and not self.gaps

    def _keeps(self, gap: Gap, begin: int, end: int) -> bool:
        if gap.row < self.behind:
            return True
        return gap.begin <= end and gap.end >= begin

    @property
    def baseline(self) -> int:
        """events_discarded before the first gap that was kept."""
        if not len(self.entries):
            before = self.stream.index.entries(max(self.first - 1, 0), self.first)
            base = self.stream.record.baseline_discarded
            return int(before["events_discarded"][-1]) if len(before) else base
        told = sum(
            gap.count or 0
            for gap in self.gaps
            if gap.row == 0 and gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS
        )
        return int(self.entries["events_discarded"][0]) - told

    def extent(self) -> tuple[int, int]:
        """Return where the sub-buffers lie in the data file: (first byte, length)."""
        if not len(self.entries):
            return 0, 0
        start = int(self.entries["offset_bytes"][0])
        last = self.entries[-1]
        length = int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3) - start
        path = self.stream.paths
        if length < 0 or start + length > path.data.stat().st_size:
            at = len(INDEX_HEADER) + (self.behind - 1) * ENTRY_BYTES
            reason = "names bytes that the data does not have; see lttv check"
            raise TraceDamagedError(path.index, at, reason)
        return start, length


def _gaps_at(gaps: list[Gap], first: int, behind: int) -> list[Gap]:
    """Return the gaps before the rows ``[first:behind]``; they are in the order of rows."""
    low = bisect_left(gaps, first, key=lambda gap: gap.row)
    at_end = len(gaps)
    high = bisect_left(gaps, behind + 1, low, at_end, key=lambda gap: gap.row)
    return gaps[low:high]


def _parts(segment: Segment, window: Window) -> list[_Part]:
    begin, end = window.bounds(segment)
    return [_Part(stream, begin, end) for stream in segment.streams]


def _cut_segment(
    segment: Segment, parts: list[_Part], window: Window, out: Path, disk: Disk
) -> None:
    paths = SegmentPaths(out / segment.paths.directory.name)
    disk.make_directory(paths.index)
    for name in _attachments(segment.paths.directory):
        _copy(disk, segment.paths.directory / name, paths.directory / name)
    begin, end = window.bounds(segment)
    old = segment.manifest
    manifest = replace(
        old,
        source=old.source
        | {"cut": {"begin": begin, "end": end, "from": str(segment.paths.directory)}},
        state="closed",
        clock_snapshots=_snapshots(old.clock_snapshots, begin, end),
        streams=[_write(part, paths, old, disk) for part in parts],
    )
    disk.replace(paths.manifest, manifest.encode())


def _write(part: _Part, segment: SegmentPaths, manifest: Manifest, disk: Disk) -> StreamRecord:
    """Write a stream's files; return what the manifest says of it."""
    start, length = part.extent()
    record = StreamRecord(part.stream.info, part.baseline)
    paths = segment.stream(record.name)
    _copy(disk, part.stream.paths.data, paths.data, start, length)
    index = disk.open(paths.index)
    try:
        at = index.write_at([INDEX_HEADER], 0)
        for first in range(0, len(part.entries), CHUNK_ENTRIES):
            some = part.entries[first : first + CHUNK_ENTRIES].copy()
            some["offset_bytes"] -= np.uint64(start)
            at = index.write_at([some.tobytes()], at)
    finally:
        index.close()
    if part.gaps:
        gaps = disk.open(paths.gaps)
        try:
            gaps.write_at([GAPS_HEADER, encode_gaps(part.gaps, 0)], 0)
        finally:
            gaps.close()
    made = StoredStream(segment, manifest, record)
    record.summary = made.derived_summary(made.index.entries(), part.gaps)
    return record


def _copy(
    disk: Disk, source: Path, target: Path, start: int = 0, length: int | None = None
) -> None:
    disk.make_directory(target.parent)
    file = disk.open(target, truncate=True)
    try:
        with source.open("rb") as opened:
            fd = opened.fileno()
            length_bytes = os.fstat(fd).st_size if length is None else length
            file.copy_from(fd, start, length_bytes, 0)
    finally:
        file.close()


def _attachments(segment: Path) -> Iterator[Path]:
    """Yield the files beside the streams, and CTF's own description of them."""
    for directory, below, names in os.walk(segment):
        inside = Path(directory).relative_to(segment)
        below[:] = [] if inside == Path("streams") else [d for d in below if d not in _OF_THE_WHOLE]
        for name in names:
            of_streams = inside == Path("streams") and name != "metadata"
            if name not in (MANIFEST, SYNCED) and not of_streams and not name.startswith("."):
                yield inside / name


def _snapshots(snapshots: list[Snapshot], begin: int, end: int) -> list[Snapshot]:
    """Return those that convert the window's times: within it, and one on either side."""
    times = sorted(snapshot.trace for snapshot in snapshots)
    low = max((time for time in times if time <= begin), default=0)
    high = min((time for time in times if time >= end), default=times[-1] if times else 0)
    return [snapshot for snapshot in snapshots if low <= snapshot.trace <= high]

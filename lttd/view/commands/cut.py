"""``lttv cut``: copy a window to a smaller trace, in whole sub-buffers, without decoding.

Rule: the cost depends on the window only: a bisection per stream, a copy in the kernel, and the
index entries of the window.
Invariant: the cut is an ordinary, closed trace; its baseline holds the losses before those that are
kept, so the index's running totals stay right.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from lttd.beneath import Place
from lttd.clock import Snapshot
from lttd.errors import NotATraceError, TraceDamagedError
from lttd.files import Disk
from lttd.index import GAPS_HEADER, INDEX_HEADER, encode_gaps
from lttd.manifest import Manifest, StreamRecord
from lttd.openat import close_fd
from lttd.stored import CHUNK_ENTRIES, StoredStream
from lttd.tracedir import MANIFEST, OCCURRENCES, SYNCED, SegmentPaths, is_unfinished
from lttd.view.output import new_output, nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace

# lttd's totals of the whole recording, which are wrong for a part of it.
_OF_THE_WHOLE: Final = ("per_cpu",)


def cut(trace: Trace, window: Window, out: Path, disk: Disk | None = None) -> Trace:
    """Copy *window* of *trace* to a new trace at *out*; return that trace, opened.

    Raises:
        UsageError: *out* exists already.
        NotATraceError: nothing was recorded within the window.
        TraceDamagedError: an index cannot be used; ``lttv check --repair`` rebuilds it.
        StorageError: *out* could not be written; nothing of it stays.
    """
    disk = disk or Disk()
    with new_output(out, disk, trace) as made:
        disk.make_directory(made)
        kept = 0
        for segment in trace.segments:
            parts = parts_within(segment, window)
            if any(not part.empty for part in parts):
                _cut_segment(segment, parts, window, made, disk)
                kept += 1
        if not kept:
            raise NotATraceError(nothing_within(trace))
    return Trace(out)


def _cut_segment(
    segment: Segment, parts: list[Selection], window: Window, out: Path, disk: Disk
) -> None:
    paths = SegmentPaths(out / segment.paths.directory.name, disk.hold(out))
    disk.make_directory(paths.index)
    for name in _attachments(segment.paths):
        source = segment.paths.place(segment.paths.directory / name)
        _copy(disk, source, paths.directory / name)
    begin, end = window.bounds(segment)
    old = replace(segment.manifest, layout=_layout_of(segment))
    how = {"cut": {"begin": begin, "end": end, "from": str(segment.paths.directory)}}
    whole = window.everything and is_foreign(segment)
    manifest = replace(
        old,
        source=old.source | ({} if whole else how),
        state="closed",
        compression="",
        clock_snapshots=_snapshots(old.clock_snapshots, begin, end),
        streams=[_write(part, paths, old, disk) for part in parts],
    )
    disk.replace(paths.manifest, manifest.encode())


def is_foreign(segment: Segment) -> bool:
    """Tell whether a segment is of another program's trace."""
    return any(stream.is_foreign for stream in segment.streams)


def _layout_of(segment: Segment) -> str:
    """Return the layout of the copy: pages of others lose their padding."""
    return "packed" if is_foreign(segment) else segment.manifest.layout


def _write(part: Selection, segment: SegmentPaths, manifest: Manifest, disk: Disk) -> StreamRecord:
    """Write a stream's files; return its record for the manifest."""
    start, length = part.extent()
    if part.stream.is_foreign:
        from lttd.view.packing import write_packed  # noqa: PLC0415  (few traces are foreign)

        return write_packed(part, segment, manifest, disk)
    record = StreamRecord(part.stream.info, part.baseline)
    paths = segment.stream(record.name)
    _copy_data(disk, part.stream, paths.data, start, length)
    index = disk.open(paths.index)
    try:
        at = index.write_at([INDEX_HEADER], 0)
        for first in range(0, len(part.entries), CHUNK_ENTRIES):
            some = part.entries[first : first + CHUNK_ENTRIES]
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
    record.summary = made.derived_summary(made.index, part.gaps)
    return record


def _copy_data(disk: Disk, stream: StoredStream, target: Path, start: int, length: int) -> None:
    if stream.file is None:
        raise TraceDamagedError(stream.paths.data, 0, "there is no such file")
    data = disk.open(target, truncate=True)
    try:
        stream.file.copy_to(data, start, length, 0)
    finally:
        data.close()
    if stream.damage:
        raise stream.damage[0]


def _copy(disk: Disk, source: Place, target: Path) -> None:
    disk.make_directory(target.parent)
    file = disk.open(target, truncate=True)
    try:
        fd = source.open()
        try:
            file.copy_from(fd, 0, os.fstat(fd).st_size, 0)
        finally:
            close_fd(fd)
    except OSError as error:
        raise TraceDamagedError(Path(source.path), 0, error.strerror or str(error)) from None
    finally:
        file.close()


def _attachments(segment: SegmentPaths) -> Iterator[Path]:
    """Yield the files beside the streams, CTF's description of them included."""
    try:
        for directory, below, names in segment.base.walk(segment.directory):
            inside = directory.relative_to(segment.directory)
            is_streams = inside == Path("streams")
            below[:] = [] if is_streams else [d for d in below if not _is_left_out(d, segment)]
            for name in names:
                of_streams = is_streams and name != "metadata"
                of_all = name in (MANIFEST, SYNCED, OCCURRENCES)
                if not of_all and not of_streams and not name.startswith("."):
                    yield inside / name
    except OSError as error:
        where = Path(error.filename or segment.directory)
        raise TraceDamagedError(where, 0, error.strerror or str(error)) from None


def _is_left_out(directory: str, segment: SegmentPaths) -> bool:
    """Tell whether the files of a directory are those of streams, or of the whole recording."""
    return directory in (*_OF_THE_WHOLE, segment.compressed.name) or is_unfinished(directory)


def _snapshots(snapshots: list[Snapshot], begin: int, end: int) -> list[Snapshot]:
    """Return the snapshots that convert the window's times: within it, and one on either side."""
    times = sorted(snapshot.trace for snapshot in snapshots)
    low = max((time for time in times if time <= begin), default=0)
    high = min((time for time in times if time >= end), default=times[-1] if times else 0)
    return [snapshot for snapshot in snapshots if low <= snapshot.trace <= high]

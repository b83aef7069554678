"""A source and the segment that it is recorded into, from opening to closing both."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lttd.clock import Snapshot, take_snapshot
from lttd.errors import LttdError, StorageError
from lttd.files import Disk, Lock, storage_error
from lttd.handles import handle_of
from lttd.lane import Lane
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.sources.base import Owner, Source, SourceInfo, Stored, Stream, When
from lttd.stats import StreamStats
from lttd.tracedir import (
    LOCK,
    Manifest,
    SegmentPaths,
    foreign_names,
    made_directory,
    prepare_trace,
    segments_below,
)

# So many lines of what is left aside help; more would hide the others.
MOST_LINES: Final = 8


@contextmanager
def locked_trace(disk: Disk, trace: Path, *, append: bool) -> Iterator[int]:
    """Hold the trace directory; yield the number of the next segment.

    Directories that were made for it and are empty at the end, because nothing came to be recorded,
    are removed.

    Raises:
        UsageError: it holds a trace and *append* is not set, or something that is no trace; or it
            is not this user's alone.
        LockedError: another lttd records into it.
    """
    with made_directory(trace) as directory:
        disk.hold(directory)
        prepare_trace(disk, trace, append=append)
        disk.trace_lock = lock = Lock(directory, trace / LOCK)
        try:
            # Again: another lttd may have ended meanwhile.
            yield prepare_trace(disk, trace, append=append)
        finally:
            disk.trace_lock = None
            lock.release()


def owner_of(disk: Disk, trace: Path) -> Owner:
    """Return how a source knows the trace that it is recorded into."""
    directory = disk.hold(trace)

    def stored(segment: str, stream: str, first: int) -> Stored | None:
        from lttd.unstored import stored_from  # noqa: PLC0415  (needed after a kill only)

        try:
            return stored_from(directory, segment, stream, first)
        except Exception:  # noqa: BLE001  (whatever an old segment holds, recording starts)
            return None

    status = os.fstat(directory.fd)
    handle = handle_of(directory.fd)
    return Owner(status.st_dev, status.st_ino, os.path.realpath(trace), handle, stored)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A segment that a killed lttd had left open and that is whole again, or one left as it is."""

    line: str
    """What the user is told of it."""
    streams: tuple[StreamStats, ...]
    """What was cut off each stream, so that the metrics of this run count it."""


def recover_open_segments(disk: Disk, trace: Path) -> list[Recovered]:
    """Make whole what a killed lttd has left open.

    What cannot be recovered, and what is not a segment, is reported and left as it is: old files
    never stop a recording.
    """
    directory = disk.hold(trace)
    recovered: list[Recovered] = []
    left = [f"{trace / name}: is not a segment" for name in foreign_names(directory)]
    for segment in segments_below(directory):
        try:
            recovered += _recovered(disk, segment)
        except LttdError as error:
            left.append(str(error))
        except OSError as error:
            left.append(str(storage_error(segment.directory, error)))
        except Exception as error:  # noqa: BLE001  (whatever an old segment holds)
            left.append(f"{segment.directory}: cannot be recovered: {error!r}")
    recovered += [Recovered(f"{line}; left as it is", ()) for line in left[:MOST_LINES]]
    if len(left) > MOST_LINES:
        more = f"{trace}: {len(left) - MOST_LINES} more are left as they are"
        recovered.append(Recovered(more, ()))
    return recovered


def _recovered(disk: Disk, segment: SegmentPaths) -> list[Recovered]:
    """Recover a segment if it was left open.

    Raises:
        LttdError: it cannot be recovered, or nobody can tell what it holds.
        OSError: it is not ours.
    """
    has_manifest = not segment.base.is_missing(segment.manifest)
    if has_manifest and Manifest.read(segment.place(segment.manifest)).state != "open":
        return []
    from lttd.recover import holds_nothing, recover  # noqa: PLC0415  (seldom needed)

    if holds_nothing(segment):
        segment.base.enter(segment.directory).refuse_foreign()
        disk.remove_tree(segment.directory)
        return []
    found = recover(segment, disk)
    torn_bytes = sum(stream.torn_bytes for stream in found)
    line = f"{segment.directory}: was left open; recovered, {torn_bytes} torn bytes cut"
    return [Recovered(line, tuple(stream.stats() for stream in found))]


Served = tuple[Stream, Lane]
"""A stream, and where its batches go."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A source and its open segment."""

    source: Source
    segment: OpenSegment
    _admitted_next: list[Stream] = field(default_factory=list)
    """Streams that have appeared, and whose files could not be made yet."""

    @classmethod
    def begin(cls, recorder: Recorder, trace: Path, number: int, source: Source, layout: str,
              disk: Disk) -> "Recording":  # fmt: skip
        """Open segment *number* of *trace* for *source*, with what decoding needs in it.

        Raises:
            StorageError: it cannot be written; nothing of it is left behind.
        """
        contents = SegmentContents(
            source=_told(source.info),
            layout=layout,
            streams=tuple(stream.info for stream in source.streams),
            snapshot=_snapshot(source),
            disk=disk,
        )
        recording = cls(source, recorder.open_segment(trace, number, contents))
        try:
            recording.attach(When.OPEN)
        except StorageError:
            recording.segment.discard()
            raise
        return recording

    def streams_and_lanes(self) -> Sequence[Served]:
        """Pair each stream with where its batches go."""
        return [(stream, self.segment.lanes[stream.info.id]) for stream in self.source.streams]

    def admit(self) -> Sequence[Served]:
        """Make files for streams that have appeared; return these streams and their lanes.

        Raises:
            StorageError: that could not be done; the next call tries again.
        """
        self._admitted_next.extend(self.source.discover())
        if not self._admitted_next:
            return ()
        self.segment.add_streams(stream.info for stream in self._admitted_next)
        admitted = [(stream, self.segment.lanes[stream.info.id]) for stream in self._admitted_next]
        self._admitted_next.clear()
        return admitted

    def attach(self, when: When) -> None:
        """Write what the segment needs beside its streams."""
        for attachment in self.source.attachments(when):
            self.segment.attach(attachment.name, attachment.data, append=attachment.append)

    def mark_progress(self) -> None:
        """Leave a sign of life, and how far it has come, where a kill leaves data in the kernel."""
        self.source.mark_progress(self.segment.paths.directory.name)

    def note_clock(self) -> None:
        """Keep one more clock snapshot."""
        snapshot = _snapshot(self.source)
        if snapshot is not None:
            self.segment.note_clock(snapshot)

    def close(self) -> None:
        """Wait for the backlog, then close the segment; the source stays open.

        Raises:
            StorageError: what was written is whole, but the segment is not closed in order.
        """
        counters = {stream.info.id: dict(stream.counters()) for stream in self.source.streams}
        try:
            self.segment.settle()
            self.attach(When.CLOSE)
        finally:
            self.segment.close(_snapshot(self.source), counters)


def _told(info: SourceInfo) -> dict[str, Any]:
    """Return what the manifest says of a source; snapshots stand elsewhere in it."""
    told = asdict(info)
    del told["snapshot"]
    return told


def _snapshot(source: Source) -> Snapshot | None:
    if source.info.snapshot is not None:
        return source.info.snapshot
    return take_snapshot(source.now) if source.info.live else None

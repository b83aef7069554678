"""Record a source into a segment, from opening to closing both."""

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
from lttd.manifest import Manifest
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.sources.base import Attachments, Owner, Source, SourceInfo, Stored, Stream, When
from lttd.stats import StreamStats
from lttd.terminal import Level, say
from lttd.tracedir import (
    LOCK,
    SegmentPaths,
    foreign_names,
    made_directory,
    prepare_trace,
    segments_below,
)

# The most lines on old files that are left alone; more would hide other lines.
MOST_LINES: Final = 8


@contextmanager
def locked_trace(disk: Disk, trace: Path, *, append: bool) -> Iterator[int]:
    """Lock the trace directory; yield the number of the next segment.

    At the end, directories that were made for the trace and are still empty are removed.

    Raises:
        UsageError: it holds a trace and *append* is not set, or holds other files, or another user
            may write to it.
        LockedError: another lttd records into it.
    """
    with made_directory(trace) as directory:
        disk.hold(directory)
        prepare_trace(disk, trace, append=append)
        disk.trace_lock = lock = Lock(directory, trace / LOCK)
        try:
            # Look again, with the lock: another lttd may have ended meanwhile.
            yield prepare_trace(disk, trace, append=append)
        finally:
            disk.trace_lock = None
            lock.release()


def owner_of(disk: Disk, trace: Path) -> Owner:
    """Return the identity of a trace directory, for the sources that are recorded into it."""
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
    """The result for a segment that a killed lttd left open: recovered, or left as it is."""

    line: str
    """The line for the user."""
    streams: tuple[StreamStats, ...]
    """The counters of each stream with its torn bytes, for the metrics of this run."""


def recover_open_segments(disk: Disk, trace: Path) -> list[Recovered]:
    """Recover the segments that a killed lttd left open.

    Segments that cannot be recovered, and files that are not segments, are reported and left as
    they are: old files never stop a recording.
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
        LttdError: it cannot be recovered, or its manifest cannot be read.
        OSError: it belongs to another user.
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
"""A stream, and the lane for its batches."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A source and its open segment."""

    source: Source
    segment: OpenSegment
    _attachments: Attachments
    """Those of this segment."""
    _admitted_next: list[Stream] = field(default_factory=list)
    """New streams whose files could not be made yet."""

    @classmethod
    def begin(cls, recorder: Recorder, trace: Path, number: int, source: Source, layout: str,
              disk: Disk) -> "Recording":  # fmt: skip
        """Open segment *number* of *trace* for *source*, with the files that decoding needs.

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
        segment = recorder.open_segment(trace, number, contents)
        recording = cls(source, segment, source.attachments())
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
        """Write the files that the segment needs beside its streams."""
        for attachment in self._attachments(when):
            self.segment.attach(attachment.name, attachment.data, append=attachment.append)

    def mark_progress(self) -> None:
        """Note that lttd lives and how far it has read, if a kill leaves data in the kernel."""
        self.source.mark_progress(self.segment.paths.directory.name)

    def note_clock(self) -> None:
        """Add a clock snapshot to the manifest."""
        snapshot = _snapshot(self.source)
        if snapshot is not None:
            self.segment.note_clock(snapshot)

    def close(self) -> None:
        """Wait for the backlog, then close the segment; the source stays open.

        Raises:
            StorageError: the stored data is whole, but the segment is not closed in order.
        """
        counters = {stream.info.id: dict(stream.counters()) for stream in self.source.streams}
        try:
            self.segment.settle()
            self.attach(When.CLOSE)
        finally:
            self.segment.close(_snapshot(self.source), counters)


def tell_notes(source: Source) -> None:
    """Report what the kernel changed or refused since the last call."""
    for note in source.notes():
        say(f"{source.info.spec}: {note}", Level.WARNING)


def _told(info: SourceInfo) -> dict[str, Any]:
    """Return the source's object in the manifest, without snapshots."""
    told = asdict(info)
    del told["snapshot"]
    return told


def _snapshot(source: Source) -> Snapshot | None:
    if source.info.snapshot is not None:
        return source.info.snapshot
    return take_snapshot(source.now) if source.info.live else None

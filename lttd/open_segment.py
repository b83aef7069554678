"""An open segment on disk: the files of its streams, its manifest, its synced record, its lock.

Rule: data, then the index, then names are synced before the synced record says so.
Rule: the manifest says ``closed`` only after the backlog was written and synced.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from lttd.baselines import Baselines
from lttd.clock import MOST_SNAPSHOTS, Snapshot, thinned
from lttd.errors import StorageError
from lttd.files import Disk
from lttd.lane import Jobs, Lane
from lttd.lockfile import Lock
from lttd.manifest import (
    Manifest,
    Position,
    StreamRecord,
    encode_synced,
    recorded_source,
    this_machine,
)
from lttd.readfile import read_head
from lttd.stats import StreamStats, StreamSummary, summarize
from lttd.stream_files import StreamFiles
from lttd.subbuffer import StreamId, StreamInfo
from lttd.tracedir import SegmentPaths, create_segment, reveal_segment
from lttd.version import VERSION
from lttd.writer import PREALLOCATE_BYTES, StreamFile

# Reserved disk space, so that a full disk has room for the last gaps and the manifest.
RESERVE_BYTES: Final = 256 << 10
# Blocks ahead of the ends of all files of a segment of limited size: at most this part of it.
AHEAD_SHARE: Final = 8
MOST_RELOADS: Final = 64


class Writers(Protocol):
    """The threads that write the lanes of a segment."""

    cached_bytes: int
    segment_bytes: int | None

    def lane_queue(self, number: int) -> Jobs:
        """Return the queue of the thread that writes stream *number*."""
        ...

    def drain(self) -> None:
        """Wait until all batches offered so far are written or counted as lost."""
        ...

    def failed(self, error: StorageError, where: Path | None = None) -> None:
        """Count a failed write."""
        ...

    def look(self, segment: "OpenSegment") -> None:
        """Report a segment that was moved."""
        ...

    def forget(self, segment: "OpenSegment") -> None:
        """Stop syncing *segment*, which is closed or removed."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """The source and streams for which a segment is opened."""

    source: Mapping[str, Any]
    """The source's object in the manifest: kind, spec, clock, settings, previous_run."""
    layout: str
    streams: tuple[StreamInfo, ...]
    snapshot: Snapshot | None
    """None if the data is from an earlier time, and has no clock snapshot."""
    disk: Disk
    baselines: Baselines | None = None
    """Those of the segment before in the same run; None: the trace directory has them."""
    lanes: Mapping[StreamId, Lane] = field(default_factory=dict)
    """Those of the segment before, which write to it until the roll."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """The keys of the manifest's machine that differ from this machine in this boot."""


class OpenSegment:
    """An open segment: its streams' files, its manifest and its lock.

    A segment that another one precedes in the same run is prepared under a hidden name, and gets
    data after reveal(), by go_on_in() of the lanes.
    """

    def __init__(self, writers: Writers, trace: Path, name: str, contents: SegmentContents) -> None:
        """Create the segment under *name*.

        Raises:
            StorageError: it could not be created; nothing of it stays.
        """
        self._writers = writers
        self._disk = contents.disk
        self._guard = threading.Lock()
        self._manifest_guard = threading.Lock()
        self._is_open = True
        self._is_named = False
        """Whether the names of the segment and of its files are durable."""
        self._trace = self._disk.hold(trace)
        kind = str(contents.source["kind"])
        # Before the segment exists: it would be the newest one.
        self.baselines = contents.baselines or Baselines(
            self._trace, kind, recorded_source(contents.source)
        )
        self.paths: SegmentPaths = create_segment(self._disk, trace, name)
        self.lanes: dict[StreamId, Lane] = dict(contents.lanes)
        """The streams of the run; they write here only between two rolls."""
        self.files: dict[StreamId, StreamFiles] = {}
        """Those of the streams in this segment."""
        self._lock: Lock | None = None
        with self._disk.whole_or_absent(self.paths.directory):
            try:
                self._lock = Lock(self.paths.base, self.paths.lock)
                self._create(contents)
            except BaseException:
                self._close_files()
                raise

    def _create(self, contents: SegmentContents) -> None:
        self.manifest = Manifest(
            source=dict(contents.source),
            layout=contents.layout,
            machine=this_machine() | dict(contents.machine),
            lttd_version=VERSION,
            clock_snapshots=[contents.snapshot] if contents.snapshot else [],
        )
        reserve = self._disk.open(self.paths.reserve)
        try:
            reserve.preallocate(0, RESERVE_BYTES)
        finally:
            reserve.close()
        self.add_streams(contents.streams)

    def reveal(self, number: int, snapshot: Snapshot | None = None) -> None:
        """Give a segment that was prepared its name; *snapshot* is the clock's as of now.

        Raises:
            StorageError: it could not be renamed.
        """
        self.paths = reveal_segment(self._disk, self.paths, number)
        self._is_named = False
        if self._lock is not None:
            self._lock.path = self.paths.lock
        for files in self.files.values():
            files.file.renamed(self.paths.stream(files.record.name))
        if snapshot is not None:
            self.manifest.clock_snapshots = [snapshot]

    def add_streams(self, infos: Iterable[StreamInfo]) -> None:
        """Create the files of new streams, and add them to the manifest.

        A stream that exists already keeps its files and is continued.

        Raises:
            StorageError: a file could not be created; the call can be repeated.
        """
        new = {info.id: info for info in infos if info.id not in self.files}
        count = max(len(new) + len(self.files), 1)
        cached_bytes, ahead_bytes = self._cached_bytes() // count, self._ahead_bytes() // count
        added: dict[StreamId, StreamFiles] = {}
        try:
            for info in new.values():
                added[info.id] = self._make_files(info, cached_bytes, ahead_bytes)
        except BaseException:
            for files in added.values():
                files.file.close()
            raise
        self.manifest.streams += [files.record for files in added.values()]
        lanes = dict(self.lanes)
        for stream, files in added.items():
            if stream not in lanes:
                lanes[stream] = self._make_lane(files, self._writers.lane_queue(len(lanes)))
        # Replaced as a whole, because other threads iterate over them; each of files has a lane.
        self.lanes = lanes
        self.files = {**self.files, **added}
        self._is_named = False
        self.write_manifest()

    def _cached_bytes(self) -> int:
        """Return the part of the run's share of the page cache that earlier segments left."""
        stored_bytes = sum(lane.stats.stored_bytes for lane in self.lanes.values())
        return max(self._writers.cached_bytes - stored_bytes, 0)

    def _ahead_bytes(self) -> int:
        """Return how many blocks the files together may have ahead of their ends."""
        size = self._writers.segment_bytes
        return PREALLOCATE_BYTES if size is None else min(size // AHEAD_SHARE, PREALLOCATE_BYTES)

    def _make_files(self, info: StreamInfo, cached_bytes: int, ahead_bytes: int) -> StreamFiles:
        record = StreamRecord(info)
        lane = self.lanes.get(info.id)
        before = lane.discarded_before if lane else self.baselines.of(record.name)
        begin = StreamStats(info.id, self.manifest.source_name)
        record.baseline_discarded = before
        if lane is not None:
            record.baseline_discarded += lane.stats.events_lost.total()
            record.subbuffers_before = None
        paths, layout = self.paths.stream(record.name), self.manifest.layout
        file = StreamFile(self._disk, paths, record, layout, cached_bytes, before)
        file.allocate_ahead(ahead_bytes)
        return StreamFiles(file, record, begin)

    def _make_lane(self, files: StreamFiles, queue: Jobs) -> Lane:
        stats = StreamStats(files.record.info.id, self.manifest.source_name)
        return Lane(files, stats, queue, files.record.baseline_discarded)

    def attach(self, name: str, data: bytes, *, append: bool) -> None:
        """Write a file that decoding needs beside the streams; *name* is below the segment.

        One among the streams (CTF's metadata) is replaced as a whole: babeltrace never ends on half
        of one.
        """
        path = self.paths.directory / name
        self._disk.make_directory(path.parent)
        status = self._disk.status(path)
        shared = status is not None and status.st_nlink > 1  # with another segment
        if shared or path.parent == self.paths.streams:
            earlier = (
                read_head(self.paths.place(path), status.st_size) if append and status else b""
            )
            self._disk.replace(path, earlier + data)
            return
        file = self._disk.open(path, truncate=not append)
        try:
            file.write_at([data], file.size_bytes() if append else 0)
        finally:
            file.close()

    def share(self, name: str, before: SegmentPaths) -> None:
        """Let a file that decoding needs be that of the segment *before*, which has it."""
        path = self.paths.directory / name
        self._disk.make_directory(path.parent)
        self._disk.share(before.directory / name, path)

    def note_clock(self, snapshot: Snapshot) -> None:
        """Add a clock snapshot to the manifest."""
        self._keep_snapshot(snapshot)
        self.write_manifest()

    def note_reload(self, settings: Mapping[str, Any]) -> None:
        """Add changed settings to the manifest; those of its begin stay.

        The newest MOST_RELOADS are kept.
        """
        source = self.manifest.source
        reloads = [*source.get("reloads", ()), dict(settings)][-MOST_RELOADS:]
        self.manifest.source = {**source, "reloads": reloads}
        self.write_manifest()

    def _keep_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot not in self.manifest.clock_snapshots:  # a source may have only one
            self.manifest.clock_snapshots.append(snapshot)
        if len(self.manifest.clock_snapshots) > MOST_SNAPSHOTS:
            self.manifest.clock_snapshots = thinned(self.manifest.clock_snapshots)

    def sync(self) -> None:
        """Make the written data durable, and then note that in the synced record.

        Raises:
            StorageError: the first failure; all streams that can be synced are synced.
        """
        with self._guard:
            if not self._is_open:
                return
            failed: StorageError | None = None
            before = self._synced()
            for stream, files in self.files.items():
                try:
                    self.lanes[stream].sync(files)
                except StorageError as error:
                    failed = failed or error
            after = self._synced()
            if after != before:
                known = {name: position for name, position in after.items() if position}
                try:
                    self._sync_names()
                    self._disk.replace(self.paths.synced, encode_synced(known))
                except StorageError as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def _sync_names(self) -> None:
        if self._is_named:
            return
        self._is_named = True  # before: another thread may add files meanwhile
        try:
            for path in (self.paths.index, self.paths.streams, self._trace.path):
                self._disk.sync_directory(path)
        except StorageError:
            self._is_named = False
            raise

    @property
    def places(self) -> tuple[Path, ...]:
        """The paths that moved() looks for: the trace, the segment, and their locks."""
        locks = (lock.path for lock in self._locks())
        return self.paths.directory.parent, self.paths.directory, *locks

    def _locks(self) -> Iterator[Lock]:
        for lock in (self._disk.trace_lock, self._lock):
            if lock is not None:
                yield lock

    def _synced(self) -> dict[str, Position | None]:
        """Return the durable end of each stream."""
        return {each.record.name: each.synced for each in self.files.values()}

    def moved(self) -> StorageError | None:
        """Return what is not in its place any more: the trace directory, the segment, or a lock.

        The directories are held open, so lttd keeps writing to them.  What lttd itself has removed,
        closed or discarded meanwhile is not reported.
        """
        found = self._moved()
        return found if self._is_open else None

    def _moved(self) -> StorageError | None:
        at = self._trace
        try:
            if os.path.samestat(at.path.stat(), os.fstat(at.fd)):
                at = self.paths.base
                if os.path.samestat(self._trace.stat(at.path), os.fstat(at.fd)):
                    return self._lost_lock()
        except OSError:
            pass
        return StorageError(at.path, "somebody renamed or removed it while it was recorded")

    def _lost_lock(self) -> StorageError | None:
        for lock in self._locks():
            if not lock.is_in_place():
                words = "nothing keeps lttv check --repair or another lttd from here"
                return StorageError(lock.path, f"somebody removed it: {words}")
        return None

    def if_open(self, do: Callable[[], None]) -> None:
        """Call *do*, unless the segment is closed; it is not closed meanwhile."""
        with self._guard:
            if self._is_open:
                do()

    def retry(self) -> None:
        """Let failed lanes try again, also those without new batches."""
        with self._guard:
            for lane in self.lanes.values():
                if lane.failing and self._is_open:
                    lane.retry()

    def close(
        self,
        snapshot: Snapshot | None,
        counters: Mapping[StreamId, Mapping[str, int]] = MappingProxyType({}),
    ) -> None:
        """Wait for the backlog, count lost data, sync, close the manifest.

        Raises:
            StorageError: the stored data is whole, but the manifest still says ``open``.
        """
        try:
            self.settle()
            self._tell()
            self._sync_for_good()
            self._sync_names()
            self._writers.look(self)
            for stream, files in self.files.items():
                stats = self.lanes[stream].stats
                files.count_gone(stats)
                files.record.summary = summarize(files.counted(stats))
                files.record.counters = dict(counters.get(stream, {}))
            if snapshot is not None:
                self._keep_snapshot(snapshot)
            self.manifest.state = "closed"
            self.write_manifest()
            self.baselines.closed(self.manifest.streams)
        finally:
            self._let_go()

    def settle(self) -> None:
        """Wait for the backlog, then free the reserved space for closing the segment."""
        self._writers.drain()
        self.free_reserve()

    def free_reserve(self) -> None:
        """Free the reserved space for closing the segment: all of its data is written."""
        self._disk.remove(self.paths.reserve)

    def _tell(self) -> None:
        """Write the last gaps; if they do not fit, only summary and metrics have the losses."""
        errors: list[StorageError | None] = []

        def tell(lane: Lane, files: StreamFiles) -> None:
            errors.append(lane.tell() if files is lane.files else files.cut())

        # In the lane's thread: it may be trying again to write them.
        for stream, files in self.files.items():
            self.lanes[stream].queue.put(partial(tell, self.lanes[stream], files))
        self._writers.drain()
        for error in errors:
            if error is not None:
                self._writers.failed(error)

    def _sync_for_good(self) -> None:
        try:
            self.sync()
        except StorageError as error:
            # The gap for the failed sync must be durable, too.
            self._writers.failed(error)
            self._writers.drain()
            self._tell()
            self.sync()

    def discard(self) -> None:
        """Remove the segment: nothing was recorded into it."""
        self._let_go()
        self._disk.remove_tree(self.paths.directory)

    def _let_go(self) -> None:
        with self._guard:
            self._is_open = False
        self._writers.forget(self)
        # A retry for one of the files may still be in a queue.
        self._writers.drain()
        self._close_files()

    def _close_files(self) -> None:
        for files in self.files.values():
            files.file.close()
        if self._lock is not None:
            self._lock.release()
        self._disk.release(self.paths.base)

    def summaries(self) -> list[StreamSummary]:
        """Return the present totals of each stream in this segment."""
        lanes = self.lanes
        return [summarize(each.counted(lanes[key].stats)) for key, each in self.files.items()]

    def write_manifest(self) -> None:
        """Replace the manifest, after a stream's record has changed.  Callable from any thread.

        Raises:
            StorageError: it could not be written; the old one is whole.
        """
        with self._manifest_guard:
            self._disk.replace(self.paths.manifest, self.manifest.encode())

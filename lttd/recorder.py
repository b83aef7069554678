"""Stands between reading and the disk: a bounded backlog, writer threads, the open segments.

Rule: offer() never waits; what a reader must wait for is room, before it takes from the kernel.
Rule: take -> backlog -> append data -> append entry; data is synced before its index.
Invariant: a stream is written by one thread; held bytes = offered less released.
"""

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from lttd.clock import Snapshot
from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk, Lock
from lttd.stats import StreamStats, StreamSummary, summarize
from lttd.subbuffer import ROW_DTYPE, TAKE_BYTES, Batch, Gap, Reason, StreamId, StreamInfo, Unit
from lttd.tracedir import (
    Manifest,
    Position,
    SegmentPaths,
    StreamRecord,
    create_segment,
    encode_synced,
    segments_below,
    this_machine,
)
from lttd.writer import StreamFile

BACKLOG_BYTES: Final = 64 << 20
# Two, so that one file's slow write does not hold up the streams of the other half.
WRITER_THREADS: Final = 2
SYNC_INTERVAL_S: Final = 5.0
# The beginning of a segment stays in the page cache, where whoever looks at a short recording finds
# it: a sixteenth of the memory, at most this much, shared by its streams.
CACHED_BYTES: Final = 1 << 30
# Kept from the data, so that a full disk has room for the last gaps and the manifest.
RESERVE_BYTES: Final = 256 << 10
_NO_ROWS: Final = np.empty(0, ROW_DTYPE)


@dataclass(slots=True)
class Lane:
    """One stream on its way to the disk."""

    file: StreamFile
    record: StreamRecord
    stats: StreamStats
    queue: "SimpleQueue[_Job]"
    synced: Position | None = None
    refused: Counter[Reason] = field(default_factory=Counter)
    """Sub-buffers that were taken and not written, and that no gap tells yet."""
    refused_gaps: list[Gap] = field(default_factory=list)
    """The gaps that came with them: counted, but not in the file yet."""

    def refuse(self, batch: Batch, reason: Reason) -> None:
        """Count a batch that is not written."""
        self.stats.unwritten(batch)
        self.refused[reason] += len(batch.rows)
        self.refused_gaps += batch.gaps

    def tell_refused(self, at: int) -> None:
        """Write, behind what is in the file, gaps for what was refused since the last one.

        Raises:
            StorageError: not even that can be written; it stays untold.
        """
        if not self.refused and not self.refused_gaps:
            return
        gaps = [
            Gap(0, reason, Unit.SUBBUFFERS, count, at, at)
            for reason, count in self.refused.items()
            if count
        ]
        told = (*gaps, *(replace(gap, row=0) for gap in self.refused_gaps))
        self.file.append(Batch(self.record.info.id, memoryview(b""), _NO_ROWS, 0, told))
        self.count_refused(gaps)

    def count_refused(self, gaps: Iterable[Gap]) -> None:
        """Count *gaps*, which tell all that was refused so far."""
        for gap in gaps:
            self.stats.lost(gap)
        self.refused.clear()
        self.refused_gaps.clear()


# A batch for a lane; an event to set when all before it is done; None to end.
_Job = tuple[Lane, Batch] | threading.Event | None


class Recorder:
    """Writer threads that serve every stream of every segment, and the backlog before them."""

    def __init__(
        self,
        *,
        backlog_bytes: int = BACKLOG_BYTES,
        sync_interval_s: float = SYNC_INTERVAL_S,
        cached_bytes: int | None = None,
        keep_going: bool = False,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """*keep_going*: what cannot be written is counted, and recording goes on."""
        self.backlog_limit_bytes = backlog_bytes
        self.backlog_high_water_bytes = 0
        self.cached_bytes = _cached_bytes() if cached_bytes is None else cached_bytes
        """How much of each segment may stay in the page cache."""
        self.failure: LttdError | None = None
        """The first thing that went wrong in a writer; on_failure was called for it."""
        self.write_errors: Counter[str] = Counter()
        """By the errno's name."""
        self.last_write_error: StorageError | None = None
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._room_wanted: list[Callable[[], None]] = []
        self._abandoned = False
        self._keep_going = keep_going
        self._on_failure = on_failure
        self._segments: list[Segment] = []
        self._queues: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(WRITER_THREADS)]
        self._moved = threading.Event()
        self._closing = threading.Event()
        self._sync_interval_s = sync_interval_s
        self._threads = [
            threading.Thread(target=self._write, args=(queue,), name=f"lttd-write{number}")
            for number, queue in enumerate(self._queues)
        ]
        self._syncer = threading.Thread(target=self._keep_synced, name="lttd-sync")

    def start(self) -> None:
        """Start the threads."""
        for thread in (*self._threads, self._syncer):
            thread.start()

    # -- the reader's side

    @property
    def backlog_bytes(self) -> int:
        """Bytes that were offered and are not released yet."""
        return self._held_bytes

    def has_room(self) -> bool:
        """Tell whether one more take fits; an empty backlog always takes one."""
        held = self._held_bytes
        return held + TAKE_BYTES <= self.backlog_limit_bytes or held == 0

    def call_when_room(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, from any thread, when has_room() may have become true."""
        with self._lock:
            if not self.has_room():
                self._room_wanted.append(callback)
                return
        callback()

    def offer(self, lane: Lane, batch: Batch) -> None:
        """Hand a batch over: count it, charge the backlog, queue it.  Never waits."""
        lane.stats.took(batch)
        with self._lock:
            self._held_bytes += batch.held_bytes
            self.backlog_high_water_bytes = max(self.backlog_high_water_bytes, self._held_bytes)
        lane.queue.put((lane, batch))

    def abandon_backlog(self) -> None:
        """Write nothing more of what was taken; count it as refused."""
        self._abandoned = True

    # -- the writers' side

    def _write(self, queue: "SimpleQueue[_Job]") -> None:
        while (job := queue.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            lane, batch = job
            if self._abandoned or self.failure:
                lane.refuse(batch, Reason.STORAGE if self.failure else Reason.BACKLOG)
            else:
                self._append(lane, batch)
            self._release(batch)

    def _append(self, lane: Lane, batch: Batch) -> None:
        try:
            lane.tell_refused(_begin_of(batch))
            lane.file.append(batch)
        except StorageError as error:
            lane.refuse(batch, Reason.STORAGE)
            self._count(error)
        except Exception as error:  # noqa: BLE001  (a bug must stop the daemon, not one thread)
            lane.refuse(batch, Reason.STORAGE)
            self._fail(LttdError(f"{lane.record.name}: writer failed: {error!r}"))
        else:
            lane.stats.stored(batch)
            self._moved.set()

    def _count(self, error: StorageError) -> None:
        self.write_errors[error.errno_name] += 1
        self.last_write_error = error
        if not self._keep_going:
            self._fail(error)

    def _fail(self, error: LttdError) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure()

    def _release(self, batch: Batch) -> None:
        held_bytes = batch.held_bytes
        batch.release()
        with self._lock:
            self._held_bytes -= held_bytes
            wanted = self._room_wanted if self.has_room() else []
            if wanted:
                self._room_wanted = []
        for callback in wanted:
            callback()

    def _keep_synced(self) -> None:
        """Sync what moved, every so often; sleep for good while nothing moves."""
        while not self._closing.is_set():
            self._moved.wait()
            if self._closing.wait(self._sync_interval_s):
                return
            self._moved.clear()
            for segment in list(self._segments):
                try:
                    segment.sync()
                except StorageError as error:
                    self._count(error)
                    self._moved.set()

    # -- segments

    def open_segment(self, trace: Path, number: int, contents: "SegmentContents") -> "Segment":
        """Create a segment on disk, ready for offers.

        Raises:
            StorageError: it could not be created; nothing of it remains open.
        """
        segment = Segment(self, trace, number, contents)
        self._segments.append(segment)
        return segment

    def lane_queue(self, number: int) -> "SimpleQueue[_Job]":
        """Return the queue of the thread that stream *number* is pinned to."""
        return self._queues[number % len(self._queues)]

    def drain(self) -> None:
        """Wait until everything offered so far was written or refused."""
        marks = [threading.Event() for _ in self._queues]
        for queue, mark in zip(self._queues, marks, strict=True):
            queue.put(mark)
        for mark in marks:
            mark.wait()

    def forget(self, segment: "Segment") -> None:
        """Sync *segment* no more: it is closed."""
        self._segments.remove(segment)

    def close(self) -> None:
        """End the threads once all that was offered is written."""
        self._closing.set()
        self._moved.set()
        for queue in self._queues:
            queue.put(None)
        for thread in (*self._threads, self._syncer):
            if thread.ident is not None:
                thread.join()


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """What a segment is opened for."""

    source: Mapping[str, Any]
    """What the manifest says of the source: kind, spec, clock, settings, previous_run."""
    layout: str
    streams: tuple[StreamInfo, ...]
    snapshot: Snapshot | None
    """None where the source's clock is of another time, and nobody noted it."""
    disk: Disk


class Segment:
    """An open segment: its streams' files, its manifest and its lock."""

    def __init__(
        self, recorder: Recorder, trace: Path, number: int, contents: SegmentContents
    ) -> None:
        self._recorder = recorder
        self._disk = contents.disk
        self._guard = threading.Lock()
        self._baselines = _baselines(trace, str(contents.source["kind"]))
        self.paths: SegmentPaths = create_segment(
            self._disk, trace, number, str(contents.source["kind"])
        )
        self._lock = Lock(self.paths.directory)
        self.lanes: dict[StreamId, Lane] = {}
        try:
            self._create(contents)
        except LttdError:
            shutil.rmtree(self.paths.directory, ignore_errors=True)
            raise

    def _create(self, contents: SegmentContents) -> None:
        self.manifest = Manifest(
            source=dict(contents.source),
            layout=contents.layout,
            machine=this_machine(),
            lttd_version=version("lttd"),
            clock_snapshots=[contents.snapshot] if contents.snapshot else [],
        )
        reserve = self._disk.open(self.paths.reserve)
        reserve.preallocate(0, RESERVE_BYTES)
        reserve.close()
        self.add_streams(contents.streams)

    def add_streams(self, infos: Iterable[StreamInfo]) -> None:
        """Create the files of streams that have appeared, and tell the manifest.

        A stream that is there already keeps its files: it goes on.

        Raises:
            StorageError: that could not be done; asked again, it is as if for the first time.
        """
        new = {info.id: info for info in infos if info.id not in self.lanes}
        cached_bytes = self._recorder.cached_bytes // max(len(new) + len(self.lanes), 1)
        added: dict[StreamId, Lane] = {}
        try:
            for info in new.values():
                queue = self._recorder.lane_queue(len(self.lanes) + len(added))
                added[info.id] = self._make_lane(info, queue, cached_bytes)
        except LttdError:
            for lane in added.values():
                lane.file.close()
            raise
        self.manifest.streams += [lane.record for lane in added.values()]
        # Replaced as a whole: other threads go through it.
        self.lanes = {**self.lanes, **added}
        self._disk.sync_directory(self.paths.index)
        self._disk.sync_directory(self.paths.streams)
        self._write_manifest()

    def _make_lane(self, info: StreamInfo, queue: "SimpleQueue[_Job]", cached_bytes: int) -> Lane:
        record = StreamRecord(info)
        record.baseline_discarded = self._baselines.get(record.name, 0)
        paths = self.paths.stream(record.name)
        file = StreamFile(self._disk, paths, record, self.manifest.layout, cached_bytes)
        return Lane(file, record, StreamStats(info.id, self.manifest.source_name), queue)

    def attach(self, name: str, data: bytes, *, append: bool) -> None:
        """Write a file that decoding needs beside the streams; *name* is below the segment."""
        path = self.paths.directory / name
        self._disk.make_directory(path.parent)
        file = self._disk.open(path, truncate=not append)
        try:
            file.write_at([data], file.size_bytes() if append else 0)
        finally:
            file.close()

    def note_clock(self, snapshot: Snapshot) -> None:
        """Keep one more clock snapshot."""
        self._keep_snapshot(snapshot)
        self._write_manifest()

    def _keep_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot not in self.manifest.clock_snapshots:  # a source may know of one only
            self.manifest.clock_snapshots.append(snapshot)

    def sync(self) -> None:
        """Make what was written durable, and then say so in the segment's synced record."""
        with self._guard:
            before = {lane.record.name: lane.synced for lane in self.lanes.values()}
            for lane in list(self.lanes.values()):
                if lane.file.position != lane.synced:
                    lane.synced = lane.file.sync()
            after = {lane.record.name: lane.synced for lane in self.lanes.values()}
            if after != before:
                known = {name: position for name, position in after.items() if position}
                self._disk.replace(self.paths.synced, encode_synced(known))

    def close(
        self,
        snapshot: Snapshot | None,
        counters: Mapping[StreamId, Mapping[str, int]] = MappingProxyType({}),
    ) -> None:
        """Wait for the backlog, count what was refused, sync, close the manifest.

        Raises:
            StorageError: what was written is whole, but the manifest still says ``open``.
        """
        try:
            self.settle()
            self._tell_refused(snapshot.trace if snapshot else 0)
            self.sync()
            for lane in self.lanes.values():
                lane.record.summary = summarize(lane.stats)
                lane.record.counters = dict(counters.get(lane.record.info.id, {}))
            if snapshot is not None:
                self._keep_snapshot(snapshot)
            self.manifest.state = "closed"
            self._write_manifest()
        finally:
            self._recorder.forget(self)
            for lane in self.lanes.values():
                lane.file.close()
            self._lock.release()

    def settle(self) -> None:
        """Wait for the backlog; then what closes the segment has the room that was kept for it."""
        self._recorder.drain()
        self._disk.remove(self.paths.reserve)

    def _tell_refused(self, now: int) -> None:
        for lane in self.lanes.values():
            try:
                lane.tell_refused(now)
            except StorageError:
                # The disk has no room for the gap: summary and metrics still tell it.
                lane.count_refused(
                    Gap(0, reason, Unit.SUBBUFFERS, count, now, now)
                    for reason, count in list(lane.refused.items())
                )

    def discard(self) -> None:
        """Remove the segment: nothing was recorded into it."""
        self._recorder.forget(self)
        for lane in self.lanes.values():
            lane.file.close()
        self._lock.release()
        shutil.rmtree(self.paths.directory, ignore_errors=True)

    def summaries(self) -> list[StreamSummary]:
        """Return one summary a stream, as of now."""
        return [summarize(lane.stats) for lane in self.lanes.values()]

    def _write_manifest(self) -> None:
        self._disk.replace(self.paths.manifest, self.manifest.encode())


def _begin_of(batch: Batch) -> int:
    return int(batch.rows["begin"][0]) if len(batch.rows) else 0


def _cached_bytes() -> int:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CACHED_BYTES, memory_bytes // 16)


def _baselines(trace: Path, kind: str) -> dict[str, int]:
    """Return events_discarded per stream name at the end of the newest segment of this kind."""
    for paths in reversed(segments_below(trace)):
        try:
            manifest = Manifest.read(paths.manifest)
        except TraceDamagedError:
            continue
        if manifest.source.get("kind") == kind:
            return {
                record.name: record.baseline_discarded
                + (record.summary.events_lost if record.summary else 0)
                for record in manifest.streams
            }
    return {}

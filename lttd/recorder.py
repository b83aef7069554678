"""Connect reading and the disk: a bounded backlog, and the threads that write and sync.

Rule: offer() never waits; a reader waits for room before it takes from the kernel.
Rule: take -> backlog -> append data -> append entry; data is synced before its index.
Invariant: a stream is written by one thread; held bytes = offered less released.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from lttd.disk_policy import STOP_AT_ONCE, DiskPolicy, OnFailure
from lttd.errors import LostFileError, LttdError, StorageError, refusal
from lttd.health import Health, Trouble
from lttd.lane import Jobs, Lane
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.rate import RateLimit
from lttd.start import start_thread
from lttd.stats import StreamStats, human_bytes
from lttd.stream_files import StreamFiles
from lttd.subbuffer import SLOT_BYTES, TAKE_BYTES, Batch, Reason
from lttd.tracedir import next_name, segment_name

BACKLOG_BYTES: Final = 64 << 20
# Two writers, so that a slow write to one file does not delay the streams of the other half.
WRITER_THREADS: Final = 2
SYNC_INTERVAL_S: Final = 5.0
# Until a sync the page cache takes the begin of a segment, faster than the disk does: a sixteenth
# of the memory, at most this much, shared by the segment's streams.  A part of it stays there, so
# that a short recording can be viewed from memory.
CACHED_BYTES: Final = 1 << 30
_OF_A_PATH: Final = (
    *(Trouble.WRITER_FAILED, Trouble.FILE_LOST),
    *(Trouble.TRACE_MOVED, Trouble.UNSYNCED),
)


class Recorder:
    """Writer threads that serve every stream of every segment, and the backlog before them."""

    def __init__(
        self,
        *,
        backlog_bytes: int = BACKLOG_BYTES,
        sync_interval_s: float = SYNC_INTERVAL_S,
        cached_bytes: int | None = None,
        policy: DiskPolicy = STOP_AT_ONCE,
        on_failure: Callable[[], None] = lambda: None,
        health: Health | None = None,
    ) -> None:
        """*policy* decides after a failed write."""
        self.backlog_limit_bytes = backlog_bytes
        self._room_bytes = backlog_bytes
        """The part of the backlog that may be used now."""
        self.backlog_high_water_bytes = 0
        self.cached_bytes = _cached_bytes() if cached_bytes is None else cached_bytes
        """The bytes of each segment that may stay in the page cache."""
        self.own_threads: Mapping[int, str] = {}
        """lttd's threads, which may be in what is recorded: names by the kernel's ids."""
        self.segment_bytes: int | None = None
        """The size at which a segment is rolled; None: it has no limit."""
        self.failure: LttdError | None = None
        """The first error in a writer, for which on_failure was called."""
        self.write_errors: Counter[str] = Counter()
        """The number of failed writes, by the errno's name."""
        self.last_write_error: StorageError | None = None
        self.offered_bytes = 0
        """The memory of all batches so far, which is at least their payload."""
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._room_wanted: list[Callable[[], None]] = []
        self._abandoned = False
        self.make_room: Callable[[], int] = lambda: 0
        """Deletes the oldest segment that may go, from any thread; returns its bytes, or 0."""
        self._rate: RateLimit | None = None
        self.policy = policy
        """Any thread may replace it."""
        self._on_failure = on_failure
        self._health = health or Health()
        self._segments: list[OpenSegment] = []
        self._queues: list[Jobs] = [SimpleQueue() for _ in range(WRITER_THREADS)]
        self._moved = threading.Event()
        self._closing = threading.Event()
        self._sync_interval_s = sync_interval_s
        self._threads = [
            threading.Thread(target=self._write, args=(queue,), name=f"lttd-write{number}")
            for number, queue in enumerate(self._queues)
        ]
        self._syncer = threading.Thread(target=self._keep_synced, name="lttd-sync")

    def limit_rate(
        self, bytes_per_s: int | None, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Write at most so much from now on, and count the rest; None: no limit."""
        self._rate = None if bytes_per_s is None else RateLimit(bytes_per_s, now_ns)

    def start(self) -> None:
        """Start the threads."""
        for thread in (*self._threads, self._syncer):
            start_thread(thread)

    # -- the reader's side

    @property
    def backlog_bytes(self) -> int:
        """The bytes that are offered and not released yet."""
        return self._held_bytes

    def has_room(self) -> bool:
        """Tell whether one more take fits; it always does if the backlog is empty."""
        held = self._held_bytes
        return held + TAKE_BYTES <= self._room_bytes or held == 0

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Have room, during the block, only when nearly all is written.

        For rings at rest, which lose nothing meanwhile.  The same memory serves take after take: it
        costs no page faults, and stays in a cache until it is written.
        """
        self._room_bytes = min(TAKE_BYTES + SLOT_BYTES, self.backlog_limit_bytes)
        try:
            yield
        finally:
            self._room_bytes = self.backlog_limit_bytes

    def call_when_room(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, from any thread, when has_room() may have become true."""
        with self._lock:
            if not self.has_room():
                self._room_wanted.append(callback)
                return
        callback()

    def offer(self, lane: Lane, batch: Batch) -> None:
        """Count a batch, charge the backlog, and queue the batch.  Never waits."""
        lane.stats.took(batch)
        with self._lock:
            self._held_bytes += batch.held_bytes
            self.offered_bytes += batch.held_bytes
            self.backlog_high_water_bytes = max(self.backlog_high_water_bytes, self._held_bytes)
        lane.queue.put((lane, batch))

    def roll(self, lane: Lane, following: StreamFiles) -> None:
        """Let the lane's batches from now on go to the files *following*.  Never waits."""
        lane.queue.put(partial(self._roll, lane, following, lane.stats.copied()))

    def abandon_backlog(self) -> None:
        """Stop writing, and count the backlog as lost."""
        self._abandoned = True

    # -- the writers' side

    def _write(self, queue: Jobs) -> None:
        while (job := queue.get()) is not None:
            if not isinstance(job, tuple):
                job()
                continue
            lane, batch = job
            if self._abandoned or self.failure:
                lane.refuse(batch, Reason.STORAGE if self.failure else Reason.BACKLOG)
            elif (rate := self._rate) is None or rate.admits(batch.payload_bytes):
                self._append(lane, batch)
            else:
                self._limit(lane, batch, rate)
            self._release(batch)

    def _append(self, lane: Lane, batch: Batch) -> None:
        try:
            error = lane.write(batch, self.makes_room)
        except Exception as bug:  # noqa: BLE001  (a bug must stop the daemon, not one thread)
            lane.refuse(batch, Reason.STORAGE)
            self._fail(
                refusal(bug) or LttdError(f"{lane.files.record.name}: writer failed: {bug!r}")
            )
            return
        # Also after a failure: the sync thread lets it be tried again.
        self._moved.set()
        if error is not None:
            lane.failing = lane.failed_lately = True
            self._report(error, lane.files.file.path)
        elif lane.failing:
            # A gap that fits is a good sign only if no sub-buffer failed to fit meanwhile.
            lane.failing = lane.failed_lately and not len(batch.rows)
            lane.failed_lately = False
            if not lane.failing:
                self.succeeded(lane.files.file.path)

    def _limit(self, lane: Lane, batch: Batch, rate: RateLimit) -> None:
        """Count a batch that *rate* does not admit; gaps without data are still written."""
        if not len(batch.rows):
            self._append(lane, batch)
            return
        lane.refuse(batch, Reason.RATE)
        words = f"more than {human_bytes(rate.bytes_per_s)} a second: the rest is not written"
        self._health.happened(Trouble.RATE_LIMITED, words)

    def makes_room(self, error: StorageError) -> bool:
        """Tell whether an old segment was deleted because the disk is full."""
        return self.policy.after(error) is OnFailure.DROP_OLDEST and self.make_room() > 0

    def _roll(self, lane: Lane, following: StreamFiles, taken: StreamStats) -> None:
        path = lane.files.file.path
        try:
            error = lane.go_on_in(following, taken)
        except Exception as bug:  # noqa: BLE001  (a bug must stop the daemon, not one thread)
            self._fail(refusal(bug) or LttdError(f"{path}: writer failed: {bug!r}"))
            return
        self._moved.set()
        if error is not None:
            self.failed(error, path)

    def failed(self, error: StorageError, where: Path | None = None) -> None:
        """Count a failed write to *where*, which the caller repeats later; see _report()."""
        if self.makes_room(error):
            self.write_errors[error.errno_name] += 1
        else:
            self._report(error, where)

    def _report(self, error: StorageError, where: Path | None) -> None:
        """Count a failed write; lttd is unhealthy until succeeded() is called for *where*.

        Unless the policy says otherwise, recording ends.
        """
        stops = self.policy.after(error) is OnFailure.STOP
        self.last_write_error = error
        if isinstance(error, LostFileError):
            if not stops:
                self._health.begins(Trouble.FILE_LOST, error.reason, str(error.path))
            else:
                self._fail(error)
            return
        self.write_errors[error.errno_name] += 1
        if not stops:
            where = where or error.path
            self._health.begins(Trouble.WRITER_FAILED, error.reason, str(where))
        else:
            self._fail(error)

    def look(self, segment: OpenSegment) -> None:
        """Report a segment that was moved; data written to it is not lost."""
        moved = segment.moved()
        if moved is None:
            for path in segment.places:
                self._health.ends(Trouble.TRACE_MOVED, "is where it was again", str(path))
            return
        self._health.begins(Trouble.TRACE_MOVED, moved.reason, str(moved.path))
        self.last_write_error = moved

    def succeeded(self, where: Path) -> None:
        """End the trouble that *where* could not be written."""
        self._health.ends(Trouble.WRITER_FAILED, "can be written again", str(where))

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
        """Sync changed streams at intervals; sleep while nothing changes."""
        while not self._closing.is_set():
            self._moved.wait()
            if self._closing.wait(self._sync_interval_s):
                return
            self._moved.clear()
            for segment in list(self._segments):
                self._sync(segment)

    def _sync(self, segment: OpenSegment) -> None:
        try:
            segment.sync()
        except StorageError as error:
            self.failed(error, segment.paths.synced)
            self._moved.set()
        except Exception as bug:  # noqa: BLE001  (a bug must stop the daemon, not one thread)
            self._fail(refusal(bug) or LttdError(f"syncing failed: {bug!r}"))
        else:
            self.succeeded(segment.paths.synced)
        # A closed segment has no lock any more, and its troubles have ended.
        segment.if_open(lambda: self._report_files(segment))
        segment.retry()

    def _report_files(self, segment: OpenSegment) -> None:
        self.look(segment)
        for files in segment.files.values():
            if files.unsynced is not None:
                reason = files.unsynced.reason
                words = f"{reason}: some data since the last sync may not be on the disk"
                self._health.begins(Trouble.UNSYNCED, words, str(files.file.path))

    # -- segments

    def open_segment(self, trace: Path, number: int, contents: SegmentContents) -> OpenSegment:
        """Create a segment on disk, ready for batches.

        Raises:
            StorageError: it could not be created; nothing of it stays open.
        """
        name = segment_name(number, str(contents.source["kind"]))
        segment = OpenSegment(self, trace, name, contents)
        self.watch(segment)
        return segment

    def prepare_segment(self, trace: Path, contents: SegmentContents) -> OpenSegment:
        """Create the segment that follows another one, under a hidden name until its reveal().

        Raises:
            StorageError: it could not be created; nothing of it stays.
        """
        name = next_name(str(contents.source["rolled_from"]))
        return OpenSegment(self, trace, name, contents)

    def watch(self, segment: OpenSegment) -> None:
        """Sync *segment* from now on, and report what happens to its files."""
        self._segments.append(segment)

    def lane_queue(self, number: int) -> Jobs:
        """Return the queue of the thread that writes stream *number*."""
        return self._queues[number % len(self._queues)]

    def drain(self) -> None:
        """Wait until all batches offered so far are written or counted as lost."""
        marks = [threading.Event() for _ in self._queues]
        for queue, mark in zip(self._queues, marks, strict=True):
            queue.put(mark.set)
        for mark in marks:
            mark.wait()

    def forget(self, segment: OpenSegment) -> None:
        """Stop syncing *segment*, which is closed or removed; end the troubles of its files."""
        if segment not in self._segments:
            return  # it was prepared, and never used
        self._segments.remove(segment)
        paths = [segment.paths.synced, segment.paths.directory, segment.paths.lock]
        for path in (*paths, *(files.file.path for files in segment.files.values())):
            for trouble in _OF_A_PATH:
                self._health.ends(trouble, "", str(path))

    def close(self) -> None:
        """End the threads after they have written the backlog."""
        self._closing.set()
        self._moved.set()
        for queue in self._queues:
            queue.put(None)
        for thread in (*self._threads, self._syncer):
            if thread.ident is not None:
                thread.join()


def _cached_bytes() -> int:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CACHED_BYTES, memory_bytes // 16)

"""One stream on its way to the disk: its queue, its counters, and gaps that are not written yet.

Rule: only the thread of a lane's queue writes the lane; other threads read from it.
Rule: a roll is an item of the queue: batches before it go to the files of the old segment, those
after it to the files of the new one.  A gap that could not be written before it belongs to the new
segment, in its files and in its counts.
Invariant: taken data that is not in the files is counted in the stats, and gets a gap as soon as
one can be written.  However long that takes, only a few gaps wait.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue

from lttd.errors import LostFileError, StorageError
from lttd.stats import StreamStats
from lttd.stream_files import StreamFiles
from lttd.subbuffer import Batch, Gap, Reason, Unit, losses_batch


class Untold:
    """Gaps that are not in the file yet, merged into one for each reason and unit.

    A gap of unknown count stays apart, so that it does not hide known counts.
    """

    def __init__(self) -> None:
        self._gaps: dict[tuple[Reason, Unit, bool], Gap] = {}

    def add(self, gap: Gap) -> None:
        """Keep *gap* until it can be written, before the next sub-buffer."""
        key = gap.reason, gap.unit, gap.count is None
        known = self._gaps.get(key)
        if known is None:
            self._gaps[key] = replace(gap, row=0)
            return
        count = None if known.count is None or gap.count is None else known.count + gap.count
        begin, end = min(known.begin, gap.begin), max(known.end, gap.end)
        self._gaps[key] = Gap(0, gap.reason, gap.unit, count, begin, end)

    def gaps(self) -> tuple[Gap, ...]:
        """Return the gaps, all in row 0."""
        return tuple(self._gaps.values())

    def clear(self) -> None:
        """Forget the gaps after they were written."""
        self._gaps.clear()


@dataclass(slots=True)
class Lane:
    """One stream on its way to the disk; it outlives the segments that it writes to."""

    files: StreamFiles
    """The files of the open segment; the other fields outlive the segment."""
    stats: StreamStats
    """The counts of the whole run."""
    queue: "Jobs"
    discarded_before: int = 0
    """Events that were lost before the run; an index counts on from them."""
    untold: Untold = field(default_factory=Untold)
    failing: bool = False
    """Whether the last write failed."""
    failed_lately: bool = False
    """Whether a write failed since the last retry()."""

    def write(
        self, batch: Batch, make_room: Callable[[StorageError], bool] = lambda _: False
    ) -> StorageError | None:
        """Write the waiting gaps, then the batch as far as it fits; count the rest.

        *make_room* is asked after a failure whether the rest may fit now.  Return the error if it
        did not fit.  Nothing is written to files that somebody removed.
        """
        if self.files.gone is not None:
            self.refuse(batch, Reason.STORAGE)
            return None
        while True:
            done = self.files.append(batch, self.untold.gaps())
            self.stats.stored(batch.rows[: done.rows])
            if done.rows or done.error is None:
                self.untold.clear()
            if done.error is None or not make_room(done.error):
                break
            batch = batch.after(done.rows)
        if done.error is not None:
            self.refuse(batch, Reason.STORAGE, done.rows)
        if isinstance(done.error, LostFileError):
            self.files.count_gone(self.stats)
        return done.error

    def refuse(self, batch: Batch, reason: Reason, first: int = 0) -> None:
        """Count the rows of a batch from *first* on as not written."""
        rows = batch.rows[first:]
        if len(rows):
            self.stats.unwritten(rows, reason)
            begin, end = int(rows["begin"][0]), int(rows["end"][-1])
            self.untold.add(Gap(0, reason, Unit.SUBBUFFERS, len(rows), begin, end))
        for gap in batch.gaps:
            if gap.row > first or not first:
                self.untold.add(gap)

    def tell(self) -> StorageError | None:
        """Write the waiting gaps, and cut off bytes that a failure left half written."""
        return self.write(losses_batch(self.stats.stream, ()))

    def retry(self) -> None:
        """Let the lane's thread call tell().  Callable from any thread."""
        self.queue.put((self, losses_batch(self.stats.stream, ())))

    def go_on_in(self, following: StreamFiles, taken: StreamStats) -> StorageError | None:
        """Write the waiting gaps, and end the present files; later batches go to *following*.

        *taken* are the stream's counters as of the batches so far.  Return the error if the gaps
        could not be written; they will be written to *following*.
        """
        error = self.tell()
        end, now = taken, self.stats
        end.stored_bytes, end.stored_subbuffers = now.stored_bytes, now.stored_subbuffers
        end.unwritten_bytes = now.unwritten_bytes.copy()
        end.unwritten_subbuffers = now.unwritten_subbuffers.copy()
        for gap in self.untold.gaps():
            end.uncount(gap)
        following.record.baseline_discarded = self.discarded_before + end.events_lost.total()
        following.record.subbuffers_before = end.subbuffers
        self.files.end = following.begin = end
        self.files = following
        self.failing = self.failed_lately = False
        return error

    def sync(self, files: StreamFiles) -> None:
        """Make the data in *files* durable.

        Raises:
            LostFileError: somebody removed, replaced or cut a file; raised once.
            StorageError: the sync failed; a gap for it will be written.
        """
        failed_before = files.unsynced is not None
        try:
            files.sync()
        except LostFileError:
            files.count_gone(self.stats)
            raise
        except StorageError:
            if not failed_before:
                self.stats.unsynced += 1
                self.queue.put(partial(self._tell_unsynced, files))
            raise

    def _tell_unsynced(self, files: StreamFiles) -> None:
        """Write the gap for a failed sync of *files*, which may be those of an older segment."""
        gap = files.unsynced_gap()
        if files is not self.files:
            files.append(losses_batch(self.stats.stream, [gap]), ())
            return
        self.untold.add(gap)
        self.tell()


# A batch for a lane; a call that must not raise, between batches; None to end.
Job = tuple[Lane, Batch] | Callable[[], None] | None
Jobs = SimpleQueue[Job]

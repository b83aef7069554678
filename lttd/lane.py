"""One stream on its way to the disk: its queue, its counters, and gaps that are not written yet.

Rule: only the thread of a lane's queue writes the lane; other threads read from it.
Invariant: taken data that is not in the files is counted in the stats, and gets a gap as soon as
one can be written.  However long that takes, only a few gaps wait.
"""

import threading
from dataclasses import dataclass, field, replace
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
    queue: "Jobs"
    untold: Untold = field(default_factory=Untold)
    failing: bool = False
    """Whether the last write failed."""
    failed_lately: bool = False
    """Whether a write failed since the last retry()."""

    def write(self, batch: Batch) -> StorageError | None:
        """Write the waiting gaps, then the batch as far as it fits; count the rest.

        Return the error if it did not fit.  Nothing is written to files that somebody removed.
        """
        if self.files.gone is not None:
            self.refuse(batch, Reason.STORAGE)
            return None
        done = self.files.append(batch, self.untold.gaps())
        self.stats.stored(batch.rows[: done.rows])
        if done.rows or done.error is None:
            self.untold.clear()
        if done.error is not None:
            self.refuse(batch, Reason.STORAGE, done.rows)
        if isinstance(done.error, LostFileError):
            self.count_gone()
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

    def sync(self) -> None:
        """Make the written data durable.

        Raises:
            LostFileError: somebody removed, replaced or cut a file; raised once.
            StorageError: the sync failed; a gap for it will be written.
        """
        files = self.files
        failed_before = files.unsynced is not None
        try:
            files.sync()
        except LostFileError:
            self.count_gone()
            raise
        except StorageError:
            if not failed_before:
                self.stats.unsynced += 1
                self.queue.put((self, losses_batch(self.stats.stream, [files.unsynced_gap()])))
            raise

    def count_gone(self) -> None:
        """Count the content of a lost file as removed; exact after the last write."""
        left = self.files.left()
        if left is not None:
            self.stats.removed_subbuffers = self.stats.stored_subbuffers - left.rows
            self.stats.removed_bytes = self.stats.stored_bytes - left.payload_bytes


# A batch for a lane; an event to set when all items before it are done; None to end.
Job = tuple[Lane, Batch] | threading.Event | None
Jobs = SimpleQueue[Job]

"""One stream on its way to the disk: its files, its counters, and gaps that are not written yet.

Rule: only the thread of a lane's queue writes the lane; other threads read from it.
Rule: a failed sync is final.  Linux reports it once, may have dropped the pages, and reports the
next sync as a success; so the synced record of the stream never advances again.
Invariant: taken data that is not in the files is counted in the stats, and gets a gap as soon as
one can be written.  However long that takes, only a few gaps wait.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from lttd.errors import LostFileError, StorageError
from lttd.stats import StreamStats
from lttd.subbuffer import Batch, Gap, Reason, Unit, losses_batch
from lttd.tracedir import Position, StreamRecord
from lttd.writer import Left, StreamFile


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
    """One stream on its way to the disk."""

    file: StreamFile
    record: StreamRecord
    stats: StreamStats
    queue: "Jobs"
    untold: Untold = field(default_factory=Untold)
    failing: bool = False
    """Whether the last write failed."""
    failed_lately: bool = False
    """Whether a write failed since the last retry()."""
    synced: Position | None = None
    """The end of the durable part of the files."""
    tried: Position | None = None
    """The end of the files at the last sync, successful or not."""
    unsynced: StorageError | None = None
    """The error of the first failed sync; the disk's content after *synced* is unknown."""
    gone: LostFileError | None = None
    """Why nothing more is written: somebody removed, replaced or cut a file of the stream."""
    _synced_latest: int = 0

    def write(self, batch: Batch) -> StorageError | None:
        """Write the waiting gaps, then the batch as far as it fits; count the rest.

        Return the error if it did not fit.  Nothing is written to files that somebody removed.
        """
        if self.gone is not None:
            self.refuse(batch, Reason.STORAGE)
            return None
        done = self.file.append(batch, self.untold.gaps())
        self.stats.stored(batch.rows[: done.rows])
        if done.rows or done.error is None:
            self.untold.clear()
        if done.error is not None:
            self.refuse(batch, Reason.STORAGE, done.rows)
        if isinstance(done.error, LostFileError):
            self._lose(done.error)
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
        return self.write(self._batch())

    def retry(self) -> None:
        """Let the lane's thread call tell().  Callable from any thread."""
        self.queue.put((self, self._batch()))

    def sync(self) -> None:
        """Make the written data durable.

        Raises:
            LostFileError: somebody removed, replaced or cut a file; raised once.
            StorageError: the sync failed; a gap for it will be written.
        """
        if self.gone is not None:
            return
        try:
            self.file.look()
        except LostFileError as error:
            self._lose(error)
            raise
        if self.file.position == self.tried:
            return
        latest = self.file.latest
        try:
            self.tried = self.file.sync()
        except StorageError as error:
            if self.unsynced is None:
                self.unsynced = error
                self.stats.unsynced += 1
                gap = Gap(0, Reason.UNSYNCED, Unit.BYTES, None, self._synced_latest, latest)
                self.queue.put((self, self._batch(gap)))
            raise
        if self.unsynced is None:
            self.synced, self._synced_latest = self.tried, latest

    def _lose(self, error: LostFileError) -> None:
        self.gone = error
        self.count_gone()

    def count_gone(self) -> None:
        """Count the content of a lost file as removed; exact after the last write."""
        if self.gone is None:
            return
        left = Left(0, 0)
        with suppress(StorageError):  # the index is lost, too
            left = self.file.left(self.gone)
        self.stats.removed_subbuffers = self.stats.stored_subbuffers - left.rows
        self.stats.removed_bytes = self.stats.stored_bytes - left.payload_bytes

    def _batch(self, *gaps: Gap) -> Batch:
        return losses_batch(self.record.info.id, gaps)


# A batch for a lane; an event to set when all items before it are done; None to end.
Job = tuple[Lane, Batch] | threading.Event | None
Jobs = SimpleQueue[Job]

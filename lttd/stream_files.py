"""One stream's files in an open segment, and how far they are durable.

Rule: a failed sync is final.  Linux reports it once, may have dropped the pages, and reports the
next sync as a success; so the synced record of the stream never advances again.
Rule: one thread appends; another one syncs.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from lttd.errors import LostFileError, StorageError
from lttd.manifest import Position, StreamRecord
from lttd.stats import StreamStats
from lttd.subbuffer import Batch, Gap, Reason, Unit
from lttd.writer import Appended, Left, StreamFile

_NOTHING: Final = Left(0, 0)


@dataclass(slots=True)
class StreamFiles:
    """The files of one stream in one segment, and their entry in its manifest."""

    file: StreamFile
    record: StreamRecord
    begin: StreamStats
    """The stream's counters when its first batch came: those of earlier segments of the run."""
    end: StreamStats | None = None
    """The counters when its last batch had been written; None: more may come."""
    removed: Left = _NOTHING
    """The part of the stream that was stored here, and then lost with a file."""
    synced: Position | None = None
    """The end of the durable part of the files."""
    tried: Position | None = None
    """The end of the files at the last sync, successful or not."""
    unsynced: StorageError | None = None
    """The error of the first failed sync; the disk's content after *synced* is unknown."""
    gone: LostFileError | None = None
    """Why nothing more is written: somebody removed, replaced or cut a file of the stream."""
    _synced_latest: int = 0
    _tried_latest: int = 0

    def append(self, batch: Batch, before: Sequence[Gap]) -> Appended:
        """Write a batch after the gaps *before*; see StreamFile.append()."""
        done = self.file.append(batch, before)
        if isinstance(done.error, LostFileError):
            self.gone = done.error
        return done

    def sync(self) -> None:
        """Make the written data durable.

        Raises:
            LostFileError: somebody removed, replaced or cut a file; raised once.
            StorageError: the sync failed.
        """
        if self.gone is not None:
            return
        try:
            self.file.look()
        except LostFileError as error:
            self.gone = error
            raise
        if self.file.position == self.tried:
            return
        self._tried_latest = self.file.latest
        try:
            self.tried = self.file.sync()
        except StorageError as error:
            self.unsynced = self.unsynced or error
            raise
        if self.unsynced is None:
            self.synced, self._synced_latest = self.tried, self._tried_latest

    def cut(self) -> StorageError | None:
        """Cut off bytes that a failed write left at the end; return why that failed, if it did."""
        try:
            self.file.cut()
        except StorageError as error:
            return error
        return None

    def unsynced_gap(self) -> Gap:
        """Return the gap for data that may not be on the disk after a failed sync."""
        begin, end = self._synced_latest, self._tried_latest
        return Gap(0, Reason.UNSYNCED, Unit.BYTES, None, begin, end)

    def counted(self, stats: StreamStats) -> StreamStats:
        """Return the counts of this segment alone; *stats* are those of the whole run."""
        counted = (self.end or stats).since(self.begin)
        counted.unsynced = int(self.unsynced is not None)
        counted.removed_subbuffers, counted.removed_bytes = self.removed
        return counted

    def count_gone(self, stats: StreamStats) -> None:
        """Count the content of a lost file as removed; exact after the last write."""
        if self.gone is None:
            return
        left = _NOTHING
        with suppress(StorageError):  # the index is lost, too
            left = self.file.left(self.gone)
        stored = (self.end or stats).since(self.begin)
        before, self.removed = (
            self.removed,
            Left(stored.stored_subbuffers - left.rows, stored.stored_bytes - left.payload_bytes),
        )
        stats.removed_subbuffers += self.removed.rows - before.rows
        stats.removed_bytes += self.removed.payload_bytes - before.payload_bytes

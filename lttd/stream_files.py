"""One stream's files in an open segment, and how far they are durable.

Rule: a failed sync is final.  Linux reports it once, may have dropped the pages, and reports the
next sync as a success; so the synced record of the stream never advances again.
Rule: one thread appends; another one syncs.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from lttd.errors import LostFileError, StorageError
from lttd.manifest import Position, StreamRecord
from lttd.subbuffer import Batch, Gap, Reason, Unit
from lttd.writer import Appended, Left, StreamFile


@dataclass(slots=True)
class StreamFiles:
    """The files of one stream in one segment, and their entry in its manifest."""

    file: StreamFile
    record: StreamRecord
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

    def unsynced_gap(self) -> Gap:
        """Return the gap for data that may not be on the disk after a failed sync."""
        begin, end = self._synced_latest, self._tried_latest
        return Gap(0, Reason.UNSYNCED, Unit.BYTES, None, begin, end)

    def left(self) -> Left | None:
        """Return the part of the stream that is left after the loss of a file; None: no loss."""
        if self.gone is None:
            return None
        with suppress(StorageError):  # the index is lost, too
            return self.file.left(self.gone)
        return Left(0, 0)

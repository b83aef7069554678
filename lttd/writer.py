"""Write one stream: packed or sparse data, then its index entries.

Rule: release, then data, then index: an entry is appended only when its bytes are in the file.  If
a batch does not fit, its first sub-buffers that fit are stored, each whole.
Invariant: the data file ends where the last entry's sub-buffer ends.  While that is not so, because
a cut failed, nothing is appended.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.errors import LostFileError, StorageError, UsageError
from lttd.files import Disk
from lttd.index import (
    ENTRY_BYTES,
    GAP_BYTES,
    GAPS_HEADER,
    INDEX_HEADER,
    encode_entries,
    encode_gaps,
    salvage_entries,
)
from lttd.manifest import Position, StreamRecord
from lttd.subbuffer import Batch, Gap, Rows
from lttd.tracedir import StreamPaths
from lttd.writefile import WRITE_BYTES, File

# A file that has grown this large gets blocks ahead of its end, as much again, up to a limit.
PREALLOCATE_FROM_BYTES: Final = 4 << 20
PREALLOCATE_BYTES: Final = 64 << 20
# Fewer blocks at a time would not save what the call costs.
LEAST_PREALLOCATE_BYTES: Final = 1 << 18
# The page cache takes what the disk is too slow for; synced data leaves it, but for this part.
KEPT_SHARE: Final = 32
Ends = npt.NDArray[np.uint64]
_CHUNK_ENTRIES: Final = 1 << 14
# A hole consists of whole blocks of the file system.
BLOCK_BYTES: Final = 4096


class Appended(NamedTuple):
    """The result of append()."""

    rows: int
    """The number of the batch's first sub-buffers that are in the file."""
    error: StorageError | None = None
    """Why the others are not.  Gaps before the stored sub-buffers, and right after, are written."""


class Left(NamedTuple):
    """The rest of a stream after somebody removed or cut one of its files."""

    rows: int
    payload_bytes: int


class StreamFile:
    """The data, index and gaps files of one stream, written by one thread."""

    def __init__(
        self,
        disk: Disk,
        paths: StreamPaths,
        record: StreamRecord,
        layout: str,
        cached_bytes: int | None = None,
        discarded_before: int | None = None,
    ) -> None:
        """Create the files.  Data beyond *cached_bytes* does not stay in the page cache.

        A sync leaves the first part of *cached_bytes* there, one in KEPT_SHARE.

        *discarded_before* is added to the ``discarded_total`` of rows, which a run counts from 0
        on; None: the record's baseline, as in the first segment of a run.

        Raises:
            UsageError: the layout is sparse, but the size of sub-buffers varies.
            StorageError: the files cannot be created.
        """
        info = record.info
        if layout == "sparse" and not info.subbuffer_bytes:
            raise UsageError(f"{info.id.name}: sub-buffers of varying size cannot be sparse")
        self._record = record
        before = record.baseline_discarded if discarded_before is None else discarded_before
        self._discarded_before = np.uint64(before)
        self._disk = disk
        self._paths = paths
        self._sparse = layout == "sparse"
        self._position = Position(entries=0, data_bytes=0, gaps=0)
        # Blocks ahead of the end would fill the holes of a sparse file.
        self._may_preallocate = not self._sparse or info.subbuffer_bytes <= BLOCK_BYTES
        self._ahead_bytes = PREALLOCATE_BYTES
        self._preallocated_bytes = 0
        self._latest = 0
        # Whether there may be half-written bytes after the end.
        self._ragged = False
        self._data = disk.open(paths.data, truncate=True)
        self._kept_bytes = None if cached_bytes is None else cached_bytes // KEPT_SHARE
        if cached_bytes is not None:
            self._data.cache_until(cached_bytes)
        with ExitStack() as undo:
            # Removing the segment may need the descriptors.
            undo.callback(self._data.close)
            self._index = disk.open(paths.index, truncate=True)
            undo.callback(self._index.close)
            self._index.write_at([INDEX_HEADER], 0)
            undo.pop_all()
        self._gaps_file: File | None = None
        # Whether the name of the gaps file, which appears with the first loss, is durable.
        self._gaps_named = False

    @property
    def position(self) -> Position:
        """The end of the written files; readable from any thread."""
        return self._position

    @property
    def path(self) -> Path:
        """The data file."""
        return self._paths.data

    def renamed(self, paths: StreamPaths) -> None:
        """Take *paths* for those of the files from now on: their segment was renamed."""
        self._paths, self._data.path, self._index.path = paths, paths.data, paths.index

    def allocate_ahead(self, most_bytes: int) -> None:
        """Let at most *most_bytes* of blocks be ahead of the end of the data."""
        self._ahead_bytes = most_bytes
        self._may_preallocate &= most_bytes >= LEAST_PREALLOCATE_BYTES

    @property
    def latest(self) -> int:
        """The end of the last stored sub-buffer, on the trace clock; 0 before the first one."""
        return self._latest

    def append(self, batch: Batch, before: Sequence[Gap] = ()) -> Appended:
        """Write gaps, data and entries of a batch, as far as they fit.

        *before* are gaps before its first sub-buffer, in row 0.
        """
        rows, ends = batch.rows, self._ends(batch)
        gaps = [*before, *sorted(batch.gaps, key=lambda gap: gap.row)]
        try:
            self.cut()
            # A write beyond the cut would leave a hole.
            self._data.refuse_if_cut(self._position.data_bytes)
            self._index.refuse_if_cut(self._index_bytes)
            if gaps:
                self._append_gaps(gaps)
            if len(rows):
                self._append_rows(batch)
                self._append_entries(rows, ends)
        except LostFileError as error:
            return Appended(0, error)
        except StorageError as error:
            self._ragged = True
            count = self._fitting(batch, ends, error)
            there = [gap for gap in gaps if gap.row <= count] if count else []
            self._advance(rows[:count], ends, len(there))
            with suppress(StorageError):
                self.cut()
            return Appended(count, error)
        self._advance(rows, ends, len(gaps))
        return Appended(len(rows))

    def cut(self) -> None:
        """Cut off half-written bytes, if there are any; a file can shrink on a full disk, too.

        Raises:
            StorageError: the file cannot be cut now.
        """
        if not self._ragged:
            return
        self._data.truncate(self._position.data_bytes)
        self._index.truncate(self._index_bytes)
        if self._gaps_file is not None:
            self._gaps_file.truncate(self._gaps_bytes)
        self._ragged = False

    def _ends(self, batch: Batch) -> Ends:
        """Return where each sub-buffer of *batch*, or its slot, will end in the file."""
        if self._sparse:
            first = self._position.entries + 1
            numbers = np.arange(first, first + len(batch.rows), dtype=np.uint64)
            return numbers * np.uint64(self._record.info.subbuffer_bytes)
        ends: Ends = np.cumsum(batch.rows["payload_bytes"], dtype=np.uint64)
        return ends + np.uint64(self._position.data_bytes)

    def _fitting(self, batch: Batch, ends: Ends, error: StorageError) -> int:
        """Return how many sub-buffers are in the data and have entries after *error*."""
        rows = len(batch.rows)
        if error.path == self._data.path:
            written = ends
            if self._sparse:
                # Padding is not written, so the last slot may lack it.
                slot_bytes = np.uint64(self._record.info.subbuffer_bytes)
                written = ends - slot_bytes + batch.rows["payload_bytes"]
            rows = int(np.searchsorted(written, np.uint64(error.end_bytes or 0), side="right"))
            if not rows:
                return 0
            try:
                # First cut the data: that may free the block that the index needs.
                self._data.truncate(int(ends[rows - 1]))
                self._append_entries(batch.rows[:rows], ends)
            except StorageError as another:
                error = another
            else:
                return rows
        if error.path != self._index.path:
            return 0
        entries_bytes = max((error.end_bytes or 0) - self._index_bytes, 0)
        return min(rows, entries_bytes // ENTRY_BYTES)

    def _advance(self, rows: Rows, ends: Ends, gaps: int) -> None:
        at = self._position
        gaps += at.gaps
        if len(rows):
            self._latest = int(rows["end"][-1])
            self._position = Position(at.entries + len(rows), int(ends[len(rows) - 1]), gaps)
        else:
            self._position = Position(at.entries, at.data_bytes, gaps)

    def _append_rows(self, batch: Batch) -> None:
        if self._may_preallocate:
            self._preallocate(batch)
        if self._sparse:
            self._write_sparse(batch)
        else:
            self._data.write_at(batch.pieces(), self._position.data_bytes)

    def _append_entries(self, rows: Rows, ends: Ends) -> None:
        offsets = np.empty(len(rows), np.uint64)
        offsets[0], offsets[1:] = self._position.data_bytes, ends[: len(rows) - 1]
        entries = encode_entries(rows, offsets, self._record.info, sparse=self._sparse)
        entries["events_discarded"] += self._discarded_before
        self._index.write_at([entries.tobytes()], self._index_bytes)

    @property
    def _index_bytes(self) -> int:
        return len(INDEX_HEADER) + self._position.entries * ENTRY_BYTES

    def _write_sparse(self, batch: Batch) -> None:
        size = self._record.info.subbuffer_bytes
        first = self._position.entries
        for begin, behind in _runs_without_holes(batch.rows, size):
            start = int(batch.rows["offset_bytes"][begin])
            end = int(
                batch.rows["offset_bytes"][behind - 1] + batch.rows["payload_bytes"][behind - 1]
            )
            to = (first + begin) * size - start
            if end - start >= WRITE_BYTES and not self._may_preallocate:
                self._data.preallocate(to + start, end - start)
            for at in range(start, end, WRITE_BYTES):
                part = batch.buffer[at : min(at + WRITE_BYTES, end)]
                self._data.write_at([part], to + at)
        if batch.rows["payload_bytes"][-1] != size:
            self._data.truncate((first + len(batch.rows)) * size)

    def _append_gaps(self, gaps: Sequence[Gap]) -> None:
        if self._gaps_file is None:
            self._gaps_file = self._disk.open(self._paths.gaps, truncate=True)
        records = encode_gaps(gaps, self._position.entries)
        # The header comes with the first record, so a file without a record is empty.
        if self._position.gaps:
            self._gaps_file.write_at([records], self._gaps_bytes)
        else:
            self._gaps_file.write_at([GAPS_HEADER + records], 0)

    @property
    def _gaps_bytes(self) -> int:
        count = self._position.gaps
        return len(GAPS_HEADER) + count * GAP_BYTES if count else 0

    def _preallocate(self, batch: Batch) -> None:
        end_bytes = self._position.data_bytes
        if end_bytes < PREALLOCATE_FROM_BYTES:
            return
        if end_bytes + len(batch.buffer) > self._preallocated_bytes:
            length_bytes = max(min(end_bytes, self._ahead_bytes), len(batch.buffer))
            self._may_preallocate = self._data.preallocate(end_bytes, length_bytes)
            self._preallocated_bytes = end_bytes + length_bytes

    def sync(self) -> Position:
        """Make the files durable, data before index; return the end of the durable part.

        Callable from another thread than the one that appends.
        """
        position = self.position
        self._data.sync()
        if self._kept_bytes is not None and self._kept_bytes < position.data_bytes:
            with suppress(OSError):  # the data is durable all the same
                self._data.forget(self._kept_bytes, position.data_bytes)
        if self._gaps_file is not None:
            self._gaps_file.sync()
            if not self._gaps_named:
                self._disk.sync_directory(self._paths.gaps.parent)
                self._gaps_named = True
        self._index.sync()
        return position

    def look(self) -> None:
        """Check that the paths still lead to the open files.

        Callable from another thread than the one that appends.

        Raises:
            LostFileError: somebody removed, replaced, renamed or cut one.
        """
        # Read the position before the files' sizes, because the files grow.
        position, index_bytes, gaps_bytes = self.position, self._index_bytes, self._gaps_bytes
        self._disk.refuse_if_gone(self._data, position.data_bytes)
        self._disk.refuse_if_gone(self._index, index_bytes)
        if self._gaps_file is not None:
            self._disk.refuse_if_gone(self._gaps_file, gaps_bytes)

    def left(self, error: LostFileError) -> Left:
        """Return the rest of the stream after *error*; a lost index can be rebuilt."""
        position, info = self._position, self._record.info
        rows = payload_bytes = 0
        data_bytes = error.left_bytes if error.path == self._data.path else position.data_bytes
        while rows < position.entries:
            at = len(INDEX_HEADER) + rows * ENTRY_BYTES
            some = min(position.entries - rows, _CHUNK_ENTRIES)
            entries = salvage_entries(
                memoryview(INDEX_HEADER + self._index.read_at(at, some * ENTRY_BYTES))
            )
            size = entries["content_bits" if self._sparse else "packet_bits"] >> np.uint64(3)
            slot = np.uint64(info.subbuffer_bytes) if self._sparse else size
            whole = int((entries["offset_bytes"] + slot <= np.uint64(data_bytes)).sum())
            rows, payload_bytes = rows + whole, payload_bytes + int(size[:whole].sum())
            if whole < some:
                break
        return Left(rows, payload_bytes)

    def close(self) -> None:
        """Free the blocks ahead of the end and close the files, without a sync."""
        if self._preallocated_bytes:
            with suppress(StorageError):  # unused blocks do no harm
                self._data.truncate(self._position.data_bytes)
        for file in (self._data, self._index, self._gaps_file):
            if file is not None:
                file.close()


def _runs_without_holes(rows: Rows, slot_bytes: int) -> list[tuple[int, int]]:
    """Split rows where a whole block is padding, or where their slots do not adjoin in the buffer.

    Padding of less than a block cannot become a hole, so one call writes it with the rest.
    """
    padding = rows["kernel_bytes"] - rows["payload_bytes"]
    ends = rows["offset_bytes"] + np.uint64(slot_bytes)
    cut_behind = padding[:-1] >= BLOCK_BYTES
    cut_behind |= ends[:-1] != rows["offset_bytes"][1:]
    bounds = [0, *(np.flatnonzero(cut_behind) + 1).tolist(), len(rows)]
    return list(pairwise(bounds))

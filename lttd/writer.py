"""Writes one stream: packed or sparse data, then its index entries.

Rule: release, then data, then index: an entry is appended only when the bytes it names are in the
file, and a batch is in the file whole or not at all.
Invariant: the data file ends where the last entry's sub-buffer ends.
"""

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.errors import StorageError, UsageError
from lttd.files import WRITE_BYTES, Disk, File
from lttd.index import (
    ENTRY_BYTES,
    GAP_BYTES,
    GAPS_HEADER,
    INDEX_HEADER,
    encode_entries,
    encode_gaps,
)
from lttd.subbuffer import Batch, Gap, Rows
from lttd.tracedir import Position, StreamPaths, StreamRecord

# A file that has grown so large gets blocks ahead of its end, as much again, up to a limit.
PREALLOCATE_FROM_BYTES: Final = 4 << 20
PREALLOCATE_BYTES: Final = 64 << 20
# Holes are made of whole blocks of the file system.
BLOCK_BYTES: Final = 4096


class StreamFile:
    """The data, index and gaps files of one stream, written by one thread."""

    def __init__(
        self,
        disk: Disk,
        paths: StreamPaths,
        record: StreamRecord,
        layout: str,
        cached_bytes: int | None = None,
    ) -> None:
        """Create the files.  Data beyond *cached_bytes* are kept out of the page cache.

        Raises:
            UsageError: sparse was asked for sub-buffers whose size varies.
            StorageError: they cannot be created.
        """
        info = record.info
        if layout == "sparse" and not info.subbuffer_bytes:
            raise UsageError(f"{info.id.name}: sub-buffers of varying size cannot be sparse")
        self._record = record
        self._disk = disk
        self._paths = paths
        self._sparse = layout == "sparse"
        self._position = Position(entries=0, data_bytes=0, gaps=0)
        # Where there are holes to be, blocks ahead of them would fill them.
        self._may_preallocate = not self._sparse or info.subbuffer_bytes <= BLOCK_BYTES
        self._preallocated_bytes = 0
        self._data = disk.open(paths.data, truncate=True)
        if cached_bytes is not None:
            self._data.cache_until(cached_bytes)
        self._index = disk.open(paths.index, truncate=True)
        self._index.write_at([INDEX_HEADER], 0)
        self._gaps_file: File | None = None
        # Whether the name of that file, which appears with the first loss, is durable.
        self._gaps_named = False

    @property
    def position(self) -> Position:
        """How far the stream has been written; readable from any thread."""
        return self._position

    def append(self, batch: Batch) -> None:
        """Write a batch: gaps, data, entries.

        Raises:
            StorageError: nothing of the batch remains in the files.
        """
        entries, data_bytes, gaps = self._position.entries, self._position.data_bytes, 0
        try:
            if batch.gaps:
                gaps = self._append_gaps(batch.gaps)
            if len(batch.rows):
                data_bytes = self._append_rows(batch)
                entries += len(batch.rows)
        except StorageError:
            self._take_back()
            raise
        self._position = Position(entries, data_bytes, self._position.gaps + gaps)

    def _append_rows(self, batch: Batch) -> int:
        if self._may_preallocate:
            self._preallocate(batch)
        write = self._write_sparse if self._sparse else self._write_packed
        offsets, end_bytes = write(batch)
        entries = encode_entries(batch.rows, offsets, self._record.info, sparse=self._sparse)
        entries["events_discarded"] += np.uint64(self._record.baseline_discarded)
        at = len(INDEX_HEADER) + self._position.entries * ENTRY_BYTES
        self._index.write_at([entries.tobytes()], at)
        return end_bytes

    def _write_packed(self, batch: Batch) -> tuple[npt.NDArray[np.uint64], int]:
        start = self._position.data_bytes
        stored = batch.rows["stored_bytes"]
        ends = np.cumsum(stored, dtype=np.uint64) + np.uint64(start)
        self._data.write_at(batch.pieces(), start)
        return ends - stored, int(ends[-1])

    def _write_sparse(self, batch: Batch) -> tuple[npt.NDArray[np.uint64], int]:
        size = self._record.info.subbuffer_bytes
        first = self._position.entries
        for begin, behind in _runs_without_holes(batch.rows, size):
            start = int(batch.rows["offset_bytes"][begin])
            end = int(
                batch.rows["offset_bytes"][behind - 1] + batch.rows["stored_bytes"][behind - 1]
            )
            to = (first + begin) * size - start
            if end - start >= WRITE_BYTES and not self._may_preallocate:
                self._data.preallocate(to + start, end - start)
            for at in range(start, end, WRITE_BYTES):
                part = batch.buffer[at : min(at + WRITE_BYTES, end)]
                self._data.write_at([part], to + at)
        end_bytes = (first + len(batch.rows)) * size
        if batch.rows["stored_bytes"][-1] != size:
            self._data.truncate(end_bytes)
        numbers = np.arange(first, first + len(batch.rows), dtype=np.uint64)
        return numbers * np.uint64(size), end_bytes

    def _append_gaps(self, gaps: tuple[Gap, ...]) -> int:
        if self._gaps_file is None:
            self._gaps_file = self._disk.open(self._paths.gaps, truncate=True)
        records = encode_gaps(gaps, self._position.entries)
        # The header comes with the first record, so that a file without one is an empty file.
        if self._position.gaps:
            self._gaps_file.write_at([records], self._gaps_bytes)
        else:
            self._gaps_file.write_at([GAPS_HEADER + records], 0)
        return len(gaps)

    @property
    def _gaps_bytes(self) -> int:
        count = self._position.gaps
        return len(GAPS_HEADER) + count * GAP_BYTES if count else 0

    def _take_back(self) -> None:
        """Cut off what was half written; a full disk still lets a file shrink."""
        position = self._position
        self._data.truncate(position.data_bytes)
        self._index.truncate(len(INDEX_HEADER) + position.entries * ENTRY_BYTES)
        if self._gaps_file is not None:
            self._gaps_file.truncate(self._gaps_bytes)

    def _preallocate(self, batch: Batch) -> None:
        end_bytes = self._position.data_bytes
        if end_bytes < PREALLOCATE_FROM_BYTES:
            return
        if end_bytes + len(batch.buffer) > self._preallocated_bytes:
            length_bytes = min(end_bytes, PREALLOCATE_BYTES)
            self._may_preallocate = self._data.preallocate(end_bytes, length_bytes)
            self._preallocated_bytes = end_bytes + length_bytes

    def sync(self) -> Position:
        """Make what was written durable, data before index; return how far that is.

        May be called from another thread than the one that appends.
        """
        position = self.position
        self._data.sync()
        if self._gaps_file is not None:
            self._gaps_file.sync()
            if not self._gaps_named:
                self._disk.sync_directory(self._paths.gaps.parent)
                self._gaps_named = True
        self._index.sync()
        return position

    def close(self) -> None:
        """Give blocks ahead of the end back and close the files; nothing is synced by it."""
        if self._preallocated_bytes:
            self._data.truncate(self._position.data_bytes)
        for file in (self._data, self._index, self._gaps_file):
            if file is not None:
                file.close()


def _runs_without_holes(rows: Rows, slot_bytes: int) -> list[tuple[int, int]]:
    """Split rows where a whole block is padding, or where their slots do not adjoin in the buffer.

    Padding of less than a block cannot become a hole: it is written along, in one call.
    """
    padding = rows["kernel_bytes"] - rows["stored_bytes"]
    ends = rows["offset_bytes"] + np.uint64(slot_bytes)
    cut_behind = padding[:-1] >= BLOCK_BYTES
    cut_behind |= ends[:-1] != rows["offset_bytes"][1:]
    bounds = [0, *(np.flatnonzero(cut_behind) + 1).tolist(), len(rows)]
    return list(pairwise(bounds))

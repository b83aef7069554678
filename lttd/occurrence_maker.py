"""Make the occurrence table of a closed segment from its data (``lttd.occurrences``).

Rule: only a stream whose entries and data agree gets a table, so that reading less of it hides no
note on what is wrong.  A sub-buffer whose events do not parse to their end counts as one that may
hold anything.
Rule: a table costs at most a 400th of its data.  Where a bit for each sub-buffer is more, several
share one; a stream where that does not help gets none.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import EventIds
from lttd.blocks import Block, bytes_of
from lttd.errors import LttdError, TraceDamagedError
from lttd.files import Disk
from lttd.held import held_alone
from lttd.index import SeekIndex
from lttd.manifest import Manifest
from lttd.occurrences import (
    CHUNK_ENTRIES,
    DAMAGED,
    OccurrenceFile,
    Occurrences,
    checksum,
    chunks_of,
    encode,
    encode_content,
    of_other_index,
    row_bytes,
)
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

# Of its data, a table takes at most one byte of so many.
LEAST_RATIO: Final = 400
MOST_BITS_BYTES: Final = 16 << 20
# With larger groups each would hold every event.
MOST_GROUP: Final = 1024
# 4 MiB of events that fill their sub-buffers, of 60,000 types.
_MOST_BLOCK_BITS: Final = 64 << 20
_LEVEL: Final = 3
_IDS: Final = 1 << 16

Pace = Callable[[], None]
"""Called after each block of data; it may sleep, or raise to stop."""


class Made(NamedTuple):
    """The size of a segment's occurrence table."""

    data_bytes: int
    """The data of all its streams."""
    table_bytes: int
    """0: no stream gets a table, and there is no file."""


def no_pace() -> None:
    """Work at full speed."""


def note_occurrences(segment: SegmentPaths, disk: Disk) -> Made | None:
    """Make the table of *segment*; None: it has one that fits.

    Raises:
        LttdError: it is open.
        LockedError: another process uses it.
        TraceDamagedError: its manifest or data cannot be read.
        StorageError: the file could not be written.
    """
    with held_alone(segment, disk) as own:
        manifest = Manifest.read(own.place(own.manifest))
        if manifest.state != "closed":
            raise LttdError(f"{segment.directory}: not closed, so it stays as it is")
        if has_occurrences(own, manifest):
            return None
        return make_occurrences(own, manifest, disk)


def make_occurrences(
    segment: SegmentPaths, manifest: Manifest, disk: Disk, pace: Pace = no_pace
) -> Made:
    """Make the table of a segment that the caller holds; see note_occurrences()."""
    tables: list[tuple[str, Occurrences, bytes]] = []
    data_bytes = 0
    for record in manifest.streams:
        stream = StoredStream(segment, manifest, record)
        data_bytes += stream.data_bytes
        with suppress(TraceDamagedError):  # check reports it
            if (table := _smallest(stream, pace)) is not None:
                tables.append((stream.name, *table))
    if not tables:
        remove_occurrences(segment, disk)
        return Made(data_bytes, 0)
    encoded = encode(tables)
    disk.replace(segment.occurrences, encoded, like=segment.manifest)
    return Made(data_bytes, len(encoded))


def remove_occurrences(segment: SegmentPaths, disk: Disk) -> None:
    """Remove the table, if any, of a segment that the caller holds and is about to change."""
    if not segment.base.is_missing(segment.occurrences):
        disk.remove(segment.occurrences)
        disk.sync_directory(segment.directory)


def has_occurrences(segment: SegmentPaths, manifest: Manifest) -> bool:
    """Tell whether there is a table, and fits all streams that it is for."""
    try:
        file = OccurrenceFile(segment.place(segment.occurrences))
        for record in manifest.streams:
            stream = StoredStream(segment, manifest, record)
            fitting_table(file, stream)
    except (FileNotFoundError, TraceDamagedError):
        return False
    return True


def fitting_table(file: OccurrenceFile, stream: StoredStream) -> Occurrences | None:
    """Return the table of *stream* after a comparison with all of its index; None: it has none.

    Raises:
        TraceDamagedError: it is damaged, or of other data; or the index cannot be used.
    """
    if stream.file is None and not stream.index_bytes():
        return None
    index = stream.index
    table = file.table(stream.name, len(index), stream.data_bytes)
    for chunk in range(chunks_of(len(index))) if table else ():
        assert table is not None
        at = chunk * CHUNK_ENTRIES
        if not table.fits(chunk, index.entries(at, at + CHUNK_ENTRIES)):
            raise of_other_index(file.path, stream.name, at)
    return table


def _smallest(stream: StoredStream, pace: Pace) -> tuple[Occurrences, bytes] | None:
    """Return the table of a stream, and its frame; None: it gets none."""
    if stream.abi is None or not stream.data_bytes:
        return None
    index, data_bytes = stream.index, stream.data_bytes
    rows = _Rows(len(index))
    for block in stream.blocks(index):
        found = _ids_of(stream, block)
        if found is None or not rows.add(block.rows, found):
            return None
        pace()
    if stream.damage:
        return None
    checksums = _checksums(index)
    while rows.group <= MOST_GROUP:
        ids, bits = rows.bits()
        table = Occurrences(len(index), data_bytes, rows.group, ids, checksums, bits)
        frame = _compressed(encode_content(table))
        if len(frame) * LEAST_RATIO <= data_bytes:
            return table, frame
        rows.fold()
    return None


def _ids_of(stream: StoredStream, block: Block) -> EventIds | None:
    """Return the ids in a block; None: there are none, or entries and data disagree."""
    assert stream.abi is not None
    if block.wrong:
        return None
    _, stated = bytes_of(block.entries)
    if not stream.slot_bytes and (block.headers.payload_bytes != stated).any():
        return None
    return stream.abi.event_ids(block.data, block.headers)


def _checksums(index: SeekIndex) -> npt.NDArray[np.uint32]:
    starts = range(0, len(index), CHUNK_ENTRIES)
    found = [checksum(index.entries(at, at + CHUNK_ENTRIES)) for at in starts]
    return np.array(found, np.uint32)


def _compressed(content: bytes) -> bytes:
    # Loading the library takes 5 ms, and each start of lttd loads this module.
    from lttd.zstd import CompressionParameter, ZstdCompressor  # noqa: PLC0415

    options: dict[int, int] = {
        CompressionParameter.compression_level: _LEVEL,
        CompressionParameter.checksum_flag: 1,
    }
    compressor = ZstdCompressor(options=options)
    compressor.set_pledged_input_size(len(content))
    return compressor.compress(content, ZstdCompressor.FLUSH_FRAME)


class _Rows:
    """The bits of a table in the making, in groups that grow with the number of ids."""

    def __init__(self, entries: int) -> None:
        self.group = 1
        self._entries = entries
        self._row_of: dict[int, U8] = {}

    def add(self, rows: I64, found: EventIds) -> bool:
        """Set the bits of some events; *rows* are the entries that their sub-buffers have.

        Return False if they have more ids than any kernel's.
        """
        groups = rows // self.group
        first, count = (int(groups[0]), int(groups[-1] - groups[0]) + 1) if len(groups) else (0, 0)
        met = np.zeros(_IDS, np.bool_)
        met[found.id] = True
        ids = np.flatnonzero(met)
        if count * len(ids) > _MOST_BLOCK_BITS:
            return False
        column = np.zeros(_IDS, np.int64)
        column[ids] = np.arange(len(ids))
        there = np.zeros((count, len(ids)), np.bool_)
        there[groups[found.row] - first, column[found.id]] = True
        for number, one in enumerate(ids.tolist()):
            self._set(one, np.flatnonzero(there[:, number]) + first)
        if found.damaged:
            self._set(DAMAGED, groups[found.damaged])
        while len(self._row_of) * row_bytes(self._entries, self.group) > MOST_BITS_BYTES:
            self.fold()
        return True

    def _set(self, one: int, groups: I64) -> None:
        row = self._row_of.get(one)
        if row is None:
            row = self._row_of[one] = np.zeros(row_bytes(self._entries, self.group), np.uint8)
        np.bitwise_or.at(row, groups >> 3, (0x80 >> (groups & 7)).astype(np.uint8))

    def fold(self) -> None:
        """Make groups of twice as many entries."""
        self.group *= 2
        length = row_bytes(self._entries, self.group)
        for one, row in self._row_of.items():
            pairs = np.unpackbits(row).reshape(-1, 2).any(axis=1)
            self._row_of[one] = np.packbits(pairs)[:length]

    def bits(self) -> tuple[tuple[int, ...], U8]:
        """Return the ids, sorted, and the row of each."""
        ids = tuple(sorted(self._row_of))
        rows = [self._row_of[one] for one in ids]
        length = row_bytes(self._entries, self.group)
        return ids, np.array(rows, np.uint8).reshape(len(ids), length)

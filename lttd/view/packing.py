"""Write a part of a foreign stream as a stream of lttd: packed, with an index, losses as gaps.

Rule: a page that does not parse becomes a gap of its bytes, as in a recording.
Invariant: every sound page is written once, in order, without its padding.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lttd.blocks import Block
from lttd.files import Disk
from lttd.index import GAPS_HEADER, INDEX_HEADER, encode_gaps
from lttd.manifest import Manifest, StreamRecord
from lttd.stored import CHUNK_ENTRIES, StoredStream
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Pieces, Reason, Unit
from lttd.tracedir import SegmentPaths
from lttd.view.part import Selection
from lttd.writefile import File

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


def write_packed(
    part: Selection, segment: SegmentPaths, manifest: Manifest, disk: Disk
) -> StreamRecord:
    """Write the files of a stream; return its record for the manifest.

    Raises:
        StorageError: they cannot be written.
        TraceDamagedError: the foreign file cannot be read.
    """
    record = StreamRecord(part.stream.info)
    paths = segment.stream(record.name)
    data, index = disk.open(paths.data, truncate=True), disk.open(paths.index)
    try:
        packing = _Packing(part, data, index)
        packing.write()
    finally:
        data.close()
        index.close()
    gaps = packing.gaps()
    if gaps:
        file = disk.open(paths.gaps)
        try:
            file.write_at([GAPS_HEADER, encode_gaps(gaps, 0)], 0)
        finally:
            file.close()
    made = StoredStream(segment, manifest, record)
    record.summary = made.derived_summary(made.index, gaps)
    return record


class _Packing:
    """The writing of one stream."""

    def __init__(self, part: Selection, data: File, index: File) -> None:
        self._part = part
        self._data = data
        self._index = index
        self._index_at = index.write_at([INDEX_HEADER], 0)
        self._data_at = 0
        self._rows = 0
        self._dropped: list[Gap] = []
        """A gap for each page that does not parse, with the row of that page."""
        lost = [
            (gap.row, gap.count)
            for gap in part.gaps
            if gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS and gap.count
        ]
        self._loss_rows = np.array([row for row, _ in lost], np.int64)
        self._lost = np.cumsum([0, *(count for _, count in lost)], dtype=np.uint64)

    def write(self) -> None:
        """Write all sub-buffers that parse."""
        part = self._part
        for first in range(0, len(part.entries), CHUNK_ENTRIES):
            some = part.entries[first : first + CHUNK_ENTRIES]
            there = np.zeros(len(some), np.bool_)
            for block in part.stream.blocks(some, part.first + first):
                there[block.rows] = True
                self._put(block, first)
            self._dropped += (
                self._gap_of(first, row, some[row]) for row in np.flatnonzero(~there).tolist()
            )

    def _put(self, block: Block, first: int) -> None:
        """Write the sub-buffers of a block."""
        count = len(block.rows)
        if not count:
            return
        length = block.headers.payload_bytes.astype(np.uint64)
        pieces = Pieces(block.data, block.headers.offset_bytes.astype(np.uint64), length)
        entries = block.entries.copy()
        entries["offset_bytes"] = np.uint64(self._data_at) + np.cumsum(length) - length
        entries["packet_bits"] = length << np.uint64(3)
        entries["sequence"] = np.arange(self._rows, self._rows + count)
        earlier = np.searchsorted(self._loss_rows, block.rows + first, "right")
        entries["events_discarded"] = self._lost[earlier]
        self._data_at = self._data.write_at(pieces, self._data_at)
        self._index_at = self._index.write_at([entries.tobytes()], self._index_at)
        self._rows += count

    def _gap_of(self, first: int, row: int, entry: np.void) -> Gap:
        """Return the gap of a page that does not parse."""
        size = self._part.stream.info.subbuffer_bytes
        begin, end = int(entry["begin"]), int(entry["end"])
        return Gap(first + row, Reason.DAMAGED, Unit.BYTES, size, begin, max(begin, end))

    def gaps(self) -> list[Gap]:
        """Return all gaps, with the rows of the pages that were written."""
        return list(self._placed())

    def _placed(self) -> Iterator[Gap]:
        rows = np.array([gap.row for gap in self._dropped], np.int64)
        every = sorted([*self._part.gaps, *self._dropped], key=lambda gap: gap.row)
        for gap in every:
            yield replace(gap, row=gap.row - int(np.searchsorted(rows, gap.row)))

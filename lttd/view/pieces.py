"""The common part of all decoders: load the bytes of a piece into one buffer, make the batch.

A family's decoder walks the buffer and returns columns; see ``PieceDecoder``.

Rule: this module leaves out an entry that disagrees with its data, with a note; no decoder checks
again.
Rule: no bytes make this module raise.
Invariant: the events of a batch lie within the span of its piece.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.view.columns import EventBatch
from lttd.view.formats import EventType
from lttd.view.losses import Loss
from lttd.view.notes import WindowNotes
from lttd.view.window import FOREVER, Piece, StreamSlice, WindowStream

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Member(NamedTuple):
    """The sub-buffers of one stream in a piece."""

    part: StreamSlice
    base: int
    """Offset in the stream's data file minus offset in the buffer."""

    @property
    def source(self) -> WindowStream:
        """The stream."""
        return self.part.source

    def note(self, at: int, reason: str) -> str:
        """Return the line for a defect at byte *at* of the buffer."""
        return f"{self.source.stream.paths.data}: byte {at + self.base}: {reason}"


class Loaded(NamedTuple):
    """The bytes of a piece."""

    data: memoryview
    members: list[Member]
    """The streams that have sub-buffers, in the order of their bytes in ``data``."""


class Pages(NamedTuple):
    """The sub-buffers of some members, by their places in the buffer."""

    offset: I64
    content_end: I64
    begin: U64
    part: I64
    """For each sub-buffer the number of its member."""


class Columns(NamedTuple):
    """Events in the order of time, as the columns of a batch."""

    time: U64
    cpu: U16
    type: I32
    pid: I32
    flags: U8
    preempt: U8
    at: I64
    size_bytes: U32


class TypeTable(Protocol):
    """The event types of a window, numbered in the order of their first events."""

    all: list[EventType]

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``system:name``, if any source has it."""
        ...


TypesT = TypeVar("TypesT", bound=TypeTable)


class PieceDecoder(Generic[TypesT]):
    """Makes batches from pieces; a family defines columns()."""

    def __init__(self, notes: WindowNotes, types: TypesT) -> None:
        self.notes = notes
        self.types = types

    def batch(self, piece: Piece, sources: Sequence[WindowStream]) -> EventBatch:
        """Decode one piece; the batch gets the notes since the last one."""
        loaded = load(piece, self.notes)
        columns, stream = self.columns(piece, loaded, sources)
        losses = losses_of(piece, sources)
        return EventBatch(
            loaded.data,
            self.types.all,
            *columns,
            losses=tuple(losses),
            notes=tuple(self.notes.take()),
            begin=piece.begin,
            end=piece.end,
            find=lambda name: self.types.find(name, sources),
            stream=stream,
        )

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, I32 | None]:
        """Return the events, and for each the number of its source; None if nobody needs it."""
        raise NotImplementedError


def load(piece: Piece, notes: WindowNotes) -> Loaded:
    """Read the usable sub-buffers of a piece into one buffer."""
    parts = [part for each in piece.parts if len((part := _usable(each, notes)).entries)]
    extents = [_extent(part) for part in parts]
    if len(parts) == 1 and extents[0][0] % 8 == 0:
        begin, end = extents[0]
        return Loaded(parts[0].source.stream.data[begin:end], [Member(parts[0], begin)])
    members: list[Member] = []
    filled = 0
    for part, (begin, end) in zip(parts, extents, strict=True):
        filled += (begin - filled) % 8  # keep the alignment that data has in its file
        members.append(Member(part, begin - filled))
        filled += end - begin
    buffer = np.empty(filled, np.uint8).data  # a bytearray would be cleared first
    for (part, base), (begin, end) in zip(members, extents, strict=True):
        buffer[begin - base : end - base] = part.source.stream.data[begin:end]
    return Loaded(buffer, members)


def _usable(part: StreamSlice, notes: WindowNotes) -> StreamSlice:
    """Return a part without entries that point outside of the file, or far from the others."""
    stream, entries = part.source.stream, part.entries
    room = len(stream.data)
    offset = entries["offset_bytes"].astype(np.uint64)
    size = entries["packet_bits"].astype(np.uint64) >> np.uint64(3)
    usable = (offset <= room) & (size <= (stream.slot_bytes or stream.info.subbuffer_bytes or room))
    usable &= offset + size <= room
    if usable.any():
        middle = float(np.median(offset[usable]))
        reach = 2.0 * float(size[usable].sum()) + (1 << 20)
        usable &= np.abs(offset.astype(np.float64) - middle) <= reach
    if usable.all():
        return part
    for row in np.flatnonzero(~usable).tolist():
        at = len(INDEX_HEADER) + (part.first + row) * ENTRY_BYTES
        notes.add(f"{stream.paths.index}: byte {at}: the sub-buffer is not in the data file")
    return part._replace(entries=entries[usable])


def _extent(part: StreamSlice) -> tuple[int, int]:
    """Return begin and end of the sub-buffers in the stream's data."""
    offset = part.entries["offset_bytes"].astype(np.int64)
    size = (part.entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
    return (int(offset.min()), int((offset + size).max())) if len(offset) else (0, 0)


def pages_of(members: Sequence[Member], notes: WindowNotes) -> Pages:
    """Return the content of each sub-buffer on which its header and the index agree."""
    found = []
    for number, (part, base) in enumerate(members):
        stream, entries = part.source.stream, part.entries
        headers = stream.headers(entries)
        stated = (entries["packet_bits"].astype(np.uint64) >> np.uint64(3)).astype(np.int64)
        indexed = (entries["content_bits"].astype(np.uint64) >> np.uint64(3)).astype(np.int64)
        sound = (headers.payload_bytes > 0) & (headers.content_bytes <= stated)
        differ = ~sound | (headers.content_bytes != indexed)
        for row in np.flatnonzero(differ).tolist():
            what = "header differs from the index" if sound[row] else "no sub-buffer begins here"
            notes.add(f"{stream.paths.data}: byte {int(headers.offset_bytes[row])}: {what}")
        offset = headers.offset_bytes[sound] - base
        begin = entries["begin"][sound].astype(np.uint64)
        part_of = np.full(len(offset), number, np.int64)
        found.append(Pages(offset, offset + headers.content_bytes[sound], begin, part_of))
    return Pages(*(np.concatenate(column) for column in zip(*found, strict=True)))


def within(piece: Piece, key: U64) -> Mask:
    """Return a mask of the events within a piece's span, by their sort keys."""
    kept = key >= np.uint64(piece.begin)
    if piece.end <= FOREVER:
        kept &= key < np.uint64(piece.end)
    return kept


def joined(found: Sequence[Sequence[Any]], dtypes: Iterable[str]) -> Iterator[npt.NDArray[Any]]:
    """Yield the joined columns of all *found*; if there are none, empty ones of *dtypes*."""
    for number, dtype in enumerate(dtypes):
        yield np.concatenate([one[number] for one in found]) if found else np.empty(0, dtype)


def losses_of(piece: Piece, sources: Sequence[WindowStream]) -> list[Loss]:
    """Return the known losses within a piece."""
    rows = {id(part.source): part for part in piece.parts}
    found: list[Loss] = []
    for source in sources:
        part = rows.get(id(source))
        begins: list[int] = part.entries["begin"].tolist() if part else []
        first = part.first if part else len(source.index)
        at_end = piece.last and first + len(begins) == len(source.index)
        if part is None and not at_end:
            continue
        last = source.index.entries(max(first + len(begins) - 1, 0), first + len(begins))
        floor = max([piece.begin, *last["end"].tolist()]) if at_end else None
        losses = source.losses.before(first, begins, source.stream.info.id, floor)
        found += [loss for loss in losses if piece.begin <= loss.time < piece.end]
    return sorted(found, key=lambda loss: loss.time)

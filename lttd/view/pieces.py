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

from lttd.blocks import ANY_BYTES, bytes_of, runs_of
from lttd.errors import TraceDamagedError
from lttd.index import FOREVER
from lttd.view.columns import EventBatch
from lttd.view.formats import EventName, EventType
from lttd.view.losses import Loss
from lttd.view.notes import WindowNotes
from lttd.view.window import Piece, StreamSlice, WindowStream

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
        return f"{self.source.stream.data_path}: byte {at + self.base}: {reason}"


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
    end: U64
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
    payload_bytes: U32
    piece_begin: U64 | None = None
    graph: npt.NDArray[np.void] | None = None
    packet: I64 | None = None


class TypeTable(Protocol):
    """The event types of a window, numbered in the order of their first events."""

    all: list[EventType]

    def names(self, source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        ...

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
        losses = losses_of(piece)
        batch = EventBatch(
            loaded.data,
            self.types.all,
            **columns._asdict(),
            losses=tuple(losses),
            notes=tuple(self.notes.take()),
            begin=piece.begin,
            end=piece.end,
            find=lambda name: self.types.find(name, sources),
            stream=stream,
        )
        hidden = hidden_events(batch.pid, batch.at, loaded.members)
        return batch if hidden is None else batch.select(~hidden)

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, I32 | None]:
        """Return the events, and for each the number of its source; None if nobody needs it."""
        raise NotImplementedError


def hidden_events(pid: I32, at: I64, members: Sequence[Member]) -> Mask | None:
    """Return a mask of the events of threads that their streams hide; None: there are none."""
    pids_of = [each.source.stream.hidden_pids for each in members]
    every = dict.fromkeys(pids_of)
    if not any(every) or not len(pid):
        return None
    hidden = np.zeros(len(pid), np.bool_)
    if len(every) == 1:
        hidden = np.isin(pid, list(pids_of[0]))
    else:  # an id is of lttd in some segments only
        begins = [int(part.entries["offset_bytes"][0]) - base for part, base in members]
        member = np.searchsorted(begins, at, "right") - 1
        for pids in every:
            of_these = np.array([each == pids for each in pids_of])
            hidden |= of_these[member] & np.isin(pid, list(pids))
    return hidden if hidden.any() else None


def load(piece: Piece, notes: WindowNotes) -> Loaded:
    """Read the usable part of a piece into one buffer."""
    members: list[Member] = []
    extents: list[tuple[int, int]] = []
    filled = 0
    for part in piece.parts:
        if part.is_skipped:
            continue
        stream = part.source.stream
        rows, wrong = stream.usable(part.entries, part.first)
        notes.add(*map(str, wrong))
        if part.needed is not None:
            rows = rows[part.needed[rows]]
        entries = part.entries if len(rows) == len(part.entries) else part.entries[rows]
        for run in runs_of(*bytes_of(entries), ANY_BYTES):
            filled += (run.begin - filled) % 8  # what is aligned in its file is so in the buffer
            members.append(Member(part._replace(entries=entries[run.rows]), run.begin - filled))
            extents.append((filled, filled + run.end - run.begin))
            filled = extents[-1][1]
    buffer = np.empty(filled, np.uint8).data  # unlike a bytearray not cleared first
    for member, (begin, end) in zip(members, extents, strict=True):
        _fill(buffer[begin:end], member, begin, notes)
    return Loaded(buffer, members)


def _fill(room: memoryview, member: Member, at: int, notes: WindowNotes) -> None:
    """Read a member's bytes; those that are gone become zeros, in which no sub-buffer begins."""
    done, why = 0, "the file was cut here while it was read"
    stream = member.source.stream
    met = len(stream.damage)
    try:
        done = stream.read_into(room, at + member.base)
        notes.add(*map(str, stream.damage[met:]))
    except TraceDamagedError as error:
        why = error.reason
    if done < len(room):
        notes.add(member.note(at + done, why))
        room[done:] = bytes(len(room) - done)


def pages_of(data: memoryview, members: Sequence[Member], notes: WindowNotes) -> Pages:
    """Return the place of the content of each sub-buffer whose header and index agree."""
    found = []
    for number, (part, base) in enumerate(members):
        headers, sound, wrong = part.source.stream.compared(data, base, part.entries)
        notes.add(*map(str, wrong))
        offset = headers.offset_bytes[sound]
        begin, end = (part.entries[name][sound].astype(np.uint64) for name in ("begin", "end"))
        part_of = np.full(len(offset), number, np.int64)
        found.append(Pages(offset, offset + headers.content_bytes[sound], begin, end, part_of))
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
        columns = [one[number] for one in found]
        # Most pieces have one part, which needs no copy.
        yield columns[0] if len(columns) == 1 else np.concatenate([np.empty(0, dtype), *columns])


def losses_of(piece: Piece) -> list[Loss]:
    """Return the known losses within a piece, in the order of time."""
    found = list(piece.rest)
    for source, first, entries, _ in piece.parts:
        before = source.losses.before(first, entries["begin"], source.stream.info.id)
        found += [loss for loss in before if piece.begin <= loss.time < piece.end]
    return sorted(found, key=lambda loss: loss.time)

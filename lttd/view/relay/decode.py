"""Decode relay channels: an event per record if the recording named a framing, else per entry.

An event's system is its channel, and its name is ``record`` or ``entry``.  Its fields are what is
known of bytes of an unknown format:

    sequence    the record's number; only with ``sequence=``
    entry       the number of its entry in the stream's index
    begin       the bytes were written at or after this time; not with ``time=``
    offset      of the first byte in the stream's data file
    size        number of bytes
    text        the bytes, if they are text; NULs at the end are not part of it
    data        the bytes

The time of a record is its own; without ``time=``, and for an entry, it is the time at which lttd
found the bytes closed.

The data of a batch ends with a table of its entries, from which EntryRecords makes the fields.

Rule: no bytes make this module raise; bytes that are not a record become a note.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.framing import Fixed, LengthPrefixed, parse_framing
from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.errors import UsageError
from lttd.index import FOREVER
from lttd.manifest import Manifest
from lttd.plausible import is_count
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.columns import EventBatch, EventRows
from lttd.view.formats import EventName, EventType
from lttd.view.merge import order_by_time
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, Member, PieceDecoder, joined, within
from lttd.view.relay.texts import text_spans
from lttd.view.window import Piece, WindowStream

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_ENTRY: Final = np.dtype([("at", "i8"), ("entry", "u8"), ("offset", "u8"), ("begin", "u8")])
"""A row of the table: where the entry begins in the batch's data and in the file."""
_COUNT_BYTES: Final = 8
Framing = Fixed | LengthPrefixed


def framing_of(manifest: Manifest) -> Framing | None:
    """Return the framing by which the records were cut; None: the recording named none.

    Raises:
        UsageError: the manifest states an impossible one.
    """
    source = manifest.source
    form, places = source.get("framing"), [source.get(key) for key in ("time", "sequence")]
    if form is None:
        return None
    if not isinstance(form, str) or not all(at is None or is_count(at) for at in places):
        raise UsageError(f"framing {form!r:.40} with such places is not possible")
    framing = parse_framing(form, time_at=places[0], sequence_at=places[1])
    if not isinstance(framing, Framing):
        raise UsageError(f"framing {form}: another ABI has these records")
    return framing


class RelayContexts:
    """See ``lttd.view.family.Contexts``: the framing of a segment's records."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        try:
            self._framing = framing_of(manifest)
        except UsageError as error:
            self._framing = None
            notes.add(f"{paths.manifest}: {error}; each entry is shown as a whole")

    def of(self, stream: StoredStream) -> Framing | None:
        """Return the framing."""
        return self._framing


class _Kind(NamedTuple):
    """What the events of one type have in common."""

    channel: str
    framing: Framing | None


class RelayTypes:
    """The event types of a window, numbered in the order of their first events."""

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._known: dict[_Kind, EventType] = {}

    def of(self, source: WindowStream) -> EventType:
        """Return the type of a stream's events."""
        kind = _Kind(source.stream.info.id.channel, source.context)
        if kind not in self._known:
            name = EventName(kind.channel, "entry" if kind.framing is None else "record")
            made = EventType(len(self.all), name, 0, source.stream.segment.directory.name)
            made.format = _format(name, kind.framing)
            made.records_of = EntryRecords(kind.framing, made.format.dtype)
            self.all.append(made)
            self._known[kind] = made
        return self._known[kind]

    def names(self, source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        found = self.of(source)
        return (EventName(found.system, found.name),)

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``channel:name``, if any source has it."""
        for source in sources:
            found = self.of(source)
            if name in (found.name, f"{found.system}:{found.name}"):
                return found
        return None


def _format(name: EventName, framing: Framing | None) -> Format:
    words: list[str] = []
    if framing is not None and framing.sequence_at is not None:
        words.append("sequence")
    words.append("entry")
    if framing is None or framing.time_at is None:
        words.append("begin")
    words += ["offset", "size"]
    fields = [
        Field(word, "u64", 8 * at, 8, False, Encoding.INT, 8) for at, word in enumerate(words)
    ]
    fields.append(Field("text", "char *", 8 * len(words), 16, False, Encoding.SPAN, 1))
    fields.append(Field("data", "u8", 0, 0, False, Encoding.TAIL, 1))
    return Format(*name, 0, tuple(fields), "", "<", 8)


class EntryRecords:
    """Makes the fields of the events of one type; see ``lttd.view.formats.RecordsOf``."""

    def __init__(self, framing: Framing | None, dtype: np.dtype[Any]) -> None:
        self._framing = framing
        self._dtype = dtype

    def __call__(self, rows: EventRows) -> npt.NDArray[np.void]:
        """Return the fields of some events."""
        data, at, payload_bytes = rows.batch.data, rows.at, rows.payload_bytes
        table, records = _table_of(data), np.zeros(len(at), self._dtype)
        row = np.searchsorted(table["at"], at, "right") - 1
        names = self._dtype.names or ()
        records["entry"] = table["entry"][row]
        records["offset"] = table["offset"][row] + (at - table["at"][row]).astype(np.uint64)
        records["size"] = payload_bytes
        records["text"] = text_spans(data, at, payload_bytes)
        if "begin" in names:
            records["begin"] = table["begin"][row]
        if "sequence" in names and self._framing is not None:
            numbered = self._framing.sequences(data, at)
            records["sequence"] = 0 if numbered is None else numbered[0]
        return records


def _table_of(data: memoryview) -> npt.NDArray[np.void]:
    """Read the table at the end of a batch's data."""
    count = int.from_bytes(data[-_COUNT_BYTES:], "little")
    begin = len(data) - _COUNT_BYTES - count * _ENTRY.itemsize
    return np.frombuffer(data, _ENTRY, count, begin)


class _Found(NamedTuple):
    """Events of one stream, in its order."""

    key: U64
    """The sort keys: running maxima of the times, as in the index."""
    time: U64
    at: I64
    size: I64
    type: I32
    cpu: npt.NDArray[np.uint16]


class RelayDecoder(PieceDecoder[RelayTypes]):
    """Makes batches from pieces."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, RelayTypes())
        self._table = b""

    def batch(self, piece: Piece, sources: Sequence[WindowStream]) -> EventBatch:
        """See ``PieceDecoder``; the data also gets the table of the entries."""
        batch = super().batch(piece, sources)
        return replace(batch, data=memoryview(b"".join((batch.data, self._table))))

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, None]:
        """See ``PieceDecoder``."""
        tables = [_entries_of(member) for member in loaded.members]
        table = np.sort(np.concatenate([np.empty(0, _ENTRY), *tables]), order="at")
        self._table = table.tobytes() + len(table).to_bytes(_COUNT_BYTES, "little")
        found = [self._events(piece, loaded.data, member) for member in loaded.members]
        key, time, at, size, types, cpu = joined(found, ("u8", "u8", "i8", "i8", "i4", "u2"))
        order = order_by_time(key)
        if order is not None:
            time, at, size, types, cpu = (each[order] for each in (time, at, size, types, cpu))
        nobody, nothing = np.full(len(time), -1, np.int32), np.zeros(len(time), np.uint8)
        columns = Columns(
            time, cpu, types, nobody, nothing, nothing, at, size.astype(np.uint32)
        )  # fmt: skip
        return columns, None

    def _events(self, piece: Piece, data: memoryview, member: Member) -> _Found:
        framing: Framing | None = member.source.context
        entries = member.part.entries
        begins = entries["offset_bytes"].astype(np.int64) - member.base
        sizes = (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
        known = entries["end"] < np.uint64(FOREVER)
        time = np.where(known, entries["end"], entries["begin"]).astype(np.uint64)
        at, size = begins, sizes
        if framing is not None:
            at, size, row = self._records(data, member, framing, begins, sizes)
            own = framing.times(data, at)
            time = time[row] if own is None else own.astype(np.uint64)
        key = np.maximum.accumulate(np.maximum(time, np.uint64(int(entries["begin"][0]))))
        kept = within(piece, key)
        count = int(kept.sum())
        return _Found(
            *(key[kept], time[kept], at[kept], size[kept]),
            np.full(count, self.types.of(member.source).number, np.int32),
            np.full(count, member.source.cpu, np.uint16),
        )

    def _records(
        self, data: memoryview, member: Member, framing: Framing, begins: I64, sizes: I64
    ) -> tuple[I64, I64, I64]:
        """Return offset, size and entry of each record."""
        at, size, row = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, (begin, bytes_) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
            walked = framing.walk(data[begin : begin + bytes_])
            wrong = [(bad.offset_bytes, bad.reason) for bad in walked.damage]
            if walked.whole_bytes < bytes_:
                wrong.append((walked.whole_bytes, "a record is cut short"))
            self.notes.add(*(member.note(begin + where, why) for where, why in wrong))
            at.append(walked.offset_bytes + begin)
            size.append(walked.size_bytes)
            row.append(np.full(len(walked.size_bytes), number, np.int64))
        return np.concatenate(at), np.concatenate(size), np.concatenate(row)


def _entries_of(member: Member) -> npt.NDArray[np.void]:
    """Return the rows of the table for the entries of one stream in a piece."""
    entries = member.part.entries
    table = np.empty(len(entries), _ENTRY)
    table["offset"] = entries["offset_bytes"]
    table["at"] = entries["offset_bytes"].astype(np.int64) - member.base
    table["begin"] = entries["begin"]
    table["entry"] = entries["sequence"]
    return table

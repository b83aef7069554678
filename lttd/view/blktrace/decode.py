"""Decode blktrace records: each record is an event, and each action an event type.

The events' system is ``blktrace``, and their names are the kernel's own (``queue``, ``issue``,
``complete``, ...; ``note_process``, ``note_timestamp``, ``note_message``).  Their fields are those
of the record, and of the data that some actions have after it.

Rule: no bytes make this module raise; bytes that are not a record become a note.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.blktrace import (
    ACT_CGROUP,
    ACT_MASK,
    ACTIONS,
    CGROUP_BYTES,
    COMM_BYTES,
    NOTES,
    NOTIFY,
    Layout,
    layout_of,
    records_at,
    walk,
)
from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.formats import EventName, EventType
from lttd.view.merge import order_by_time
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, Member, PieceDecoder, joined, within
from lttd.view.window import Piece, WindowStream

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SYSTEM: Final = "blktrace"
# Fields of a record that are common columns of a batch, so they are not own fields of an event.
_COMMON: Final = ("magic", "time", "pid", "cpu")
_LAYOUT_TRIES: Final = 16


class BigEndianField(Field):
    """A field that is big-endian in every record."""

    __slots__ = ()

    def element_dtype(self, byteorder: str) -> np.dtype[np.generic]:
        """Return the dtype of one element."""
        return np.dtype(f">u{self.element_bytes}")


def _int(name: str, at: int, size: int) -> Field:
    return Field(name, f"u{8 * size}", at, size, False, Encoding.INT, size)


def _big(name: str, at: int, size: int) -> Field:
    return BigEndianField(name, f"__be{8 * size}", at, size, False, Encoding.INT, size)


_REQUESTS: Final = (_big("requests", 0, 8),)
# The data after a record, by the event's name; Linux kernel/trace/blktrace.c.
_PDU_FIELDS: Final[dict[str, tuple[Field, ...]]] = {
    "unplug_io": _REQUESTS,
    "unplug_timer": _REQUESTS,
    "split": (_big("new_sector", 0, 8),),
    "remap": (_big("device_from", 0, 4), _big("device_to", 4, 4), _big("sector_from", 8, 8)),
    "note_process": (Field("comm", "char", 0, COMM_BYTES, False, Encoding.CHARS, 1),),
    "note_timestamp": (_int("seconds", 0, 4), _int("nanoseconds", 4, 4)),
    "note_message": (Field("message", "char", 0, 0, False, Encoding.TAIL, 1),),
    "drv_data": (Field("data", "u8", 0, 0, False, Encoding.TAIL, 1),),
}


def format_of(name: str, action: int, layout: Layout) -> Format:
    """Return the fields of the events of one action."""
    fields = []
    for field, (dtype, at, *_) in (layout.dtype.fields or {}).items():
        if field != "pad":
            common = "common_" if field in _COMMON else ""
            fields.append(_int(common + field, at, dtype.itemsize))
    at = layout.record_bytes
    if action & ACT_CGROUP:
        fields.append(_int("cgroup", at, CGROUP_BYTES))
        at += CGROUP_BYTES
    behind = _PDU_FIELDS.get(name, ())
    fields += [one._replace(offset_bytes=at + one.offset_bytes) for one in behind]
    return Format(SYSTEM, name, action, tuple(fields), "", layout.byteorder, 8)


def name_of(action: int, *, note: bool) -> str:
    """Return the name of the events of an action."""
    known = NOTES if note else ACTIONS
    name = known.get(action & ACT_MASK, f"{'note' if note else 'action'}_{action & ACT_MASK}")
    return f"{name}_cgroup" if action & ACT_CGROUP else name


class Types:
    """The event types of a window, numbered in the order of their first events."""

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._known: dict[tuple[int, bool, bool, Layout], EventType] = {}

    def number(self, action: int, *, note: bool, short: bool, layout: Layout) -> EventType:
        """Return the type of an action; the type for a *short* record has no fields."""
        key = (action, note, short, layout)
        if key not in self._known:
            name = name_of(action, note=note)
            file = EventName(SYSTEM, name)
            event_type = EventType(len(self.all), file, action, "")
            if not short:
                plain = name.removesuffix("_cgroup")
                event_type.format = format_of(plain, action, layout)
            self.all.append(event_type)
            self._known[key] = event_type
        return self._known[key]

    def names(self, _source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        return [EventName(SYSTEM, name_of(action, note=note)) for action, note in _every_action()]

    def find(self, name: str, _sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``blktrace:name``, if there is such an action."""
        layout = Layout(7, "<")
        for action, note in _every_action():
            told = name_of(action, note=note)
            if name in (told, f"{SYSTEM}:{told}"):
                return self.number(action, note=note, short=False, layout=layout)
        return None


def _every_action() -> Iterator[tuple[int, bool]]:
    """Yield all actions, without and with a cgroup, and whether they are notes."""
    for note, names in ((False, ACTIONS), (True, NOTES)):
        for action in names:
            yield action, note
            yield action | ACT_CGROUP, note


class BlktraceContexts:
    """See ``lttd.view.family.Contexts``: records say themselves all that there is to know."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        pass

    def of(self, stream: StoredStream) -> None:
        """Return nothing."""


class _Found(NamedTuple):
    """Events of one stream, in its order."""

    key: U64
    """The sort keys: running maxima of the times, as in the index."""
    time: U64
    pid: I32
    type: I32
    cpu: npt.NDArray[np.uint16]
    at: I64
    payload_bytes: npt.NDArray[np.uint32]


class BlktraceDecoder(PieceDecoder[Types]):
    """Makes batches from pieces."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, Types())

    def columns(
        self, piece: Piece, loaded: Loaded, _sources: Sequence[WindowStream]
    ) -> tuple[Columns, None]:
        """See ``PieceDecoder``."""
        found = [self._walk(piece, loaded.data, member) for member in loaded.members]
        dtypes = ("u8", "u8", "i4", "i4", "u2", "i8", "u4")
        key, time, pid, types, cpu, at, size = joined(found, dtypes)
        stream = np.repeat(np.arange(len(found)), [len(one.key) for one in found])
        order = _merged(key, stream)
        nothing = np.zeros(len(key), np.uint8)
        return Columns(
            *(time[order], cpu[order], types[order], pid[order], nothing, nothing),
            *(at[order], size[order]),
        ), None

    def _walk(self, piece: Piece, data: memoryview, member: Member) -> _Found:
        entries = member.part.entries
        offsets = entries["offset_bytes"].astype(np.int64) - member.base
        sizes = (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
        begin, end = int(offsets.min()), int((offsets + sizes).max())
        layouts = (layout_of(data, at) for at in offsets[:_LAYOUT_TRIES].tolist())
        layout = next((one for one in layouts if one), None)
        if layout is None:
            self.notes.add(member.note(begin, "no blktrace records; left out"))
            layout, end = Layout(7, "<"), begin
        walked = walk(data, begin, end, layout)
        self.notes.add(*(member.note(one.offset_bytes, one.reason) for one in walked.damage))
        records = records_at(data, walked.offset_bytes, layout)
        time = records["time"].astype(np.uint64)
        key = np.maximum.accumulate(np.maximum(time, np.uint64(int(entries["begin"][0]))))
        kept = within(piece, key)
        records, size = records[kept], walked.size_bytes[kept]
        return _Found(
            key[kept],
            time[kept],
            records["pid"].astype(np.int32),
            self._types_of(records["action"].astype(np.uint64), size, layout),
            np.full(len(records), member.source.cpu, np.uint16),
            walked.offset_bytes[kept],
            size.astype(np.uint32),
        )

    def _types_of(self, action: U64, size: I64, layout: Layout) -> I32:
        """Return the number of each record's type."""
        note = action & np.uint64(NOTIFY) != 0
        act = (action & np.uint64(ACT_MASK | ACT_CGROUP)).astype(np.int64)
        which = act << 1 | note
        types = np.empty(len(act), np.int32)
        for one in np.unique(which).tolist():
            rows = np.flatnonzero(which == one)
            whole = self.types.number(one >> 1, note=bool(one & 1), short=False, layout=layout)
            types[rows] = whole.number
            assert whole.format is not None
            short = rows[size[rows] < whole.format.fixed_bytes]
            if len(short):
                of_short = self.types.number(
                    one >> 1, note=bool(one & 1), short=True, layout=layout
                )
                types[short] = of_short.number
        return types


def _merged(key: U64, stream: I64) -> I64:
    """Return the order of time; among equal times the CPU of the event before comes first.

    That is the order of blkparse.
    """
    order = order_by_time(key)
    if order is None:
        order = np.arange(len(key))
    time, of = key[order], stream[order]
    tied = np.flatnonzero((time[1:] == time[:-1]) & (of[1:] != of[:-1]))
    behind = 0
    for at in tied.tolist():
        if at < behind:
            continue
        first = int(np.searchsorted(time, time[at], "left"))
        behind = int(np.searchsorted(time, time[at], "right"))
        if first:
            later = of[first:behind] != of[first - 1]
            rows = np.argsort(later, kind="stable") + first
            order[first:behind], of[first:behind] = order[rows], of[rows]
    return order

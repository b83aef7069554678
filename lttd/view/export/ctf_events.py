"""Encode ftrace events as CTF events, in whole columns, never one event at a time.

A CTF event here is a head (number of its type, time, pid, flags, preempt count), then the fields of
fixed size without gaps, in the order of the format, and then each dynamic field: a string with its
NUL, or a u16 count and that many elements.  All fields have an alignment of one byte.

Rule: no bytes make this module raise; a field that reaches beyond its event is cut off.
Invariant: the encoding of a type agrees with its declaration in ``ctf_metadata``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import LOC_LENGTH_SHIFT, LOC_OFFSET_MASK, Encoding, Field, Format
from lttd.abi.gather import gather
from lttd.view.columns import inside, until_nul
from lttd.view.formats import Formats

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

COMMON_BYTES: Final = 8
COUNT_BYTES: Final = 2
_MOST_BYTES: Final = 0xFFFF
# The size of a __data_loc of an old kernel, which is an offset only.
_OFFSET_BYTES: Final = 2
DYNAMIC: Final = frozenset({Encoding.STRING, Encoding.DYNAMIC, Encoding.BITMASK, Encoding.TAIL})


def is_text(field: Field) -> bool:
    """Tell whether a dynamic field is a string."""
    tail = field.encoding is Encoding.TAIL and field.type in ("char", "const char")
    return field.encoding is Encoding.STRING or tail


@dataclass(frozen=True)
class CtfType:
    """An event type in the export."""

    number: int
    """Its id in the export."""
    name: str
    format: Format | None
    """None: its fields are unknown, and its bytes are one field."""
    byteorder: str

    @cached_property
    def fixed(self) -> list[Field]:
        """The fields of fixed size."""
        fields = self.format.own if self.format else ()
        return [one for one in fields if one.encoding not in DYNAMIC and one.size_bytes]

    @cached_property
    def dynamic(self) -> list[Field]:
        """The fields whose size differs from event to event."""
        return [one for one in self.format.own if one.encoding in DYNAMIC] if self.format else []

    @cached_property
    def packed(self) -> np.dtype[np.void]:
        """The fixed fields without the gaps between them."""
        return np.dtype([(one.name, one.dtype(self.byteorder)) for one in self.fixed])


class Types:
    """The event types of one segment, numbered in the order of their first events."""

    def __init__(self, formats: Formats, byteorder: str) -> None:
        self.all: list[CtfType] = []
        self._formats = formats
        self._byteorder = byteorder
        self._by_id: I32 = np.full(1 << 16, -1, np.int32)
        self._unknown: dict[int, int] = {}
        self._least: list[int] = []

    def numbers(self, ids: npt.NDArray[np.uint16], payload_bytes: I64) -> I32:
        """Return the type of each event; an event that is too short for its format has another."""
        for one in np.unique(ids[self._by_id[ids] < 0]).tolist():
            self._by_id[one] = self._add(one, self._formats.get(one))
        numbers: I32 = self._by_id[ids]
        short = payload_bytes < np.array(self._least, np.int64)[numbers]
        for one in np.unique(ids[short]).tolist():
            if one not in self._unknown:
                self._unknown[one] = self._add(one, None)
            numbers[short & (ids == one)] = self._unknown[one]
        return numbers

    def _add(self, of_id: int, known: Format | None) -> int:
        file = self._formats.files.get(of_id)
        name = known.name if known else f"{file.name if file else 'unknown'}_{of_id}_undecoded"
        self.all.append(CtfType(len(self.all), name, known, self._byteorder))
        self._least.append(known.fixed_bytes if known else COMMON_BYTES)
        return len(self.all) - 1


class Events(NamedTuple):
    """Events in stream order."""

    time: U64
    at: I64
    """The offset in the data of the event's own bytes (common_type first)."""
    payload_bytes: I64


class Encoded(NamedTuple):
    """Events encoded in CTF."""

    data: U8
    offset: I64
    """The offset of each event, and the end of the last one."""


class _Ragged(NamedTuple):
    """One dynamic field of some events."""

    begin: I64
    length: I64
    elements: I64 | None
    """The numbers of elements; None: the field is a string, followed by a NUL."""

    @property
    def room(self) -> I64:
        return self.length + (1 if self.elements is None else COUNT_BYTES)


class Encoder:
    """Encodes the events of one segment's streams."""

    def __init__(self, types: Types, byteorder: str) -> None:
        self.types = types
        self._order = byteorder
        self._common = np.dtype(
            [
                ("id", f"{byteorder}u2"),
                ("flags", "u1"),
                ("preempt", "u1"),
                ("pid", f"{byteorder}i4"),
            ]
        )
        self.head = np.dtype(
            [
                ("id", f"{byteorder}u2"),
                ("time", f"{byteorder}u8"),
                ("pid", f"{byteorder}i4"),
                ("flags", "u1"),
                ("preempt", "u1"),
            ]
        )

    def encode(self, data: memoryview, events: Events) -> Encoded:
        """Encode *events*, whose bytes are in *data*; each has at least COMMON_BYTES."""
        count = len(events.time)
        common = gather(data, events.at, self._common)
        numbers = self.types.numbers(common["id"].astype(np.uint16), events.payload_bytes)
        head = np.empty(count, self.head)
        head["id"], head["time"] = numbers, events.time
        for name in ("pid", "flags", "preempt"):
            head[name] = common[name]
        raw = np.frombuffer(data, np.uint8)
        sizes = np.full(count, self.head.itemsize, np.int64)
        todo: list[tuple[I64, CtfType, list[_Ragged]]] = []
        for ctf_type, rows in self._by_type(numbers):
            ragged = self._ragged(data, raw, ctf_type, events, rows)
            sizes[rows] += ctf_type.packed.itemsize
            for one in ragged:
                sizes[rows] += one.room
            todo.append((rows, ctf_type, ragged))
        offset = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        out = np.zeros(int(offset[-1]), np.uint8)
        _scatter(out, offset[:-1], head)
        for rows, ctf_type, ragged in todo:
            at = offset[rows] + self.head.itemsize
            if ctf_type.packed.itemsize:
                _scatter(out, at, self._fixed(data, ctf_type, events.at[rows]))
                at = at + ctf_type.packed.itemsize
            for one in ragged:
                self._put(out, at, raw, one)
                at = at + one.room
        return Encoded(out, offset)

    def _by_type(self, numbers: I32) -> list[tuple[CtfType, I64]]:
        order = np.argsort(numbers.astype(np.uint16), kind="stable")
        behind = np.cumsum(np.bincount(numbers, minlength=len(self.types.all)))
        groups = np.split(order, behind[:-1])
        return [
            (ctf_type, rows)
            for ctf_type, rows in zip(self.types.all, groups, strict=True)
            if len(rows)
        ]

    def _fixed(self, data: memoryview, ctf_type: CtfType, at: I64) -> npt.NDArray[np.void]:
        assert ctf_type.format is not None
        whole = ctf_type.format.dtype
        # Gather them as opaque bytes: several times faster than field by field.
        records = gather(data, at, np.dtype(f"V{whole.itemsize}")).view(whole)
        packed = np.empty(len(at), ctf_type.packed)
        for one in ctf_type.fixed:
            packed[one.name] = records[one.name]
        return packed

    def _ragged(
        self, data: memoryview, raw: U8, ctf_type: CtfType, events: Events, rows: I64
    ) -> list[_Ragged]:
        at, size = events.at[rows], events.payload_bytes[rows]
        if ctf_type.format is None:
            length = np.minimum(size - COMMON_BYTES, _MOST_BYTES)
            return [_Ragged(at + COMMON_BYTES, length, length)]
        found = []
        for one in ctf_type.dynamic:
            if one.encoding is Encoding.TAIL:
                begin = np.full(len(rows), one.offset_bytes, np.int64)
                end = size
            else:
                loc = gather(data, at + one.offset_bytes, one.dtype(self._order)).astype(np.int64)
                begin = loc & LOC_OFFSET_MASK
                if one.relative:
                    begin += one.offset_bytes + one.size_bytes
                states_length = one.size_bytes > _OFFSET_BYTES
                end = begin + (loc >> LOC_LENGTH_SHIFT) if states_length else size
            begin, end = np.minimum(begin, size), np.minimum(end, size)
            length = np.minimum(end - begin, _MOST_BYTES)
            if is_text(one):
                found.append(_Ragged(at + begin, until_nul(raw, at + begin, length), None))
            else:
                count = length // one.element_bytes
                found.append(_Ragged(at + begin, count * one.element_bytes, count))
        return found

    def _put(self, out: U8, at: I64, raw: U8, one: _Ragged) -> None:
        if one.elements is not None:
            _scatter(out, at, one.elements.astype(f"{self._order}u2"))
            at = at + COUNT_BYTES
        number = inside(one.length)
        out[np.repeat(at, one.length) + number] = raw[np.repeat(one.begin, one.length) + number]


def _scatter(out: U8, at: I64, records: npt.NDArray[Any]) -> None:
    size = records.dtype.itemsize
    if not len(records):
        return
    opaque = np.dtype(f"V{size}")
    everywhere: npt.NDArray[Any] = np.ndarray((len(out) - size + 1,), opaque, out, strides=(1,))
    everywhere[at] = np.ascontiguousarray(records).view(opaque)

"""Encode ftrace's events as Perfetto's FtraceEvent, a column of messages per event type.

    FtraceEventBundle.event (2) = { timestamp = 1, pid = 2, <number of the event> = <message> }

Source: Perfetto's protos/perfetto/trace/ftrace/ftrace_event.proto, ftrace_event_bundle.proto,
generic.proto; protos/perfetto/common/descriptor.proto.

Rule: an event of MESSAGES whose fields have other types, or are more than those of the message (if
Perfetto does not draw it anyway), and any other event, is a generic one: the bundle in which it
occurs first describes it.  None is left out.
Rule: the text of a marker that Perfetto cannot read, which it would count as an error, is generic.
Rule: a system call's own events (sys_enter_openat) become Perfetto's sys_enter and sys_exit, which
it draws as slices; but not where the trace has raw_syscalls, too: that would draw them twice.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import SYSCALL_NUMBER, Encoding, Field
from lttd.abi.gather import gather
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows, until_nul
from lttd.view.export.perfetto_messages import (
    DRAWN,
    FIRST_DESCRIBED,
    GENERIC,
    MESSAGES,
    MOST_DESCRIBED_FIELDS,
    OF_CALLS,
    Member,
)
from lttd.view.export.protobuf import (
    content,
    contents,
    cut_out,
    messages,
    number,
    numbers,
    texts,
    varint,
    varints,
)
from lttd.view.formats import EventType
from lttd.view.glyphs import distinct
from lttd.view.lines import Body, block_of, body_of, usual_width, value_of
from lttd.view.strips import Column, Part, Sized, of_similar_size, packed, settled, strings_of

I64 = npt.NDArray[np.int64]

_EVENT, _TIME, _PID = 2, 1, 2
_DESCRIPTOR: Final = 11
# descriptor.proto, FieldDescriptorProto.Type and Label
_INT64, _UINT64, _STRING = 3, 4, 9
_ONE, _REPEATED = 1, 3
_ONE_BYTE: Final = 1
_RAW_CALLS: Final = "raw_syscalls"
_CALLS: Final = "syscalls"
_PRINT: Final = "print"
# ParseSystraceTracePoint in Perfetto's src/trace_processor/importers/systrace/systrace_parser.h.
_MARK: Final = re.compile(
    rb"B\|\d{1,9}(\|.*)?|E(\|.*)?|I\|\d{1,9}\|[^|]+(\|.*)?|N\|\d{1,9}\|[^|]+\|[^|]+(\|.*)?"
    rb"|[SFC]\|\d{1,9}\|[^|]+\|-?\d{1,18}(\|.*)?|G\|\d{1,9}\|[^|]+\|[^|]+\|-?\d{1,18}(\|.*)?"
    rb"|H\|\d{1,9}\|[^|]+\|([^|]*\|)?-?\d{1,18}",
    re.DOTALL,
)
# A row takes about 2^3 bytes for each of its bytes: an integer of one byte takes a tag, too.
_GROWTH_BITS: Final = 3
_STATIC_ROWS: Final = 1 << 17
_LISTS: Final = (Encoding.DYNAMIC, Encoding.TAIL)
_FIXED: Final = (Encoding.INT, Encoding.ARRAY, Encoding.CHARS)


class _Plan(NamedTuple):
    """The message of one event type."""

    number: int
    """In FtraceEvent."""
    members: Sequence[tuple[Member, Field]]
    named: bytes | None = None
    """The name of the event, where the message holds names (GENERIC)."""


class Encoder:
    """Encodes the events of one clock group."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._plans: dict[tuple[int, bool], _Plan] = {}
        self._described: dict[object, int] = {}
        self._descriptors: list[bytes] = []
        self._functions: set[int] = set()
        self._interned: list[bytes] = []

    def blocks(self, batch: EventBatch, cuts: Sequence[int]) -> list[memoryview]:
        """Return the events between each two of *cuts*, numbers of rows, as fields of a bundle."""
        if not len(batch):
            return [memoryview(b"") for _ in cuts[1:]]
        bodies = list(self._bodies(batch))
        length = np.zeros(len(batch), np.int64)
        for body in bodies:
            length[body.rows] = body.length
        time, pid = numbers(_TIME, batch.time), numbers(_PID, batch.pid)
        whole = varints(length + time.length + pid.length, varint(_EVENT << 3 | 2))
        prefix = packed([whole, time, pid], len(batch))
        usual = usual_width(bodies, len(batch))
        return [block_of(prefix, bodies, low, high, usual) for low, high in pairwise(cuts)]

    def take_descriptors(self) -> bytes:
        """Return the descriptions of new messages, as fields of a bundle, once."""
        new, self._descriptors = self._descriptors, []
        return b"".join(content(_DESCRIPTOR, each) for each in new)

    def take_functions(self) -> list[bytes]:
        """Return new names of functions, as messages InternedString, once."""
        new, self._interned = self._interned, []
        return new

    def _bodies(self, batch: EventBatch) -> Iterator[Body]:
        raw_calls = any(each.system == _RAW_CALLS for each in batch.types)
        for rows in batch.by_type():
            for alike, plan in self._planned(rows, raw_calls=raw_calls):
                for some in _parts_of(alike, plan):
                    parts = self._message(some, plan)
                    yield body_of(some.rows, messages(plan.number, parts, len(some)))

    def _planned(self, rows: EventRows, *, raw_calls: bool) -> Iterator[tuple[EventRows, _Plan]]:
        plan = self._plan(rows.event_type, raw_calls=raw_calls)
        if plan.number != MESSAGES[_PRINT].number:
            yield rows, plan
            return
        texts_of = [field.name for member, field in plan.members if member.kind == "s"]
        told = rows.column(texts_of[0]).tolist() if texts_of else []
        marks = np.array([_MARK.fullmatch(one.rstrip(b"\n")) is not None for one in told], np.bool_)
        if marks.any():
            yield rows.some(marks), plan
        if not marks.all() or not told:
            yield rows.some(~marks) if told else rows, self._generic(rows.event_type)

    def _plan(self, event_type: EventType, *, raw_calls: bool) -> _Plan:
        key = event_type.number, raw_calls
        if key not in self._plans:
            self._plans[key] = (
                (None if raw_calls else _of_call(event_type))
                or _of_table(event_type)
                or self._generic(event_type)
            )
        return self._plans[key]

    def _generic(self, event_type: EventType) -> _Plan:
        """Return the plan of an event that the bundle describes, or that holds its names."""
        own = event_type.format.own if event_type.format else ()
        if len(own) > MOST_DESCRIBED_FIELDS:
            return _Plan(GENERIC, _numbered(own), event_type.name.encode())
        key = event_type.system, event_type.name, own
        if key not in self._described:
            self._described[key] = FIRST_DESCRIBED + len(self._described)
            self._descriptors.append(_description(event_type, self._described[key]))
        return _Plan(self._described[key], _numbered(own))

    def _message(self, rows: EventRows, plan: _Plan) -> list[Part]:
        """Return the parts of a message: its fields, for all rows."""
        if plan.named is not None:
            return _with_names(rows, plan)
        if rows.event_type.format is None:
            raw = strings_of([one.hex().encode() for one in rows.raw()])
            return texts(1, raw)
        parts: list[Part] = []
        for member, field in plan.members:
            if member.kind == "f":
                self._name(_native(rows.records[field.name]))
            parts += _field(member.number, field, rows)
        return parts

    def _name(self, addresses: Column) -> None:
        """Intern the names of functions, under their addresses."""
        for address in set(distinct(addresses)[0].tolist()) - self._functions:
            self._functions.add(address)
            if found := self._symbols.find(address):
                self._interned.append(number(1, address) + content(2, found.name))


def _of_table(event_type: EventType) -> _Plan | None:
    """Return the plan of an event that MESSAGES has, with fields of the same types."""
    message = MESSAGES.get(event_type.name)
    if message is None or event_type.format is None:
        return None
    fields = event_type.format.by_name
    members = [(each, fields[name]) for name, each in message.members.items() if name in fields]
    if event_type.name not in DRAWN and len(members) < len(event_type.format.own):
        return None  # it would only lose fields
    fits = all(_fits(member.kind, field) for member, field in members)
    return _Plan(message.number, members) if members and fits else None


def _fits(kind: str, field: Field) -> bool:
    if kind == "s":
        return field.is_text
    return field.encoding is Encoding.INT or (kind == "i" and _is_list(field))


def _of_call(event_type: EventType) -> _Plan | None:
    """Return the plan of an event of a single system call."""
    if event_type.system != _CALLS or event_type.format is None:
        return None
    fields = [field for field in event_type.format.own if field.encoding is Encoding.INT]
    which = next((each for each in fields if each.name in (SYSCALL_NUMBER, "nr")), None)
    message = next((m for name, m in OF_CALLS.items() if event_type.name.startswith(name)), None)
    if which is None or message is None:
        return None
    members = [(Member(1, "i"), which)]
    members += [(Member(2, "i"), field) for field in fields if field is not which]
    return _Plan(message.number, members)


def _numbered(fields: Sequence[Field]) -> list[tuple[Member, Field]]:
    return [(Member(at, "i"), field) for at, field in enumerate(fields, 1)]


def _description(event_type: EventType, field_id: int) -> bytes:
    """Return the message GenericEventDescriptor of an event type."""
    own = event_type.format.own if event_type.format else ()
    fields = [
        (field.name, _REPEATED if _is_list(field) else _ONE, _type_of(field)) for field in own
    ]
    if event_type.format is None:
        fields = [("bytes", _ONE, _STRING)]
    told = content(1, event_type.name)
    for at, (name, label, kind) in enumerate(fields, 1):
        told += content(2, content(1, name) + number(3, at) + number(4, label) + number(5, kind))
    return number(1, field_id) + content(2, told) + content(3, event_type.system)


def _is_list(field: Field) -> bool:
    """Tell whether a field is a list of integers; single bytes are shown as text."""
    return field.encoding in (*_LISTS, Encoding.ARRAY) and field.element_bytes > _ONE_BYTE


def _type_of(field: Field) -> int:
    if field.encoding is Encoding.INT or _is_list(field):
        return _INT64 if field.signed else _UINT64
    return _STRING


def _parts_of(rows: EventRows, plan: _Plan) -> Iterator[EventRows]:
    """Yield the rows in parts whose messages memory can hold at once."""
    moving = sum(field.encoding not in _FIXED for _, field in plan.members)
    if moving or rows.event_type.format is None:
        bits = _GROWTH_BITS + moving.bit_length()
        for which in of_similar_size(rows.payload_bytes, bits):
            yield rows.some(which)
        return
    for at in range(0, len(rows), _STATIC_ROWS):
        yield rows.some(slice(at, at + _STATIC_ROWS))


def _field(at: int, field: Field, rows: EventRows) -> list[Part]:
    """Return a field of a message, for all rows; a list is a field for each element."""
    if field.encoding is Encoding.INT:
        return [numbers(at, _native(rows.records[field.name]))]
    if _is_list(field):
        return list(_list(at, field, rows))
    if field.encoding is Encoding.CHARS:
        return texts(at, rows.column(field.name))
    if field.encoding in (Encoding.STRING, Encoding.TAIL) and field.is_text:
        begin, end = rows.spans(field.name)
        flat = np.frombuffer(rows.batch.data, np.uint8)
        length = until_nul(flat, begin, np.maximum(end - begin, 0))
        return contents(at, cut_out(rows.batch.data, begin, length))
    return contents(at, _told(field, rows))


def _list(at: int, field: Field, rows: EventRows) -> Iterator[Part]:
    """Yield the first elements of all rows, the second ones, ..."""
    if field.encoding is Encoding.ARRAY:
        table = rows.records[field.name]
        yield from (numbers(at, _native(table[:, each])) for each in range(table.shape[1]))
        return
    assert rows.event_type.format is not None
    dtype = field.element_dtype(rows.event_type.format.byteorder)
    begin, end = rows.spans(field.name)
    counts = np.maximum(end - begin, 0) // dtype.itemsize
    for each in range(int(counts.max(initial=0))):
        which = np.flatnonzero(counts > each)
        values = gather(rows.batch.data, begin[which] + each * dtype.itemsize, dtype)
        some = numbers(at, _native(values))
        words = np.zeros(len(rows), some.words.dtype)
        words[which] = some.words
        length = np.zeros(len(rows), np.int64)
        length[which] = some.length
        yield Sized(words, length)


def _with_names(rows: EventRows, plan: _Plan) -> list[Part]:
    """Return the parts of a message GenericFtraceEvent."""
    assert plan.named is not None
    parts: list[Part] = [content(1, plan.named)]
    for _, field in plan.members:
        name = content(1, field.name)
        if field.encoding is Encoding.INT:
            value: list[Part] = [numbers(4 if field.signed else 5, _native(rows[field.name]))]
        else:
            value = contents(3, _told(field, rows))
        parts += messages(2, [name, *value], len(rows))
    return parts


def _told(field: Field, rows: EventRows) -> Sized:
    """Return a field as the text that lttv prints."""
    return Sized(*packed(settled(value_of(field, rows), len(rows)), len(rows)))


def _native(column: Column) -> Column:
    return column.astype(column.dtype.newbyteorder("="), copy=False)

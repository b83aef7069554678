"""The metadata of CTF 1.8: from a text in TSDL to a ``Trace``.

Rule: a field class that lttd cannot read costs the event that has it, and no other.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from lttd.abi import ctf_classes as ctf
from lttd.abi.ctf_classes import (
    ByteOrder,
    Clock,
    Event,
    FieldClass,
    Integer,
    MetadataError,
    Path,
    Role,
    Stream,
    Struct,
    Trace,
    UnsupportedError,
)
from lttd.abi.ctf_places import Places, unchanged
from lttd.abi.ctf_tsdl_classes import Classes, Scope
from lttd.abi.ctf_tsdl_nodes import Assign, Block, Item, Place, parse
from lttd.abi.ctf_tsdl_values import line_of, number_in, order_of, true_in, word_of

_ROLES: Final[Mapping[Path, Mapping[str, Role]]] = {
    ctf.PACKET_HEADER: {
        "magic": "packet-magic-number",
        "uuid": "metadata-stream-uuid",
        "stream_id": "data-stream-class-id",
        "stream_instance_id": "data-stream-id",
    },
    ctf.PACKET_CONTEXT: {
        "timestamp_begin": "default-clock-timestamp",
        "timestamp_end": "packet-end-default-clock-timestamp",
        "content_size": "packet-content-length",
        "packet_size": "packet-total-length",
        "packet_seq_num": "packet-sequence-number",
        "events_discarded": "discarded-event-record-counter-snapshot",
    },
    ctf.EVENT_HEADER: {
        "id": "event-record-class-id",
        "timestamp": "default-clock-timestamp",
    },
}
_TIMES: Final = ("default-clock-timestamp", "packet-end-default-clock-timestamp")
_IMPLICIT: Final = "default"
"""The clock of a trace that declares none, as babeltrace2 calls it."""


def read_tsdl(text: str) -> Trace:
    """Read a whole metadata.

    Raises:
        MetadataError: it is not valid; one line that says where.
    """
    items = parse(text)
    reading = _Reading(_native(items))
    for item in items:
        reading.enter(item)
    return reading.trace()


def _native(items: Iterable[Item]) -> ByteOrder:
    """Return the trace's byte order, which declarations before its block need, too."""
    found = [
        assign
        for block in items
        if isinstance(block, Block) and block.kind == "trace"
        for assign in block.items
        if isinstance(assign, Assign) and assign.path == ("byte_order",)
    ]
    if not found:
        raise MetadataError("no block 'trace' states a byte_order")
    order = order_of(found[0], "little")
    if word_of(found[0].value) == "native":
        raise MetadataError("a trace's byte_order is le or be", line_of(*found[0].path))
    return order


@dataclass
class _Declared:
    """A block: its attributes, and the structures in its scopes."""

    line: int
    assigns: dict[str, Assign]
    places: dict[str, Struct | UnsupportedError] = field(default_factory=dict)

    def number(self, name: str, default: int = 0) -> int:
        return number_in(self.assigns[name]) if name in self.assigns else default

    def signed(self, name: str) -> int:
        found = self.assigns.get(name)
        return 0 if found is None else number_in(found, -(1 << 63), (1 << 63) - 1)

    def word(self, name: str) -> str:
        return word_of(self.assigns[name].value) if name in self.assigns else ""

    def uuid(self) -> bytes | None:
        word = self.word("uuid")
        if not word:
            return None
        if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", word):
            raise MetadataError(f"'{word[:40]}' is not a UUID", line_of(*self.assigns["uuid"].path))
        return UUID(word).bytes

    def struct(self, name: str) -> Struct | None:
        found = self.places.get(name)
        if isinstance(found, UnsupportedError):
            raise found
        return found


class _Reading:
    """The blocks of a text, in their order."""

    def __init__(self, native: ByteOrder) -> None:
        self._native: Final = native
        self._classes: Final = Classes(native)
        self._places: Final = Places()
        self._root: Final = Scope()
        self._trace: _Declared | None = None
        self._environment: dict[str, str | int] = {}
        self._clocks: dict[str, Clock] = {}
        self._streams: list[_Declared] = []
        self._events: list[_Declared] = []

    def enter(self, item: Item) -> None:
        """Take one statement."""
        if not isinstance(item, Block):
            self._classes.declare(item, self._root)
            return
        match str(item.kind):
            case "trace":
                if self._trace is not None:
                    raise MetadataError("a second block 'trace'", line_of(item.kind))
                self._trace = self._declared(item)
            case "stream":
                self._streams.append(self._declared(item))
            case "event":
                self._events.append(self._declared(item))
            case "env":
                for name, assign in self._declared(item).assigns.items():
                    value = assign.value
                    self._environment[name] = value if isinstance(value, int) else word_of(value)
            case "clock":
                clock = _clock(self._declared(item))
                self._clocks[clock.name] = clock
            case _:  # callsite: nothing reads it
                pass

    def _declared(self, block: Block) -> _Declared:
        scope = Scope(self._root)
        found = _Declared(line_of(block.kind), {})
        for item in block.items:
            match item:
                case Assign():
                    found.assigns[".".join(item.path)] = item
                case Place():
                    name = ".".join(item.path)
                    try:
                        struct = self._classes.struct(item.of, item.dimensions, scope)
                        found.places[name] = struct
                    except UnsupportedError as error:
                        found.places[name] = error
                case _:
                    self._classes.declare(item, scope)
        return found

    def trace(self) -> Trace:
        """Return the whole; all references can be resolved now."""
        trace = self._trace
        assert trace is not None  # it has a byte order
        major, minor = trace.number("major"), trace.number("minor")
        if (major, minor) != (1, 8):
            raise MetadataError(f"CTF {major}.{minor}; TSDL is of CTF 1.8", trace.line)
        header = trace.struct("packet.header")
        if header is not None:
            header = self._placed(ctf.PACKET_HEADER, header, {})
        streams: dict[int, Stream] = {}
        for each in self._streams:
            stream = self._stream(each, header)
            if stream.id in streams:
                raise MetadataError(f"a second stream of id {stream.id}", each.line)
            streams[stream.id] = stream
        self._add_events(streams, header)
        return Trace(
            (major, minor),
            trace.uuid(),
            self._native,
            header,
            self._environment,
            self._clocks,
            streams,
        )

    def _stream(self, of: _Declared, header: Struct | None) -> Stream:
        before = {ctf.PACKET_HEADER: header} if header is not None else {}
        found = dict[Path, Struct | None]()
        for name, root in (
            ("packet.context", ctf.PACKET_CONTEXT),
            ("event.header", ctf.EVENT_HEADER),
            ("event.context", ctf.STREAM_EVENT_CONTEXT),
        ):
            struct = of.struct(name)
            if struct is not None:
                before[root] = struct = self._placed(root, struct, before)
            found[root] = struct
        clock = _clock_in(found[ctf.EVENT_HEADER]) or _clock_in(found[ctf.PACKET_CONTEXT])
        if clock is not None and clock not in self._clocks:
            raise MetadataError(f"a stream has the unknown clock '{clock[:40]}'", of.line)
        return Stream(
            of.number("id"),
            found[ctf.PACKET_CONTEXT],
            found[ctf.EVENT_HEADER],
            found[ctf.STREAM_EVENT_CONTEXT],
            clock=clock,
        )

    def _placed(self, root: Path, of: Struct, before: Mapping[Path, Struct]) -> Struct:
        roles = _ROLES.get(root, {})

        def leaf(path: Path, of: FieldClass) -> FieldClass:
            role = roles.get(path[-1])
            match of:
                case ctf.Array() if role == "metadata-stream-uuid":
                    return replace(of, roles=(role,))
                case Integer():
                    return self._header_field(of, role, root)
                case ctf.Enumeration():
                    return replace(of, container=self._header_field(of.container, role, root))
                case _:
                    return of

        return self._places.place(root, of, before, leaf if roles else unchanged)

    def _header_field(self, of: Integer, role: Role | None, root: Path) -> Integer:
        """Return a number of a header with its role, and with the clock that it does not name."""
        if role in _TIMES and of.clock is None:
            of = replace(of, clock=self._only_clock())
        elif role is None and root == ctf.EVENT_HEADER and of.clock is not None:
            role = "default-clock-timestamp"
        return replace(of, roles=(role,)) if role is not None else of

    def _only_clock(self) -> str | None:
        """Return the clock of a time that names none."""
        if not self._clocks:
            self._clocks[_IMPLICIT] = Clock(_IMPLICIT)
        return next(iter(self._clocks)) if len(self._clocks) == 1 else None

    def _add_events(self, streams: dict[int, Stream], header: Struct | None) -> None:
        found: dict[int, dict[int, Event]] = {}
        for each in self._events:
            default = next(iter(streams)) if len(streams) == 1 else 0
            stream_id = each.number("stream_id", default)
            if stream_id not in streams:
                streams[stream_id] = Stream(stream_id)
            event = self._event(each, streams[stream_id], header)
            events = found.setdefault(stream_id, {})
            if event.id in events:
                line = each.line
                raise MetadataError(f"a second event of id {event.id} in stream {stream_id}", line)
            events[event.id] = event
        for stream_id, events in found.items():
            streams[stream_id] = replace(streams[stream_id], events=events)

    def _event(self, of: _Declared, stream: Stream, header: Struct | None) -> Event:
        known = {
            ctf.PACKET_HEADER: header,
            ctf.PACKET_CONTEXT: stream.packet_context,
            ctf.EVENT_HEADER: stream.event_header,
            ctf.STREAM_EVENT_CONTEXT: stream.event_context,
        }
        before = {root: struct for root, struct in known.items() if struct is not None}
        self._places.count_event()
        event = Event(of.number("id"), of.word("name"), stream.id, attributes=_attributes(of))
        try:
            context, payload = of.struct("context"), of.struct("fields")
            if context is not None:
                before[ctf.EVENT_CONTEXT] = context = self._placed(
                    ctf.EVENT_CONTEXT, context, before
                )
            if payload is not None:
                payload = self._placed(ctf.EVENT_FIELDS, payload, before)
        except UnsupportedError as error:
            return replace(event, unsupported=str(error))
        return replace(event, context=context, payload=payload)


def _attributes(of: _Declared) -> Mapping[str, Any]:
    return {
        name: assign.value if isinstance(assign.value, int) else word_of(assign.value)
        for name, assign in of.assigns.items()
        if name not in ("id", "name", "stream_id")
    }


def _clock(of: _Declared) -> Clock:
    name = of.word("name")
    if not name:
        raise MetadataError("a clock has no name", of.line)
    frequency = of.number("freq", 1_000_000_000)
    if not frequency:
        raise MetadataError(f"clock {name} has a frequency of 0", of.line)
    return Clock(
        name,
        of.uuid(),
        of.word("description"),
        frequency,
        of.number("precision"),
        of.signed("offset_s"),
        of.signed("offset"),
        "absolute" in of.assigns and true_in(of.assigns["absolute"]),
    )


def _clock_in(of: FieldClass | None) -> str | None:
    """Return the clock of the first time in a structure."""
    match of:
        case Integer():
            return of.clock
        case ctf.Enumeration():
            return of.container.clock
        case Struct():
            return next((name for _, each in of.members if (name := _clock_in(each))), None)
        case ctf.Variant():
            return next((name for _, each in of.options if (name := _clock_in(each))), None)
        case _:
            return None

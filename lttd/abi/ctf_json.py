"""The metadata of CTF 2: from JSON fragments to a ``Trace``.

A fragment is an object after a byte 0x1E (RFC 7464).  Source: CTF2-SPEC-2.0, sections 5 and 6; what
lttng-modules 2.14 writes is its subset.

Rule: a field class that lttd cannot read costs the event that has it, and no other.
"""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

from lttd.abi import ctf_classes as ctf
from lttd.abi.ctf_classes import (
    ByteOrder,
    Clock,
    Enumeration,
    Event,
    FieldClass,
    Integer,
    MetadataError,
    Path,
    Stream,
    Struct,
    Trace,
    UnsupportedError,
)
from lttd.abi.ctf_json_classes import Classes
from lttd.abi.ctf_json_objects import Object, object_of
from lttd.abi.ctf_places import Places

_SEPARATOR: Final = "\x1e"
_UUID_BYTES: Final = 16


def read_json(text: str) -> Trace:
    """Read a whole metadata.

    Raises:
        MetadataError: it is not valid; one line that says where.
    """
    reading, line = _Reading(), 1
    for fragment in text.split(_SEPARATOR)[1:]:
        try:
            reading.enter(json.loads(fragment, object_pairs_hook=object_of))
        except json.JSONDecodeError as error:
            raise MetadataError(error.msg, line + error.lineno - 1) from None
        except (RecursionError, ValueError) as error:
            if isinstance(error, MetadataError):
                raise type(error)(error.reason, error.line or line) from None
            raise MetadataError("it is too deep, or has too long a number", line) from None
        line += fragment.count("\n")
    return reading.trace()


class _Reading:
    """The fragments of a text, in their order."""

    def __init__(self) -> None:
        self._classes: Final = Classes()
        self._places: Final = Places()
        self._version = 0
        self._uuid: bytes | None = None
        self._header: Struct | None = None
        self._environment: dict[str, str | int] = {}
        self._clocks: dict[str, Clock] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, dict[int, Event]] = {}
        self._fragments: Final = {
            "preamble": self._preamble,
            "field-class-alias": self._classes.declare,
            "trace-class": self._trace_class,
            "clock-class": self._clock_class,
            "data-stream-class": self._stream_class,
            "event-record-class": self._event_class,
        }

    def enter(self, fragment: object) -> None:
        """Take one fragment; those of unknown types are of extensions that nobody has to know."""
        if not isinstance(fragment, Object):
            raise MetadataError("a fragment is not an object")
        kind = fragment.text("type")
        if not self._version and kind != "preamble":
            raise MetadataError("the first fragment is not a preamble")
        enter = self._fragments.get(kind)
        if enter is not None:
            enter(fragment)

    def trace(self) -> Trace:
        """Return the whole."""
        if not self._version:
            raise MetadataError("there is no preamble")
        streams = {
            number: replace(stream, events=self._events.get(number, {}))
            for number, stream in self._streams.items()
        }
        structs = [self._header, *(stream.packet_context for stream in streams.values())]
        orders = [order for struct in structs if (order := _order_in(struct)) is not None]
        return Trace(
            (2, 0),
            self._uuid,
            orders[0] if orders else "little",
            self._header,
            self._environment,
            self._clocks,
            streams,
        )

    def _preamble(self, of: Object) -> None:
        self._version = of.number("version")
        if self._version != 2:
            raise MetadataError(f"CTF {self._version}; JSON is of CTF 2")
        if "uuid" in of:
            numbers = of.plain()["uuid"]
            if not isinstance(numbers, list) or len(numbers) != _UUID_BYTES:
                raise MetadataError("uuid is not 16 numbers below 256")
            try:
                self._uuid = bytes(numbers)
            except (TypeError, ValueError):
                raise MetadataError("uuid is not 16 numbers below 256") from None

    def _trace_class(self, of: Object) -> None:
        self._header = self._scope(of, "packet-header-field-class", ctf.PACKET_HEADER, {}, None)
        if "environment" in of:
            for name, value in of.object("environment").items():
                if isinstance(value, str | int):
                    self._environment[name] = value
        if self._uuid is None and "uid" in of:
            with suppress(ValueError):  # it may be any text
                self._uuid = UUID(of.text("uid")).bytes

    def _clock_class(self, of: Object) -> None:
        name = of.text("id", of.text("name", ""))
        frequency = of.number("frequency", least=1)
        seconds, cycles = 0, 0
        if "offset-from-origin" in of:
            offset = of.object("offset-from-origin")
            seconds = offset.number("seconds", 0, -(1 << 63), (1 << 63) - 1)
            cycles = offset.number("cycles", 0)
        self._clocks[name] = Clock(
            name,
            None,
            of.text("description", ""),
            frequency,
            of.number("precision", 0),
            seconds,
            cycles,
            of.plain().get("origin") == "unix-epoch",
        )

    def _stream_class(self, of: Object) -> None:
        number = of.number("id", 0)
        if number in self._streams:
            raise MetadataError(f"a second stream of id {number}")
        clock: str | None = None
        if "default-clock-class-id" in of:
            clock = of.text("default-clock-class-id")
            if clock not in self._clocks:
                raise MetadataError(f"stream {number} has the unknown clock '{clock[:40]}'")
        before = {} if self._header is None else {ctf.PACKET_HEADER: self._header}
        context = self._scope(of, "packet-context-field-class", ctf.PACKET_CONTEXT, before, clock)
        header = self._scope(of, "event-record-header-field-class", ctf.EVENT_HEADER, before, clock)
        common = self._scope(
            of, "event-record-common-context-field-class", ctf.STREAM_EVENT_CONTEXT, before, clock
        )
        self._streams[number] = Stream(number, context, header, common, clock=clock)

    def _event_class(self, of: Object) -> None:
        number, stream_id = of.number("id", 0), of.number("data-stream-class-id", 0)
        stream = self._streams.get(stream_id)
        if stream is None:
            raise MetadataError(f"event {number} is of the unknown stream {stream_id}")
        self._places.count_event()
        events = self._events.setdefault(stream_id, {})
        if number in events:
            raise MetadataError(f"a second event of id {number} in stream {stream_id}")
        known = {
            ctf.PACKET_HEADER: self._header,
            ctf.PACKET_CONTEXT: stream.packet_context,
            ctf.EVENT_HEADER: stream.event_header,
            ctf.STREAM_EVENT_CONTEXT: stream.event_context,
        }
        before = {root: struct for root, struct in known.items() if struct is not None}
        attributes = of.object("attributes").plain() if "attributes" in of else {}
        event = Event(number, of.text("name", ""), stream_id, attributes=attributes)
        try:
            context = self._scope(
                of, "specific-context-field-class", ctf.EVENT_CONTEXT, before, stream.clock
            )
            payload = self._scope(of, "payload-field-class", ctf.EVENT_FIELDS, before, stream.clock)
            events[number] = replace(event, context=context, payload=payload)
        except UnsupportedError as error:
            events[number] = replace(event, unsupported=str(error))

    def _scope(
        self, of: Object, key: str, root: Path, before: dict[Path, Struct], clock: str | None
    ) -> Struct | None:
        """Return the structure of a root, and enter it into *before*; None if there is none."""
        said = of.field(key)
        if said is None:
            return None
        made = self._classes.made(said)
        if not isinstance(made, Struct):
            raise MetadataError(f"{key} is not a structure")

        def leaf(_path: Path, of: FieldClass) -> FieldClass:
            match of:
                case Integer() if any("clock" in role for role in of.roles):
                    return replace(of, clock=clock)
                case Enumeration() if any("clock" in role for role in of.container.roles):
                    return replace(of, container=replace(of.container, clock=clock))
                case _:
                    return of

        before[root] = placed = self._places.place(root, made, before, leaf)
        return placed


def _order_in(of: FieldClass | None) -> ByteOrder | None:
    """Return the byte order of the first number in a structure."""
    match of:
        case Integer():
            return of.byteorder
        case Enumeration():
            return of.container.byteorder
        case Struct():
            return next((order for _, each in of.members if (order := _order_in(each))), None)
        case _:
            return None

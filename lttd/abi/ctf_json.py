"""The metadata of CTF 2: from JSON fragments to a ``Trace``.

A fragment is an object after a byte 0x1E (RFC 7464).  Source: CTF2-SPEC-2.0, sections 5 and 6; what
lttng-modules 2.14 writes is its subset.

Rule: strings and blobs of a known length become arrays and sequences of bytes, and a boolean or a
bit array an integer: they are in a packet in the same way.
Rule: a field class that lttd cannot read costs the event that has it, and no other.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, get_args
from uuid import UUID

from lttd.abi import ctf_classes as ctf
from lttd.abi.ctf_classes import (
    Array,
    ByteOrder,
    Clock,
    Enumeration,
    Event,
    FieldClass,
    Float,
    Integer,
    MetadataError,
    Path,
    Role,
    Sequence,
    Stream,
    String,
    Struct,
    Trace,
    UnsupportedError,
    Variant,
    alignment,
)
from lttd.abi.ctf_places import Places
from lttd.limits import CTF_DEPTH

_SEPARATOR: Final = "\x1e"
_ORIGINS: Final[Mapping[str, Path]] = {
    "packet-header": ctf.PACKET_HEADER,
    "packet-context": ctf.PACKET_CONTEXT,
    "event-record-header": ctf.EVENT_HEADER,
    "event-record-common-context": ctf.STREAM_EVENT_CONTEXT,
    "event-record-specific-context": ctf.EVENT_CONTEXT,
    "event-record-payload": ctf.EVENT_FIELDS,
}
_ORDERS: Final[Mapping[str, ByteOrder]] = {"little-endian": "little", "big-endian": "big"}
_NATURAL: Final = {"little": "first-to-last", "big": "last-to-first"}
_FLOATS: Final = {16: (5, 11), 32: (8, 24), 64: (11, 53)}
_ROLES: Final[frozenset[str]] = frozenset(get_args(Role))
_MOST_ALIGN: Final = 1 << 16
_MOST_LENGTH: Final = (1 << 32) - 1


def read_json(text: str) -> Trace:
    """Read a whole metadata.

    Raises:
        MetadataError: it is not valid; one line that says where.
    """
    reading, line = _Reading(), 1
    for fragment in text.split(_SEPARATOR)[1:]:
        try:
            reading.enter(json.loads(fragment, object_pairs_hook=_object))
        except json.JSONDecodeError as error:
            raise MetadataError(error.msg, line + error.lineno - 1) from None
        except (RecursionError, ValueError) as error:
            if isinstance(error, MetadataError):
                raise type(error)(error.reason, error.line or line) from None
            raise MetadataError("it is too deep, or has too long a number", line) from None
        line += fragment.count("\n")
    return reading.trace()


class _Object:
    """An object, whose values are taken with the types that they have to have."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            key: value.plain() if isinstance(value, _Object) else value
            for key, value in self._values.items()
        }

    def items(self) -> list[tuple[str, Any]]:
        return list(self._values.items())

    def text(self, key: str, default: str | None = None) -> str:
        found: str = self._get(key, str, default)
        return found

    def object(self, key: str) -> "_Object":
        found: _Object = self._get(key, _Object, None)
        return found

    def objects(self, key: str) -> "list[_Object]":
        found: list[Any] = self._get(key, list, [])
        if not all(isinstance(each, _Object) for each in found):
            raise MetadataError(f"{key} is not a list of objects")
        return found

    def texts(self, key: str) -> list[str]:
        found: list[Any] = self._get(key, list, [])
        return [each for each in found if isinstance(each, str)]

    def field(self, key: str) -> "_Object | str | None":
        found = self._values.get(key)
        if found is not None and not isinstance(found, str | _Object):
            raise MetadataError(f"{key} is not a field class")
        return found

    def number(
        self, key: str, default: int | None = None, least: int = 0, most: int = (1 << 64) - 1
    ) -> int:
        found: int = self._get(key, int, default)
        if isinstance(found, bool) or not least <= found <= most:
            raise MetadataError(f"{key} is not a number from {least} to {most}")
        return found

    def ranges(self, key: str) -> list[tuple[int, int]]:
        return _ranges(key, self._get(key, list, None))

    def _get(self, key: str, kind: type[Any], default: Any) -> Any:  # noqa: ANN401
        found = self._values.get(key, default)
        if not isinstance(found, kind):
            named = {str: "a text", int: "a number", list: "a list", _Object: "an object"}[kind]
            raise MetadataError(f"{key} is not {named}")
        return found


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    return _Object(dict(pairs))


def _ranges(key: str, value: list[Any]) -> list[tuple[int, int]]:
    found = []
    for each in value:
        if (
            not isinstance(each, list)
            or len(each) != 2
            or not all(type(bound) is int for bound in each)
            or each[0] > each[1]
        ):
            raise MetadataError(f"{key} has a range that is not two numbers in order")
        found.append((each[0], each[1]))
    return found


class _Reading:
    """The fragments of a text, in their order."""

    def __init__(self) -> None:
        self._aliases: dict[str, FieldClass | UnsupportedError] = {}
        self._places: Final = Places()
        self._depth = 0
        self._version = 0
        self._uuid: bytes | None = None
        self._header: Struct | None = None
        self._environment: dict[str, str | int] = {}
        self._clocks: dict[str, Clock] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, dict[int, Event]] = {}
        self._fragments: Final[Mapping[str, Callable[[_Object], None]]] = {
            "preamble": self._preamble,
            "field-class-alias": self._alias,
            "trace-class": self._trace_class,
            "clock-class": self._clock_class,
            "data-stream-class": self._stream_class,
            "event-record-class": self._event_class,
        }

    def enter(self, fragment: object) -> None:
        """Take one fragment; those of unknown types are of extensions that nobody has to know."""
        if not isinstance(fragment, _Object):
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

    def _preamble(self, of: _Object) -> None:
        self._version = of.number("version")
        if self._version != 2:
            raise MetadataError(f"CTF {self._version}; JSON is of CTF 2")
        if "uuid" in of:
            numbers = of.plain()["uuid"]
            try:
                self._uuid = bytes(numbers)
            except (TypeError, ValueError):
                raise MetadataError("uuid is not 16 numbers below 256") from None
            if len(self._uuid) != 16:
                raise MetadataError("uuid is not 16 numbers below 256")

    def _alias(self, of: _Object) -> None:
        name = of.text("name")
        try:
            self._aliases[name] = self._class(of.field("field-class"))
        except UnsupportedError as error:
            self._aliases[name] = error

    def _trace_class(self, of: _Object) -> None:
        self._header = self._scope(of, "packet-header-field-class", ctf.PACKET_HEADER, {}, None)
        if "environment" in of:
            for name, value in of.object("environment").items():
                if isinstance(value, str | int):
                    self._environment[name] = value
        if self._uuid is None and "uid" in of:
            with suppress(ValueError):  # it may be any text
                self._uuid = UUID(of.text("uid")).bytes

    def _clock_class(self, of: _Object) -> None:
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

    def _stream_class(self, of: _Object) -> None:
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

    def _event_class(self, of: _Object) -> None:
        number, stream_id = of.number("id", 0), of.number("data-stream-class-id", 0)
        stream = self._streams.get(stream_id)
        if stream is None:
            raise MetadataError(f"event {number} is of the unknown stream {stream_id}")
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
        self, of: _Object, key: str, root: Path, before: dict[Path, Struct], clock: str | None
    ) -> Struct | None:
        """Return the structure of a root, and enter it into *before*; None if there is none."""
        said = of.field(key)
        if said is None:
            return None
        made = self._class(said)
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

    def _class(self, of: _Object | str | None) -> FieldClass:
        """Return the class that an object describes or a text names."""
        if of is None:
            raise MetadataError("a field class is missing")
        if isinstance(of, str):
            found = self._aliases.get(of)
            if found is None:
                raise MetadataError(f"the alias '{of[:40]}' is not declared")
            if isinstance(found, UnsupportedError):
                raise found
            return found
        self._depth += 1
        if self._depth > CTF_DEPTH.most:
            raise MetadataError(str(CTF_DEPTH))
        try:
            return self._described(of, of.text("type"))
        finally:
            self._depth -= 1

    def _described(self, of: _Object, kind: str) -> FieldClass:  # noqa: C901, PLR0911  (a table)
        match kind:
            case "structure":
                return self._struct(of)
            case "variant":
                return self._variant(of)
            case "fixed-length-unsigned-integer" | "fixed-length-signed-integer":
                return _integer(of, signed="unsigned" not in kind)
            case "fixed-length-bit-array" | "fixed-length-bit-map" | "fixed-length-boolean":
                found = _bits(of, signed=False)
                return found if kind.endswith("boolean") else replace(found, base=16)
            case "fixed-length-floating-point-number":
                return _float(of)
            case "null-terminated-string":
                _refuse_encoding(of)
                return String()
            case "static-length-array":
                element = self._class(of.field("element-field-class"))
                return _aligned(of, Array(element, of.number("length", most=_MOST_LENGTH)))
            case "dynamic-length-array":
                element = self._class(of.field("element-field-class"))
                return _aligned(of, Sequence(element, _location(of, "length-field-location")))
            case "static-length-string" | "static-length-blob":
                length = of.number("length", most=_MOST_LENGTH)
                return Array(_byte(of, kind), length, _roles(of))
            case "dynamic-length-string" | "dynamic-length-blob":
                return Sequence(_byte(of, kind), _location(of, "length-field-location"))
            case _:
                raise UnsupportedError(f"a field of class {kind[:60]}")

    def _struct(self, of: _Object) -> Struct:
        members: dict[str, FieldClass] = {}
        for each in of.objects("member-classes"):
            name = each.text("name")
            if name in members:
                raise MetadataError(f"two members are named '{name[:60]}'")
            members[name] = self._class(each.field("field-class"))
        least = _alignment(of, "minimum-alignment")
        return Struct(tuple(members.items()), max([least, *map(alignment, members.values())]))

    def _variant(self, of: _Object) -> Variant:
        options, ranges = [], []
        for number, each in enumerate(of.objects("options")):
            name = each.text("name", f"option{number}")
            options.append((name, self._class(each.field("field-class"))))
            ranges += [(name, *bounds) for bounds in each.ranges("selector-field-ranges")]
        tag = _location(of, "selector-field-location")
        return Variant(tag, tuple(options), tuple(ranges))


def _order(of: _Object) -> ByteOrder:
    order = _ORDERS.get(of.text("byte-order"))
    if order is None:
        raise MetadataError("byte-order is not little-endian or big-endian")
    if of.text("bit-order", _NATURAL[order]) != _NATURAL[order]:
        raise UnsupportedError(f"bits of a {order}-endian field in the other order")
    return order


def _alignment(of: _Object, key: str) -> int:
    align = of.number(key, 1, 1, _MOST_ALIGN)
    if align & (align - 1):
        raise MetadataError(f"{key} is not a power of two")
    return align


def _bits(of: _Object, *, signed: bool) -> Integer:
    size = of.number("length", None, 1, _MOST_ALIGN)
    if size > 64:
        raise UnsupportedError(f"an integer of {size} bits")
    return Integer(size, _alignment(of, "alignment"), signed, _order(of), roles=_roles(of))


def _integer(of: _Object, *, signed: bool) -> Integer | Enumeration:
    base = of.number("preferred-display-base", 10)
    if base not in (2, 8, 10, 16):
        raise MetadataError("preferred-display-base is not 2, 8, 10 or 16")
    number = replace(_bits(of, signed=signed), base=base)
    if "mappings" not in of:
        return number
    labels = [
        (label, *bounds)
        for label, ranges in of.object("mappings").items()
        for bounds in _ranges("mappings", ranges if isinstance(ranges, list) else [ranges])
    ]
    return Enumeration(number, tuple(labels))


def _float(of: _Object) -> Float:
    size = of.number("length")
    if size not in _FLOATS:
        raise UnsupportedError(f"a floating point number of {size} bits")
    return Float(*_FLOATS[size], _alignment(of, "alignment"), _order(of))


def _refuse_encoding(of: _Object) -> None:
    encoding = of.text("encoding", "utf-8")
    if encoding != "utf-8":
        raise UnsupportedError(f"a string in {encoding[:40]}")


def _byte(of: _Object, kind: str) -> Integer:
    """Return the class of a byte of a string or a blob."""
    if kind.endswith("blob"):
        return Integer(8, 8, signed=False, byteorder="little", base=16)
    _refuse_encoding(of)
    return Integer(8, 8, signed=False, byteorder="little", encoding="UTF8")


def _aligned(of: _Object, made: Array | Sequence) -> Array | Sequence:
    if _alignment(of, "minimum-alignment") > alignment(made.element):
        raise UnsupportedError("an array that is aligned to more than its elements")
    return made


def _roles(of: _Object) -> tuple[Any, ...]:
    return tuple(role for role in of.texts("roles") if role in _ROLES)


def _location(of: _Object, key: str) -> Path:
    """Return a reference; without an origin it is among the fields before."""
    location = of.object(key)
    path = tuple(location.texts("path"))
    if not path:
        raise MetadataError(f"{key} has no path")
    if "origin" not in location:
        return path
    origin = _ORIGINS.get(location.text("origin"))
    if origin is None:
        raise MetadataError(f"{key} has an unknown origin")
    return (*origin, *path)


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

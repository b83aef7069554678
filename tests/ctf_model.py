"""Random CTF metadata and packets, encoded value by value: what the decoder is compared with.

A value is an int, a float, bytes (a string or a text), a dict (a structure), a list (elements), or
a pair (the option of a variant, and its value).
"""

import math
import random
import struct
from collections.abc import Mapping
from typing import Any

from lttd.abi.ctf_classes import (
    EVENT_CONTEXT,
    EVENT_FIELDS,
    EVENT_HEADER,
    STREAM_EVENT_CONTEXT,
    Array,
    ByteOrder,
    Clock,
    Enumeration,
    Event,
    FieldClass,
    Float,
    Integer,
    Path,
    Sequence,
    Stream,
    String,
    Struct,
    Trace,
    Variant,
    aligned,
    alignment,
)

CLOCK = "monotonic"


class Bits:
    """Bytes that grow bit by bit; the first one of a little-endian byte is its lowest."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.at = 0

    def align(self, bits: int) -> None:
        self.at = aligned(self.at, bits)
        self._grow()

    def _grow(self) -> None:
        self.raw += bytes(max((self.at + 7) // 8 - len(self.raw), 0))

    def put(self, value: int, size: int, byteorder: ByteOrder) -> None:
        begin, self.at = self.at, self.at + size
        self._grow()
        for number in range(size):
            at = begin + number
            if byteorder == "little":
                self.raw[at >> 3] |= (value >> number & 1) << (at & 7)
            else:
                self.raw[at >> 3] |= (value >> (size - 1 - number) & 1) << (7 - (at & 7))


def encode(of: FieldClass, value: Any, bits: Bits) -> None:  # noqa: ANN401, C901
    """Append a field."""
    if not isinstance(of, Variant):
        bits.align(alignment(of))
    match of:
        case Integer():
            bits.put(value & ((1 << of.size_bits) - 1), of.size_bits, of.byteorder)
        case Enumeration(container=container):
            encode(container, value, bits)
        case Float():
            letter = "f" if of.size_bits == 32 else "d"
            (number,) = struct.unpack(
                f"<{'I' if letter == 'f' else 'Q'}", struct.pack(f"<{letter}", value)
            )
            bits.put(number, of.size_bits, of.byteorder)
        case String():
            for byte in (*value, 0):
                bits.put(byte, 8, "little")
        case Struct(members=members):
            for name, member in members:
                encode(member, value[name], bits)
        case Array(element=element) | Sequence(element=element):
            for each in value:
                encode(element, each, bits)
        case Variant(options=options):
            encode(dict(options)[value[0]], value[1], bits)


class Maker:
    """Makes random classes and values."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.byteorder: ByteOrder = self.random.choice(["little", "big"])
        self.packed = self.random.random() < 0.5

    def integer(self, signed: bool | None = None, most: int = 64) -> Integer:
        size = self.random.choice([1, 3, 5, 7, 8, 12, 16, 24, 27, 32, 33, 48, 63, 64])
        size = min(size, most)
        align = 8 if self.packed else self.random.choice([1, 8, 16, 32, 64])
        if size % 8:
            align = self.random.choice([1, align])
        signed = self.random.random() < 0.5 if signed is None else signed
        base = self.random.choice([2, 8, 10, 16])
        order = self.byteorder
        if size % 8 == 0 and align >= 8:
            order = self.random.choice(["little", "big"])
        return Integer(size, align, signed, order, base)

    def any(self, depth: int, path: Path, known: dict[Path, FieldClass]) -> FieldClass:
        kind = self.random.randrange(9 if depth else 5)
        tags = [at for at, of in known.items() if isinstance(of, Enumeration)]
        lengths = [at for at, of in known.items() if isinstance(of, Integer)]
        if kind == 5 and tags:
            tag = self.random.choice(tags)
            labels = [label for label, _, _ in known[tag].labels]  # type: ignore[union-attr]
            return Variant(
                tag, tuple((one, self.any(depth - 1, (*path, one), {})) for one in labels)
            )
        if kind == 6 and lengths:
            return Sequence(self.element(depth - 1, path), self.random.choice(lengths))
        if kind == 7:
            if self.random.random() < 0.4:
                character = Integer(8, 8, False, self.byteorder, 10, "UTF8")
                return Array(character, self.random.randrange(9))
            return Array(self.element(depth - 1, path), self.random.randrange(4))
        if kind == 8:
            return self.structure(depth - 1, path, known)
        if kind == 2:
            return Float(*self.random.choice([(8, 24), (11, 53)]), 8, self.byteorder)
        if kind == 3:
            return String()
        return self.integer()

    def element(self, depth: int, path: Path) -> FieldClass:
        """Return the class of an array's elements, which have a size."""
        found = self.any(depth, path, {})
        return self.integer() if may_be_empty(found) else found

    def structure(self, depth: int, path: Path, outer: dict[Path, FieldClass]) -> Struct:
        members: list[tuple[str, FieldClass]] = []
        known = dict(outer)
        for number in range(self.random.randrange(5)):
            kind = self.random.randrange(4)
            if kind == 0:
                name, of = f"length{number}", self.integer(signed=False, most=5)
                known[*path, name] = of
            elif kind == 1:
                name, container = f"tag{number}", self.integer(signed=False, most=8)
                top = (1 << container.size_bits) - 1
                low = self.random.randint(0, top)
                labels = [("a", 0, low)] + ([("b", low + 1, top)] if low < top else [])
                of = Enumeration(container, tuple(labels))
                known[*path, name] = of
            else:
                name = f"f{number}"
                of = self.any(depth, (*path, name), known)
            members.append((name, of))
        return _struct(tuple(members))

    def value(self, of: FieldClass, path: Path, known: dict[Path, Any]) -> Any:  # noqa: ANN401, C901
        match of:
            case Integer():
                value = self.random.getrandbits(of.size_bits)
                if path and path[-1].startswith("length"):
                    value %= 4
                if of.signed and value >> (of.size_bits - 1):
                    value -= 1 << of.size_bits
            case Enumeration(container=container):
                value = self.value(container, (), known)
            case Float():
                value = self.random.choice([0.0, -1.5, math.inf, 1e-5, 123456789.0, 2.0**-40])
                value = (
                    struct.unpack("f", struct.pack("f", value))[0] if of.size_bits == 32 else value
                )
            case String():
                value = bytes(
                    self.random.randrange(1, 256)
                    for _ in range(self.random.choice([0, 1, 3, 8, 90]))
                )
            case Struct(members=members):
                value = {}
                for name, member in members:
                    value[name] = self.value(member, (*path, name), known)
            case Array(element=element, length=length):
                value = [self.value(element, path, dict(known)) for _ in range(length)]
            case Sequence(element=element, length=length):
                value = [self.value(element, path, dict(known)) for _ in range(known[length])]
            case Variant(tag=tag, options=options):
                name = self.label(tag, known)
                value = (name, self.value(dict(options)[name], (*path, name), known))
        if path:
            known[path] = value
        return value

    def label(self, tag: Path, known: Mapping[Path, Any]) -> str:
        return next(name for name, low, high in self.labels[tag] if low <= known[tag] <= high)

    labels: dict[Path, tuple[tuple[str, int, int], ...]]

    def header(self) -> Struct:
        """Return a header in one of the shapes that tracers have."""
        align = 8 if self.packed else 32
        order = self.byteorder

        def stamp(size: int) -> tuple[str, FieldClass]:
            at = 1 if size == 27 else align
            return "timestamp", Integer(size, at, False, order, 10, "none", CLOCK)

        wide = _struct((("id", Integer(32, align, False, order)), stamp(64)))
        kind = self.random.randrange(3)
        if kind == 0:
            tag = Enumeration(
                Integer(5, 1, False, order), (("compact", 0, 30), ("extended", 31, 31))
            )
            short, low = _struct((stamp(27),)), 8
        elif kind == 1:
            tag = Enumeration(
                Integer(16, align, False, order),
                (("compact", 0, 65534), ("extended", 65535, 65535)),
            )
            short, low = _struct((stamp(32),)), align
        else:
            return _struct((("id", Integer(32, align, False, order)), stamp(64)))
        options = (("compact", short), ("extended", wide))
        return _struct(
            (("id", tag), ("v", Variant((*EVENT_HEADER, "id"), options))),
            low if self.packed else 32,
        )

    def trace(self) -> Trace:
        """Return metadata with one stream class of several events."""
        header = _struct(
            (
                ("magic", Integer(32, 8, False, self.byteorder)),
                ("stream_id", Integer(32, 8, False, self.byteorder)),
            )
        )
        stamp = Integer(64, 8, False, self.byteorder, 10, "none", CLOCK)
        size = Integer(64, 8, False, self.byteorder)
        context = _struct(
            (("timestamp_begin", stamp), ("content_size", size), ("packet_size", size))
        )
        known: dict[Path, FieldClass] = {}
        common = (
            self.structure(1, STREAM_EVENT_CONTEXT, known) if self.random.random() < 0.3 else None
        )
        events = {}
        for one in self.random.sample([0, 1, 2, 7, 30, 31, 70_000], self.random.randrange(1, 5)):
            its = self.structure(1, EVENT_CONTEXT, {}) if self.random.random() < 0.3 else None
            events[one] = Event(one, f"event{one}", 0, its, self.structure(2, EVENT_FIELDS, {}))
        stream = Stream(0, context, self.header(), common, events, CLOCK)
        return Trace(
            (1, 8), bytes(16), self.byteorder, header, {}, {CLOCK: Clock(CLOCK)}, {0: stream}
        )

    def event(
        self, trace: Trace, event: Event, time: int, last: int, bits: Bits
    ) -> dict[Path, Any]:
        """Append an event; return the values of its scopes."""
        stream = trace.streams[0]
        assert stream.event_header is not None
        members = dict(stream.event_header.members)
        known: dict[Path, Any] = {}
        if isinstance(members["id"], Integer):
            encode(stream.event_header, {"id": event.id, "timestamp": time}, bits)
        else:
            tag, choice = members["id"], members["v"]
            assert isinstance(tag, Enumeration)
            assert isinstance(choice, Variant)
            limit = tag.labels[0][2]
            width = 27 if limit == 30 else 32
            if event.id > limit or time - last >= 1 << 27:
                told = {"id": limit + 1, "v": ("extended", {"id": event.id, "timestamp": time})}
            else:
                low = time & ((1 << width) - 1)
                told = {"id": event.id, "v": ("compact", {"timestamp": low})}
            encode(stream.event_header, told, bits)
        found = {}
        for of, path in (
            (stream.event_context, STREAM_EVENT_CONTEXT),
            (event.context, EVENT_CONTEXT),
            (event.payload, EVENT_FIELDS),
        ):
            if of is not None:
                self.labels = labels_of(of, path)
                found[path] = self.value(of, path, known)
                encode(of, found[path], bits)
        return found


def may_be_empty(of: FieldClass) -> bool:
    match of:
        case Struct(members=members):
            return all(may_be_empty(member) for _, member in members)
        case Array(element=element, length=length):
            return not length or may_be_empty(element)
        case Variant(options=options):
            return any(may_be_empty(option) for _, option in options)
        case _:
            return isinstance(of, Sequence)


def labels_of(of: FieldClass, path: Path) -> dict[Path, tuple[tuple[str, int, int], ...]]:
    match of:
        case Enumeration(labels=labels):
            return {path: labels}
        case Struct(members=members):
            return {
                at: labels
                for name, one in members
                for at, labels in labels_of(one, (*path, name)).items()
            }
        case Variant(options=options):
            return {
                at: labels
                for name, one in options
                for at, labels in labels_of(one, (*path, name)).items()
            }
        case Array(element=element) | Sequence(element=element):
            return labels_of(element, path)
        case _:
            return {}


def _struct(members: tuple[tuple[str, FieldClass], ...], least: int = 1) -> Struct:
    return Struct(members, max([least, *(alignment(of) for _, of in members)]))


class Recorded:
    """Packets of random events, and what they say."""

    def __init__(self, seed: int, packets: int, events: int) -> None:
        make = Maker(seed)
        self.trace = trace = make.trace()
        self.data = b""
        self.offsets: list[int] = []
        self.first_bits: list[int] = []
        self.end_bits: list[int] = []
        self.begin: list[int] = []
        self.events: list[tuple[int, int, dict[Path, Any]]] = []
        """Id, time and values."""
        time = make.random.getrandbits(40)
        assert trace.packet_header is not None
        stream = trace.streams[0]
        assert stream.packet_context is not None
        for _ in range(packets):
            bits = Bits()
            encode(trace.packet_header, {"magic": 0xC1FC1FC1, "stream_id": 0}, bits)
            begin = last = time
            place = bits.at
            encode(
                stream.packet_context,
                {"timestamp_begin": begin, "content_size": 0, "packet_size": 0},
                bits,
            )
            self.first_bits.append(len(self.data) * 8 + bits.at)
            for _ in range(events):
                time += make.random.choice([0, 1, 1000, 1 << 26, 1 << 27, 1 << 35])
                event = make.random.choice(list(stream.events.values()))
                bits.align(alignment(stream.event_header) if stream.event_header else 8)
                if bits.at % 8:
                    bits.align(8)
                self.events.append((event.id, time, make.event(trace, event, time, last, bits)))
                last = time
            sizes = Bits()
            content = bits.at
            bits.align(8)
            for value in (begin, content, bits.at):
                sizes.put(value, 64, trace.byteorder)
            bits.raw[place // 8 : place // 8 + 24] = sizes.raw
            self.offsets.append(len(self.data))
            self.end_bits.append(len(self.data) * 8 + content)
            self.begin.append(begin)
            self.data += bytes(bits.raw)

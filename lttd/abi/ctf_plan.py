"""How to walk the events of one stream class: its header, and the sizes of events by their ids.

The header of an event states its id and some low bits of its time, in fields of any layout:

    struct { uint16 id; uint32 timestamp; }
    struct { enum : uint5 { compact = 0 ... 30, extended = 31 } id;
             variant <id> { struct { uint27 timestamp; } compact;
                            struct { uint32 id; uint64 timestamp; } extended; } v; }

A ``Quick`` is a table for the events whose size follows from their id alone, which is found in
some bits at one place of the header: no names of a tracer are needed.

Rule: pure; nothing here reads data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_classes import (
    EVENT_CONTEXT,
    EVENT_FIELDS,
    EVENT_HEADER,
    STREAM_EVENT_CONTEXT,
    Enumeration,
    Event,
    FieldClass,
    Integer,
    Path,
    Stream,
    Struct,
    Trace,
    Variant,
    aligned,
    alignment,
    end_bits,
    fixed_bits,
)
from lttd.abi.ctf_fields import References

I64 = npt.NDArray[np.int64]

_BYTE: Final = 8
_MOST_PHASES_BITS: Final = 64
_MOST_TAG_BITS: Final = 16
_TABLE_BITS: Final = 16
UNKNOWN: Final = -1


def is_id(name: str, of: FieldClass) -> bool:
    """Return whether a member of an event header is the id, by its role or by its name."""
    number = of.container if isinstance(of, Enumeration) else of
    if not isinstance(number, Integer):
        return False
    return name == "id" or "event-record-class-id" in number.roles


def is_time(name: str, of: FieldClass) -> bool:
    """Return whether a member of an event header is some bits of the time."""
    if not isinstance(of, Integer):
        return False
    return of.clock is not None or name == "timestamp" or "default-clock-timestamp" in of.roles


@dataclass(frozen=True, slots=True)
class Quick:
    """The sizes of events by the bits of their headers that state the id."""

    at_byte: int
    """Where these bits are in a header."""
    dtype: str
    shift: int
    mask: int
    phases: int
    """By how many offsets from the begin of the packet sizes differ; in bytes, a power of two."""
    table: I64
    """By bits * phases + phase: the distance in bytes to the next event; 0: it depends on more than
    these bits; UNKNOWN: no event begins so."""
    time: tuple[int, Integer] | None
    """The place in bits of the low bits of the time, in headers of events of known size."""


class Plan:
    """A stream class, prepared for walking."""

    def __init__(self, trace: Trace, stream: Stream) -> None:
        self.trace: Final = trace
        self.stream: Final = stream
        self.events: Final = list(stream.events.values())
        self.number_of: Final = {event.id: number for number, event in enumerate(self.events)}
        self.header: Final = stream.event_header
        classes = [trace.packet_header, stream.packet_context, self.header, stream.event_context]
        for event in self.events:
            classes += [event.context, event.payload]
        self.referred: Final = References(classes)
        self.needs_packet: Final = any(
            path[:2] in (("trace", "packet"), ("stream", "packet")) for path in self.referred.paths
        )
        """Whether a length or a tag of an event is in the header or context of its packet."""
        self.align_bits: Final = alignment(self.header) if self.header else _BYTE
        self.numbers: Final = self._numbers()

    def _numbers(self) -> I64:
        """Return the numbers of the events by id, as far as ids are small; -1: none."""
        small = [one for one in self.number_of if 0 <= one < 1 << _TABLE_BITS]
        table = np.full(max(small, default=-1) + 2, -1, np.int64)
        for one in small:
            table[one] = self.number_of[one]
        return table

    def bodies(self, event: Event) -> Iterator[tuple[Struct, Path]]:
        """Yield the structures after the header."""
        for of, path in (
            (self.stream.event_context, STREAM_EVENT_CONTEXT),
            (event.context, EVENT_CONTEXT),
            (event.payload, EVENT_FIELDS),
        ):
            if of is not None:
                yield of, path

    @cached_property
    def quick(self) -> Quick | None:
        """The table of fixed sizes; None: no event has one."""
        tag = self._tag()
        if self.header is None or tag is None or self.align_bits < _BYTE:
            return None
        path, at_bits, of = tag
        most = max(
            (alignment(one) for event in self.events for one, _ in self.bodies(event)), default=1
        )
        most = max(most, self.align_bits)
        if of.size_bits > _MOST_TAG_BITS or of.signed or most > _MOST_PHASES_BITS:
            return None
        if at_bits % _BYTE + of.size_bits > 2 * _BYTE:
            return None
        size_bytes = 1 if at_bits % _BYTE + of.size_bits <= _BYTE else 2
        shift = at_bits % _BYTE
        if of.byteorder == "big":
            shift = size_bytes * _BYTE - shift - of.size_bits
        phases = max(most // _BYTE, 1) if most > self.align_bits else 1
        table = np.full((1 << of.size_bits, phases), UNKNOWN, np.int64)
        for low, high in self._others(path):
            table[max(low, 0) : high + 1] = 0
        for value in self.number_of:
            if 0 <= value < len(table):
                for phase in range(phases):
                    table[value, phase] = self._size(path, value, phase * _BYTE) // _BYTE
        dtype = f"{'<' if of.byteorder == 'little' else '>'}u{size_bytes}"
        mask = (1 << of.size_bits) - 1
        known = np.flatnonzero(table[:, 0] > 0)
        time = self._time(path, int(known[0])) if len(known) else None
        return Quick(at_bits // _BYTE, dtype, shift, mask, phases, table.reshape(-1), time)

    def _tag(self) -> tuple[Path, int, Integer] | None:
        """Return the member of the header that states small ids, and its place."""
        at = 0
        for name, member in self.header.members if self.header else ():
            size = fixed_bits(member)
            if size is None:
                return None
            at = aligned(at, alignment(member))
            if is_id(name, member):
                number = member.container if isinstance(member, Enumeration) else member
                assert isinstance(number, Integer)
                return (*EVENT_HEADER, name), at, number
            at += size
        return None

    def _others(self, tag: Path) -> Iterator[tuple[int, int]]:
        """Yield the values of the tag after which the header states another id."""
        members = dict(self.header.members) if self.header else {}
        of = members.get(tag[-1])
        for choice in members.values():
            if isinstance(of, Enumeration) and isinstance(choice, Variant) and choice.tag == tag:
                for label, low, high in of.labels:
                    option = _option(choice, ((label, 0, 0),), 0)
                    if option is None or any(is_id(*one) for one in option.members):
                        yield low, high

    def _time(self, tag: Path, value: int) -> tuple[int, Integer] | None:
        """Return the place of the time in the headers of events of a small id."""
        members = list(self.header.members) if self.header else []
        at = 0
        labels: tuple[tuple[str, int, int], ...] = ()
        while members:
            name, member = members.pop(0)
            if (*EVENT_HEADER, name) == tag and isinstance(member, Enumeration):
                labels = member.labels
            if isinstance(member, Variant):
                option = _option(member, labels, value)
                if option is not None:
                    at = aligned(at, option.align_bits)
                    members = [*option.members, *members]
                continue
            at = aligned(at, alignment(member))
            if is_time(name, member):
                assert isinstance(member, Integer)
                return at, member
            at += fixed_bits(member) or 0
        return None

    def _size(self, tag: Path, value: int, begin_bits: int) -> int:
        """Return the distance from an event to the next one in bits; 0: it depends on more."""
        assert self.header is not None
        at: int | None = begin_bits
        labels: tuple[tuple[str, int, int], ...] = ()
        for name, member in self.header.members:
            assert at is not None
            path = (*EVENT_HEADER, name)
            if path == tag and isinstance(member, Enumeration):
                labels = member.labels
            if isinstance(member, Variant):
                option = _option(member, labels, value) if member.tag == tag else None
                if option is None or any(is_id(*one) for one in option.members):
                    return 0
                at = end_bits(option, at)
            elif path != tag and is_id(name, member):
                return 0
            else:
                size = fixed_bits(member)
                at = None if size is None else aligned(at, alignment(member)) + size
            if at is None:
                return 0
        event = self.events[self.number_of[value]]
        for body, _ in self.bodies(event):
            at = None if at is None or event.unsupported else end_bits(body, at)
        return 0 if at is None else aligned(at, self.align_bits) - begin_bits


def _option(of: Variant, labels: tuple[tuple[str, int, int], ...], value: int) -> Struct | None:
    names = {label for label, low, high in labels if low <= value <= high}
    for name, option in of.options:
        if name in names:
            return option if isinstance(option, Struct) else None
    return None

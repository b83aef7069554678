"""How to walk the events of one stream class: its events by their ids, and their sizes.

The size of most events follows from their id alone, which is the tag of their header or, for some
tags, in another field of it (``lttd.abi.ctf_forms``).  A ``Quick`` is a table of these sizes.  The
others have strings or sequences among fields of fixed size: a ``Stage`` leads to the end of each.

Rule: pure; nothing here reads data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import WORD_BITS
from lttd.abi.ctf_classes import (
    EVENT_CONTEXT,
    EVENT_FIELDS,
    EVENT_HEADER,
    STREAM_EVENT_CONTEXT,
    Event,
    FieldClass,
    Integer,
    Path,
    Sequence,
    Stream,
    String,
    Struct,
    Trace,
    aligned,
    alignment,
    end_bits,
    fixed_bits,
)
from lttd.abi.ctf_fields import References
from lttd.abi.ctf_forms import Form, Forms, Spot, forms_of

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_BYTE: Final = 8
_MOST_PHASES_BITS: Final = 64
_TABLE_BITS: Final = 16
_MOST_TAGS: Final = 1 << 17
_MOST_STAGES: Final = 8
_MOST_ELEMENT: Final = 1 << 20
_NOTHING: Final = Spot.in_word(0, "<", 1, 0, 0)
UNKNOWN: Final = -1
OTHER: Final = -2


class Stage(NamedTuple):
    """A field of variable size."""

    skip_bytes: int
    """From the end of the field before it, or from the end of the header."""
    length: Spot | None
    """Of a sequence: its length, which is directly before it, from *skip_bytes* on; None: it is a
    string."""
    element_bytes: int


class Stages(NamedTuple):
    """The steps that find the end of an event."""

    all: tuple[Stage, ...]
    rest_bytes: int
    """After the last stage."""


@dataclass(frozen=True, slots=True)
class Quick:
    """The events by the tags of their headers."""

    forms: Forms
    number: I64
    """By tag: the number of the event; UNKNOWN: there is none; OTHER: the header states another
    id.  The last one is that of all larger tags."""
    form: npt.NDArray[np.int8]
    """By tag: the number of the form; -1: there is none."""
    phases: int
    """By how many offsets from the begin of the packet sizes differ; in bytes, a power of two."""
    size: I64
    """By tag * phases + phase: the distance in bytes to the next event; 0: it depends on more."""

    @property
    def has_whole_headers(self) -> bool:
        """Return whether headers end at a byte."""
        return all(form.end_bits % _BYTE == 0 for form in self.forms.all)

    @property
    def tag(self) -> Spot:
        """The spot of the tag; where there is none, one that is always 0."""
        return self.forms.tag or _NOTHING


class Plan:
    """A stream class, prepared for walking."""

    def __init__(self, trace: Trace, stream: Stream) -> None:
        self.trace: Final = trace
        self.stream: Final = stream
        self.events: Final = list(stream.events.values())
        self.number_of: Final = {event.id: number for number, event in enumerate(self.events)}
        self.header: Final = stream.event_header
        classes = [trace.packet_header, stream.packet_context, self.header, stream.event_context]
        bodies = [stream.event_context]
        for event in self.events:
            bodies += [event.context, event.payload]
        classes += bodies[1:]
        self.referred: Final = References(classes)
        self.needs_packet: Final = any(
            path[:2] in (("trace", "packet"), ("stream", "packet")) for path in self.referred.paths
        )
        """Whether a length or a tag of an event is in the header or context of its packet."""
        packet = (trace.packet_header, stream.packet_context)
        self.packet_varies: Final = any(of and fixed_bits(of) is None for of in packet)
        """True if headers and contexts of packets differ in size."""
        self.needs_header: Final = self.needs_packet or any(
            path[: len(EVENT_HEADER)] == EVENT_HEADER for path in References(bodies).paths
        )
        """Whether one is there, or in the event's own header."""
        self.align_bits: Final = alignment(self.header) if self.header else _BYTE
        self.numbers: Final = self._numbers()
        large = sorted(one for one in self.number_of if one >= 1 << _TABLE_BITS)
        self._large: Final = np.array(large, np.uint64)
        self._large_numbers: Final = np.array([self.number_of[one] for one in large], np.int64)

    def _numbers(self) -> I64:
        """Return the numbers of the events by id, as far as ids are small."""
        small = [one for one in self.number_of if one < 1 << _TABLE_BITS]
        table = np.full(max(small, default=-1) + 2, UNKNOWN, np.int64)
        for one in small:
            table[one] = self.number_of[one]
        return table

    def numbers_of(self, ids: U64) -> I64:
        """Return the numbers of the events that have some ids; UNKNOWN: there is none."""
        most = np.uint64(len(self.numbers) - 1)  # the last one is of no event
        found = self.numbers.take(np.minimum(ids, most).astype(np.int64))
        if len(self._large):
            at = np.minimum(np.searchsorted(self._large, ids), len(self._large) - 1)
            known = self._large[at] == ids
            found[known] = self._large_numbers[at[known]]
        return found

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
        """The tables; None: the header has no forms, or none that ids could be looked up by."""
        forms = forms_of(self.header)
        most = max(
            (alignment(one) for event in self.events for one, _ in self.bodies(event)), default=1
        )
        if forms is None or max(most, self.align_bits) > _MOST_PHASES_BITS:
            return None
        count = self._tags(forms.tag)
        if not count:
            return None
        phases = most // _BYTE if most > self.align_bits else 1
        number, form = self._by_tag(forms, count)
        size = np.zeros((count, phases), np.int64)
        for tag in np.flatnonzero(number >= 0).tolist():
            event, its_form = self.events[number[tag]], forms.all[form[tag]]
            for phase in range(phases):
                size[tag, phase] = self._size(event, its_form, phase * _BYTE) // _BYTE
        return Quick(forms, number, form, phases, size.reshape(-1))

    def _tags(self, tag: Spot | None) -> int:
        """Return how many tags have an entry in tables; 0: too many."""
        if tag is None:
            return int(len(self.events) == 1)
        if tag.size_bits <= _TABLE_BITS:
            return 1 << tag.size_bits
        count = max(self.number_of, default=0) + 2  # the last one is of all larger tags
        return count if tag.is_word and count <= _MOST_TAGS else 0

    def _by_tag(self, forms: Forms, count: int) -> tuple[I64, npt.NDArray[np.int8]]:
        """Return the numbers of events and of forms by tag."""
        form = np.full(count, -1 if forms.ranges else 0, np.int8)
        for low, high, at in reversed(forms.ranges):
            form[max(low, 0) : max(high + 1, 0)] = at
        number = np.full(count, UNKNOWN, np.int64)
        for value, at in self.number_of.items():
            if forms.tag is None:
                number[:] = at
            elif 0 <= value < count:
                number[value] = at
        for at, one in enumerate(forms.all):
            if one.id is not None:
                number[form == at] = OTHER
        number[form < 0] = UNKNOWN
        return number, form

    def _size(self, event: Event, form: Form, begin_bits: int) -> int:
        """Return the distance from an event to the next one in bits; 0: it depends on more."""
        if event.unsupported:
            return 0
        at: int | None = begin_bits + form.end_bits
        for body, _ in self.bodies(event):
            at = None if at is None else end_bits(body, at)
        return 0 if at is None else aligned(at, self.align_bits) - begin_bits

    @cached_property
    def least_bytes(self) -> int:
        """At least so many bytes are in any event."""
        if self.quick is None:
            return 1
        header = min(form.end_bits for form in self.quick.forms.all) // _BYTE
        least = [int(one) for one in self.quick.size if one]
        for event, stages in zip(self.events, self.stages, strict=True):
            if stages is None:
                sized = any(self._size(event, form, 0) for form in self.quick.forms.all)
                least += [] if sized else [header]
            else:
                fields = sum(one.skip_bytes + (one.length is None) for one in stages.all)
                least.append(header + fields + stages.rest_bytes)
        return max(min(least, default=1), 1)

    def context_spot(self, name: str) -> Spot | None:
        """Return the place of a number in the stream's context, from the end of the header.

        None: it is not at one place.
        """
        context = self.stream.event_context
        is_whole = self.quick is not None and self.quick.has_whole_headers
        if context is None or not is_whole or alignment(context) > _BYTE:
            return None
        at = 0
        for member, of in context.members:
            size = fixed_bits(of)
            if size is None:
                return None
            at = aligned(at, alignment(of))
            if member == name and isinstance(of, Integer):
                return Spot.of(at, replace(of, signed=False))
            at += size
        return None

    @cached_property
    def stages(self) -> list[Stages | None]:
        """By number of the event: how to find its end; None: field by field."""
        is_packed = self.align_bits == _BYTE and self.quick and self.quick.phases == 1
        if not is_packed or self.quick is None or not self.quick.has_whole_headers:
            return [None] * len(self.events)
        return [self._stages(event) for event in self.events]

    def _stages(self, event: Event) -> Stages | None:
        if event.unsupported:
            return None
        found = _Staged()
        is_staged = all(found.add(of, path) for of, path in self.bodies(event))
        if not is_staged or len(found.stages) > _MOST_STAGES:
            return None
        return Stages(tuple(found.stages), -(-found.at_bits // _BYTE))


class _Staged:
    """The stages of the fields so far."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.at_bits = 0
        """From the end of the last stage."""
        self._last: tuple[Path, Integer] | None = None
        """The number that ends at ``at_bits``."""

    def add(self, of: FieldClass, path: Path) -> bool:
        """Add a field; return False if there is no stage for it."""
        last, self._last = self._last, None
        if alignment(of) > _BYTE:
            return False
        if isinstance(of, Struct):
            self.at_bits = aligned(self.at_bits, of.align_bits)
            return all(self.add(member, (*path, name)) for name, member in of.members)
        if isinstance(of, String):
            self.stages.append(Stage(-(-self.at_bits // _BYTE), None, 1))
            self.at_bits = 0
            return True
        if isinstance(of, Sequence):
            return self._sequence(of, last)
        size = fixed_bits(of)
        if size is None:
            return False
        self.at_bits = aligned(self.at_bits, alignment(of)) + size
        if isinstance(of, Integer):
            self._last = path, of
        return True

    def _sequence(self, of: Sequence, last: tuple[Path, Integer] | None) -> bool:
        size = fixed_bits(of.element)
        if last is None or last[0] != of.length or not size or size % _BYTE or size > _MOST_ELEMENT:
            return False
        number = last[1]
        if self.at_bits % _BYTE or number.size_bits % _BYTE or number.size_bits > WORD_BITS // 2:
            return False
        spot = Spot.of(self.at_bits - number.size_bits, number)
        if spot is None:
            return False
        # Its place counts from the end of the last stage; here, from the begin of the sequence.
        back = spot.at_byte - self.at_bits // _BYTE
        spot = replace(spot, at_byte=back)
        self.stages.append(Stage(self.at_bits // _BYTE, spot, size // _BYTE))
        self.at_bits = 0
        return True

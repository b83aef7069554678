"""Read the headers of many events: their ids, the bits of time that they state, and their ends."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import (
    EVENT_HEADER,
    PACKET_CONTEXT,
    PACKET_HEADER,
    Enumeration,
    FieldClass,
    Integer,
)
from lttd.abi.ctf_fields import Scan
from lttd.abi.ctf_forms import MOST_TAG_BITS, Form, Spot, Words, is_id, is_time
from lttd.abi.ctf_nodes import Choice, Group, Leaf, Node
from lttd.abi.ctf_plan import OTHER, Plan, Quick

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_NONE: Final = np.empty(0, np.int64)


class Packets(NamedTuple):
    """Some packets of one stream, in a buffer."""

    offset_bytes: I64
    first_bits: I64
    """Where the first event may begin, in bits from the begin of the buffer."""
    end_bits: I64
    """The end of the content; not before the first event, and within the buffer."""
    begin: U64
    """The time at the begin, in cycles."""

    def some(self, which: slice | I64 | Mask) -> "Packets":
        """Return some of the packets."""
        return Packets(
            self.offset_bytes[which],
            self.first_bits[which],
            self.end_bits[which],
            self.begin[which],
        )


class Heads(NamedTuple):
    """The headers of some events."""

    id: U64
    number: I64
    """The number of the event in its plan; -1: no event has the id."""
    time: U64
    """The low bits of the time."""
    time_bits: I64
    """The number of these bits; 0: the header states no time."""
    behind: I64
    """The end of the header, in bits."""
    scan: Scan


def firsts_of(bits: Bits, base: I64, end: I64, plan: Plan) -> I64:
    """Return where headers and contexts of packets end, in bits; not after the content."""
    scan = Scan(bits, base, end, plan.referred)
    return np.minimum(_measure_packets(scan, base, plan), end)


def _measure_packets(scan: Scan, base: I64, plan: Plan) -> I64:
    place = base
    for of, path in (
        (plan.trace.packet_header, PACKET_HEADER),
        (plan.stream.packet_context, PACKET_CONTEXT),
    ):
        if of is not None:
            place = scan.measure(of, place, path)
    return place


def heads_of(bits: Bits, at: I64, base: I64, end: I64, plan: Plan) -> Heads:
    """Read the headers at some bits; *base* and *end* are those of their packets."""
    scan = Scan(bits, base, end, plan.referred)
    if plan.needs_packet:
        _measure_packets(scan, base, plan)
    count = len(at)
    found = _Stated(
        np.zeros(count, np.uint64), np.zeros(count, np.uint64), np.zeros(count, np.int64)
    )
    behind = at
    if plan.header is not None:
        node, behind = scan.locate(plan.header, at, EVENT_HEADER)
        found.read("", plan.header, node, None)
    elif len(plan.events) == 1:
        found.id[:] = plan.events[0].id
    return Heads(found.id, plan.numbers_of(found.id), found.time, found.time_bits, behind, scan)


class Stated(NamedTuple):
    """Times and ids that the headers of events state."""

    number: I64
    """The number of the event in its plan; negative: no event has the id."""
    time: U64
    """The low bits of the time."""
    time_bits: int
    """The number of bits of a time; 0 if headers state no time."""
    others: I64
    """The rows in which there are others."""
    other_bits: I64
    """The number of bits there."""
    header_bytes: "int | I64 | None"
    """The size of the header, of each event if they differ; None: it is not known."""


def stated(bits: Bits, at: I64, row: Callable[[], I64], packets: Packets, plan: Plan) -> Stated:
    """Read the headers of events at some bytes; *row* returns the packet of each."""
    if plan.quick is None:
        rows = row()
        base, end = packets.offset_bytes[rows] << 3, packets.end_bits[rows]
        heads = heads_of(bits, at << 3, base, end, plan)
        every = np.arange(len(at))
        return Stated(heads.number, heads.time, 0, every, heads.time_bits, None)
    quick = plan.quick
    forms = quick.forms.all
    tags, time = _tags_and_times(bits, at, quick)
    number = quick.number.take(tags)
    sizes = [0 if each.time is None else each.time.size_bits for each in forms]
    ends = np.array([each.end_bits >> 3 for each in forms])
    form = quick.form.take(tags)
    _number_others(number, form, bits, at, plan)
    if not form.any():
        return Stated(number, time, sizes[0], _NONE, _NONE, int(ends[0]))
    others = np.flatnonzero(form)
    for one in range(1, len(forms)):
        rows = others[form[others] == one]
        time[rows] = _time_of(forms[one], bits, at[rows])
    header_bytes = ends.take(form) if len(set(ends.tolist())) > 1 else int(ends[0])
    other_bits = np.array(sizes).take(form[others])
    return Stated(number, time, sizes[0], others, other_bits, header_bytes)


def tags_of(bits: Bits, at: I64, quick: Quick) -> I64:
    """Return the tags of headers, as indexes of the tables."""
    return indexes(quick.tag.words(bits, at), quick.tag, quick)


def indexes(words: Words, tag: Spot, quick: Quick) -> I64:
    """Return the indexes of the tables by tag; *words* are those of its spot, or of a wider one."""
    top = len(quick.number) - 1
    if tag.is_word:
        if tag.size_bits > MOST_TAG_BITS:
            words = np.minimum(words, words.dtype.type(top))
        return words.astype(np.int64)
    if tag.shift:
        words = words >> words.dtype.type(tag.shift)
    return (words & words.dtype.type(top)).astype(np.int64)


def _number_others(
    number: I64, form: npt.NDArray[np.int8], bits: Bits, at: I64, plan: Plan
) -> None:
    """Enter the numbers of events whose headers state another id than the tag."""
    for one, each in enumerate(plan.quick.forms.all if plan.quick else ()):
        if each.id is not None:
            rows = np.flatnonzero(number == OTHER)
            rows = rows[form[rows] == one]
            if len(rows):
                number[rows] = plan.numbers_of(each.id.read(bits, at[rows]))


def header_bytes(bits: Bits, at: I64, quick: Quick) -> "int | I64":
    """Return the sizes of the headers of events; one number if all are equal."""
    sizes = [form.end_bits >> 3 for form in quick.forms.all]
    if len(set(sizes)) > 1:
        form = quick.form.take(tags_of(bits, at, quick))
        if form.any():
            return np.array(sizes).take(form)
    return sizes[0]


def bodies_of(bits: Bits, at: I64, packet: I64, plan: Plan) -> tuple[Scan, I64]:
    """Return a scan of events at some bytes, and where their bodies begin, in bits.

    *packet*: where the packet of each event begins, in bytes.
    """
    base = packet << 3
    end = np.full(len(at), len(bits.buffer) << 3, np.int64)
    quick = plan.quick
    if quick is None or plan.needs_header or not quick.has_whole_headers:
        heads = heads_of(bits, at << 3, base, end, plan)
        return heads.scan, heads.behind
    return Scan(bits, base, end, plan.referred), (at + header_bytes(bits, at, quick)) << 3


def _tags_and_times(bits: Bits, at: I64, quick: Quick) -> tuple[I64, U64]:
    """Return the tags of headers, and the times as the first form has them."""
    form = quick.forms.all[0]
    tag = quick.tag.within(form.time) if form.time else None
    time = form.time.within(quick.tag) if form.time else None
    if tag is None or time is None or not len(at):
        return tags_of(bits, at, quick), _time_of(form, bits, at)
    words = tag.words(bits, at)
    tags, times = indexes(words, tag, quick), time.of_words(words)
    # The word of the last few events may reach beyond the buffer.
    last = int(np.searchsorted(at, len(bits.raw) - tag.word_bytes - tag.at_byte, "right"))
    if last < len(at):
        tags[last:] = tags_of(bits, at[last:], quick)
        times[last:] = _time_of(form, bits, at[last:])
    return tags, times


def _time_of(form: Form, bits: Bits, at: I64) -> U64:
    return np.zeros(len(at), np.uint64) if form.time is None else form.time.read(bits, at)


class _Stated(NamedTuple):
    """The ids and times in headers; the last field of a kind counts."""

    id: U64
    time: U64
    time_bits: I64

    def read(self, name: str, of: FieldClass, node: Node, rows: I64 | None) -> None:
        """Read a field, and the ones in it; *rows*: those that have it, None: all."""
        which = slice(None) if rows is None else rows
        match node:
            case Leaf():
                if is_id(name, of):
                    self.id[which] = node.values().astype(np.uint64)
                if is_time(name, of):
                    size = of.container if isinstance(of, Enumeration) else of
                    assert isinstance(size, Integer)
                    self.time[which] = node.bits.unsigned(node.at, size.size_bits, size.byteorder)
                    self.time_bits[which] = size.size_bits
            case Group(members=members):
                for below, member, inner in members:
                    self.read(below, member, inner, rows)
            case Choice(parts=parts):
                for below, option, some, inner in parts:
                    self.read(below, option, inner, some if rows is None else rows[some])
            case _:
                pass

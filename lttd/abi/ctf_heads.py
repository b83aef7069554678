"""Read the headers of many events: their ids, the bits of time that they state, and their ends."""

from typing import NamedTuple

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
from lttd.abi.ctf_fields import Choice, Group, Leaf, Node, Scan
from lttd.abi.ctf_plan import Plan, is_id, is_time

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


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

    id: I64
    number: I64
    """The number of the event in its plan; -1: no event has the id."""
    time: U64
    """The low bits of the time."""
    time_bits: I64
    """How many; 0: the header states no time."""
    behind: I64
    """The end of the header, in bits."""
    scan: Scan


def heads_of(bits: Bits, at: I64, base: I64, end: I64, plan: Plan) -> Heads:
    """Read the headers at some bits; *base* and *end* are those of their packets."""
    scan = Scan(bits, base, end, plan.referred)
    if plan.needs_packet:
        place = base
        for of, path in (
            (plan.trace.packet_header, PACKET_HEADER),
            (plan.stream.packet_context, PACKET_CONTEXT),
        ):
            if of is not None:
                place = scan.measure(of, place, path)
    count = len(at)
    found = _Stated(
        np.zeros(count, np.int64), np.zeros(count, np.uint64), np.zeros(count, np.int64)
    )
    behind = at
    if plan.header is not None:
        node, behind = scan.locate(plan.header, at, EVENT_HEADER)
        found.read("", plan.header, node, None)
    elif len(plan.events) == 1:
        found.id[:] = plan.events[0].id
    return Heads(found.id, _numbers(found.id, plan), found.time, found.time_bits, behind, scan)


def _numbers(ids: I64, plan: Plan) -> I64:
    table = plan.numbers
    most = len(table) - 1  # the last one is of no event
    found: I64 = table[np.where((ids >= 0) & (ids < most), ids, most)]
    large = [one for one in plan.number_of if one >= most]
    for one in large:
        found[ids == one] = plan.number_of[one]
    return found


class _Stated(NamedTuple):
    """What headers state; the last field of a kind counts."""

    id: I64
    time: U64
    time_bits: I64

    def read(self, name: str, of: FieldClass, node: Node, rows: I64 | None) -> None:
        """Read a field, and the ones in it; *rows*: those that have it, None: all."""
        which = slice(None) if rows is None else rows
        match node:
            case Leaf():
                if is_id(name, of):
                    self.id[which] = node.values().astype(np.int64)
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

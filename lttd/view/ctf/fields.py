"""The fields of CTF events as columns of records, which the whole viewer understands.

A member of a structure is ``structure_member``.  A field of a context has its own name, unless an
event's own field has it; then it is ``context_name``.  ``common_name``, which would be a field of
every event, is ``field_common_name``.  Numbers are numbers; strings and texts are bytes; an array
of whole numbers is two-dimensional.  Anything else (sequences, variants, other arrays) is the text
that babeltrace2 prints for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import (
    EVENT_FIELDS,
    STREAM_EVENT_CONTEXT,
    Array,
    Enumeration,
    Event,
    FieldClass,
    Float,
    Integer,
    Path,
    Sequence,
    String,
    Struct,
)
from lttd.abi.ctf_events import Walked
from lttd.abi.ctf_heads import bodies_of
from lttd.abi.ctf_nodes import Group, Leaf, Listed, Node, Text, is_text
from lttd.abi.ctf_plan import Plan
from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.view.ctf.values import Printer, growth_bits, is_printed, shown
from lttd.view.formats import EventName
from lttd.view.strips import of_similar_size, packed

if TYPE_CHECKING:
    from lttd.view.columns import EventRows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_MOST_ELEMENTS: Final = 256
_SPAN_BYTES: Final = 16
_OBJECT_BYTES: Final = 8
_TASK: Final = ("tid", "vtid", "pid", "vpid")
_NONE: Final = -1
_RESERVED: Final = "common_"
"""Begins the names of what every event has in the viewer."""
_OTHERWISE: Final = "field_"


class _Column(NamedTuple):
    """One column of the records."""

    field: Field
    path: Path
    of: FieldClass


class CtfRecords:
    """Makes records of the events of one class; see ``lttd.view.formats.RecordsOf``."""

    def __init__(self, plan: Plan, event: Event, name: EventName) -> None:
        self.plan = plan
        self.event = event
        self._printer = Printer(plan.referred.paths)
        self._columns = list(self._named())
        self._texts = [one.of for one in self._columns if one.field.encoding is Encoding.TOLD]
        fields = tuple(one.field for one in self._columns)
        self.format = Format(name.system, name.name, event.id, fields, "", "<", 8)

    def _named(self) -> Iterator[_Column]:
        taken: set[str] = set()
        at = 0
        bodies = list(self.plan.bodies(self.event))
        bodies.sort(key=lambda body: body[1] != EVENT_FIELDS)  # its own fields choose their names
        for body, path in bodies:
            for name, below, of in _leaves(body, path, "", self.plan):
                is_free = bool(name) and not name.startswith(_RESERVED)
                told = name if is_free else f"{_OTHERWISE}{name}"
                told = told if told not in taken else f"context_{told}"
                first, number = told, 2
                while told in taken:
                    told, number = f"{first}_{number}", number + 1
                taken.add(told)
                field = _field(told, of, at)
                at += field.size_bytes
                yield _Column(field, below, of)

    def context(self, name: str) -> str | None:
        """Return the column of a member of the stream's context; None if there is none."""
        for field, path, _ in self._columns:
            if path[:-1] == STREAM_EVENT_CONTEXT and shown(path[-1]) == name:
                return field.name
        return None

    def __call__(self, rows: "EventRows") -> npt.NDArray[np.void]:
        """Return the fields of some events."""
        batch = rows.batch
        assert batch.packet is not None
        bits, packet = Bits(batch.data), batch.packet[rows.rows]
        if not self._texts:
            return self._records(bits, rows.at, packet)
        records = np.zeros(len(rows), self.format.dtype)
        for some in of_similar_size(rows.payload_bytes, growth_bits(self._texts)):
            records[some] = self._records(bits, rows.at[some], packet[some])
        return records

    def _records(self, bits: Bits, at: I64, packet: I64) -> npt.NDArray[np.void]:
        records = np.zeros(len(at), self.format.dtype)
        nodes = dict(nodes_of(self.plan, self.event, bits, at, packet))
        for field, path, of in self._columns:
            records[field.name] = self._values(field, of, nodes[path], path, at)
        return records

    def _values(self, field: Field, of: FieldClass, node: Node, path: Path, at: I64) -> Any:  # noqa: ANN401
        match node:
            case Leaf():
                return node.values()
            case Text():
                return np.stack((node.begin - at, node.end - at), axis=1)
            case Listed() if field.encoding is Encoding.ARRAY:
                inner = node.node()
                assert isinstance(inner, Leaf)
                return inner.values().reshape(len(at), field.elements)
            case _:
                words, _ = packed(self._printer.strip(of, node, len(at), path), len(at))
                found = np.empty(len(at), np.object_)
                found[:] = [bytes(text).rstrip(b"\0") for text in words.tolist()]
                return found


def _leaves(
    of: Struct, path: Path, before: str, plan: Plan
) -> Iterator[tuple[str, Path, FieldClass]]:
    """Yield name, path and class of the fields of a structure that are columns."""
    for name, member in of.members:
        below = (*path, name)
        if not is_printed(name, member, below, plan.referred.paths):
            continue
        told = f"{before}{shown(name)}"
        if isinstance(member, Struct) and member.members:
            yield from _leaves(member, below, f"{told}_", plan)
        else:
            yield told, below, member


def _field(name: str, of: FieldClass, at: int) -> Field:
    number = of.container if isinstance(of, Enumeration) else of
    if isinstance(number, Integer):
        size = next(size for size in (1, 2, 4, 8) if size * 8 >= number.size_bits)
        return Field(name, _type_of(number, size), at, size, number.signed, Encoding.INT, size)
    if isinstance(of, Float):
        return Field(name, "double", at, 8, True, Encoding.REAL, 8)
    if isinstance(of, String) or (isinstance(of, Array | Sequence) and is_text(of)):
        return Field(name, "char *", at, _SPAN_BYTES, False, Encoding.SPAN, 1)
    if (
        isinstance(of, Array)
        and 0 < of.length <= _MOST_ELEMENTS
        and isinstance(of.element, Integer)
    ):
        size = next(size for size in (1, 2, 4, 8) if size * 8 >= of.element.size_bits)
        declared = _type_of(of.element, size)
        return Field(name, declared, at, size * of.length, of.element.signed, Encoding.ARRAY, size)
    return Field(name, "text", at, _OBJECT_BYTES, False, Encoding.TOLD, 1)


def _type_of(number: Integer, size: int) -> str:
    return "void *" if number.base == 16 else f"{'s' if number.signed else 'u'}{8 * size}"


def nodes_of(
    plan: Plan, event: Event, bits: Bits, at: I64, packet: I64
) -> Iterator[tuple[Path, Node]]:
    """Yield paths and nodes of all fields of events of one class; places are in bytes."""
    scan, place = bodies_of(bits, at, packet, plan)
    for body, path in plan.bodies(event):
        node, place = scan.locate(body, place, path)
        yield from _below(path, node)


def _below(path: Path, node: Node) -> Iterator[tuple[Path, Node]]:
    yield path, node
    if isinstance(node, Group):
        for name, _, inner in node.members:
            yield from _below((*path, name), inner)


def pids_of(plan: Plan, bits: Bits, walked: Walked, packet: I64) -> I32:
    """Return the tasks of events, if the stream's context states them; else -1.

    *packet*: where the packet of each event begins, in bytes.
    """
    at = walked.at
    context = plan.stream.event_context
    name = task_of(context)
    if context is None or name is None:
        return np.full(len(at), _NONE, np.int32)
    spot = plan.context_spot(name)
    if walked.header_bytes is not None and spot is not None and spot.is_word:
        return spot.words(bits, at + walked.header_bytes).astype(np.int32)
    scan, place = bodies_of(bits, at, packet, plan)
    node, _ = scan.locate(context, place, STREAM_EVENT_CONTEXT)
    assert isinstance(node, Group)
    values = next(inner for member, _, inner in node.members if member == name)
    assert isinstance(values, Leaf)
    return values.values().astype(np.int64).astype(np.int32)


def task_of(context: Struct | None) -> str | None:
    """Return the member of a stream's context that is the id of the task."""
    members = context.members if context else ()
    names = {shown(name): name for name, of in members if isinstance(of, Integer)}
    return next((names[one] for one in _TASK if one in names), None)

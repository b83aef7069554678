"""Print the fields of many events as babeltrace2 prints them: a node becomes a strip.

    { cpu_id = 0 }, { comm = "sh", flags = 0x41, list = [ [0] = 1, [1] = 2 ], e = ( "A" : container
    = 1 ) }

Source of the form: babeltrace2 src/plugins/text/pretty/print.c, print_field and what it calls.

Rule: a field that babeltrace2 takes for a part of the format (a time, the size of a packet) is not
printed, unless a length or a tag refers to it: its ctf-meta-update-in-ir.cpp.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import WORD_BITS
from lttd.abi.ctf_classes import (
    PACKET_CONTEXT,
    Array,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    Path,
    Sequence,
    Struct,
    Variant,
    fixed_bits,
)
from lttd.abi.ctf_fields import within
from lttd.abi.ctf_nodes import Choice, Group, Leaf, Listed, Node, Text
from lttd.abi.gather import everywhere
from lttd.terminal import printable
from lttd.view.ctf.texts import KNOWN_WIDTHS, KnownTexts, escaped, quoted
from lttd.view.glyphs import decimal, distinct, hexadecimal, per_distinct
from lttd.view.strips import MOST_TEXT_BITS, Column, Strip, joined, packed, settled, words_of

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_OF_PACKET: Final = frozenset(
    ("timestamp_end", "events_discarded", "packet_seq_num", "packet_size", "content_size")
)
_BYTE: Final = 8
# A row of text takes about 16 bytes for each byte of its event.
_TEXT_BITS: Final = 4
_UNKNOWN_LABEL: Final = b"<unknown>"


def is_printed(name: str, of: FieldClass, path: Path, referred: frozenset[Path]) -> bool:
    """Return whether a field is one of the event's own; *path* is that of the field."""
    match of:
        case Integer() | Enumeration():
            number = of.container if isinstance(of, Enumeration) else of
            if path in referred:
                return True
            of_packet = path[:-1] == PACKET_CONTEXT and (
                name in _OF_PACKET
                or any("packet" in role or "discarded" in role for role in number.roles)
            )
            return number.clock is None and not (of_packet and not number.signed)
        case Struct(members=members):
            return not members or any(
                is_printed(one, member, (*path, one), referred) for one, member in members
            )
        case Variant(options=options):
            return any(is_printed(one, option, (*path, one), referred) for one, option in options)
        case Array(element=element) | Sequence(element=element):
            return is_printed(name, element, path, referred)
        case _:
            return True


def growth_bits(classes: Iterable[FieldClass]) -> int:
    """Return the growth of events as texts, for ``of_similar_size``."""
    return MOST_TEXT_BITS if any(map(_has_bits, classes)) else _TEXT_BITS


def _has_bits(of: FieldClass) -> bool:
    """Return whether a class has a list of elements that are smaller than a byte."""
    match of:
        case Struct(members=members) | Variant(options=members):
            return any(_has_bits(member) for _, member in members)
        case Array(element=element) | Sequence(element=element):
            size = fixed_bits(element)
            return _has_bits(element) or (size is not None and size < _BYTE)
        case _:
            return False


def shown(name: str) -> str:
    """Return a field's name without the underscore that keeps it from being a word of TSDL."""
    return name.removeprefix("_")


class Printer:
    """Prints nodes of one stream class."""

    def __init__(self, referred: frozenset[Path]) -> None:
        self._referred = referred
        self._known: dict[int, KnownTexts] = {}

    def strip(self, of: FieldClass, node: Node, count: int, path: Path) -> Strip:
        """Return the text of a field in *count* rows."""
        return joined(settled(self._strip(of, node, count, path), count))

    def _strip(self, of: FieldClass, node: Node, count: int, path: Path) -> Strip:
        match node:
            case Leaf():
                return _number(node)
            case Text():
                return [b'"', self._text(node), b'"']
            case Group():
                return self._group(node, count, path)
            case Listed():
                assert isinstance(of, Array | Sequence)
                return [b"[", self._list(of, node, path), b" ]"]
            case Choice():
                return [b"{ ", self._choice(node, count, path), b" }"]

    def _text(self, node: Text) -> Column:
        width = node.width_bytes
        if width not in KNOWN_WIDTHS:
            return quoted(node)
        if width not in self._known:
            self._known[width] = KnownTexts(width)
        return self._known[width].quoted(node)

    def _group(self, node: Group, count: int, path: Path) -> Strip:
        strip: Strip = [b"{"]
        for name, of, member in node.members:
            below = (*path, name)
            if is_printed(name, of, below, self._referred):
                told = printable(shown(name))
                strip.append(f"{', ' if len(strip) > 1 else ' '}{told} = ".encode())
                strip += self._strip(of, member, count, below)
        return [*strip, b" }"]

    def _list(self, of: Array | Sequence, node: Listed, path: Path) -> Column:
        """Return the elements of each row as a word."""
        rows, total = len(node.count), len(node.row)
        if not total:
            return words_of(np.zeros(rows, "S1"))
        first = np.cumsum(node.count) - node.count
        number = np.arange(total) - first[node.row]
        most = int(node.count.max())
        heads = [b" [0] = ", *(b", [%d] = " % at for at in range(1, most))]
        head = words_of(np.array(heads, np.bytes_))[number]
        words, length = packed([head, *self._strip(of.element, node.node(), total, path)], total)
        lengths = np.full(total, length) if isinstance(length, int) else length
        behind = np.cumsum(lengths)
        begins = behind - lengths
        has = node.count > 0
        start = np.zeros(rows, np.int64)
        start[has] = begins[first[has]]
        end = np.zeros(rows, np.int64)
        end[has] = behind[(first + node.count - 1)[has]]
        width = max(int((end - start).max()), 1)
        size = words.dtype.itemsize
        room = np.zeros(rows * width + size, np.uint8)
        # In ascending order, so that each one overwrites the NULs after the one before it.
        everywhere(room, words.dtype)[node.row * width + begins - start[node.row]] = words
        return room[: rows * width].view(f"V{width}")

    def _choice(self, node: Choice, count: int, path: Path) -> Column:
        told: list[tuple[I64, Column]] = []
        for name, of, rows, inner in node.parts:
            strip = self._strip(of, inner, len(rows), (*path, name))
            told.append((rows, packed(strip, len(rows))[0]))
        width = max((words.dtype.itemsize for _, words in told), default=1)
        column = np.zeros(count, f"S{width}")
        for rows, words in told:
            column[rows] = words.view(f"S{words.dtype.itemsize}")
        return words_of(column)


def _number(node: Leaf) -> Strip:
    match node.of:
        case Float():
            return [_reals(node.values())]
        case Enumeration():
            return [_labelled(node.of, node)]
        case Integer():
            return integers(node.of, node.values())


def integers(of: Integer, values: Column) -> Strip:
    """Print integers in their base."""
    match of.base:
        case 16:
            return [b"0x", *hexadecimal(_rounded(of, values, 4), upper=True)]
        case 8:
            some = _rounded(of, values, 3) if of.signed else values.view(np.uint64)
            return [words_of(per_distinct(some, lambda value: b"0%o" % value))]
        case 2:
            some = _rounded(of, values, 1)
            return [words_of(per_distinct(some, lambda v: f"0b{v:0{of.size_bits}b}".encode()))]
        case _:
            return decimal(values)


def _rounded(of: Integer, values: Column, digit_bits: int) -> Column:
    """Return numbers as unsigned of their size, rounded up to whole digits."""
    size = -(-of.size_bits // digit_bits) * digit_bits
    mask = np.uint64((1 << min(size, WORD_BITS)) - 1)
    found: Column = values.view(np.uint64) & mask
    return found


def _reals(values: Column) -> Column:
    def told(bits: int) -> bytes:
        value = np.uint64(bits).view(np.float64)
        text = b"%g" % float(value)
        return b"-nan" if text == b"nan" and bits >> (WORD_BITS - 1) else text

    return words_of(per_distinct(values.view(np.uint64), told))


def _labelled(of: Enumeration, node: Leaf) -> Column:
    values, number = distinct(node.values())
    names: list[list[bytes]] = [[] for _ in values]
    for label, low, high in of.labels:
        for at in np.flatnonzero(within(values, low, high)).tolist():
            told = b'"' + escaped(label.encode()) + b'"'
            if told not in names[at]:
                names[at].append(told)
    texts, _ = packed(integers(of.container, values), max(len(values), 1))
    numbers = [bytes(text).rstrip(b"\0") for text in texts.tolist()]
    heads = [b", ".join(told or [_UNKNOWN_LABEL]) for told in names]
    every = [b"( %s : container = %s )" % both for both in zip(heads, numbers, strict=False)]
    found: Column = words_of(np.array(every or [b""], np.bytes_))[number]
    return found

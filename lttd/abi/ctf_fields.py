"""Find the fields of many events of one class: a step takes one field of all the events.

A ``Scan`` has the events as rows.  It returns a tree of nodes, one for each field, with the places
of that field in all rows; values are read from the places on access.  Places count bits from the
begin of the buffer.

Rule: no bytes make this module raise.  A row that does not fit has a reason in ``wrong`` and ends
where its packet's content ends; its places may be anywhere.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_choices import NONE, Choices, Labels
from lttd.abi.ctf_classes import (
    Array,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    Path,
    Sequence,
    String,
    Struct,
    Variant,
    aligned,
    alignment,
    fixed_bits,
)
from lttd.abi.ctf_nodes import Choice, Group, Leaf, Listed, Node, Text, is_text

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]

MOST_ELEMENTS: Final = 4096
"""The most elements of one list whose sizes differ: a step takes one of each row."""
MOST_FIXED_ELEMENTS: Final = 1 << 22
"""The most elements of another list but a text: each takes some 110 bytes of memory as text."""
_BYTE: Final = 8


class References:
    """The paths of all fields that a length or a tag names."""

    def __init__(self, classes: Iterable[FieldClass | None]) -> None:
        found: set[Path] = set()
        left = [one for one in classes if one is not None]
        while left:
            match left.pop():
                case Struct(members=members):
                    left += [member for _, member in members]
                case Variant(tag=tag, options=options):
                    found.add(tag)
                    left += [option for _, option in options]
                case Sequence(element=element, length=length):
                    found.add(length)
                    left.append(element)
                case Array(element=element):
                    left.append(element)
                case _:
                    pass
        self.paths: Final = frozenset(found)
        self._simple: dict[int, tuple[FieldClass, int | None, int]] = {}
        self._choices: dict[int, tuple[Variant, Choices]] = {}
        self.into: Final = frozenset(
            path[:end] for path in found for end in range(1, len(path) + 1)
        )
        """These paths, and those of all that holds one of the fields."""

    def simple(self, of: FieldClass) -> tuple[int | None, int]:
        """Return the fixed size and the alignment of a class.

        They are kept by identity: to hash a class is to hash all that is in it.
        """
        found = self._simple.get(id(of))
        if found is None:
            found = self._simple[id(of)] = (of, fixed_bits(of), alignment(of))
        return found[1], found[2]

    def choices(self, of: Variant, labels: Labels) -> Choices:
        """Return the options by the values of the tag, whose labels are *labels*."""
        found = self._choices.get(id(of))
        if found is None:
            found = self._choices[id(of)] = (of, Choices(of, labels))
        return found[1]


class Known:
    """The values of the fields that later ones refer to, for some rows."""

    def __init__(self) -> None:
        self.values: Final[dict[Path, Column]] = {}
        self.labels: Final[dict[Path, Labels]] = {}

    def some(self, rows: I64) -> "Known":
        """Return what is known of some rows."""
        found = Known()
        found.values.update((path, values[rows]) for path, values in self.values.items())
        found.labels.update(self.labels)
        return found


class Scan:
    """Finds the fields of some rows, each of which is in one packet."""

    def __init__(
        self,
        bits: Bits,
        base: I64,
        end: I64,
        referred: References,
        known: Known | None = None,
    ) -> None:
        """*base* and *end* are the begin of each row's packet and the end of its content, in bits.

        *known*: what was found of these rows before.
        """
        self._bits = bits
        self._base = base
        self._end = end
        self._referred = referred
        self.known: Final = known or Known()
        self.wrong = np.zeros(len(base), np.bool_)
        self.reason = ""
        """Of the first row that is wrong."""

    def _fail(self, rows: Mask, reason: str) -> None:
        if rows.any():
            self.wrong = self.wrong | rows
            self.reason = self.reason or reason

    def _aligned(self, at: I64, align_bits: int) -> I64:
        if align_bits <= 1:
            return at
        moved: I64 = at + ((self._base - at) & (align_bits - 1))
        return moved

    def measure(self, of: FieldClass, at: I64, path: Path) -> I64:
        """Return the end of the field that begins at or after *at*; nodes are not made."""
        return self._field(of, at, path, made=False)[1]

    def locate(self, of: FieldClass, at: I64, path: Path) -> tuple[Node, I64]:
        """Return the node of the field that begins at or after *at*, and its end."""
        node, end = self._field(of, at, path, made=True)
        assert node is not None
        return node, end

    def _field(self, of: FieldClass, at: I64, path: Path, *, made: bool) -> tuple[Node | None, I64]:
        match of:
            case Integer() | Enumeration() | Float():
                return self._leaf(of, at, path)
            case String():
                return self._string(at)
            case Struct():
                return self._struct(of, at, path, made=made)
            case Array():
                count = np.full(len(at), of.length, np.int64)
                return self._list(of, count, at, path, made=made)
            case Sequence():
                return self._list(of, self._length(of, at), at, path, made=made)
            case Variant():
                return self._variant(of, at, path, made=made)

    def _leaf(self, of: Integer | Enumeration | Float, at: I64, path: Path) -> tuple[Leaf, I64]:
        size, align_bits = self._referred.simple(of)
        assert size is not None
        at = self._aligned(at, align_bits)
        end = at + size
        self._fail(end > self._end, "a field runs past the content")
        leaf = Leaf(of, self._bits, at)
        if path in self._referred.paths:
            self.known.values[path] = leaf.values()
            if isinstance(of, Enumeration):
                self.known.labels[path] = of.labels
        return leaf, end

    def _string(self, at: I64) -> tuple[Text, I64]:
        begin = self._aligned(at, _BYTE) >> 3
        behind = np.minimum(self._end >> 3, len(self._bits.buffer))
        end = self._bits.nuls(begin, behind)
        self._fail(end >= behind, "a string does not end")
        return Text(self._bits, begin, behind, _end=end), (end + 1) << 3

    def _struct(self, of: Struct, at: I64, path: Path, *, made: bool) -> tuple[Group, I64]:
        at = self._aligned(at, of.align_bits)
        members: list[tuple[str, FieldClass, Node]] = []
        passed = 0
        whole = of.align_bits >= _BYTE
        for name, member in of.members:
            below = (*path, name)
            size, align_bits = self._referred.simple(member)
            plain = size is not None and size % _BYTE == 0 and align_bits <= _BYTE and whole
            if not made and plain and below not in self._referred.into:
                assert size is not None
                passed += size
                continue
            if passed:
                at, passed = at + passed, 0
            node, at = self._field(member, at, below, made=made)
            whole = whole and self._has_whole_bytes(member)
            if made:
                assert node is not None
                members.append((name, member, node))
        if passed:
            at = at + passed
        self._fail(at > self._end, "a field runs past the content")
        return Group(members), at

    def _has_whole_bytes(self, of: FieldClass) -> bool:
        """Return whether a field that begins at a byte surely ends at one."""
        if isinstance(of, String):
            return True
        size = self._referred.simple(of.element if isinstance(of, Sequence) else of)[0]
        return size is not None and size % _BYTE == 0

    def _length(self, of: Sequence, at: I64) -> I64:
        """Return the lengths of sequences; 0 where they cannot be."""
        told = self.known.values.get(of.length)
        if told is None:
            self._fail(np.ones(len(at), np.bool_), "the length of a sequence is unknown")
            return np.zeros(len(at), np.int64)
        size = self._referred.simple(of.element)[0]
        # An element of variable size may be empty; it still takes a step.
        most = np.maximum(self._end - at, 0) // (size or 1) + 1
        if size is None:
            most = np.minimum(most, MOST_ELEMENTS)
        wrong = told > most.astype(told.dtype)
        if told.dtype.kind == "i":
            wrong |= told < 0
        self._fail(wrong, "a sequence is longer than the content")
        count: I64 = np.where(wrong, told.dtype.type(0), told).astype(np.int64)
        return count

    def _list(
        self, of: Array | Sequence, count: I64, at: I64, path: Path, *, made: bool
    ) -> tuple[Node | None, I64]:
        size, align_bits = self._referred.simple(of.element)
        at = self._aligned(at, align_bits)
        if size is None:
            return self._ragged(of, count, at, path, made=made)
        text = is_text(of)
        if not text:
            many = count > MOST_FIXED_ELEMENTS
            self._fail(many, f"an array has more than {MOST_FIXED_ELEMENTS} elements")
        stride = aligned(size, align_bits)
        end = np.where(count > 0, at + (count - 1) * stride + size, at)
        self._fail(end > self._end, "an array runs past the content")
        if not made:
            return None, end
        if text:
            begin = at >> 3
            behind = np.minimum(end >> 3, len(self._bits.buffer))
            return Text(self._bits, begin, behind, of.length if isinstance(of, Array) else 0), end

        def elements(row: I64, number: I64) -> Node:
            scan = self.some(row)
            return scan.locate(of.element, at[row] + number * stride, path)[0]

        return _listed(np.where(self.wrong, 0, count), elements), end

    def _ragged(
        self, of: Array | Sequence, count: I64, at: I64, path: Path, *, made: bool
    ) -> tuple[Node | None, I64]:
        """Find elements of variable size: a step takes one of each row."""
        self._fail(count > MOST_ELEMENTS, f"an array has more than {MOST_ELEMENTS} elements")
        count = np.where(self.wrong, 0, count)
        end = at.copy()
        starts: list[tuple[I64, I64]] = []
        number = 0
        rows = np.flatnonzero(count > 0)
        while len(rows):
            scan = self.some(rows)
            begin = scan._aligned(end[rows], alignment(of.element))  # noqa: SLF001  (one of its own)
            starts.append((rows, begin))
            end[rows] = behind = scan.measure(of.element, begin, path)
            # Else a few bytes could mean any number of elements.
            scan._fail(behind <= begin, "an element of an array has no size")  # noqa: SLF001
            self._take(scan, rows)
            count[rows[scan.wrong]] = number + 1
            number += 1
            rows = rows[count[rows] > number]
        if not made:
            return None, end
        every = [np.concatenate(each) for each in zip(*starts, strict=True)] or [at[:0], at[:0]]
        order = np.argsort(every[0], kind="stable")
        row, places = every[0][order], every[1][order]

        def elements(_row: I64, _number: I64) -> Node:
            return self.some(row).locate(of.element, places, path)[0]

        return _listed(count, elements), end

    def some(self, rows: I64) -> "Scan":
        """Return a scan of some rows, which knows what is known of them."""
        known = self.known.some(rows)
        return Scan(self._bits, self._base[rows], self._end[rows], self._referred, known)

    def _take(self, scan: "Scan", rows: I64) -> None:
        """Take over what a scan of some rows found wrong, and what it knows."""
        self.wrong[rows] |= scan.wrong
        self.reason = self.reason or scan.reason
        self.known.labels.update(scan.known.labels)
        for path, values in scan.known.values.items():
            mine = self.known.values.setdefault(path, np.zeros(len(self.wrong), values.dtype))
            if mine.dtype == values.dtype:
                mine[rows] = values

    def _variant(self, of: Variant, at: I64, path: Path, *, made: bool) -> tuple[Choice, I64]:
        tag = self.known.values.get(of.tag)
        parts: list[tuple[str, FieldClass, I64, Node]] = []
        end = at.copy()
        if tag is None:
            chosen = np.full(len(at), NONE, np.int64)
        else:
            labels = self.known.labels.get(of.tag, ())
            chosen = self._referred.choices(of, labels).of(tag)
        for number in np.flatnonzero(np.bincount(chosen + 1)[1:]).tolist():
            name, option = of.options[number]
            rows = np.flatnonzero(chosen == number)
            scan = self if len(rows) == len(at) else self.some(rows)
            node, behind = scan._field(option, at[rows], (*path, name), made=made)  # noqa: SLF001
            end[rows] = behind
            if scan is not self:
                self._take(scan, rows)
            if made:
                assert node is not None
                parts.append((name, option, rows, node))
        self._fail(chosen == NONE, "a variant has no option for its tag")
        return Choice(parts), end


def within(values: Column, low: int, high: int) -> Mask:
    """Return a mask of the values from *low* to *high*, which may be beyond the values' type."""
    limits = np.iinfo(values.dtype)
    low, high = max(low, int(limits.min)), min(high, int(limits.max))
    if low > high:
        return np.zeros(len(values), np.bool_)
    found: Mask = (values >= values.dtype.type(low)) & (values <= values.dtype.type(high))
    return found


def _listed(count: I64, elements: Callable[[I64, I64], Node]) -> Listed:
    row = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return Listed(count, row, lambda: elements(row, number))

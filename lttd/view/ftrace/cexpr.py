"""Evaluate the expressions of a print fmt over the columns of an event type.

See ``lttd.view.conversions`` for the values.

Rule: an expression that cannot be evaluated raises Inexpressible for any rows, also for a synthetic
one, so that the caller knows beforehand which conversions it must leave out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lttd.abi.ftrace_format import Encoding, element_bytes
from lttd.abi.print_fmt_nodes import (
    Binary,
    Call,
    Cast,
    Conditional,
    FieldRef,
    Index,
    Node,
    Number,
    Pairs,
    Text,
    Unary,
    Unknown,
    Unparsed,
)
from lttd.view.columns import EventRows, chars
from lttd.view.conversions import INTS, Buffer, Column, Inexpressible, Value
from lttd.view.glyphs import per_distinct

_UNSIGNED_WORDS: Final = ("unsigned", "u", "__u", "size_t", "bool", "__le", "__be", "gfp_t")
# Longer than any string of an event; longer ones are cut off, so that memory is bounded.
MOST_STRING_BYTES: Final = 8192


class Evaluation:
    """Evaluates expressions for some rows."""

    def __init__(
        self, rows: EventRows, functions: "Functions", pointed_to: "PointedTo | None" = None
    ) -> None:
        assert rows.event_type.format is not None
        self.functions = functions
        self._pointed_to = pointed_to or _as_pointer
        self.rows = rows
        self.format = rows.event_type.format

    def value(self, node: Node) -> Value:  # noqa: C901, PLR0911  (a row per kind of node)
        """Return the value of any node."""
        match node:
            case Number(value, bits, signed):
                return np.array([value], INTS[bits, signed])
            case Text(value):
                return np.array([value], np.bytes_)
            case FieldRef(name):
                return self._field(name)
            case Unary(operator, operand):
                return self._unary(operator, operand)
            case Binary(operator, left, right):
                return _binary(operator, self.ints(left), self.ints(right))
            case Conditional(condition, then, otherwise):
                return self._conditional(condition, then, otherwise)
            case Cast(type_, operand):
                return self._cast(type_, self.value(operand))
            case Index(base, number):
                return self._element(self.value(base), self.ints(number))
            case Call(name, arguments):
                return self._call(name, arguments)
            case Unknown(name):
                raise Inexpressible(f"unknown name {name!r}")
            case Unparsed(why):
                raise Inexpressible(why)
            case Pairs():
                raise Inexpressible("a list where a value should be")

    def ints(self, node: Node) -> Column:
        """Return the value of a node that must be a number."""
        value = self.value(node)
        if isinstance(value, Buffer) or value.dtype.kind not in "iu":
            raise Inexpressible("a string or an array where a number should be")
        return value

    def buffer(self, node: Node) -> Buffer:
        """Return the value of a node that must be an array."""
        value = self.value(node)
        if not isinstance(value, Buffer):
            raise Inexpressible("a number where an array should be")
        return value

    def _field(self, name: str) -> Value:
        try:
            field = self.rows.field(name)
        except KeyError:
            raise Inexpressible(f"no field {name!r}") from None
        if field.encoding is Encoding.INT:
            column = self.rows.records[name]
            return column.astype(column.dtype.newbyteorder("="), copy=False)
        tail_of_text = field.encoding is Encoding.TAIL and field.element_bytes == 1
        if field.encoding in (Encoding.CHARS, Encoding.STRING) or tail_of_text:
            return self.text(name)
        return Buffer.of(self.rows, name, field.element_bytes, self.format.byteorder)

    def text(self, name: str) -> Column:
        """Return a field's strings; many of them are made without Python objects."""
        if self.rows.field(name).encoding is Encoding.CHARS:
            found: Column = self.rows.column(name)
            return found
        begin, end = self.rows.spans(name)
        width = int((end - begin).max(initial=0))
        width = min(max(width, 1), MOST_STRING_BYTES)
        at = begin[:, np.newaxis] + np.arange(width)
        inside = at < end[:, np.newaxis]
        data = np.frombuffer(self.rows.batch.data, np.uint8)
        raw = np.where(inside, data[np.where(inside, at, 0)], np.uint8(0)).astype(np.uint8)
        if not len(raw):
            return np.empty(0, "S1")
        told = chars(raw.view(f"S{width}").reshape(-1))
        if self.rows.field(name).encoding is Encoding.TAIL:
            told = np.char.rstrip(told, b"\n")  # a marker ends its own line
        return told

    def _unary(self, operator: str, operand: Node) -> Value:
        if operator == "&":
            if not isinstance(operand, FieldRef):
                raise Inexpressible("the address of a value")
            field = self.rows.field(operand.name)
            return Buffer.of(self.rows, operand.name, field.size_bytes, self.format.byteorder)
        if operator == "*":
            return self._element(self.value(operand), np.zeros(1, np.int32))
        value = _promoted(self.ints(operand))
        if operator == "!":
            return np.asarray(value == 0, np.int32)
        return -value if operator == "-" else ~value

    def _conditional(self, condition: Node, then: Node, otherwise: Node) -> Value:
        test = self.value(condition)
        if isinstance(test, Buffer):
            raise Inexpressible("an array as a condition")
        truth = test != (0 if test.dtype.kind in "iu" else b"")
        a, b = self.value(then), self.value(otherwise)
        if isinstance(a, Buffer) or isinstance(b, Buffer):
            raise Inexpressible("a choice of arrays")
        if (a.dtype.kind == "S") != (b.dtype.kind == "S"):
            a, b = self._as_text(a), self._as_text(b)
        if a.dtype.kind in "iu":
            common = _common(a, b)
            a, b = a.astype(common), b.astype(common)
        return np.where(truth, a, b)

    def _as_text(self, value: Column) -> Column:
        """Return strings unchanged, and for pointers the strings at their addresses."""
        return value if value.dtype.kind == "S" else per_distinct(value, self._pointed_to)

    def _cast(self, type_: str, value: Value) -> Value:
        long_bytes = self.format.long_bytes
        if isinstance(value, Buffer):
            if "*" not in type_:
                raise Inexpressible("an array as a number")
            element = element_bytes(type_.replace("*", "").strip(), long_bytes) or 1
            return replace(value, element_bytes=element, signed=_is_signed(type_))
        if value.dtype.kind == "S":
            return value
        if type_.rsplit(maxsplit=1)[-1] == "bool":
            return np.asarray(value != 0, np.int32)
        size = element_bytes(type_, long_bytes)
        if not size:
            # An unknown typedef: keep the operand's width.
            return value
        return value.astype(INTS[8 * size, _is_signed(type_)], copy=False)

    def _element(self, base: Value, number: Column) -> Column:
        if isinstance(base, Buffer):
            return base.element(number)
        if base.dtype.kind != "S":
            raise Inexpressible("an element of a number")
        width = base.dtype.itemsize
        raw = np.ascontiguousarray(base).view(np.uint8).reshape(-1, width)
        at = np.broadcast_to(number, (len(raw),))
        inside = (at >= 0) & (at < width)
        found = raw[np.arange(len(raw)), np.where(inside, at, 0)] * inside
        return found.astype(np.int8).astype(np.int32)

    def _call(self, name: str, arguments: Sequence[Node]) -> Value:
        function = self.functions.get(name)
        if function is None:
            raise Inexpressible(f"function {name!r}")
        try:
            return function(self, *arguments)
        except TypeError:
            raise Inexpressible(f"arguments of {name}") from None


def _promoted(value: Column) -> Column:
    return value.astype(np.int32) if value.dtype.itemsize < 4 else value


def _common(a: Column, b: Column) -> np.dtype[Any]:
    """Return the dtype to which C converts two operands."""
    a_type, b_type = _promoted(a[:0]).dtype, _promoted(b[:0]).dtype
    if a_type.itemsize != b_type.itemsize:
        return max(a_type, b_type, key=lambda dtype: dtype.itemsize)
    return a_type if a_type.kind == "u" else b_type


def _as_pointer(address: int) -> bytes:
    return b"0x%x" % (address & (1 << 64) - 1) if address else b"(null)"


_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    ">": np.greater,
    "<=": np.less_equal,
    ">=": np.greater_equal,
}
_COMPUTE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "&": np.bitwise_and,
    "|": np.bitwise_or,
    "^": np.bitwise_xor,
}


def _binary(operator: str, left: Column, right: Column) -> Column:
    if operator in ("&&", "||"):
        join = np.logical_and if operator == "&&" else np.logical_or
        return np.asarray(join(left != 0, right != 0), np.int32)
    if operator in ("<<", ">>"):
        left = _promoted(left)
        shift = right.astype(left.dtype)
        found: Column = (np.left_shift if operator == "<<" else np.right_shift)(left, shift)
        return found
    common = _common(left, right)
    a, b = left.astype(common), right.astype(common)
    if operator in _COMPARE:
        return np.asarray(_COMPARE[operator](a, b)).astype(np.int32)
    if operator in _COMPUTE:
        return np.asarray(_COMPUTE[operator](a, b))
    # C truncates towards zero; a kernel would have crashed at a division by zero.
    b = np.where(b == 0, common.type(1), b)
    rest: Column = np.fmod(a, b)
    return rest if operator == "%" else (a - rest) // b


def _is_signed(type_: str) -> bool:
    words = type_.replace("*", " ").split()
    return not any(word.startswith(_UNSIGNED_WORDS) for word in words) and "*" not in type_


PointedTo = Callable[[int], bytes]
"""Returns the string at an address, or the address."""
Functions = Mapping[str, Callable[..., Value]]
"""The functions that a Call may name; their first argument is the evaluation."""


def folded(node: Node, evaluation: Evaluation) -> Node:
    """Return *node* with its constant parts computed.

    Raises:
        Inexpressible: a constant part cannot be computed.
    """
    match node:
        case Binary(operator, left, right):
            node = Binary(operator, folded(left, evaluation), folded(right, evaluation))
            constant = isinstance(node.left, Number) and isinstance(node.right, Number)
        case Unary(operator, operand):
            node = Unary(operator, folded(operand, evaluation))
            constant = isinstance(node.operand, Number) and operator not in "*&"
        case Cast(type_, operand):
            node = Cast(type_, folded(operand, evaluation))
            constant = isinstance(node.operand, Number)
        case Conditional(condition, then, otherwise):
            parts = (folded(part, evaluation) for part in (condition, then, otherwise))
            return Conditional(*parts)
        case Call(name, arguments):
            return Call(name, tuple(folded(argument, evaluation) for argument in arguments))
        case Pairs(pairs):
            return Pairs(tuple((folded(value, evaluation), name) for value, name in pairs))
        case _:
            return node
    if not constant:
        return node
    value = evaluation.ints(node)
    return Number(int(value[0]), 8 * value.dtype.itemsize, value.dtype.kind == "i")

"""The expressions of a print fmt, over the columns of an event type.

A value is a column of integers in the dtype that C would compute in, a column of strings (dtype S),
or a Buffer; of length one where it is the same for every row.

Rule: what has no meaning here raises Inexpressible when it is compiled against any rows, so that
the caller falls back for the whole event type, not in the middle of a line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import LOC_LENGTH_SHIFT, Kind, element_bytes
from lttd.abi.print_fmt import (
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
)
from lttd.view.columns import Rows, chars
from lttd.view.glyphs import distinct, per_distinct

Column = npt.NDArray[Any]


class Inexpressible(ValueError):  # noqa: N818  (not a fault: the caller falls back)
    """The print fmt asks for what only the kernel knows, or what is not built."""


@dataclass(frozen=True)
class Buffer:
    """Bytes per row: an array field, or what a ``__get_dynamic_array`` is."""

    pieces: list[bytes]
    element_bytes: int
    signed: bool
    byteorder: str


Value = Column | Buffer

_INTS: Final = {
    (bits, signed): np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    for bits in (8, 16, 32, 64)
    for signed in (True, False)
}
_UNSIGNED_WORDS: Final = ("unsigned", "u", "__u", "size_t", "bool", "__le", "__be", "gfp_t")
# Longer than any string of an event: longer ones are cut, so that memory is bounded.
MOST_STRING_BYTES: Final = 8192


def evaluate(node: Node, rows: Rows) -> Value:
    """Return the value of *node* for *rows*.

    Raises:
        Inexpressible: it has none here.
    """
    with np.errstate(all="ignore"):
        return _Evaluation(rows).value(node)


class _Evaluation:
    def __init__(self, rows: Rows) -> None:
        assert rows.kind.format is not None
        self.rows = rows
        self.format = rows.kind.format

    def value(self, node: Node) -> Value:  # noqa: C901, PLR0911  (a row per kind of node)
        match node:
            case Number(value, bits, signed):
                return np.array([value], _INTS[bits, signed])
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
            case Pairs():
                raise Inexpressible("a list where a value should be")

    def ints(self, node: Node) -> Column:
        value = self.value(node)
        if isinstance(value, Buffer) or value.dtype.kind not in "iu":
            raise Inexpressible("a string or an array where a number should be")
        return value

    def buffer(self, node: Node) -> Buffer:
        value = self.value(node)
        if not isinstance(value, Buffer):
            raise Inexpressible("a number where an array should be")
        return value

    def _field(self, name: str) -> Value:
        try:
            field = self.rows.field(name)
        except KeyError:
            raise Inexpressible(f"no field {name!r}") from None
        if field.kind is Kind.INT:
            column = self.rows.records[name]
            return column.astype(column.dtype.newbyteorder("="), copy=False)
        tail_of_text = field.kind is Kind.TAIL and field.element_bytes == 1
        if field.kind in (Kind.CHARS, Kind.STRING) or tail_of_text:
            return self.text(name)
        return Buffer(
            self.rows.dynamic(name), field.element_bytes, field.signed, self.format.byteorder
        )

    def text(self, name: str) -> Column:
        """Return a field's strings, without a Python object each where they are many."""
        if self.rows.field(name).kind is Kind.CHARS:
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
        if self.rows.field(name).kind is Kind.TAIL:
            told = np.char.rstrip(told, b"\n")  # a marker ends its own line
        return told

    def _unary(self, operator: str, operand: Node) -> Value:
        if operator == "&":
            if not isinstance(operand, FieldRef):
                raise Inexpressible("the address of a value")
            field = self.rows.field(operand.name)
            order = self.format.byteorder
            return Buffer(self.rows.dynamic(operand.name), field.size_bytes, field.signed, order)
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
            a, b = _null_as_text(a), _null_as_text(b)
        if a.dtype.kind in "iu":
            common = _common(a, b)
            a, b = a.astype(common), b.astype(common)
        return np.where(truth, a, b)

    def _cast(self, type_: str, value: Value) -> Value:
        long_bytes = self.format.long_bytes
        if isinstance(value, Buffer):
            if "*" not in type_:
                raise Inexpressible("an array as a number")
            element = element_bytes(type_.replace("*", "").strip(), long_bytes) or 1
            return Buffer(value.pieces, element, _is_signed(type_), value.byteorder)
        if value.dtype.kind == "S":
            return value
        if type_.rsplit(maxsplit=1)[-1] == "bool":
            return np.asarray(value != 0, np.int32)
        size = element_bytes(type_, long_bytes)
        if not size:
            # A typedef that is not known: as wide as what it is made of.
            return value
        return value.astype(_INTS[8 * size, _is_signed(type_)])

    def _element(self, base: Value, number: Column) -> Column:
        count = len(self.rows)
        if isinstance(base, Buffer):
            size, order = base.element_bytes, "little" if base.byteorder == "<" else "big"
            picked = [
                int.from_bytes(piece[at * size : (at + 1) * size], order, signed=base.signed)  # type: ignore[arg-type]
                for piece, at in zip(
                    base.pieces, np.broadcast_to(number, (count,)).tolist(), strict=True
                )
            ]
            return np.array(picked, _INTS.get((8 * size, base.signed), np.dtype(np.int64)))
        if base.dtype.kind != "S":
            raise Inexpressible("an element of a number")
        width = base.dtype.itemsize
        raw = np.ascontiguousarray(base).view(np.uint8).reshape(-1, width)
        at = np.broadcast_to(number, (len(raw),))
        inside = (at >= 0) & (at < width)
        found = raw[np.arange(len(raw)), np.where(inside, at, 0)] * inside
        return found.astype(np.int8).astype(np.int32)

    def _call(self, name: str, arguments: Sequence[Node]) -> Value:
        function = _FUNCTIONS.get(name)
        if function is None:
            raise Inexpressible(f"function {name!r}")
        try:
            return function(self, *arguments)
        except TypeError:
            raise Inexpressible(f"arguments of {name}") from None


def _promoted(value: Column) -> Column:
    return value.astype(np.int32) if value.dtype.itemsize < 4 else value


def _common(a: Column, b: Column) -> np.dtype[Any]:
    """Return what C converts two operands to."""
    a_type, b_type = _promoted(a[:0]).dtype, _promoted(b[:0]).dtype
    if a_type.itemsize != b_type.itemsize:
        return max(a_type, b_type, key=lambda dtype: dtype.itemsize)
    return a_type if a_type.kind == "u" else b_type


def _null_as_text(value: Column) -> Column:
    """Return a string: a null pointer as printf shows it."""
    if value.dtype.kind != "S" and not (len(value) == 1 and value[0] == 0):
        raise Inexpressible("a choice of a string and a number")
    return value if value.dtype.kind == "S" else np.array([b"(null)"])


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
    # C cuts towards zero, and a kernel would not be here after a division by zero.
    b = np.where(b == 0, common.type(1), b)
    rest: Column = np.fmod(a, b)
    return rest if operator == "%" else (a - rest) // b


def _is_signed(type_: str) -> bool:
    words = type_.replace("*", " ").split()
    return not any(word.startswith(_UNSIGNED_WORDS) for word in words) and "*" not in type_


# -- the kernel's functions


def _pairs(evaluation: _Evaluation, node: Node) -> list[tuple[int, bytes]]:
    if not isinstance(node, Pairs):
        raise Inexpressible("no list of names")
    return [(int(evaluation.ints(value)[0]), name) for value, name in node.pairs]


def _print_flags(
    evaluation: _Evaluation, value: Node, delimiter: Node, names: Node | None = None
) -> Column:
    """Linux kernel/trace/trace_output.c, trace_print_flags_seq."""
    between = delimiter.value if isinstance(delimiter, Text) else b""
    pairs = [] if names is None else _pairs(evaluation, names)
    column = evaluation.ints(value)
    mask = (1 << 8 * max(column.dtype.itemsize, 4)) - 1

    def told(flags: int) -> bytes:
        rest, found = flags & mask, []
        for bits, name in pairs:
            wanted = bits & mask
            if rest and wanted and rest & wanted == wanted:
                rest &= ~wanted
                found.append(name)
            elif not wanted and not flags:
                found.append(name)
        if rest:
            found.append(b"0x%x" % rest)
        return between.join(found)

    return per_distinct(column, told)


def _print_symbolic(evaluation: _Evaluation, value: Node, names: Node | None = None) -> Column:
    """Linux kernel/trace/trace_output.c, trace_print_symbols_seq."""
    column = evaluation.ints(value)
    bits = 8 * column.dtype.itemsize
    mask = (1 << bits) - 1
    table: dict[int, bytes] = {}
    for number, name in [] if names is None else _pairs(evaluation, names):
        table.setdefault(number & mask, name)
    wide = bits == 64 or column.dtype.kind == "u"

    def told(number: int) -> bytes:
        name = table.get(number & mask)
        if name is not None:
            return name
        return b"0x%x" % (number & mask if wide else number & 0xFFFF_FFFF_FFFF_FFFF)

    return per_distinct(column, told)


def _as_hex(buffer: Buffer, lengths: Column, between: bytes) -> Column:
    counts = np.broadcast_to(lengths, (len(buffer.pieces),)).tolist()
    told = [
        (between.join(b"%02x" % byte for byte in piece[:count]))
        for piece, count in zip(buffer.pieces, counts, strict=True)
    ]
    return _strings(told)


def _print_hex(evaluation: _Evaluation, value: Node, length: Node) -> Column:
    return _as_hex(evaluation.buffer(value), evaluation.ints(length), b" ")


def _print_hex_str(evaluation: _Evaluation, value: Node, length: Node) -> Column:
    return _as_hex(evaluation.buffer(value), evaluation.ints(length), b"")


def _print_array(evaluation: _Evaluation, value: Node, count: Node, size: Node) -> Column:
    """Linux kernel/trace/trace_output.c, trace_print_array_seq."""
    buffer = evaluation.buffer(value)
    width = int(evaluation.ints(size)[0])
    order = "little" if buffer.byteorder == "<" else "big"
    counts = np.broadcast_to(evaluation.ints(count), (len(buffer.pieces),)).tolist()
    told = []
    for piece, many in zip(buffer.pieces, counts, strict=True):
        whole = piece[: many * width]
        numbers = (
            int.from_bytes(whole[at : at + width], order)  # type: ignore[arg-type]
            for at in range(0, len(whole), width or 1)
        )
        told.append(b"{%b}" % b",".join(b"0x%x" % number for number in numbers))
    return _strings(told)


def _name_of(node: Node) -> str:
    if not isinstance(node, FieldRef):
        raise Inexpressible("no field's name")
    return node.name


def _known(evaluation: _Evaluation, node: Node) -> str:
    name = _name_of(node)
    if name not in evaluation.format.by_name:
        raise Inexpressible(f"no field {name!r}")
    return name


def _get_str(evaluation: _Evaluation, node: Node) -> Column:
    return evaluation.text(_known(evaluation, node))


def _get_dynamic_array(evaluation: _Evaluation, node: Node) -> Buffer:
    name = _known(evaluation, node)
    field = evaluation.rows.field(name)
    order = evaluation.format.byteorder
    return Buffer(evaluation.rows.dynamic(name), field.element_bytes, field.signed, order)


def _get_dynamic_array_len(evaluation: _Evaluation, node: Node) -> Column:
    loc = evaluation.rows.records[_known(evaluation, node)]
    return loc.astype(np.uint32) >> np.uint32(LOC_LENGTH_SHIFT)


def _get_bitmask(evaluation: _Evaluation, node: Node) -> Column:
    """Linux kernel/trace/trace_seq.c, trace_seq_bitmask: hex words of 32 bits."""
    buffer = _get_dynamic_array(evaluation, node)
    order = "little" if buffer.byteorder == "<" else "big"
    told = []
    for piece in buffer.pieces:
        # The words are longs, the lowest first, each in the machine's order.
        size = evaluation.format.long_bytes
        longs = [piece[at : at + size] for at in range(0, len(piece), size)]
        number = sum(
            int.from_bytes(word, order) << 8 * size * at  # type: ignore[arg-type,misc]
            for at, word in enumerate(longs)
        )
        digits = b"%0*x" % (2 * len(piece), number)
        groups = [digits[max(end - 8, 0) : end] for end in range(len(digits), 0, -8)]
        told.append(b",".join(reversed(groups)))
    return _strings(told)


def _sizeof(evaluation: _Evaluation, node: Node) -> Column:
    long_bits = 8 * evaluation.format.long_bytes
    if isinstance(node, Text):
        size = element_bytes(node.value.decode(), evaluation.format.long_bytes)
    elif isinstance(node, FieldRef) and node.name in evaluation.format.by_name:
        size = evaluation.rows.field(node.name).size_bytes
    else:
        size = 0
    if not size:
        raise Inexpressible("sizeof what is not known")
    return np.array([size], _INTS[long_bits, False])


def _expect(evaluation: _Evaluation, value: Node, _expected: Node) -> Value:
    return evaluation.value(value)


def _strings(told: list[bytes]) -> Column:
    return np.array(told, np.bytes_) if told else np.empty(0, "S1")


_FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "__print_flags": _print_flags,
    "__print_flags_u64": _print_flags,
    "__print_symbolic": _print_symbolic,
    "__print_symbolic_u64": _print_symbolic,
    "__print_hex": _print_hex,
    "__print_hex_str": _print_hex_str,
    "__print_array": _print_array,
    "__get_str": _get_str,
    "__get_rel_str": _get_str,
    "__get_sockaddr": _get_dynamic_array,
    "__get_rel_sockaddr": _get_dynamic_array,
    "__get_dynamic_array": _get_dynamic_array,
    "__get_rel_dynamic_array": _get_dynamic_array,
    "__get_dynamic_array_len": _get_dynamic_array_len,
    "__get_rel_dynamic_array_len": _get_dynamic_array_len,
    "__get_bitmask": _get_bitmask,
    "__get_cpumask": _get_bitmask,
    "__get_rel_bitmask": _get_bitmask,
    "__get_rel_cpumask": _get_bitmask,
    "sizeof": _sizeof,
    "__builtin_expect": _expect,
}

__all__ = ["Buffer", "Inexpressible", "Value", "distinct", "evaluate"]

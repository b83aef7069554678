"""The functions that print fmts call (``__print_flags``, ``__get_str``, ...), over columns.

Source: Linux include/trace/stages/stage3_trace_output.h, kernel/trace/trace_output.c.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import DATA_LOC, element_bytes
from lttd.abi.print_fmt_nodes import (
    Call,
    FieldRef,
    Index,
    Node,
    Number,
    Pairs,
    Text,
    Unknown,
)
from lttd.view.columns import EventRows
from lttd.view.conversions import INTS, Buffer, Inexpressible, Value
from lttd.view.ftrace.cexpr import Evaluation, PointedTo
from lttd.view.glyphs import per_distinct
from lttd.view.strips import strings_of

Column = npt.NDArray[Any]


def evaluate(node: Node, rows: EventRows, pointed_to: PointedTo | None = None) -> Value:
    """Return the value of *node* for *rows*; *pointed_to* returns the string at an address.

    Raises:
        Inexpressible: it cannot be evaluated.
    """
    with np.errstate(all="ignore"):
        return Evaluation(rows, FUNCTIONS, pointed_to).value(node)


def _pairs(evaluation: Evaluation, node: Node) -> list[tuple[int, bytes]]:
    if not isinstance(node, Pairs):
        raise Inexpressible("no list of names")
    return [
        (value.value if isinstance(value, Number) else int(evaluation.ints(value)[0]), name)
        for value, name in node.pairs
    ]


def _print_flags(
    evaluation: Evaluation, value: Node, delimiter: Node, names: Node | None = None
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


def _print_symbolic(evaluation: Evaluation, value: Node, names: Node | None = None) -> Column:
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
    counts = np.broadcast_to(lengths, (len(buffer.begin),)).tolist()
    told = [
        (between.join(b"%02x" % byte for byte in piece[:count]))
        for piece, count in zip(buffer.pieces, counts, strict=True)
    ]
    return strings_of(told)


def _print_hex(evaluation: Evaluation, value: Node, length: Node) -> Column:
    return _as_hex(evaluation.buffer(value), evaluation.ints(length), b" ")


def _print_hex_str(evaluation: Evaluation, value: Node, length: Node) -> Column:
    return _as_hex(evaluation.buffer(value), evaluation.ints(length), b"")


def _print_array(evaluation: Evaluation, value: Node, count: Node, size: Node) -> Column:
    """Linux kernel/trace/trace_output.c, trace_print_array_seq."""
    buffer = evaluation.buffer(value)
    width = int(evaluation.ints(size)[0])
    order = "little" if buffer.byteorder == "<" else "big"
    counts = np.broadcast_to(evaluation.ints(count), (len(buffer.begin),)).tolist()
    told = []
    for piece, many in zip(buffer.pieces, counts, strict=True):
        whole = piece[: many * width]
        numbers = (
            int.from_bytes(whole[at : at + width], order)  # type: ignore[arg-type]
            for at in range(0, len(whole), width or 1)
        )
        told.append(b"{%b}" % b",".join(b"0x%x" % number for number in numbers))
    return strings_of(told)


def _print_dynamic_array(evaluation: Evaluation, array: Node, size: Node) -> Column:
    """Linux include/trace/stages/stage3_trace_output.h: all elements of a dynamic array."""
    begin, end = evaluation.rows.spans(_known(evaluation, array))
    most = Number(int((end - begin).max(initial=0)), 32, signed=False)
    return _print_array(evaluation, Call("__get_dynamic_array", (array,)), most, size)


def _name_of(node: Node) -> str:
    """Return the field that a node names; ``arg[1]`` is one string of an array of strings."""
    if isinstance(node, Index) and isinstance(node.number, Number):
        base = node.base
        if isinstance(base, FieldRef | Unknown):
            return f"{base.name}[{node.number.value}]"
    if not isinstance(node, FieldRef):
        raise Inexpressible("no field's name")
    return node.name


def _known(evaluation: Evaluation, node: Node) -> str:
    name = _name_of(node)
    if f"{DATA_LOC}{name}" in evaluation.format.by_name:
        return f"{DATA_LOC}{name}"
    if name not in evaluation.format.by_name:
        raise Inexpressible(f"no field {name!r}")
    return name


def _get_str(evaluation: Evaluation, node: Node) -> Column:
    return evaluation.text(_known(evaluation, node))


def _probed_str(evaluation: Evaluation, node: Node) -> Column:
    """Linux kernel/trace/trace_probe.c, print_type_string: the quoted string, or ``(fault)``.

    A string that the kernel could read has at least its NUL.
    """
    name = _known(evaluation, node)
    begin, end = evaluation.rows.spans(name)
    told = evaluation.text(name)
    quoted = np.char.add(np.char.add(b'"', told), b'"')
    return np.where(end > begin, quoted, b"(fault)")


def _get_dynamic_array(evaluation: Evaluation, node: Node) -> Buffer:
    name = _known(evaluation, node)
    field = evaluation.rows.field(name)
    order = evaluation.format.byteorder
    return Buffer.of(evaluation.rows, name, field.element_bytes, order)


def _get_dynamic_array_len(evaluation: Evaluation, node: Node) -> Column:
    begin, end = evaluation.rows.spans(_known(evaluation, node))
    return (end - begin).astype(np.uint32)


def _get_bitmask(evaluation: Evaluation, node: Node) -> Column:
    """Linux kernel/trace/trace_seq.c, trace_seq_bitmask: hex words of 32 bits."""
    buffer = _get_dynamic_array(evaluation, node)
    order = "little" if buffer.byteorder == "<" else "big"
    size = evaluation.format.long_bytes

    def told(piece: bytes) -> bytes:
        # The words are longs, the lowest first, each in the machine's byte order.
        longs = [piece[at : at + size] for at in range(0, len(piece), size)]
        number = sum(
            int.from_bytes(word, order) << 8 * size * at  # type: ignore[arg-type,misc]
            for at, word in enumerate(longs)
        )
        digits = b"%0*x" % (2 * len(piece), number)
        groups = [digits[max(end - 8, 0) : end] for end in range(len(digits), 0, -8)]
        return b",".join(reversed(groups))

    return buffer.told(told)


def _sizeof(evaluation: Evaluation, node: Node) -> Column:
    long_bits = 8 * evaluation.format.long_bytes
    if isinstance(node, Text):
        size = element_bytes(node.value.decode(), evaluation.format.long_bytes)
    elif isinstance(node, FieldRef) and node.name in evaluation.format.by_name:
        size = evaluation.rows.field(node.name).size_bytes
    else:
        size = 0
    if not size:
        raise Inexpressible("sizeof an unknown type")
    return np.array([size], INTS[long_bits, False])


def _expect(evaluation: Evaluation, value: Node, _expected: Node) -> Value:
    return evaluation.value(value)


PROBED_STR: Final = "__probed_str"
"""lttv's own function, which the kernel lacks: a string that a probe read, with its quotes."""

FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "__print_flags": _print_flags,
    "__print_flags_u64": _print_flags,
    "__print_symbolic": _print_symbolic,
    "__print_symbolic_u64": _print_symbolic,
    "__print_hex": _print_hex,
    "__print_hex_str": _print_hex_str,
    "__print_array": _print_array,
    "__print_dynamic_array": _print_dynamic_array,
    "__get_str": _get_str,
    "__get_rel_str": _get_str,
    PROBED_STR: _probed_str,
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

"""Print the records of the function tracers as the kernel's trace file does.

    funcgraph_entry: ! 113.741 us  |  vfs_read();
    funcgraph_entry:               |  do_sys_openat2() {
    funcgraph_exit:  # 1739.811 us |  }
    function: vfs_read <-ksys_read

Source: Linux kernel/trace/trace_functions_graph.c, print_graph_entry(), print_graph_return(),
print_graph_retval(), trace_print_graph_duration(); trace_output.c, trace_fn_trace().

Rule: an exit whose entry is not known names its function, as the kernel does.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventRows
from lttd.view.conversions import Buffer, Context
from lttd.view.ftrace.graph import KNOWN_EXIT, LEAF, Graph, has_returned, no_graph
from lttd.view.glyphs import distinct, per_distinct
from lttd.view.strips import Column, Strip, strings_of, words_of

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Linux kernel/trace/trace.c, trace_find_mark(): a mark for each duration above a limit in ns.
_LIMITS: Final = np.array([10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000])
_MARKS: Final = np.frombuffer(b" +!#*@$", np.uint8)
_US: Final = np.frombuffer(b" us ", np.uint8)
# A mark and a blank; at most so many digits; the unit.
_MOST_DIGITS: Final = 20
_NUMBER_AT: Final = 2
_USUAL_WIDTH: Final = 14
# A number has so many digits, unless the microseconds alone have more.
_DIGITS: Final = 7
_NO_DURATION: Final = b" " * _USUAL_WIDTH
_BAR: Final = b"|  "
# Linux include/linux/err.h, MAX_ERRNO.
_MOST_ERRNO: Final = 4095


def durations(duration_ns: U64) -> Column:
    """Return marks and durations as the kernel prints them, each 14 characters, or more."""
    us, ns = duration_ns // np.uint64(1000), duration_ns % np.uint64(1000)
    digits = np.ones(len(us), np.int64)
    for power in range(1, _MOST_DIGITS):
        digits += us >= np.uint64(10**power)
    room = np.zeros((len(us), _NUMBER_AT + _MOST_DIGITS + len(_US)), np.uint8)
    room[:, :_USUAL_WIDTH] = ord(" ")
    room[:, 0] = _MARKS[np.searchsorted(_LIMITS, duration_ns.astype(np.float64), "left")]
    for count in np.flatnonzero(np.bincount(digits)).tolist():
        rows = np.flatnonzero(digits == count)
        at = _put_number(room, rows, us, _NUMBER_AT, count)
        if count < _DIGITS:
            room[rows, at] = ord(".")
            cut = max(0, 3 - (_DIGITS - count))
            at = _put_number(room, rows, ns // np.uint64(10**cut), at + 1, 3 - cut)
        room[rows, at : at + len(_US)] = _US
    widest = int(digits.max(initial=1))
    width = max(_USUAL_WIDTH, _NUMBER_AT + widest + len(_US))
    return words_of(np.ascontiguousarray(room[:, :width]).view(f"S{width}").reshape(-1))


def _put_number(room: U8, rows: Any, values: U64, at: int, digits: int) -> int:  # noqa: ANN401
    """Write the last *digits* of numbers from column *at* on; return the column after them."""
    rest = values[rows]
    for column in range(at + digits - 1, at - 1, -1):
        room[rows, column] = (rest % np.uint64(10)).astype(np.uint8) + ord("0")
        rest = rest // np.uint64(10)
    return at + digits


def entries(rows: EventRows, context: Context) -> Strip:
    """Print entries; those of leaves have the duration that is in their exits."""
    graph = _graph(rows)
    is_leaf = graph["part"] == LEAF
    words = durations(graph["duration_ns"]).view(np.uint8).reshape(len(rows), -1)
    words = np.where(is_leaf[:, np.newaxis], words, _blank(words.shape[1]))
    arguments = _arguments(rows, context)

    def told(function: int, depth: int, leaf: int) -> bytes:
        called = context.symbols.told(function, offset=False)
        head = b"  " * depth + called
        return head if arguments is not None else head + (b"();" if leaf else b"() {")

    strip: Strip = [_words(words), _BAR, _named(rows.records["func"], graph, is_leaf, told)]
    if arguments is not None:
        strip += [arguments, words_of(np.where(is_leaf, b";", b" {"))]
    return [*strip, *_comment(rows, context, graph, is_leaf)]


def exits(rows: EventRows, context: Context) -> Strip:
    """Print exits that are not of leaves; the blank before them aligns them with entries."""
    graph = _graph(rows)
    returned = has_returned(rows.event_type)
    is_known = graph["part"] == KNOWN_EXIT

    def told(function: int, depth: int, known: int) -> bytes:
        head = b"  " * depth + b"}"
        if known and not returned:
            return head
        name = context.symbols.told(function, offset=False)
        return head + b" /* " + name + (b"" if returned else b" */")

    strip: Strip = [b" ", durations(graph["duration_ns"]), _BAR]
    strip.append(_named(rows.records["func"], graph, is_known, told))
    if returned:
        strip += [words_of(per_distinct(graph["returned"], _returned)), b" */"]
    return strip


def function(rows: EventRows, context: Context) -> Strip:
    """Print a record of the function tracer."""

    def told(address: int) -> bytes:
        return context.symbols.told(address, offset=False)

    called, caller = (words_of(per_distinct(rows.records[n], told)) for n in ("ip", "parent_ip"))
    arguments = _arguments(rows, context)
    return [called, *((arguments,) if arguments is not None else ()), b" <-", caller]


def _graph(rows: EventRows) -> Graph:
    """Return the column ``graph`` of the rows, or one that joins none of them."""
    if rows.batch.graph is not None:
        found: Graph = rows.batch.graph[rows.rows]
        return found
    return no_graph(len(rows))


def _blank(width: int) -> U8:
    found = np.zeros(width, np.uint8)
    found[:_USUAL_WIDTH] = ord(" ")
    return found


def _words(matrix: U8) -> Column:
    width = matrix.shape[1]
    return words_of(np.ascontiguousarray(matrix).view(f"S{width}").reshape(-1))


def _named(
    functions: U64,
    graph: Graph,
    flag: Mask,
    told: Callable[[int, int, int], bytes],
) -> Column:
    """Return texts that depend on the function, the depth and a flag, each made once."""
    addresses, number = distinct(functions)
    key = (number.astype(np.int64) << 9) | (graph["depth"].astype(np.int64) << 1) | flag
    known = addresses.tolist()
    return words_of(per_distinct(key, lambda one: told(known[one >> 9], one >> 1 & 0xFF, one & 1)))


def _arguments(rows: EventRows, context: Context) -> Column | None:
    """Return the arguments in parentheses; None if no record has any (Linux 6.15)."""
    assert rows.event_type.format is not None
    if "args" not in rows.event_type.format.by_name:
        return None
    words = Buffer.of(rows, "args", context.long_bytes, context.byteorder)
    counts = ((words.end - words.begin) // context.long_bytes).tolist()
    if not any(counts):
        return None
    columns = [
        words.element(np.array([number], np.int64)).tolist() for number in range(max(counts))
    ]
    told = [
        b"(" + b", ".join(b"0x%x" % columns[n][row] for n in range(count)) + b")"
        for row, count in enumerate(counts)
    ]
    return words_of(strings_of(told))


def _comment(rows: EventRows, context: Context, graph: Graph, is_leaf: Mask) -> Strip:
    """Return the comment after an entry: the caller, and what a leaf returned."""
    strip: Strip = []
    fields = rows.event_type.format.by_name if rows.event_type.format else {}
    exit_type = next(filter(has_returned, rows.batch.types), None)
    caller: Column | None = None
    if "retaddr" in fields:
        caller = words_of(
            per_distinct(
                rows.records["retaddr"],
                lambda address: b" <-" + context.symbols.told(address, offset=True),
            )
        )
        strip.append(caller)
    if exit_type is not None:
        texts = per_distinct(graph["returned"], _returned)
        strip.append(words_of(np.where(is_leaf, texts, b"")))
    if not strip:
        return []
    has_comment = np.ones(len(rows), np.bool_) if caller is not None else is_leaf
    begin, end = (words_of(np.where(has_comment, text, b"")) for text in (b" /*", b" */"))
    return [begin, *strip, end]


def _returned(value: int) -> bytes:
    """Return a returned value: an error as a negative number, others in hex."""
    wide = value
    if value & 1 << 31 and value < 1 << 32:
        wide = value | ((1 << 64) - (1 << 32))
    if wide >= (1 << 64) - _MOST_ERRNO:
        return b" ret=%d" % (wide - (1 << 64))
    return b" ret=0x%x" % value

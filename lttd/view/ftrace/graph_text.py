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
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventRows
from lttd.view.conversions import Buffer, Context
from lttd.view.ftrace.graph import KNOWN_EXIT, LEAF, Graph, has_returned, no_graph
from lttd.view.glyphs import decimal, digit_count, distinct, per_distinct
from lttd.view.strips import Column, Strip, packed, strings_of, words_of

U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Linux kernel/trace/trace.c, trace_find_mark(): a mark for each duration above a limit in ns.
_LIMITS: Final = np.array(
    [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000], "u8"
)
_MARKS: Final = np.array([b"  ", b"+ ", b"! ", b"# ", b"* ", b"@ ", b"$ "]).view("V2")
_MARK_BYTES: Final = 2
_USUAL_WIDTH: Final = 14
# A number has so many digits, unless the microseconds alone have more.
_DIGITS: Final = 7
_NO_DURATION: Final = b" " * _USUAL_WIDTH
_BAR: Final = b"|  "
# Linux include/linux/err.h, MAX_ERRNO.
_MOST_ERRNO: Final = 4095


def durations(duration_ns: U64) -> Column:
    """Return marks and durations as the kernel prints them, each 14 characters, or more."""
    if not len(duration_ns):
        return np.empty(0, f"V{_USUAL_WIDTH}")
    us = duration_ns // np.uint64(1000)
    ns = duration_ns - us * np.uint64(1000)
    marks = _MARKS.take(np.searchsorted(_LIMITS, duration_ns, "left"))
    counts = digit_count(us, 10, 1)
    if isinstance(counts, int):
        return _with_digits(marks, us, ns, counts)
    width = max(_USUAL_WIDTH, _MARK_BYTES + int(counts.max()) + len(" us "))
    found = np.empty(len(us), f"S{width}")
    for count in np.flatnonzero(np.bincount(counts)).tolist():
        rows = np.flatnonzero(counts == count)
        found[rows] = _strings(_with_digits(marks[rows], us[rows], ns[rows], count))
    return words_of(found)


def _with_digits(marks: Column, us: U64, ns: U64, count: int) -> Column:
    """Return durations whose microseconds all have *count* digits."""
    strip: Strip = [marks, *decimal(us)]
    width = _MARK_BYTES + count
    places = min(3, _DIGITS - count)
    if places > 0:
        strip += [b".", *decimal(ns // np.uint64(10 ** (3 - places)), places)]
        width += 1 + places
    strip.append(b" us ".ljust(_USUAL_WIDTH - width))
    return packed(strip, len(us))[0]


def _strings(words: Column) -> Column:
    return words.view(f"S{words.dtype.itemsize}")


def entries(rows: EventRows, context: Context) -> Strip:
    """Print entries; those of leaves have the duration that is in their exits."""
    graph = _graph(rows)
    is_leaf = graph["part"] == LEAF
    leaves = _strings(durations(graph["duration_ns"][is_leaf]))
    words = np.full(len(rows), _NO_DURATION, f"S{max(leaves.dtype.itemsize, _USUAL_WIDTH)}")
    words[is_leaf] = leaves
    arguments = _arguments(rows, context)

    def told(function: int, depth: int, leaf: int) -> bytes:
        called = context.symbols.told(function, offset=False)
        head = b"  " * depth + called
        return head if arguments is not None else head + (b"();" if leaf else b"() {")

    strip: Strip = [words_of(words), _BAR, _named(rows.records["func"], graph, is_leaf, told)]
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
        found: Graph = rows.batch.graph.take(rows.rows)  # ten times as fast as an index
        return found
    return no_graph(len(rows))


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

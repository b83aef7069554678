"""Join the records of the function_graph tracer, as the kernel does when it prints them.

A function that calls no other one is a leaf: its exit directly follows its entry on the same CPU,
in the same task.  The kernel prints both as one line; so the exit has no line of its own.

    1)   3.916 us    |  vfs_read();         a leaf
    1)               |  vfs_open() {        another entry
    1) + 65.147 us   |  }                   and its exit

Source: Linux kernel/trace/trace_functions_graph.c, get_return_for_leaf(), print_graph_return().

Rule: records are joined before any are filtered out, so that a view of entries alone still has the
durations of leaves.
Rule: where sub-buffers are skipped, only records of the same sub-buffer are joined.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.ftrace_format import Encoding
from lttd.abi.gather import gather
from lttd.view.formats import EventType
from lttd.view.window import Piece, StreamSlice

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ENTRIES: Final = ("funcgraph_entry", "fgraph_retaddr_entry")
EXITS: Final = ("funcgraph_exit",)
# What a record is, beside an entry or an exit of which nothing more is known.
LEAF, LEAFS_EXIT, KNOWN_EXIT = 1, 2, 3
# A row per event of a batch; zeros for events that are no records of this tracer.
GRAPH_DTYPE: Final = np.dtype(
    [
        ("part", "u1"),
        ("depth", "u1"),
        # Of leaves and exits: the time spent in the function, and what it returned.
        ("duration_ns", "u8"),
        ("returned", "u8"),
    ]
)
Graph = npt.NDArray[np.void]
# Linux include/linux/ftrace.h, FTRACE_RETFUNC_DEPTH: deeper exits are not compared with entries.
_COMPARED_DEPTH: Final = 50
_MOST_DEPTH: Final = 255
# The head of a record, with a time extension before it; that of a sub-buffer is larger.
_BETWEEN_BYTES: Final = 12
_ENTRY, _EXIT = 1, 2


def is_graph(event_type: EventType) -> bool:
    """Tell whether events of this type are records of the function_graph tracer."""
    return _kind(event_type) != 0


def _kind(event_type: EventType) -> int:
    """Return _ENTRY, _EXIT, or 0 for other types and for formats that are not those known."""
    format_ = event_type.format
    if format_ is None or format_.system != OWN_SYSTEM:
        return 0
    needed = {"func", "depth"}
    if format_.name in EXITS:
        needed |= {"calltime", "rettime"}
    elif format_.name not in ENTRIES:
        return 0
    fields = format_.by_name
    if any(name not in fields or fields[name].encoding is not Encoding.INT for name in needed):
        return 0
    return _EXIT if format_.name in EXITS else _ENTRY


def no_graph(count: int) -> Graph:
    """Return a column ``graph`` that joins no events."""
    return np.zeros(count, GRAPH_DTYPE)


def graph_of(
    data: memoryview,
    all_types: Sequence[EventType],
    columns: tuple[I64, U32, I32, I32, I64],
    *,
    is_whole: bool,
) -> Graph:
    """Return the column ``graph`` of events in the order of their streams.

    *columns*: offset, size, type and pid of each event, and the number of its stream.  *is_whole*:
    no sub-buffer between them was skipped.
    """
    at, size, types, pid, stream = columns
    graph = no_graph(len(at))
    kind = np.array([_kind(one) for one in all_types], np.int8)[types]
    function = np.zeros(len(at), np.uint64)
    for number in np.flatnonzero(np.bincount(types)).tolist():
        if _kind(all_types[number]):
            _fill(graph, function, data, np.flatnonzero(types == number), at, all_types[number])
    first, second = slice(None, -1), slice(1, None)
    leaf = (kind[first] == _ENTRY) & (kind[second] == _EXIT)
    for column in (function, pid, stream):
        leaf &= column[first] == column[second]
    if not is_whole:
        leaf &= at[second] - at[first] - size[first] <= _BETWEEN_BYTES
    entries = np.flatnonzero(leaf)
    graph["part"][entries], graph["part"][entries + 1] = LEAF, LEAFS_EXIT
    for name in ("duration_ns", "returned"):
        graph[name][entries] = graph[name][entries + 1]
    _compare_exits(graph, function, kind, stream)
    return graph


def _fill(
    graph: Graph, function: U64, data: memoryview, rows: I64, at: I64, event_type: EventType
) -> None:
    """Read the fields of the events of one type."""
    format_ = event_type.format
    assert format_ is not None
    dtype = format_.dtype
    records = gather(data, at[rows], np.dtype(f"V{dtype.itemsize}")).view(dtype)
    function[rows] = records["func"]
    graph["depth"][rows] = np.clip(records["depth"].astype(np.int64), 0, _MOST_DEPTH)
    if format_.name in EXITS:
        call, end = (records[name].astype(np.uint64) for name in ("calltime", "rettime"))
        graph["duration_ns"][rows] = end - call
        if has_returned(event_type):
            graph["returned"][rows] = records["retval"]


def has_returned(event_type: EventType) -> bool:
    """Tell whether an exit's format has what the function returned (Linux 6.5)."""
    if _kind(event_type) != _EXIT or event_type.format is None:
        return False
    fields = event_type.format.by_name
    return "retval" in fields and fields["retval"].encoding is Encoding.INT


def _compare_exits(graph: Graph, function: U64, kind: I8, stream: I64) -> None:
    """Find the exits whose entry is the last record of their CPU and depth."""
    rows = np.flatnonzero((kind != 0) & (graph["part"] != LEAFS_EXIT))
    if not len(rows):
        return
    where = stream[rows] << 8 | graph["depth"][rows]
    if int(where.max()) < 1 << 16:
        where = where.astype(np.uint16)  # numpy sorts these without comparisons
    rows = rows[np.argsort(where, kind="stable")]
    before, after = rows[:-1], rows[1:]
    matches = (kind[before] == _ENTRY) & (kind[after] == _EXIT)
    matches &= (graph["part"][before] == 0) & (graph["part"][after] == 0)
    for column in (function, stream, graph["depth"]):
        matches &= column[before] == column[after]
    graph["part"][after[matches]] = KNOWN_EXIT
    deep = rows[(kind[rows] == _EXIT) & (graph["depth"][rows] >= _COMPARED_DEPTH)]
    graph["part"][deep[graph["part"][deep] == 0]] = KNOWN_EXIT


def keep_first_exits(graph: Graph, in_span: Mask, stream: I64) -> None:
    """Give the first exit of each stream a line of its own, if its entry is before the span."""
    rows = np.flatnonzero(in_span)
    first = rows[np.unique(stream[rows], return_index=True)[1]]
    graph["part"][first[graph["part"][first] == LEAFS_EXIT]] = 0


def with_neighbours(piece: Piece) -> Piece:
    """Return a piece with one more sub-buffer at either end of each stream.

    A leaf's entry may be the last record of a piece, and its exit the first of the next one.
    """
    if piece.spans is not None:
        return piece
    return piece._replace(parts=[_longer(part) for part in piece.parts])


def _longer(part: StreamSlice) -> StreamSlice:
    if not _is_whole(part) or not len(part.entries):
        return part
    first, behind = max(part.first - 1, 0), part.first + len(part.entries) + 1
    return StreamSlice(part.source, first, part.source.index.entries(first, behind))


def is_whole(piece: Piece) -> bool:
    """Tell whether no sub-buffer of a piece is skipped."""
    return piece.spans is None and all(map(_is_whole, piece.parts))


def _is_whole(part: StreamSlice) -> bool:
    return part.needed is None or bool(part.needed.all())

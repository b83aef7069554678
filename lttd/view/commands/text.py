"""``lttv text``: events as lines, merged by time over all CPUs, segments and traces given.

Rule: what cannot be shown is a line on stderr that says where and why; the rest is shown.
"""

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lttd.abi.ftrace_format import Kind
from lttd.terminal import is_terminal, put, say
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.filters import Filter
from lttd.view.ftrace.lines import Texter
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.losses import Loss
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.parallel import Noted, in_turn
from lttd.view.progress import Progress
from lttd.view.task_names import Names
from lttd.view.times import COUNTING_CLOCKS, Window
from lttd.view.trace import Trace
from lttd.view.unmatched import unmatched
from lttd.view.window import FOREVER, PIECE_BYTES, Piece

# Below this a second process costs more than it saves: some 0.2 s of work.
WORTH_BYTES: Final = 3 * PIECE_BYTES
MOST_JOBS: Final = 8
MOST_NAMED: Final = 8
# glibc malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD.
MALLOC_OPTIONS: Final = ((-3, 256 << 20), (-1, 512 << 20), (-2, 64 << 20))


class Lines(Protocol):
    """Makes lines of batches."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[bytes]:
        """Yield the lines of *batch*, some at a time; of those after *most* maybe none."""
        ...


@dataclass(frozen=True, slots=True)
class Show:
    """What is to be shown, and how."""

    filter: Filter
    nanoseconds: bool = False
    fields: tuple[str, ...] | None = None
    json: bool = False
    most: int | None = None
    jobs: int | None = None


class JsonLines:
    """An object per line."""

    def __init__(self, names: Names | None, fields: Sequence[str] | None) -> None:
        """*names*: None where events do not tell who ran, but of a channel of several."""
        self._names = names
        self._fields = fields

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[bytes]:
        """Yield the lines of *batch*: events and, where they lie, losses."""
        who = self._names.of(batch) if self._names else None
        told: list[tuple[int, int, dict[str, Any]]] = [
            (loss.time, -1, _loss_json(loss, channel=who is None)) for loss in batch.losses
        ]
        for rows in batch.by_type():
            names = [n for n in rows.names if self._fields is None or n in self._fields]
            columns = {name: _values(rows, name) for name in names}
            if rows.kind.format is None:
                columns = {"bytes": [raw.hex() for raw in rows.raw()]}
            heads = zip(rows.rows.tolist(), rows.time.tolist(), rows.cpu.tolist(), strict=True)
            for number, (at, when, cpu) in enumerate(heads):
                fields = {name: _plain(values[number]) for name, values in columns.items()}
                head: dict[str, Any] = {"time": when, "cpu": cpu}
                if who is None:
                    head["channel"] = rows.kind.system
                else:
                    head["comm"] = _plain(who[0]["comm"][who[1][at]].item())
                    head["pid"] = int(batch.pid[at])
                told.append((when, at, head | {"event": rows.kind.name, "fields": fields}))
        told.sort(key=lambda one: one[:2])
        yield b"".join(json.dumps(value).encode() + b"\n" for _, _, value in told)


def _values(rows: EventRows, name: str) -> list[Any]:
    """Return a field of each event; integers of any number as lists."""
    field = rows.field(name)
    if field.kind in (Kind.DYNAMIC, Kind.TAIL) and field.element_bytes > 1:
        return rows.lists(name)
    values: list[Any] = rows.column(name).tolist()
    return values


def _loss_json(loss: Loss, *, channel: bool) -> dict[str, Any]:
    reason = loss.reason.name.lower() if loss.reason else None
    unit = loss.unit.name.lower()
    head = {"time": loss.time, "cpu": loss.cpu} | ({"channel": loss.channel} if channel else {})
    return head | {"lost": loss.lost, "unit": unit, "reason": reason}


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def maker(group: ClockGroup, show: Show, notes: TakesNotes) -> Lines:
    """Return what makes the lines of one clock group; *notes* gets what it does without."""
    return _LINES[group.kind](group, show, notes)


def _ftrace_lines(group: ClockGroup, show: Show, notes: TakesNotes) -> Lines:
    tracefs = [segment.paths.tracefs for segment in group.segments]
    names = Names((path / "commands" for path in tracefs), notes)
    if show.json:
        return JsonLines(names, show.fields)
    clock = group.segments[0].manifest.clock
    return Texter(
        names,
        Symbols(tracefs[-1], notes),
        nanoseconds=show.nanoseconds,
        counting=clock in COUNTING_CLOCKS,
        fields=show.fields,
    )


def _blktrace_lines(group: ClockGroup, show: Show, _notes: TakesNotes) -> Lines:
    from lttd.view.blktrace.lines import BlkparseLines  # noqa: PLC0415  (when there is some)
    from lttd.view.blktrace.process_names import BlktraceNames, first_time  # noqa: PLC0415

    names = BlktraceNames(group.segments)
    if show.json:
        return JsonLines(names, show.fields)
    if show.fields is not None:
        return Texter(names, Symbols(), nanoseconds=show.nanoseconds, fields=show.fields)
    streams = [
        stream
        for segment in group.segments
        for stream in segment.streams
        if stream.info.abi == group.kind
    ]
    return BlkparseLines(names, lambda: first_time(streams))


def _ltt_lines(group: ClockGroup, show: Show, _notes: TakesNotes) -> Lines:
    from lttd.view.ltt.lines import LttTexter  # noqa: PLC0415

    return JsonLines(None, show.fields) if show.json else LttTexter(group.sources, show.fields)


_LINES: Final[dict[str, Callable[[ClockGroup, Show, TakesNotes], Lines]]] = {
    "ftrace": _ftrace_lines,
    "blktrace": _blktrace_lines,
    "ltt": _ltt_lines,
}


def _keep_freed_memory() -> None:
    """Have the C library keep what a piece's arrays leave, for those of the next.

    Each would be mapped anew, a page fault per 4 KiB: 0.73 s of 3.3 s for 5.8 million events, 0.08
    with this.  glibc only; elsewhere it is merely slower.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, most_bytes in MALLOC_OPTIONS:
            mallopt(option, most_bytes)


def show_text(traces: Sequence[Trace], window: Window, show: Show) -> int:
    """Write the events of a window to stdout; return an exit status."""
    _keep_freed_memory()
    # A few lines are there at once: no event is less than 8 bytes, and hardly one is more than 256.
    enough = PIECE_BYTES if show.most is None else min(PIECE_BYTES, show.most << 8)
    found = EventWindow(traces, window, show.filter, enough)
    for trace in traces:
        if trace.removed:
            found.notes.add(f"{trace.path}: {_numbered(trace.removed)} not there")
    out = _Out(found.notes, show.most)
    groups = found.clocks()
    for group in groups:
        status = _show_group(group, show, out)
        if status:
            return status
        if out.full:
            break
    out.notes.add(*unmatched(groups, show.filter, show.fields))
    out.write([])
    return 0


def _numbered(missing: Sequence[range]) -> str:
    count = sum(numbers.stop - numbers.start for numbers in missing)  # len() ends at 2^63
    if count == 1:
        return f"segment {missing[0].start} is"
    if count > MOST_NAMED + 1:
        return f"{count} segments between others are"
    *before, last = (str(number) for numbers in missing for number in numbers)
    return f"segments {', '.join(before)} and {last} are"


def _show_group(group: ClockGroup, show: Show, out: "_Out") -> int:
    if not group.sources:
        out.write([])
        return 0
    lines = maker(group, show, out.notes)
    progress = Progress(group, wanted=not is_terminal(sys.stdout))

    def make(piece: Piece) -> list[bytes]:
        batch = group.batch(piece)
        out.taken += batch.notes
        return list(lines.lines(batch, out.left))

    def write(piece: Piece, made: list[bytes]) -> None:
        out.write(made)
        progress.reached(piece)

    jobs = 1 if show.most is not None else _jobs(group, show.jobs)
    if jobs > 1:
        status = in_turn(group.pieces, make, write, jobs)
        progress.done()
        return status
    for piece in group.pieces():
        write(piece, make(piece))
        if out.full:
            break
    progress.done()
    return 0


def _jobs(group: ClockGroup, wanted: int | None) -> int:
    """Return how many processes are worth it."""
    try:
        if sys.stdout is None:
            return 1
        sys.stdout.fileno()
    except (OSError, ValueError):
        return 1  # stdout is no file: what a job wrote would be lost
    if wanted is not None:
        return wanted
    held = sum(_held_bytes(group, at) for at in range(len(group.sources)))
    if held < WORTH_BYTES:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_JOBS, held // PIECE_BYTES)


def _held_bytes(group: ClockGroup, number: int) -> int:
    """Return about how much of a stream lies within the window."""
    index = group.sources[number].index
    first = index.first_at_or_after(group.begin)
    last = index.first_at_or_after(min(group.end, FOREVER))
    ends = index.entries(first, first + 1), index.entries(min(last, len(index) - 1), last + 1)
    if not len(ends[0]) or not len(ends[1]):
        return 0
    return int(ends[1]["offset_bytes"][0]) - int(ends[0]["offset_bytes"][0])


class _Out:
    """Where lines and notes go."""

    def __init__(self, notes: WindowNotes, most: int | None) -> None:
        self.notes = notes
        self.taken: list[str] = []
        """Those that a batch has."""
        self._noted = Noted()
        self.left = most
        """How many lines are still wanted; None: all."""

    @property
    def full(self) -> bool:
        """Whether as many lines as were asked for have been written."""
        return self.left == 0

    def write(self, blocks: list[bytes]) -> None:
        for note in (*self.taken, *self.notes.take()):
            if self._noted.is_new(note):
                say(note, "lttv")
        self.taken.clear()
        for block in blocks:
            put(block if self.left is None else self._cut(block))
            if self.full:
                break

    def _cut(self, block: bytes) -> bytes:
        assert self.left is not None
        lines = block.splitlines(keepends=True)[: self.left]
        self.left -= len(lines)
        return b"".join(lines)

"""``lttv text``: events as lines, merged by time over all CPUs, segments and traces given.

Rule: whatever cannot be shown is reported by a line on stderr, with place and cause; the rest is
shown.
"""

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from lttd.errors import LttdError, UsageError
from lttd.malloc import keep_freed_memory
from lttd.terminal import Level, is_terminal, put, say
from lttd.view.complete import Since, complete_since
from lttd.view.family import Block, Family, Lines, Printing, made
from lttd.view.filters import Filter
from lttd.view.json_lines import JsonLines
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.parallel import SharedNotes, in_turn
from lttd.view.progress import Progress
from lttd.view.task_names import Names
from lttd.view.times import Window, moment_text
from lttd.view.trace import Segment, Trace
from lttd.view.unmatched import unmatched
from lttd.view.window import PIECE_BYTES, Piece
from lttd.view.worth import jobs_worth

MOST_NAMED: Final = 8
SYSCALL_EVENTS: Final = "*syscalls:*"
"""The events of system calls, each with its arguments or raw."""


class Show(NamedTuple):
    """The selection of events and the form of lines that the command line asks for."""

    filter: Filter
    nanoseconds: bool = False
    fields: tuple[str, ...] | None = None
    json: bool = False
    most: int | None = None
    jobs: int | None = None
    style: str = ""
    """The form of another program's lines; empty: the family's own."""
    enum_names: bool = False
    """Whether to print names of enum constants where the kernel prints numbers."""
    backwards: bool = False
    """The last event first."""
    hide_self: bool = False
    """For follow: leave out lttd's own threads in the segments that it opens."""


def maker(group: ClockGroup, segments: Sequence[Segment], show: Show, notes: TakesNotes) -> Lines:
    """Return the maker of lines of one clock group; add notes about missing formats and names.

    *segments* have the names of tasks.
    """
    family = group.family
    assert family is not None  # else there are no sources
    lines = _lines_of(group, family, show, group.names_from(segments, notes), notes)
    lines.backwards = show.backwards
    return lines


def _lines_of(
    group: ClockGroup, family: Family, show: Show, names: Names | None, notes: TakesNotes
) -> Lines:
    if show.json:
        return JsonLines(names, show.fields)
    if show.style and show.style not in family.styles:
        abis = ", ".join(sorted({one.stream.info.abi for one in group.sources}))
        raise UsageError(f"--style {show.style}: there is no such form for {abis}; leave it out")
    printing = Printing(
        group.segments,
        group.sources,
        names,
        show.nanoseconds,
        show.fields,
        show.style,
        enum_names=show.enum_names,
    )
    return family.lines(printing, notes)


def show_text(traces: Sequence[Trace], window: Window, show: Show) -> int:
    """Write the events of a window to stdout; return an exit status."""
    keep_freed_memory()
    # Pieces for a few lines are small: an event has at least 8 bytes, rarely over 256.
    enough = PIECE_BYTES if show.most is None else min(PIECE_BYTES, show.most << 8)
    found = EventWindow(traces, window, show.filter, enough)
    for trace in traces:
        if trace.removed:
            found.notes.add(f"{trace.path}: {_numbered(trace.removed)} not there")
        since = complete_since(trace)
        if since is not None and _begins_before(window, since):
            when = moment_text(since.time, since.realtime_ns)
            words = "complete on all CPUs since {}; earlier segments are not there"
            found.notes.add(f"{trace.path}: {words.format(when)}")
    out = _Out(found.notes, show.most)
    groups = found.clocks()
    for group in groups[:: -1 if show.backwards else 1]:
        status = _show_group(group, show, out)
        if status:
            return status
        if out.full:
            break
    notes = unmatched(groups, show.filter, show.fields)
    if any(note.startswith(f"--event {SYSCALL_EVENTS}:") for note in notes):
        remedy = "record some with --events 'syscalls:*', or raw_syscalls:*"
        raise LttdError(f"{traces[0].path}: no system calls are in it; {remedy}")
    out.notes.add(*notes)
    out.write([])
    return 0


def _begins_before(window: Window, since: Since) -> bool:
    if window.begin is None:
        return True
    first = since.realtime_ns if window.begin.wall else since.time
    return first is None or window.begin.value < first


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
    lines = maker(group, group.near(), show, out.notes)
    pieces = group.pieces_backwards if show.backwards else group.pieces
    progress = Progress(group, wanted=not is_terminal(sys.stdout), backwards=show.backwards)

    def make(piece: Piece) -> list[Block]:
        batch = group.batch(piece)
        out.taken += batch.notes
        return list(lines.lines(batch, None if show.backwards else out.left))

    def write(piece: Piece, made: list[Block]) -> None:
        out.write(made)
        progress.reached(piece)

    jobs = 1 if show.most is not None else _jobs(group, show.jobs)
    if jobs > 1:
        if group.family and group.family.prepare:
            group.family.prepare(group.touching)
        status = in_turn(pieces, make, write, jobs)
        progress.done()
        return status
    for piece in pieces():
        write(piece, make(piece))
        if out.full:
            break
    progress.done()
    return 0


def _jobs(group: ClockGroup, wanted: int | None) -> int:
    """Return how many processes pay off for this much data."""
    try:
        if sys.stdout is None:
            return 1
        sys.stdout.fileno()
    except (OSError, ValueError):
        return 1  # stdout has no descriptor: the output of another process would be lost
    if wanted is not None:
        return wanted
    return jobs_worth(group)


class _Out:
    """Write lines to stdout and notes to stderr."""

    def __init__(self, notes: WindowNotes, most: int | None) -> None:
        self.notes = notes
        self.taken: list[str] = []
        """Those that a batch has."""
        self._noted = SharedNotes()
        self.left = most
        """The number of lines still to be written; None: all."""

    @property
    def full(self) -> bool:
        """Tell whether the requested number of lines has been written."""
        return self.left == 0

    def write(self, blocks: list[Block]) -> None:
        for note in (*self.taken, *self.notes.take()):
            if self._noted.is_new(note):
                say(note, Level.NOTICE, "lttv")
        self.taken.clear()
        for one in blocks:
            block = made(one)
            put(block if self.left is None else self._cut(block))
            if self.full:
                break

    def _cut(self, block: bytes | memoryview) -> bytes:
        assert self.left is not None
        lines = bytes(block).splitlines(keepends=True)[: self.left]
        self.left -= len(lines)
        return b"".join(lines)

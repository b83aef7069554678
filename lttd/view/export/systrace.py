"""Write events as text, in the form of systrace and ``cat trace``, which Perfetto reads.

    # tracer: nop
    ...
    <comm, 16>-<pid, 7> (<tgid, 7>) [<cpu, 3>] <4 flags> <seconds, 9 decimals>: <event>: <fields>

Source of the form: Linux kernel/trace/trace.c, print_func_help_header_irq, with record-tgid.
Source of the importer: Perfetto's src/trace_processor/importers/systrace.  The first line names the
format, ``#`` begins a comment, there are four letters of flags (some versions do not accept the
fifth of Linux 5.17), and any number of decimals.

Rule: memory holds a piece of the window; an event is one line, whatever its fields hold.  Comments
hold the losses, which Perfetto cannot show.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from lttd.clock import COUNTING_CLOCKS
from lttd.errors import NotATraceError, UsageError
from lttd.files import Disk
from lttd.terminal import printable_bytes
from lttd.view.columns import EventBatch
from lttd.view.family import Lines, made
from lttd.view.filters import Filter
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.lines import FLAGS, Body, FieldTexter
from lttd.view.losses import Loss
from lttd.view.notes import Notes
from lttd.view.output import nothing_within
from lttd.view.progress import pieces_of
from lttd.view.strips import Strip
from lttd.view.times import Window
from lttd.view.trace import Trace
from lttd.view.window import PIECE_BYTES

HEADER: Final = b"""\
# tracer: nop
#
#                                      _-----=> irqs-off
#                                     / _----=> need-resched
#                                    | / _---=> hardirq/softirq
#                                    || / _--=> preempt-depth
#                                    ||| /
#           TASK-PID      TGID   CPU#  ||||   TIMESTAMP  FUNCTION
#              | |          |      |   ||||      |         |
"""
MARKER: Final = b"tracing_mark_write"
_DEPTH: Final = np.array([f"{n & 15:x} " if n & 15 else ". " for n in range(256)], "S2").view("V2")


class SystraceForm(FieldTexter):
    """Lines with the process after the task, and one flag less."""

    def _who(self, pid: int, comm: bytes) -> bytes:
        tgid = self._names.tgid(pid)
        told = b"(-------)" if tgid is None else b"(%7d)" % tgid
        return b"%16s-%-7d %s " % (printable_bytes(comm), pid, told)

    def _flags(self, batch: EventBatch) -> Strip:
        return [FLAGS[batch.flags], _DEPTH[batch.preempt]]

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies of lines; the functions of a stack share a line."""
        for body in super().bodies(batch):
            text = body.words.view(np.uint8).reshape(-1, body.width)
            text[text == ord("\n")] = ord(" ")
            text[np.arange(len(text)), np.asarray(body.length) - 1] = ord("\n")
            yield body

    def lost(self, loss: Loss) -> str:
        """Return the line of a loss, which is a comment."""
        return f"# {loss}"


def write_text(
    trace: Trace,
    window: Window,
    out: Path,
    disk: Disk,
    texter_of: Callable[[ClockGroup, Notes], Lines],
) -> list[str]:
    """Write the events of *window* to *out*; return lines for the user.

    Raises:
        LttdError: as ``lttd.view.export.Exporter``.
    """
    group = group_of_one_clock(trace, window)
    notes = Notes()
    events = losses = 0
    with disk.create(out) as file:
        file.write(HEADER)
        texter = texter_of(group, notes)
        for piece in pieces_of(group):
            batch = group.batch(piece)
            notes.add(*batch.notes)
            events += len(batch)
            losses += sum(loss.was_wanted for loss in batch.losses)
            file.writelines(map(made, texter.lines(batch)))
    if not events and not losses:
        raise NotATraceError(nothing_within(trace))
    told = [f"{events} events"]
    if losses:
        told.append(f"{losses} losses, which Perfetto does not show, are comments in the text")
    return [*notes.told(), *told]


def group_of_one_clock(trace: Trace, window: Window) -> ClockGroup:
    """Return the whole window, if its times are in seconds and can be compared.

    Raises:
        NotATraceError: there is no stream.
        UsageError: it has several clocks, or one whose unit is not the nanosecond.
    """
    groups = EventWindow([trace], window, Filter(None, None, None), PIECE_BYTES).clocks()
    clocks = sorted({segment.manifest.clock for group in groups for segment in group.segments})
    if not groups:
        raise NotATraceError(nothing_within(trace))
    if len(groups) > 1 or COUNTING_CLOCKS & set(clocks):
        raise UsageError(
            f"{trace.path}: Perfetto has one clock, in seconds, and this trace {clocks} of"
            f" {len(groups)} recordings: export one segment, recorded with --clock mono"
        )
    return groups[0]

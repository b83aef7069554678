"""Ftrace's family; see ``lttd.view.family``."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from lttd.clock import COUNTING_CLOCKS
from lttd.limits import KALLSYMS
from lttd.readfile import size_bytes
from lttd.view.addresses import MARKS, Symbols
from lttd.view.enums import Enums
from lttd.view.family import Family, Lines, Printing
from lttd.view.ftrace.decode import FtraceContexts, FtraceDecoder
from lttd.view.ftrace.graph import is_graph
from lttd.view.notes import TakesNotes
from lttd.view.task_names import Names
from lttd.view.trace import Segment

SYSCALLS: Final = "syscalls"
"""The form of strace's lines."""


def _names(segments: Sequence[Segment], notes: TakesNotes) -> Names:
    return Names((segment.paths.tracefs / "commands" for segment in segments), notes)


def with_symbols(segments: Sequence[Segment]) -> Segment:
    """Return the last segment of the last boot that has symbols, all if possible; or the last."""
    last = segments[-1]
    boot = last.manifest.machine.get("boot_id")  # the kernel had other addresses in others
    before = takewhile(lambda each: each.manifest.machine.get("boot_id") == boot, segments[::-1])
    of_boot = list(before)
    for name in (KALLSYMS.what, MARKS):
        for segment in of_boot:
            if size_bytes(segment.paths.tracefs / name):
                return segment
    return last


def _lines(printing: Printing, notes: TakesNotes) -> Lines:
    from lttd.view.ftrace.lines import Texter  # noqa: PLC0415  (not to count, nor to export)

    assert printing.names is not None
    made = Texter
    if printing.style == SYSCALLS:
        from lttd.view.ftrace.syscalls import SyscallTexter  # noqa: PLC0415  (only if asked for)

        made = SyscallTexter
    texter = made(
        printing.names,
        Symbols(with_symbols(printing.segments).paths.tracefs, notes),
        nanoseconds=printing.nanoseconds,
        counting=printing.segments[0].manifest.clock in COUNTING_CLOCKS,
        fields=printing.fields,
        enums=Enums.of(printing.segments, naming=printing.enum_names),
    )
    texter.machine = str(printing.segments[-1].manifest.machine.get("architecture", ""))
    return texter


FAMILY: Final = Family(
    FtraceContexts,
    FtraceDecoder,
    _names,
    _lines,
    formats_of=lambda source: source.context.formats,
    joins=is_graph,
    styles=(SYSCALLS,),
    states_flags=True,
)

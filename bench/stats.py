"""``lttv stats`` beside ``lttv text`` and ``trace-cmd report``, on one trace.

The trace has the switches, wake-ups and system calls of two pairs of processes, each pair on a CPU
of its own, which send each other a byte through pipes.  All programs write to /dev/null.
"""

import shutil
import sys
from typing import Final

from bench.common import CannotMeasureError, Options, scratch
from bench.report import Report
from bench.text import COLUMNS, LTTV, in_turn, output, report_of
from bench.traces import record
from lttd.view.export import export
from lttd.view.times import EVERYTHING

NAME: Final = "stats"
EVENTS: Final = "sched:sched_switch,sched:sched_wak*,raw_syscalls:*"
LEAST_EVENTS: Final = 5_000_000
EVENTS_PER_TURN: Final = 11
PIPES: Final = """\
import os
there, back = os.pipe(), os.pipe()
if os.fork():
    for _ in range({count}): os.write(there[1], b"x"); os.read(back[0], 1)
    os.wait()
else:
    for _ in range({count}): os.read(there[0], 1); os.write(back[1], b"x")
"""
THEIRS, TEXT, SCHED, CALLS = "trace-cmd report", "text, 1 process", "stats sched", "stats syscalls"
GOALS: Final = {SCHED: 6.0, CALLS: 6.0}
"""How many times as fast as trace-cmd report."""


def run(options: Options) -> Report:
    """Record, export, then run all of them in turn."""
    if shutil.which("trace-cmd") is None:
        raise CannotMeasureError("no trace-cmd to compare with: apt install trace-cmd")
    with scratch(options.disk_dir) as directory:
        wanted = LEAST_EVENTS // (10 if options.quick else 1)
        load = PIPES.format(count=wanted // EVENTS_PER_TURN // 2 + 1)
        trace = record(directory / "t", load, EVENTS)
        exported = directory / "t.dat"
        export(trace, EVERYTHING, "trace.dat", exported)
        path = str(trace.path)
        commands = {
            THEIRS: ["trace-cmd", "report", "-N", str(exported)],
            TEXT: [*LTTV, "text", path, "--jobs", "1"],
            SCHED: [*LTTV, "stats", path, "sched"],
            CALLS: [*LTTV, "stats", path, "syscalls"],
        }
        events = int(output([sys.executable, "-c", COLUMNS, path]))
        if events < wanted * 9 // 10:
            raise CannotMeasureError(f"{events} events were recorded, {wanted} are wanted")
        samples = in_turn(commands, options.rounds_or(proper=3, quick=1))
    return report_of(NAME, f"{events:,} events of {EVENTS}", events, samples, GOALS)

"""``lttv text --style babeltrace`` and decoding to columns beside ``babeltrace2``, on one trace.

The trace is made (bench/ctf_trace.py): 5 million events of a kernel's scheduler, interrupts and
system calls, on two CPUs, with the contexts procname and tid.  lttd replays it into a trace of its
own.  All programs write to /dev/null, and each is measured from its start to its end.  "columns"
reads the columns that every event has (time, cpu, type and pid) of a complete
``for batch in trace.window()``; "a field" also reads one of each sched_switch.
"""

import shutil
import subprocess
import sys
from typing import Final

from bench.common import CannotMeasureError, Options, scratch
from bench.ctf_trace import write_trace
from bench.recorders import environment, last_line, lttd_command
from bench.report import Report
from bench.text import LTTV, in_turn, output, report_of

NAME: Final = "ctf"
LEAST_EVENTS: Final = 3_000_000
PERIODS: Final = 21
COLUMNS: Final = """\
import lttd, sys
events = 0
for batch in lttd.open(sys.argv[1]).window():
    events += len(batch)
    batch.time, batch.cpu, batch.type, batch.pid
    {field}
print(events)
"""
FIELD: Final = 'batch["sched_switch"]["next_tid"]'
THEIRS, ALONE, TWO = "babeltrace2", "text, 1 process", "text, 2 processes"
DECODED, FIELDS = "columns", "a field"
# name -> times as fast as babeltrace2
GOALS: Final = {TWO: 5.0, DECODED: 30.0}


def run(options: Options) -> Report:
    """Make the trace, replay it, then run all programs in turn."""
    if shutil.which("babeltrace2") is None:
        raise CannotMeasureError("no babeltrace2 to compare with: apt install babeltrace2")
    with scratch(options.disk_dir) as directory:
        original, trace = directory / "ctf", directory / "t"
        write_trace(original, 1 if options.quick else PERIODS)
        words = ("--trace-dir", str(trace), "--source", f"replay:{original}", "--summary", "none")
        done = subprocess.run(
            lttd_command(*words), capture_output=True, text=True, check=False, env=environment()
        )
        if done.returncode:
            raise CannotMeasureError(last_line(done.stderr))
        text = [*LTTV, "text", str(trace), "--style", "babeltrace", "--jobs"]
        commands = {
            THEIRS: ["babeltrace2", str(original)],
            ALONE: [*text, "1"],
            TWO: [*text, "2"],
            DECODED: [sys.executable, "-c", COLUMNS.format(field=""), str(trace)],
            FIELDS: [sys.executable, "-c", COLUMNS.format(field=FIELD), str(trace)],
        }
        events = int(output(commands[DECODED]))
        if events < LEAST_EVENTS and not options.quick:
            raise CannotMeasureError(f"{events} events were decoded, {LEAST_EVENTS} are wanted")
        samples = in_turn(commands, options.rounds_or(proper=5, quick=1))
    return report_of(NAME, f"{events:,} events like those of lttng", events, samples, GOALS)

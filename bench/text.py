"""``lttv text`` and decoding to columns beside ``trace-cmd report``, on one trace.

The benchmark records the trace (sched, irq, timer, syscalls; two busy CPUs) and exports it to
trace.dat for trace-cmd.  All programs write to /dev/null; "columns" is a complete
``for batch in trace.window()``.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from typing import Final

from bench.common import CannotMeasureError, Options, scratch, settle
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Plot, Report, median
from bench.traces import BUSY, record
from lttd.view.export import export
from lttd.view.times import EVERYTHING

NAME: Final = "text"
EVENTS: Final = "sched:*,irq:*,timer:*,syscalls:*"
LEAST_EVENTS: Final = 5_000_000
LTTV: Final = (sys.executable, "-m", "lttd.view")
COLUMNS: Final = (
    "import lttd, sys; print(sum(len(batch) for batch in lttd.open(sys.argv[1]).window()))"
)
THEIRS, ALONE, TWO, DECODED = "trace-cmd report", "text, 1 process", "text, 2 processes", "columns"
# name -> times as fast as trace-cmd
GOALS: Final = {ALONE: 4.0, TWO: 7.0, DECODED: 16.0}


def run(options: Options) -> Report:
    """Record, export, then run all of them in turn."""
    if shutil.which("trace-cmd") is None:
        raise CannotMeasureError("no trace-cmd to compare with: apt install trace-cmd")
    rounds = options.rounds_or(proper=5, quick=1)
    with scratch(options.disk_dir) as directory:
        turns = LEAST_EVENTS // (80 if options.quick else 8) + 1
        trace = record(directory / "t", BUSY.format(count=turns), EVENTS)
        exported = directory / "t.dat"
        export(trace, EVERYTHING, "trace.dat", exported)
        commands = {
            THEIRS: ["trace-cmd", "report", "-N", str(exported)],
            ALONE: [*LTTV, "text", str(trace.path), "--jobs", "1"],
            TWO: [*LTTV, "text", str(trace.path), "--jobs", "2"],
            DECODED: [sys.executable, "-c", COLUMNS, str(trace.path)],
        }
        events = int(output(commands[DECODED]))
        if events < LEAST_EVENTS and not options.quick:
            raise CannotMeasureError(f"{events} events were recorded, {LEAST_EVENTS} are wanted")
        samples = in_turn(commands, rounds)
    of = f"{events:,} events of {EVENTS}"
    return report_of(NAME, of, events, samples, GOALS)


def in_turn(commands: dict[str, list[str]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Run commands in turn, *rounds* times; return wall and CPU seconds of each."""
    settle()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            samples[name].append(_timed(words))
    return samples


def output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise CannotMeasureError(f"{words[0]}: {last_line(done.stderr)}")
    return done.stdout


def _timed(words: list[str]) -> tuple[float, float]:
    """Run a command without keeping its output; return its wall and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report_of(
    name: str,
    title: str,
    events: int,
    samples: dict[str, list[tuple[float, float]]],
    goals: dict[str, float],
) -> Report:
    """Compare all commands with the first one; *goals*: how many times as fast they have to be."""
    theirs = next(iter(samples))
    program = theirs.partition(" ")[0]
    walls = {each: median([wall for wall, _ in found]) or 0.0 for each, found in samples.items()}
    spent = {each: median([cpu for _, cpu in found]) or 0.0 for each, found in samples.items()}
    rows: list[list[Cell]] = [
        [
            each, walls[each], spent[each], round(events / walls[each]),
            walls[theirs] / walls[each], spent[theirs] / spent[each],
        ]
        for each in samples
    ]  # fmt: skip
    figures = [
        Figure(f"{each}: events/s, times {program}'s", walls[theirs] / walls[each], ">=", goal)
        for each, goal in goals.items()
    ]
    notes = [
        f"wall times on {len(os.sched_getaffinity(0))} CPUs depend on the machine's other load;"
        " the last column compares CPU time, which depends on it less"
    ]
    return Report(
        name,
        title,
        ["what", "wall s", "CPU s", "events/s", "times as fast", "times less CPU"],
        rows,
        figures,
        notes,
        {each: [{"wall_s": w, "cpu_s": c} for w, c in found] for each, found in samples.items()},
        plot=Plot(
            "million events/s",
            {
                "wall time": {
                    each: [events / wall / 1e6 for wall, _ in found]
                    for each, found in samples.items()
                }
            },
        ),
    )

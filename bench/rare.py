"""A rare event out of a long trace: with the occurrence table, and without it.

The trace is a recording of some seconds, repeated with later times.  Its rare event is
sched_process_exec: a shell starts the load.  Both questions print the same lines, in one process
each.  Each is asked cold, after the files were dropped from the page cache, and then warm.  CPU
seconds are those of the whole lttv, start included.
"""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import lttd
from bench.common import CannotMeasureError, Options, cpu_s, file_system, scratch, settle, wait
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Report, median, ratio
from bench.traces import BUSY, record, repeated
from bench.window import LTTV, forget
from lttd.view.trace import Trace

NAME: Final = "rare"
EVENTS: Final = "sched:*,raw_syscalls:*"
RARE: Final = "sched_process_exec"
CALLS: Final = 4_000_000
MOST_SHARE: Final = 0.02
MOST_TABLE_SHARE: Final = 0.005
WITH, WITHOUT = "with the table", "without"
STATES: Final = ("cold", "warm")
Run = tuple[float, float]
"""Wall and CPU seconds."""


def run(options: Options) -> Report:
    """Make the trace, index it, and ask in turn."""
    rounds = options.rounds_or(proper=3, quick=1)
    wanted_bytes = round((options.gigabytes or (0.5 if options.quick else 10)) * 1e9)
    with scratch(options.disk_dir) as directory:
        calls = CALLS // (20 if options.quick else 1)
        recorded = record(directory / "recorded", BUSY.format(count=calls), EVENTS)
        times = -(-wanted_bytes // _data_bytes(recorded))
        trace = repeated(recorded, directory / "long", times)
        shutil.rmtree(recorded.path)
        settle()
        made, _ = _timed("index", str(trace.path))
        samples: dict[str, list[Run]] = {}
        lines = set()
        for _ in range(rounds):
            for name in (WITHOUT, WITH):
                forget(trace)
                for state in STATES:
                    asked, out = _asked(trace, with_table=name == WITH)
                    samples.setdefault(f"{name}, {state}", []).append(asked)
                    lines.add(out)
            samples.setdefault("the first line", []).append(
                _timed("text", str(trace.path), "-n", "1")[0]
            )
        if len(lines) != 1:
            raise CannotMeasureError("the answers differ")
        return _report(options, samples, made, trace, lines.pop().count("\n"))


def _data_bytes(trace: Trace) -> int:
    return sum(stream.paths.data.stat().st_size for stream in trace.segments[0].streams)


def _asked(trace: Trace, *, with_table: bool) -> tuple[Run, str]:
    """Ask for the rare event; return what _timed() does."""
    table = trace.segments[0].paths.occurrences
    aside = table.with_name("aside")
    if not with_table:
        table.rename(aside)
    try:
        return _timed("text", str(trace.path), "--event", RARE, "--jobs", "1")
    finally:
        if not with_table:
            aside.rename(table)


def _timed(*words: str) -> tuple[Run, str]:
    """Run lttv; return its seconds, and its output."""
    began = time.perf_counter()
    with Path("/dev/null").open() as nothing:
        process = subprocess.Popen(
            [*LTTV, *words], stdin=nothing, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment(),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        out, told = process.stdout.read(), process.stderr.read()
        used = cpu_s(wait(process))
    if process.returncode:
        raise CannotMeasureError(f"lttv {words[0]}: {last_line(told)}")
    return (time.perf_counter() - began, used), out


def _subbuffers(trace: Trace, *events: str) -> int:
    """Return how many sub-buffers may hold some events, by the table."""
    found = lttd.open(trace.path).window(events=events or None).subbuffers()
    return sum(len(part.numbers) for part in found)


def _report(
    options: Options, samples: dict[str, list[Run]], made: Run, trace: Trace, lines: int
) -> Report:
    data_bytes = _data_bytes(trace)
    table_bytes = trace.segments[0].paths.occurrences.stat().st_size
    rows: list[list[Cell]] = []
    figures = []
    for at, unit in enumerate(("wall", "CPU")):
        found = {name: [one[at] for one in runs] for name, runs in samples.items()}
        rows += [
            [f"{name}, {unit} s", median(some), min(some), max(some)]
            for name, some in found.items()
        ]
        for state in STATES:
            share = ratio(*(median(found[f"{name}, {state}"]) for name in (WITH, WITHOUT)))
            figures.append(
                Figure(f"{state}, {unit} time with the table / without", share, "<", MOST_SHARE)
            )
    rows.append(["lttv index, CPU s/GB", made[1] / data_bytes * 1e9, None, None])
    figures.append(
        Figure("bytes of the table / data", table_bytes / data_bytes, "<", MOST_TABLE_SHARE)
    )
    return Report(
        NAME,
        f"{lines:,} lines of {RARE} in {data_bytes / 1e9:,.1f} GB of {EVENTS},"
        f" on {file_system(options.disk_dir)}",
        ["what", "median", "least", "most"],
        rows,
        figures,
        [
            f"{_subbuffers(trace, RARE):,} of {_subbuffers(trace):,} sub-buffers may hold one;"
            " the first line is lttv text -n 1: most of it is start-up"
        ],
        dict(samples),
    )

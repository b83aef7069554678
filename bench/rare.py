"""A rare event out of a long trace: with the occurrence table, and without it.

The trace is a recording of a few seconds, repeated with later times.  Its rare event is
sched_process_exec.  Both questions print the same lines; each is asked of files in the page cache,
as far as they fit, and in one process.  CPU seconds are those of the whole lttv, start included.
"""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from bench.common import CannotMeasureError, Options, cpu_s, file_system, scratch, settle, wait
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Report, median, ratio
from bench.traces import BUSY, record, repeated
from bench.window import LTTV
from lttd.view.trace import Trace

NAME: Final = "rare"
EVENTS: Final = "sched:*,raw_syscalls:*"
RARE: Final = "sched_process_exec"
CALLS: Final = 400_000
MOST_SHARE: Final = 0.02
MOST_TABLE_SHARE: Final = 0.005
Run = tuple[float, float]
"""Wall and CPU seconds."""


def run(options: Options) -> Report:
    """Make the trace, index it, and ask in turn."""
    rounds = options.rounds_or(proper=3, quick=1)
    wanted_bytes = round((options.gigabytes or (0.5 if options.quick else 10)) * 1e9)
    with scratch(options.disk_dir) as directory:
        recorded = record(directory / "recorded", BUSY.format(count=CALLS), EVENTS)
        times = max(wanted_bytes // _data_bytes(recorded), 1)
        trace = repeated(recorded, directory / "long", times)
        shutil.rmtree(recorded.path)
        settle()
        data_bytes = _data_bytes(trace)
        made, _ = _timed("index", str(trace.path))
        table = trace.segments[0].paths.occurrences
        samples: dict[str, list[Run]] = {"with the table": [], "without": []}
        lines = set()
        for _ in range(rounds):
            for name, found in samples.items():
                aside = table.with_name("aside")
                if name == "without":
                    table.rename(aside)
                asked, out = _timed("text", str(trace.path), "--event", RARE, "--jobs", "1")
                if name == "without":
                    aside.rename(table)
                found.append(asked)
                lines.add(out)
        if len(lines) != 1:
            raise CannotMeasureError("the answers differ")
        table_bytes = table.stat().st_size
    return _report(options, samples, made, data_bytes, table_bytes, lines.pop().count("\n"))


def _data_bytes(trace: Trace) -> int:
    return sum(stream.paths.data.stat().st_size for stream in trace.segments[0].streams)


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


def _report(
    options: Options,
    samples: dict[str, list[Run]],
    made: Run,
    data_bytes: int,
    table_bytes: int,
    lines: int,
) -> Report:
    gigabytes = data_bytes / 1e9
    rows: list[list[Cell]] = []
    shares: list[float | None] = []
    for at, unit in enumerate(("wall s", "CPU s")):
        found = {name: [one[at] for one in runs] for name, runs in samples.items()}
        rows += [
            [f"{RARE}, {name}, {unit}", median(some), min(some), max(some)]
            for name, some in found.items()
        ]
        shares.append(ratio(median(found["with the table"]), median(found["without"])))
    rows.append(["lttv index, CPU s/GB", made[1] / gigabytes, None, None])
    return Report(
        NAME,
        f"{lines:,} lines of {RARE} in {gigabytes:,.1f} GB of {EVENTS},"
        f" on {file_system(options.disk_dir)}",
        ["what", "median", "least", "most"],
        rows,
        [
            Figure("wall time with the table / without", shares[0], "<", MOST_SHARE),
            Figure("CPU time with the table / without", shares[1], "<", MOST_SHARE),
            Figure("bytes of the table / data", table_bytes / data_bytes, "<", MOST_TABLE_SHARE),
        ],
        [
            "the recording is repeated, so each repetition has the event; with the table,"
            " start-up, cutting pieces and decoding those that hold it take about a third each"
        ],
        dict(samples),
    )

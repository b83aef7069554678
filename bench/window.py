"""A window of 100 ms as text, from a trace of a thousand sub-buffers and from one of a million.

The short trace is a real recording; the long one repeats it with later times, so the same window
of any repetition has the same lines.  Each window is printed twice: cold, after its files were
dropped from the page cache, and then warm.  Start-up is the time of ``lttv --version``, and the
time to the first line.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.common import CannotMeasureError, Options, file_system, scratch, settle
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Plot, Report, median, ratio
from bench.traces import BURSTS, first_subbuffers, period_ns, record, repeated
from lttd.view.trace import Trace

NAME: Final = "window"
FEW: Final = 1000
WINDOW_NS: Final = 100_000_000
LTTV: Final = (sys.executable, "-m", "lttd.view")
EVENTS: Final = "sched:*,raw_syscalls:*,irq:*,timer:*"
MOST_RATIO: Final = 1.3
MOST_START_S: Final = 0.25


def run(options: Options) -> Report:
    """Write both traces, then print windows of them in turn."""
    times = 100 if options.quick else 1000
    rounds = options.rounds_or(proper=20, quick=5)
    with scratch(options.disk_dir) as directory:
        recorded = record(directory / "recorded", BURSTS.format(seconds=3), EVENTS)
        short = first_subbuffers(recorded, directory / "short", FEW)
        if period_ns(short) < 2 * WINDOW_NS:
            raise CannotMeasureError(f"{FEW} sub-buffers were full after {period_ns(short)} ns")
        long = repeated(short, directory / "long", times)
        settle()
        samples: dict[str, list[float]] = {}
        lines = set()
        chosen = random.Random(1)
        for number in range(rounds + 1):
            repetition = chosen.randrange(times)
            for name, trace, offset in (
                (_named(FEW), short, 0),
                (_named(FEW * times), long, repetition * period_ns(short)),
            ):
                forget(trace)
                begin = (short.begin or 0) + WINDOW_NS // 2 + offset
                for state in ("cold", "warm"):
                    seconds, count = shown(trace, begin)
                    lines.add(count)
                    if number:
                        samples.setdefault(f"{name}, {state}", []).append(seconds)
            for name, words in (
                ("lttv --version", ["--version"]),
                ("the first line", ["text", str(long.path), "-n", "1"]),
            ):
                seconds, _ = _timed(words)
                if number:
                    samples.setdefault(name, []).append(seconds)
        if len(lines) != 1:
            raise CannotMeasureError(f"the same window has {sorted(lines)} lines")
        data_bytes = sum(s.paths.data.stat().st_size for s in long.segments[0].streams)
    return _report(options, samples, FEW * times, lines.pop(), data_bytes)


def _named(subbuffers: int) -> str:
    return f"{subbuffers:,} sub-buffers"


def shown(trace: Trace, begin_ns: int) -> tuple[float, int]:
    """Print 100 ms; return seconds and lines."""
    times = (f"{at // 10**9}.{at % 10**9:09}" for at in (begin_ns, begin_ns + WINDOW_NS))
    begin, end = times
    return _timed(["text", str(trace.path), "--begin", begin, "--end", end])


def _timed(words: list[str]) -> tuple[float, int]:
    """Run lttv; return its wall time in seconds, and its number of lines."""
    began = time.perf_counter()
    done = subprocess.run([*LTTV, *words], capture_output=True, check=False, env=environment())
    seconds = time.perf_counter() - began
    if done.returncode or not done.stdout:
        raise CannotMeasureError(f"lttv {words[0]}: {last_line(done.stderr.decode())}")
    return seconds, done.stdout.count(b"\n")


def forget(trace: Trace) -> None:
    """Drop a trace's streams from the page cache."""
    for path in Path(trace.path).glob("*/[cs]*/**/*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _report(
    options: Options, samples: dict[str, list[float]], many: int, lines: int, data_bytes: int
) -> Report:
    rows: list[list[Cell]] = [
        [name, 1e3 * (median(found) or 0), 1e3 * min(found), 1e3 * max(found)]
        for name, found in samples.items()
    ]

    def grown(state: str) -> float | None:
        few, long = (median(samples[f"{_named(count)}, {state}"]) for count in (FEW, many))
        return ratio(long, few)

    return Report(
        NAME,
        f"100 ms as text, {lines:,} lines, traces on {file_system(options.disk_dir)}",
        ["what", "median ms", "least ms", "most ms"],
        rows,
        [
            Figure(f"window, {many:,} sub-buffers / {FEW:,}", grown("warm"), "<=", MOST_RATIO),
            Figure(f"the same, cold, {many:,} / {FEW:,}", grown("cold"), "<=", MOST_RATIO),
            Figure("lttv --version, median", median(samples["lttv --version"]), "<",
                   MOST_START_S, "s"),
            Figure("start to the first line, median", median(samples["the first line"]), "<",
                   MOST_START_S, "s"),
        ],
        [f"the long trace has {data_bytes / 1e9:.1f} GB of data: the short one, a recording of"
         f" {EVENTS}, {many // FEW} times, written by lttd's own writer"],
        dict(samples),
        plot=Plot("ms", {
            state: {_named(n): [1e3 * s for s in samples[f"{_named(n)}, {state}"]]
                    for n in (FEW, many)}
            for state in ("cold", "warm")
        }),
    )  # fmt: skip

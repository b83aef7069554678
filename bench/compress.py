"""A compressed segment beside the plain one: its size, the CPU time to make it, a cold window.

The same recording is compressed by ``lttv compress``, by ``zstd -T1`` (its stream files, each as
one frame) and by ``trace-cmd convert --compression zstd``, which compresses as ``trace-cmd record``
does when it ends.  CPU seconds are those of the whole process.  A window is the text of 100 ms,
printed after the files were dropped from the page cache.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.common import CannotMeasureError, Options, cpu_s, file_system, scratch, settle, wait
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Report, median, ratio
from bench.traces import BUSY, record
from bench.window import LTTV, forget, shown
from lttd.view.trace import Trace

NAME: Final = "compress"
EVENTS: Final = "sched:*,irq:*,timer:*,syscalls:*"
MOST_WINDOW_RATIO: Final = 1.5
MOST_INDEX_PERCENT: Final = 10
WINDOW_NS: Final = 100_000_000
CALLS: Final = 400_000

Made = tuple[float, int]
"""CPU seconds, and the bytes of the result."""


def run(options: Options) -> Report:
    """Record, compress in each way in turn, then print windows of both forms in turn."""
    rounds = options.rounds_or(proper=5, quick=1)
    with scratch(options.disk_dir) as directory:
        plain = record(directory / "plain", BUSY.format(count=CALLS), EVENTS)
        dat = directory / "plain.dat"
        _cpu([*LTTV, "export", str(plain.path), "--to", "trace.dat", "-o", str(dat)])
        streams = sorted(plain.segments[0].paths.streams.glob("ftrace_*"))
        data_bytes = sum(path.stat().st_size for path in streams)
        plain_bytes = data_bytes + sum(path.stat().st_size for path in _indexes(plain))
        ways: dict[str, tuple[int, Callable[[], Made]]] = {}
        for level in (1, 3):
            ways[f"lttv compress --level {level}, with indexes"] = (
                plain_bytes, lambda level=level: _ours(plain.path, directory / "ours", level),
            )  # fmt: skip
            ways[f"zstd -{level} -T1, without indexes"] = (
                data_bytes, lambda level=level: _zstd(streams, directory / "zstd", level),
            )  # fmt: skip
        if shutil.which("trace-cmd"):
            ways["trace-cmd convert --compression zstd"] = (
                dat.stat().st_size, lambda: _trace_cmd(dat, directory / "converted.dat"),
            )  # fmt: skip
        made: dict[str, list[Made]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (_, act) in ways.items():
                settle()
                made[name].append(act())
        shutil.copytree(plain.path, directory / "compressed")
        _cpu([*LTTV, "compress", str(directory / "compressed")])
        compressed = Trace(directory / "compressed")
        sizes = {
            "data": (data_bytes, _stored_bytes(compressed, "*.zst")),
            "index": (plain_bytes - data_bytes, _stored_bytes(compressed, "index/*.zst")),
        }
        windows = _windows(plain, compressed, 4 * rounds)
    return _report(options, ways, made, windows, sizes)


def _stored_bytes(compressed: Trace, names: str) -> int:
    (segment,) = compressed.segments
    return sum(path.stat().st_size for path in segment.paths.compressed.glob(names))


def _cpu(command: Sequence[str], cwd: Path | None = None) -> float:
    """Run a command; return its CPU seconds."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    assert process.stderr is not None
    told = process.stderr.read()
    used = cpu_s(wait(process))
    if process.returncode:
        raise CannotMeasureError(f"{command[0]}: {last_line(told)}")
    return used


def _indexes(trace: Trace) -> list[Path]:
    return sorted(trace.segments[0].paths.index.glob("*.idx"))


def _ours(plain: Path, copy: Path, level: int) -> Made:
    shutil.copytree(plain, copy)
    used = _cpu([*LTTV, "compress", "--level", str(level), str(copy)])
    made = sum(path.stat().st_size for path in copy.glob("*/compressed/**/*.zst"))
    shutil.rmtree(copy)
    return used, made


def _zstd(streams: Sequence[Path], out: Path, level: int) -> Made:
    out.mkdir()
    names = [str(path) for path in streams]
    used = _cpu(["zstd", "-q", "-T1", f"-{level}", "--output-dir-flat", str(out), *names])
    made = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    return used, made


def _trace_cmd(dat: Path, out: Path) -> Made:
    used = _cpu(
        ["trace-cmd", "convert", "-i", str(dat), "-o", str(out), "--compression", "zstd"],
        cwd=dat.parent,
    )
    made = out.stat().st_size
    out.unlink()
    return used, made


def _windows(plain: Trace, compressed: Trace, rounds: int) -> dict[str, list[float]]:
    """Print the same windows of both forms; return the seconds."""
    assert plain.span is not None
    samples: dict[str, list[float]] = {"plain": [], "compressed": []}
    chosen = random.Random(1)
    for number in range(rounds + 1):
        begin = chosen.randrange(plain.span.begin, plain.span.end - WINDOW_NS)
        lines = set()
        for name, trace in (("plain", plain), ("compressed", compressed)):
            forget(trace)
            seconds, count = shown(trace, begin)
            lines.add(count)
            if number:
                samples[name].append(seconds)
        if len(lines) != 1:
            raise CannotMeasureError(f"the same window has {sorted(lines)} lines")
    return samples


def _report(
    options: Options,
    ways: dict[str, tuple[int, Callable[[], Made]]],
    made: dict[str, list[Made]],
    windows: dict[str, list[float]],
    sizes: dict[str, tuple[int, int]],
) -> Report:
    rows: list[list[Cell]] = []
    for name, found in made.items():
        whole = ways[name][0]
        per_gb = [used / whole * 1e9 for used, _ in found]
        rows.append([name, whole / found[0][1], median(per_gb), min(per_gb), max(per_gb)])
    for name, (plain_bytes, compressed_bytes) in sizes.items():
        rows.append([f"the {name} alone, level 1", plain_bytes / compressed_bytes, *[None] * 3])
    plain_bytes, compressed_bytes = (sum(each) for each in zip(*sizes.values(), strict=True))
    for name, seconds in windows.items():
        rows.append([f"100 ms cold, {name}, ms", None, *(
            1e3 * value for value in (median(seconds) or 0, min(seconds), max(seconds))
        )])  # fmt: skip
    grown = ratio(median(windows["compressed"]), median(windows["plain"]))
    return Report(
        NAME,
        f"{plain_bytes / 1e6:,.0f} MB of {EVENTS}, on {file_system(options.disk_dir)}",
        ["what", "ratio", "CPU s/GB, median", "least", "most"],
        rows,
        [
            Figure("a cold 100 ms, compressed / plain", grown, "<=", MOST_WINDOW_RATIO),
            Figure("ratio of data and index, level 1", plain_bytes / compressed_bytes, ">=", 8),
            Figure(
                "share of the index in a compressed segment",
                100 * sizes["index"][1] / compressed_bytes,
                "<=",
                MOST_INDEX_PERCENT,
                "%",
            ),
        ],
        ["lttv's CPU time includes its start, a second read of the original and the comparison"],
        {"windows_s": windows, "made": made, "sizes": sizes},
        {"rounds": len(next(iter(made.values()))), "cpus": os.cpu_count()},
    )

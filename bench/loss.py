"""Losses with small rings while the disk is writing back, beside ``trace-cmd record``.

Both recorders run in turn, pair by pair, with the same load and the same background writer.  The
losses of both are the kernel's own counters, as shares of all events.
"""

from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from bench.common import (
    Instance,
    Load,
    Options,
    background,
    compiled,
    file_system,
    scratch,
    settle,
    syscall_load,
)
from bench.recorders import Lttd, TraceCmd
from bench.report import Cell, Figure, Plot, Report, median

NAME: Final = "loss"
RINGS_MIB: Final = (1, 2, 4, 8)
NO_LOSS_FROM_MIB: Final = 4
MOST_LOST_PERCENT: Final = 0.3
"""The goal for the smallest rings, without --priority."""
WRITEBACK_MIB: Final = 1024

NAMES: Final = ("lttd", "lttd --priority", "trace-cmd")

Shares = dict[int, dict[str, list[float]]]


def run(options: Options) -> Report:
    """Measure pairs for every ring size."""
    pairs = options.rounds_or(proper=10, quick=1)
    calls = 300_000 if options.quick else 3_000_000
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    shares: Shares = {ring_mib: defaultdict(list) for ring_mib in RINGS_MIB}
    for number in range(pairs):
        for ring_mib in RINGS_MIB:
            recorders = _recorders(ring_mib)
            # The order alternates, so that neither always finds the disk as the other left it.
            for name in sorted(recorders, reverse=bool(number % 2)):
                sample = _measure(options.disk_dir, recorders[name], calls, ring_mib)
                samples[f"{name}, {ring_mib} MiB"].append(sample)
                shares[ring_mib][name].append(sample["lost_share"])
    title = f"median share of events lost while {file_system(options.disk_dir)} is writing back"
    return Report(
        NAME,
        title,
        [
            "ring MiB",
            "pairs",
            *(word for name in NAMES for word in (f"{name} %", "worst %")),
            "all counted",
        ],
        [_row(ring_mib, shares[ring_mib], samples) for ring_mib in RINGS_MIB],
        _figures(shares),
        samples=dict(samples),
        settings={"pairs": pairs, "calls_per_cpu": calls, "writeback_mib": WRITEBACK_MIB},
        plot=Plot(
            "events lost, %",
            {
                name: {
                    f"{ring_mib} MiB": [100 * share for share in shares[ring_mib][name]]
                    for ring_mib in RINGS_MIB
                }
                for name in NAMES
            },
        ),
    )


def _recorders(ring_mib: int) -> dict[str, Lttd | TraceCmd]:
    return {
        "lttd": Lttd("packed", "--buffer-size", f"{ring_mib}M"),
        "lttd --priority": Lttd("packed", "--buffer-size", f"{ring_mib}M", "--priority", "1"),
        "trace-cmd": TraceCmd("-b", str(ring_mib << 10)),
    }


def _measure(
    parent: Path, recorder: Lttd | TraceCmd, calls_per_cpu: int, ring_mib: int
) -> dict[str, Any]:
    settle()
    with Instance("loss") as instance, scratch(parent) as directory:
        instance.set_sizes(ring_mib << 10, 4)
        with (
            _writeback(directory) as writer,
            recorder.recording(instance, directory, "raw_syscalls:*") as recording,
        ):
            with syscall_load(calls_per_cpu) as load:
                load.wait()
            still_writing = writer.processes[0].poll() is None
            recorded = recorder.recorded(recording, directory)
        counters = instance.counters()
    return {
        "lost_share": counters.lost_share,
        "lost": counters.lost,
        "read": counters.read,
        "told_lost": recorded.summary.get("events_lost"),
        "writing_back": still_writing,
        "cpu_s": recorded.cpu_s,
    }


def _writeback(directory: Path) -> AbstractContextManager[Load]:
    command = [str(compiled("writeback")), str(directory / "dirty"), str(WRITEBACK_MIB)]
    return background([command])


def _row(ring_mib: int, shares: dict[str, list[float]], samples: dict[str, Any]) -> list[Cell]:
    told = all(
        sample["told_lost"] == sample["lost"]
        for name in NAMES[:2]
        for sample in samples[f"{name}, {ring_mib} MiB"]
    )
    row: list[Cell] = [ring_mib, len(shares["lttd"])]
    for name in NAMES:
        row += [100 * (median(shares[name]) or 0.0), 100 * max(shares[name])]
    return [*row, "yes" if told else "NO"]


def _figures(shares: Shares) -> list[Figure]:
    figures = []
    for ring_mib in RINGS_MIB:
        ours = median(shares[ring_mib]["lttd"])
        theirs = median(shares[ring_mib]["trace-cmd"]) or 0.0
        name = f"lttd, {ring_mib} MiB rings"
        percent = None if ours is None else 100 * ours
        figures.append(Figure(f"{name}, against trace-cmd", percent, "<=", 100 * theirs, "%"))
        if ring_mib == min(RINGS_MIB):
            figures.append(Figure(name, percent, "<=", MOST_LOST_PERCENT, "%"))
        if ring_mib >= NO_LOSS_FROM_MIB:
            worst = 100 * max(shares[ring_mib]["lttd"])
            figures.append(Figure(f"{name}, worst run", worst, "=", 0.0, "%"))
    return figures

"""How far do segments exceed ``--segment-size`` under load?

A CPU in a syscall loop writes some 100 MB/s.  A segment can exceed its limit by what comes until
the next one is used, so the excess is shown in MB and as a part of the limit.
"""

from pathlib import Path
from typing import Any, Final

from bench.common import (
    Instance,
    Options,
    background,
    compiled,
    cpus,
    file_system,
    scratch,
    settle,
)
from bench.recorders import Lttd
from bench.report import Cell, Figure, Plot, Report, median
from lttd.manifest import Manifest
from lttd.tracedir import segments_below

NAME: Final = "roll"
LIMITS_MIB: Final = (1, 20, 100)
RING_KIB: Final = 16 << 10
MB: Final = 1_000_000


def run(options: Options) -> Report:
    """Record the load with each limit; compare the sizes of the segments with it."""
    rounds = options.rounds_or(proper=5, quick=1)
    calls = 1_500_000 if options.quick else 6_000_000
    samples: dict[int, list[dict[str, Any]]] = {limit_mib: [] for limit_mib in LIMITS_MIB}
    for _ in range(rounds):
        for limit_mib, measured in samples.items():
            measured.append(_measure(options.disk_dir, limit_mib, calls))
    return Report(
        NAME,
        f"excess of segments over their limit, 1 CPU, {file_system(options.disk_dir)}",
        ["limit MiB", "segments", "MB/s", "median excess MB", "worst MB", "median %", "lost"],
        [_row(limit_mib, measured) for limit_mib, measured in samples.items()],
        [
            Figure(
                "median excess of a 20 MiB segment",
                _median_percent(samples[20], 20),
                "<=",
                5.0,
                "%",
            ),
        ],
        samples={f"{limit_mib} MiB": measured for limit_mib, measured in samples.items()},
        settings={"ring_kib": RING_KIB, "calls": calls, "rounds": rounds},
        plot=Plot(
            "excess, % of the limit",
            {"lttd": {f"{mib} MiB": _percents(measured, mib) for mib, measured in samples.items()}},
        ),
    )


def _measure(parent: Path, limit_mib: int, calls: int) -> dict[str, Any]:
    recorder = Lttd("packed", "--buffer-size", f"{RING_KIB}K", "--segment-size", f"{limit_mib}M")
    load_command = [str(compiled("syscall_load")), str(cpus()[0]), str(calls)]
    settle()
    with Instance("roll") as instance, scratch(parent) as directory:
        with recorder.recording(instance, directory, "raw_syscalls:*") as recording:
            with background([load_command]) as load:
                load.wait()
            recorded = recorder.recorded(recording, directory)
        sizes, seconds = _sizes(directory / "trace")
    return {
        # The last segment ended with the recording, before its limit.
        "excess_bytes": [size - (limit_mib << 20) for size in sizes[:-1]],
        "segments": len(sizes),
        "bytes_per_s": sum(sizes) / seconds,
        "lost": recorded.summary["events_lost"],
    }


def _sizes(trace: Path) -> tuple[list[int], float]:
    """Return the payload of each segment in bytes, and the time that all of them span in s."""
    manifests = [Manifest.read(paths.manifest) for paths in segments_below(trace)]
    summaries = [[stream.summary for stream in one.streams if stream.summary] for one in manifests]
    snapshots = [snapshot.trace for one in manifests for snapshot in one.clock_snapshots]
    sizes = [sum(summary.payload_bytes for summary in some) for some in summaries]
    return sizes, (max(snapshots) - min(snapshots)) / 1e9


def _percents(measured: list[dict[str, Any]], limit_mib: int) -> list[float]:
    return [100 * excess / (limit_mib << 20) for one in measured for excess in one["excess_bytes"]]


def _median_percent(measured: list[dict[str, Any]], limit_mib: int) -> float | None:
    return median(_percents(measured, limit_mib))


def _row(limit_mib: int, measured: list[dict[str, Any]]) -> list[Cell]:
    excess = [each / MB for one in measured for each in one["excess_bytes"]]
    return [
        limit_mib,
        sum(one["segments"] for one in measured),
        (median([one["bytes_per_s"] for one in measured]) or 0.0) / MB,
        median(excess),
        max(excess, default=None),
        _median_percent(measured, limit_mib),
        sum(one["lost"] for one in measured),
    ]

"""Losses and CPU time of a recording that rolls, with and without ``--compress zstd`` beside it.

Both run in turn, round by round, with the same load.  The losses are the kernel's own counters, as
shares of all events.  *steady* keeps both CPUs busy, so the compressor, which is idle, gets next to
no time.  *bursts* leave it the pauses, and each burst finds it at work.  A ring holds two bursts: a
reader that is late by 40 ms loses events.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.common import Instance, Options, file_system, scratch, settle, syscall_load
from bench.recorders import Lttd, Recording
from bench.report import Cell, Figure, Plot, Report, median
from lttd.compressor import PROCESS_NAME

NAME: Final = "compressing"
SIDES: Final = {"plain": (), "zstd": ("--compress", "zstd")}
SEGMENT_SIZE: Final = "20M"
BURST: Final = (5_000, 20_000)
"""The calls of a burst (0.5 MB of events on each CPU), and the us of the pause after it."""


class Case(NamedTuple):
    """A load, and the rings that are recorded."""

    load: str
    ring_mib: int
    calls_per_cpu: int
    burst: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.load}, {self.ring_mib} MiB rings"


CASES: Final = (Case("bursts", 1, 1_000_000, BURST), Case("steady", 4, 1_500_000))
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

Samples = dict[Case, dict[str, list[dict[str, Any]]]]
"""The measurements of each side."""


def run(options: Options) -> Report:
    """Measure each case on both sides, round by round."""
    rounds = options.rounds_or(proper=5, quick=1)
    cases = [case._replace(calls_per_cpu=case.calls_per_cpu // (5 if options.quick else 1))
             for case in CASES]  # fmt: skip
    samples: Samples = {case: {side: [] for side in SIDES} for case in cases}
    for number in range(rounds):
        for case in cases:
            # The order alternates, so that neither always finds the disk as the other left it.
            for side in sorted(SIDES, reverse=bool(number % 2)):
                samples[case][side].append(_measure(options.disk_dir, case, side))
    return Report(
        NAME,
        f"segments of {SEGMENT_SIZE} on {file_system(options.disk_dir)}, compressed beside or not",
        [
            "load", "side", "lost %, median", "least", "most", "rounds with more lost",
            "drain CPU s/GB", "compressor CPU s", "compressed under load",
        ],
        [_row(case, side, samples) for case in cases for side in SIDES],
        [_figure(case, samples) for case in cases],
        [
            "lost: by the kernel's counters; drain CPU: lttd's own, while the load ran; compressed:"
            " segments of all rounds that were compressed when the load ended"
        ],
        {f"{case}, {side}": found for case in cases for side, found in samples[case].items()},
        {"rounds": rounds, "cases": cases},
        Plot("events lost, %", {
            side: {str(case): _percents(samples[case][side]) for case in cases} for side in SIDES
        }),
    )  # fmt: skip


def _measure(parent: Path, case: Case, side: str) -> dict[str, Any]:
    settle()
    size = f"{case.ring_mib}M"
    recorder = Lttd("packed", "--buffer-size", size, "--segment-size", SEGMENT_SIZE, *SIDES[side])
    with Instance("compressing") as instance, scratch(parent) as directory:
        instance.set_sizes(case.ring_mib << 10, 4)
        with recorder.recording(instance, directory, "raw_syscalls:*") as recording:
            with syscall_load(case.calls_per_cpu, *case.burst) as load:
                load.wait()
            cpu, trace = _cpu_s_by_name(recording), directory / "trace"
            segments, compressed = (len(list(trace.glob(p))) for p in ("2*", "2*/compressed"))
            delivered_bytes = recorder.recorded(recording, directory).delivered_bytes
        counters = instance.counters()
    return {
        "lost_share": counters.lost_share,
        "lost": counters.lost,
        "read": counters.read,
        "drain_s_per_gb": cpu["lttd"] / delivered_bytes * 1e9,
        "compressor_s": cpu[PROCESS_NAME],
        "segments": segments,
        "compressed": compressed,
    }


def _cpu_s_by_name(recording: Recording) -> Counter[str]:
    """Return the CPU seconds that lttd has used so far, and each of its children by its name."""
    pid = recording.process.pid
    children = Path(f"/proc/{pid}/task").glob("*/children")
    used = Counter(lttd=_cpu_s(pid))
    for child in {child for each in children for child in each.read_text().split()}:
        used[Path(f"/proc/{child}/comm").read_text().strip()] += _cpu_s(int(child))
    return used


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _percents(found: list[dict[str, Any]]) -> list[float]:
    return [100 * sample["lost_share"] for sample in found]


def _row(case: Case, side: str, samples: Samples) -> list[Cell]:
    found = samples[case][side]
    shares, plain = _percents(found), _percents(samples[case]["plain"])
    more = sum(ours > base for ours, base in zip(shares, plain, strict=True))
    done, made = (sum(sample[name] for sample in found) for name in ("compressed", "segments"))
    return [
        str(case), side, median(shares), min(shares), max(shares),
        None if side == "plain" else f"{more} of {len(found)}",
        median([sample["drain_s_per_gb"] for sample in found]),
        median([sample["compressor_s"] for sample in found]),
        f"{done} of {made}",
    ]  # fmt: skip


def _figure(case: Case, samples: Samples) -> Figure:
    """Return the median loss beside a compressor; rounds without one differ by as much."""
    plain, zstd = (_percents(samples[case][side]) for side in SIDES)
    return Figure(f"{case}: lost, compressing", median(zstd), "<=", max(plain), "%")

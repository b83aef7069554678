"""Two CPUs in a syscall loop, every syscall recorded: is every event on the disk?

In every run, on a real disk file system, the number of events that ``lttv check`` decodes must
equal the kernel's own ``read events``, and nothing may be lost.
"""

from pathlib import Path
from typing import Any, Final

from bench.common import Instance, Options, file_system, scratch, settle, syscall_load
from bench.recorders import Lttd, check_events
from bench.report import Figure, Plot, Report

NAME: Final = "live"
RING_KIB: Final = 16 << 10


def run(options: Options) -> Report:
    """Record the load several times; compare three counts of the same events."""
    rounds = options.rounds_or(proper=10, quick=2)
    calls = 500_000 if options.quick else 3_000_000
    samples = [_measure(options.disk_dir, calls) for _ in range(rounds)]
    whole = sum(sample["in_trace"] == sample["read_events"] for sample in samples)
    checked = sum(sample["whole"] for sample in samples)
    lossless = sum(not sample["kernel_lost"] and not sample["told_lost"] for sample in samples)
    return Report(
        NAME,
        f"{calls:,} getppid calls on each of 2 CPUs, 16 MiB rings, {file_system(options.disk_dir)}",
        ["run", "read events", "in the trace", "kernel lost", "lttd counted lost", "lttd CPU s"],
        [
            [
                number,
                sample["read_events"],
                sample["in_trace"],
                sample["kernel_lost"],
                sample["told_lost"],
                sample["cpu_s"],
            ]
            for number, sample in enumerate(samples, 1)
        ],
        [
            Figure("runs where events in the trace = read events", whole, "=", rounds),
            Figure("traces that lttv check finds whole", checked, "=", rounds),
            Figure("runs where nothing was lost", lossless, "=", rounds),
        ],
        samples={"runs": samples},
        settings={"ring_kib": RING_KIB, "calls_per_cpu": calls},
        plot=Plot("lttd, CPU s", {"lttd": {"whole run": [sample["cpu_s"] for sample in samples]}}),
    )


def _measure(parent: Path, calls_per_cpu: int) -> dict[str, Any]:
    recorder = Lttd("packed", "--buffer-size", f"{RING_KIB}K")
    settle()
    with Instance("live") as instance, scratch(parent) as directory:
        with recorder.recording(instance, directory, "raw_syscalls:*") as recording:
            with syscall_load(calls_per_cpu) as load:
                load.wait()
            recorded = recorder.recorded(recording, directory)
        counters = instance.counters()
        in_trace, whole = check_events(directory / "trace")
    return {
        "read_events": counters.read,
        "in_trace": in_trace,
        "kernel_lost": counters.lost,
        "told_lost": recorded.summary["events_lost"],
        "left_in_ring": counters.entries,
        "whole": whole,
        "cpu_s": recorded.cpu_s,
    }

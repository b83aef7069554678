"""As many streams as a wide machine has, beside two: CPU time per GB, starved streams, memory.

Fake streams bring 4 MB/s each, 256 of them 1 GB/s in all.  Real rings are those of many tracefs
instances that one lttd records; marks fill them, with 0.8 MB/s each.  Both are more than a disk
takes, so they go to tmpfs.  Only the CPU time of lttd while the marks are written counts: starting
and ending cost more with every instance, but a wide machine has one instance.

Fake streams bring no more than the memory that warm() has just used: with the 8 GB of 8 s, of which
the host had taken back what was free for 2 s, equal runs took 0.9 to 3.4 CPU seconds per GB.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bench.common import (
    TMPFS_DIR,
    CannotMeasureError,
    Instance,
    Options,
    background,
    cpus,
    file_system,
    scratch,
    warm,
)
from bench.fakestreams import peak_memory_bytes
from bench.marks import MARK_BYTES
from bench.recorders import GATE, Recording, environment, last_line, lttd_command
from bench.report import Cell, Figure, Plot, Report, median, ratio

NAME: Final = "wide"
FAKES: Final = (2, 256)
FAKE_MB_PER_S: Final = 1024
FAKE_SECONDS: Final = 2
# A quarter of a ring of 4 MiB: at this fill the kernel wakes lttd.
TAKE_KIB: Final = 1024
INSTANCES: Final = (1, 128)
RINGS_KIB: Final = 2 * 128 * 4096
"""Of all rings together: two rings hold a burst for as long as many do, up to MOST_RING_KIB."""
MOST_RING_KIB: Final = 64 << 10
REAL_MB_PER_S: Final = 200
BACKLOG_MIB: Final = 64

Sample = dict[str, Any]
Samples = dict[tuple[str, int], list[Sample]]


def run(options: Options) -> Report:
    """Measure few and many streams in turn."""
    seconds = 1 if options.quick else 8
    fake_seconds = 1 if options.quick else FAKE_SECONDS
    instances = (1, 8) if options.quick else INSTANCES
    samples: Samples = {("fakes", count): [] for count in FAKES}
    samples |= {("rings", count * len(cpus())): [] for count in instances}
    for _ in range(options.rounds_or(proper=5, quick=1)):
        for count in FAKES:
            samples["fakes", count].append(_fakes(count, fake_seconds))
        for count in instances:
            found = _rings(count, seconds)
            samples["rings", count * len(cpus())].append(found)
    return _report(samples, seconds)


def _fakes(count: int, seconds: int) -> Sample:
    mib_per_s = FAKE_MB_PER_S * 1e6 / (1 << 20)
    warm(TMPFS_DIR, int(FAKE_MB_PER_S * 1e6 * seconds))
    with scratch(TMPFS_DIR) as directory:
        command = [
            sys.executable, "-m", "bench.fakestreams", str(directory / "trace"),
            "--streams", str(count), "--mib", str(int(mib_per_s * seconds)),
            "--take-kib", str(TAKE_KIB), "--backlog-mib", str(BACKLOG_MIB),
            "--mib-per-s", str(mib_per_s),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
    if done.returncode != 0:
        raise CannotMeasureError(last_line(done.stderr))
    sample: Sample = json.loads(done.stdout)
    return {**sample, "lost": 0}


def _rings(count: int, seconds: int) -> Sample:
    ring_kib = min(RINGS_KIB // (count * len(cpus())), MOST_RING_KIB)
    with contextlib.ExitStack() as stack:
        instances = [stack.enter_context(Instance(f"wide{number}")) for number in range(count)]
        for instance in instances:
            instance.write("trace_clock", "mono")
            instance.set_sizes(ring_kib, 4)
            instance.write("buffer_percent", max(1, 100 * TAKE_KIB // ring_kib))
        directory = stack.enter_context(scratch(TMPFS_DIR))
        sources = [
            word for instance in instances for word in ("--source", f"ftrace:{instance.name}")
        ]
        command = lttd_command(
            *("--trace-dir", str(directory / "trace"), *sources),
            *("--summary", f"json:{directory / 'summary.json'}"),
            *("--", *GATE),
        )
        recording = Recording(command, directory)
        stack.callback(recording.end)
        used_s = _cpu_s(recording.process.pid)
        _fill(instances, seconds)
        used_s = _cpu_s(recording.process.pid) - used_s
        peak_bytes = peak_memory_bytes(recording.process.pid)
        recording.finish()
        lost = sum(instance.counters().lost for instance in instances)
        summary = json.loads((directory / "summary.json").read_text())
        stored = [stream["payload_bytes"] for stream in summary["streams"]]
    return {
        "cpu_s": used_s,
        "stored_bytes": sum(stored),
        "streams_served": sum(size > 0 for size in stored),
        "least_share": min(stored) / max(stored),
        "peak_memory_bytes": peak_bytes,
        "lost": lost,
    }


def _fill(instances: list[Instance], seconds: int) -> None:
    """Write marks into all rings of *instances*, for so many seconds."""
    marks_per_s = REAL_MB_PER_S * 1e6 / MARK_BYTES / len(cpus())
    paths = [str(instance.path) for instance in instances]
    marks = int(marks_per_s * seconds / len(instances))
    writer = [sys.executable, "-m", "bench.marks"]
    words = ["--marks", str(marks), "--marks-per-s", str(marks_per_s), *paths]
    with background([[*writer, str(cpu), *words] for cpu in cpus()]) as load:
        load.wait()


def _cpu_s(pid: int) -> float:
    """Return the CPU time of the threads of a process that live now."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _report(samples: Samples, seconds: int) -> Report:
    def cpu_s_per_gb(key: tuple[str, int]) -> list[float]:
        return [each["cpu_s"] / (each["stored_bytes"] / 1e9) for each in samples[key]]

    rows: list[list[Cell]] = [
        [
            kind,
            count,
            median(cpu_s_per_gb((kind, count))),
            min(each["streams_served"] for each in found),
            min(each["least_share"] for each in found),
            sum(each["lost"] for each in found),
            max(each["peak_memory_bytes"] for each in found) / (1 << 20),
        ]
        for (kind, count), found in samples.items()
    ]
    figures = []
    for kind in ("fakes", "rings"):
        few, many = (key for key in samples if key[0] == kind)
        found, limit_mib = samples[many], 64 + BACKLOG_MIB + 0.25 * many[1]
        grown = ratio(median(cpu_s_per_gb(many)), median(cpu_s_per_gb(few)))
        peak_mib = max(each["peak_memory_bytes"] for each in found) / (1 << 20)
        least = min(each["least_share"] for each in found)
        lost = sum(each["lost"] for each in found)
        many_of = f"{many[1]} {kind}"
        figures += [
            Figure(f"CPU per GB, {many_of} / {few[1]}", grown, "<=", 1.2),
            Figure(f"least of a stream / most of one, {many_of}", least, ">=", 0.95),
            Figure(f"events lost, {many_of}", lost, "=", 0),
            Figure(f"most memory, {many_of}", peak_mib, "<=", limit_mib, "MiB"),
        ]
    rates = f"fakes: {FAKE_MB_PER_S} MB/s in all, rings: {REAL_MB_PER_S} MB/s in all"
    return Report(
        NAME,
        f"streams of a wide machine ({file_system(TMPFS_DIR)})",
        ["what", "streams", "CPU s/GB", "served", "least / most", "lost", "most memory MiB"],
        rows,
        figures,
        [rates],
        {f"{kind}, {count}": found for (kind, count), found in samples.items()},
        {
            "seconds": seconds,
            "fake_seconds": FAKE_SECONDS,
            "take_kib": TAKE_KIB,
            "rings_kib": RINGS_KIB,
        },
        plot=Plot(
            "CPU s / GB",
            {
                name: {
                    kind: cpu_s_per_gb([key for key in samples if key[0] == kind][at])
                    for kind in ("fakes", "rings")
                }
                for at, name in enumerate(("few", "many"))
            },
        ),
    )

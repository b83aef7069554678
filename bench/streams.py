"""256 streams beside 2: does every stream get its turn, and how do CPU time and memory grow?

The streams are fakes, and deliver the same number of bytes in all, be they 256 or 2.  They deliver
at a steady rate that the disk can follow, or all at once, so that the backlog is always full.
"""

import json
import subprocess
import sys
from typing import Any, Final

from bench.common import CannotMeasureError, Options, file_system, scratch, settle
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Plot, Report, median, ratio

NAME: Final = "streams"
FEW: Final = 2
MANY: Final = 256
TAKES_KIB: Final = (64, 512)
BACKLOG_MIB: Final = 64
STEADY: Final = "steady"
AT_ONCE: Final = "all at once"
STEADY_MIB_PER_S: Final = 150
# Trio runs ready tasks in random order: a stream that is first and then last waits two rounds.
LONGEST_WAIT_ROUNDS: Final = 3.0

Samples = dict[tuple[str, int, int], list[dict[str, Any]]]


def run(options: Options) -> Report:
    """Measure both numbers of streams in turn, with small and with large takes."""
    mib = 128 if options.quick else 1024
    samples: Samples = {
        (pace, take_kib, count): []
        for pace in (STEADY, AT_ONCE)
        for take_kib in TAKES_KIB
        for count in (FEW, MANY)
    }
    for _ in range(options.rounds_or(proper=7, quick=1)):
        for (pace, take_kib, count), found in samples.items():
            rate = ["--mib-per-s", str(STEADY_MIB_PER_S)] if pace == STEADY else []
            found.append(_measure(options, count, mib, take_kib, rate))
    return _report(options, samples, mib)


def _measure(
    options: Options, count: int, mib: int, take_kib: int, rate: list[str]
) -> dict[str, Any]:
    settle()
    with scratch(options.disk_dir) as directory:
        command = [
            sys.executable, "-m", "bench.fakestreams", str(directory / "trace"),
            "--streams", str(count), "--mib", str(mib), "--take-kib", str(take_kib),
            "--backlog-mib", str(BACKLOG_MIB), *rate,
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
    if done.returncode != 0:
        raise CannotMeasureError(last_line(done.stderr))
    sample: dict[str, Any] = json.loads(done.stdout)
    return sample


def _report(options: Options, samples: Samples, mib: int) -> Report:
    def per_mb_us(pace: str, take_kib: int, count: int) -> list[float]:
        found = samples[pace, take_kib, count]
        return [1e6 * sample["cpu_s"] / (sample["stored_bytes"] / 1e6) for sample in found]

    def most(count: int, key: str) -> float:
        return max(
            float(sample[key])
            for (_, _, streams), found in samples.items()
            for sample in found
            if streams == count
        )

    rows: list[list[Cell]] = [
        [
            pace,
            take_kib,
            count,
            median(per_mb_us(pace, take_kib, count)),
            min(sample["streams_served"] for sample in found),
            max(sample["longest_wait_rounds"] for sample in found),
            max(sample["peak_memory_bytes"] for sample in found) / (1 << 20),
            max(sample["backlog_high_water_bytes"] for sample in found) / (1 << 20),
        ]
        for (pace, take_kib, count), found in samples.items()
    ]
    served = min(
        sample["streams_served"]
        for (_, _, count), found in samples.items()
        for sample in found
        if count == MANY
    )
    limit_mib = 64 + BACKLOG_MIB + 0.25 * MANY
    figures = [
        Figure("streams that were served", served, "=", MANY),
        Figure(
            "longest wait for a turn",
            most(MANY, "longest_wait_rounds"),
            "<=",
            LONGEST_WAIT_ROUNDS,
            "rounds",
        ),
        Figure(
            f"most memory, {MANY} streams",
            most(MANY, "peak_memory_bytes") / (1 << 20),
            "<=",
            limit_mib,
            "MiB",
        ),
    ]
    for pace in (STEADY, AT_ONCE):
        for kib in TAKES_KIB:
            grown = ratio(median(per_mb_us(pace, kib, MANY)), median(per_mb_us(pace, kib, FEW)))
            name = f"CPU per MB, {MANY} / {FEW} streams, {pace}, takes of {kib} KiB"
            figures.append(Figure(name, grown, "<=", 1.2))
    return Report(
        NAME,
        f"{mib} MiB of fake streams into {file_system(options.disk_dir)}",
        [
            "pace",
            "take KiB",
            "streams",
            "CPU us/MB",
            "served",
            "longest wait, rounds",
            "most memory MiB",
            "backlog MiB",
        ],
        rows,
        figures,
        samples={
            f"{pace}, {count} streams, {kib} KiB": found
            for (pace, kib, count), found in samples.items()
        },
        settings={"mib": mib, "backlog_mib": BACKLOG_MIB, "steady_mib_per_s": STEADY_MIB_PER_S},
        plot=Plot(
            "CPU us / MB",
            {
                f"{count} streams": {
                    f"{pace},\n{kib} KiB": per_mb_us(pace, kib, count)
                    for pace in (STEADY, AT_ONCE)
                    for kib in TAKES_KIB
                }
                for count in (FEW, MANY)
            },
        ),
    )

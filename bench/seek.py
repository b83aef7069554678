"""Look-ups in an index of ten million entries beside one of ten thousand, from a cold cache.

Every look-up opens the index anew after its pages were dropped from the page cache.  /proc/self/io
counts the bytes that it read; mincore counts the bytes in memory afterwards, read-ahead included.
"""

import os
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import CannotMeasureError, Options, file_system, resident_bytes, scratch, settle
from bench.ondisk import INDEX_ENTRY, INDEX_HEADER, INDEX_MAGIC
from bench.report import Cell, Figure, Plot, Report, median, ratio
from lttd.index import SeekIndex

NAME: Final = "seek"
SIZES: Final = (10_000, 10_000_000)
PERIOD_NS: Final = 1000
"""Sub-buffer number n covers the times from n * PERIOD_NS up to the next one."""
CHUNK_ENTRIES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class LookUp:
    """One look-up."""

    seconds: float
    read_bytes: int
    resident_bytes: int


def run(options: Options) -> Report:
    """Write both indexes, then look up in each of them in turn, cold and warm."""
    look_ups = options.rounds_or(proper=100, quick=10)
    sizes = (SIZES[0], 1_000_000) if options.quick else SIZES
    samples: dict[int, list[LookUp]] = {size: [] for size in sizes}
    warm: dict[int, list[float]] = {size: [] for size in sizes}
    file_bytes: dict[int, int] = {}
    with scratch(options.disk_dir) as directory:
        paths = {size: directory / f"{size}.idx" for size in sizes}
        for size, path in paths.items():
            write_index(path, size)
            file_bytes[size] = path.stat().st_size
        settle()
        chosen = random.Random(1)
        for _ in range(look_ups):
            for size, path in paths.items():
                number = chosen.randrange(size)
                samples[size].append(_cold(path, number))
                warm[size].append(_seconds(path, number))
    return _report(options, samples, warm, file_bytes)


def _report(
    options: Options,
    samples: dict[int, list[LookUp]],
    warm: dict[int, list[float]],
    file_bytes: dict[int, int],
) -> Report:
    few, many = samples
    cold = {size: [look_up.seconds for look_up in found] for size, found in samples.items()}
    most_bytes = {size: max(_touched(look_up) for look_up in samples[size]) for size in samples}
    rows: list[list[Cell]] = [
        [
            size,
            file_bytes[size],
            1e6 * (median(cold[size]) or 0),
            1e6 * max(cold[size]),
            1e6 * (median(warm[size]) or 0),
            median([_touched(look_up) for look_up in samples[size]]),
            most_bytes[size],
        ]
        for size in samples
    ]
    return Report(
        NAME,
        f"one look-up, index on {file_system(options.disk_dir)}",
        ["entries", "file bytes", "cold us", "worst us", "warm us", "read bytes", "most bytes"],
        rows,
        [
            Figure(
                f"cold look-up, {many:,} entries / {few:,}",
                ratio(median(cold[many]), median(cold[few])),
                "<=",
                3.0,
            ),
            Figure(
                f"most read of {many:,} entries, share of the file",
                100 * most_bytes[many] / file_bytes[many],
                "<",
                1.0,
                "%",
            ),
        ],
        ["cold: opened anew after posix_fadvise(DONTNEED) left no page of it in memory"],
        {str(size): [asdict(look_up) for look_up in found] for size, found in samples.items()},
        plot=Plot(
            "microseconds",
            {
                name: {f"{size:,} entries": [1e6 * s for s in found[size]] for size in samples}
                for name, found in (("cold", cold), ("warm", warm))
            },
        ),
    )


def _touched(look_up: LookUp) -> int:
    return max(look_up.read_bytes, look_up.resident_bytes)


def write_index(path: Path, size: int) -> None:
    """Write an index of *size* entries of 4 KiB sub-buffers, PERIOD_NS each."""
    with path.open("wb") as file:
        file.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, 1, INDEX_ENTRY.itemsize))
        for first in range(0, size, CHUNK_ENTRIES):
            numbers = np.arange(first, min(first + CHUNK_ENTRIES, size), dtype=np.uint64)
            entries = np.zeros(len(numbers), INDEX_ENTRY)
            entries["offset_bytes"] = numbers * np.uint64(4096)
            entries["packet_bits"] = entries["content_bits"] = 4096 * 8
            entries["begin"] = numbers * np.uint64(PERIOD_NS)
            entries["end"] = numbers * np.uint64(PERIOD_NS) + np.uint64(PERIOD_NS - 1)
            entries["sequence"] = numbers
            entries.tofile(file)


def _cold(path: Path, number: int) -> LookUp:
    drop(path)
    if resident_bytes(path):
        raise CannotMeasureError(f"{path}: pages of it stay in memory; is it on a real disk?")
    before = read_bytes()
    seconds = _seconds(path, number)
    return LookUp(seconds, read_bytes() - before, resident_bytes(path))


def _seconds(path: Path, number: int) -> float:
    """Open the index and look up one entry; return the seconds that it took.

    Raises:
        CannotMeasureError: the look-up found another entry.
    """
    wanted = number * PERIOD_NS + PERIOD_NS // 2
    began = time.perf_counter()
    found = SeekIndex(path).first_at_or_after(wanted)
    seconds = time.perf_counter() - began
    if found != number:
        raise CannotMeasureError(f"{path}: entry {found} was found instead of {number}")
    return seconds


def drop(path: Path) -> None:
    """Drop a file's clean pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def read_bytes() -> int:
    """Return the number of bytes that this process caused to be read from disks."""
    match = re.search(r"^read_bytes:\s*(\d+)", Path("/proc/self/io").read_text(), re.M)
    return int(match[1]) if match else 0

"""Marks that every CPU numbers, run by run; and the numbers that a trace has of them.

A run of lttd has the numbers from RUN * its own number on, so that they rise over the whole trace.
"""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.subbuffer import Unit
from lttd.tracedir import SegmentPaths, segments_below
from tests.marks import MAGIC
from tests.running import Run

RUN = 1_000_000_000
CPUS = sorted(os.sched_getaffinity(0))
# Usage: PATH CPU FIRST MARKS_PER_S BYTES; it writes until stdin ends, and prints the next number.
# It loads nothing of lttd's, so that it starts at once.
WRITER = """
import os, select, struct, sys, time
path, (cpu, first, rate, size) = sys.argv[1], map(int, sys.argv[2:])
os.sched_setaffinity(0, {cpu})
fd, number, begin = os.open(path, os.O_WRONLY), first, time.monotonic()
pack, padding = struct.Struct("<I8sQ").pack, bytes(size)
while not select.select([0], [], [], 0.002)[0]:
    due = first + int((time.monotonic() - begin) * rate)
    while number < due:
        os.write(fd, pack(7, b"numbered", number) + padding)
        number += 1
print(number)
"""


@contextmanager
def numbering(run: Run, number: int, marks_per_s: int, size: int) -> Iterator[dict[int, int]]:
    """Write the marks of run *number* during the block; then the result has their count by CPU.

    Each mark has *size* bytes more than its number.
    """
    path, written = run.instance / "trace_marker_raw", {}
    words = [sys.executable, "-S", "-E", "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    numbers = [str(number * RUN), str(marks_per_s), str(size)]
    writers = {cpu: subprocess.Popen([*words, str(cpu), *numbers], **pipes) for cpu in CPUS}
    try:
        yield written
        for cpu, writer in writers.items():
            written[cpu] = int(writer.communicate()[0]) - number * RUN
    finally:
        for writer in writers.values():
            writer.kill()
            writer.wait()


def numbers(segment: SegmentPaths, cpu: int) -> list[int]:
    """Return the numbers that one CPU has in a segment, in the order of its data."""
    manifest = Manifest.read(segment.manifest)
    found: list[int] = []
    for record in manifest.streams:
        if record.name == f"ftrace_{cpu}":
            data = bytes(StoredStream(segment, manifest, record).read())
            places = (match.end() for match in re.finditer(MAGIC, data))
            found += [struct.unpack_from("<Q", data, at)[0] for at in places]
    return found


def lost(segment: SegmentPaths, cpu: int) -> int:
    """Return the number of events that one CPU is known to lack in a segment."""
    gaps = read_gaps(segment.stream(f"ftrace_{cpu}").gaps)
    return sum(gap.count or 0 for gap in gaps if gap.unit is Unit.EVENTS)


def assert_none_twice(found: Iterable[int]) -> None:
    """Assert that numbers rise."""
    for one, other in pairwise(found):
        assert one < other, (one, other)


def first_of_run(trace: Path) -> int:
    """Return the number of the first segment of the latest run."""
    for segment in reversed(segments_below(trace)):
        source = Manifest.read(segment.manifest).source
        if not source.get("rolled_from") and not source.get("previous_run"):
            return segment.number
    return 0

"""Numbered marks from every CPU while lttd rolls: none is missing, none comes twice."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lttd.manifest import Manifest
from lttd.tracedir import SegmentPaths, segments_below
from tests.marks import numbers_by_row
from tests.running import QUIET, Launcher, Run, assert_whole, lttv, needs_kernel, until

pytestmark = needs_kernel()

NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
ROLLS = 100 if NIGHTLY else 12
MARKS_PER_S = 10_000
CPUS = sorted(os.sched_getaffinity(0))
# Usage: RAW_MARKER CPU MARKS_PER_S; it writes until its stdin is closed, and prints the number.
WRITER = """
import os, select, sys, time
path, cpu, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.sched_setaffinity(0, {cpu})
from tests.marks import MAGIC, MARK
fd, number, begin = os.open(path, os.O_WRONLY), 0, time.monotonic()
while not select.select([0], [], [], 0.001)[0]:
    while number < (time.monotonic() - begin) * rate:
        os.write(fd, MARK.pack(7, MAGIC, number))
        number += 1
print(number)
"""


@contextmanager
def writing(run: Run) -> Iterator[dict[int, int]]:
    """Write marks on every CPU during the block; then the result has the number of each CPU."""
    path, written = run.instance / "trace_marker_raw", {}
    words = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = {
        cpu: subprocess.Popen([*words, str(cpu), str(MARKS_PER_S)], cwd=Path.cwd(), **pipes)
        for cpu in CPUS
    }
    try:
        yield written
        for cpu, writer in writers.items():
            written[cpu] = int(writer.communicate()[0])
    finally:
        for writer in writers.values():
            writer.kill()
            writer.wait()


def numbers(segments: Sequence[SegmentPaths], cpu: int) -> list[int]:
    """Return the marks of one CPU in the order in which they are stored."""
    rows = [row for one in segments for row in numbers_by_row(one, f"ftrace_{cpu}")]
    return [number for row in rows for number in row]


@pytest.mark.parametrize("limit", ["--segment-size=64K", "--segment-duration=100ms", "SIGUSR1"])
def test_no_mark_is_missing_or_doubled_over_many_rolls(
    lttd: Launcher, tmp_path: Path, limit: str
) -> None:
    trace = tmp_path / "t"
    by_signal = not limit.startswith("--")
    options = ["--flush-interval", "20ms", "--summary", "none"]
    run = lttd.start("-t", trace, *QUIET, *options, *(() if by_signal else (limit,))).recording()
    with writing(run) as written:
        while (made := len(segments_below(trace))) <= ROLLS:
            if by_signal:
                run.signal(signal.SIGUSR1)
                until(lambda n=made: len(segments_below(trace)) > n, "a roll")
            time.sleep(0.02)
    assert run.end() == 0, run.stderr
    assert run.stderr == ""
    segments = segments_below(trace)
    assert all(numbers(segments, cpu) == list(range(written[cpu])) for cpu in CPUS)
    report = assert_whole(trace, "--events")
    assert {one["state"] for one in report["segments"]} == {"closed"}
    names = ["", *(segment.directory.name for segment in segments)]
    for before, segment in zip(names, segments, strict=False):
        assert Manifest.read(segment.manifest).source.get("rolled_from", "") == before
    assert_text_is_continuous(trace, sum(written.values()))


def assert_text_is_continuous(trace: Path, count: int) -> None:
    """Assert that ``lttv text`` prints each mark once, in the order of time."""
    done = lttv("text", trace)
    assert (done.returncode, done.stderr) == (0, "")
    times = [float(time) for time in re.findall(r"^.* (\d+\.\d+): ", done.stdout, re.MULTILINE)]
    assert len(times) == count
    assert times == sorted(times)

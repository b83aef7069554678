"""The files beside the streams of a rolled ftrace segment: shared, small, and complete."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lttd.tracedir import SegmentPaths, segments_below
from tests.instances import mark
from tests.running import Launcher, lttv, needs_kernel, until

pytestmark = needs_kernel()

MOST_BYTES = (20 << 20) // 100
"""1 % of a segment of 20 MB."""


def beside_bytes(segment: SegmentPaths) -> int:
    """Return the bytes of a segment's files beside its streams, shared ones included."""
    files = (path for path in segment.directory.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if segment.streams not in path.parents)


# All events include the probes of other tests, which could not be removed.
@pytest.fixture(params=["sched:*", pytest.param("*:*", marks=pytest.mark.alone)])
def rolled(request: pytest.FixtureRequest, lttd: Launcher, tmp_path: Path) -> Path:
    """A trace of three segments, each with a mark; a task ended during the first one."""
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, "--events", request.param, "--summary", "none").recording()
    shutil.copy("/bin/sleep", tmp_path / "endedearly")
    for number in range(3):
        mark(run.instance, f"segment {number}")
        if not number:
            subprocess.run([tmp_path / "endedearly", "0.01"], check=True)
        if number < 2:
            run.signal(signal.SIGUSR1)
            until(lambda n=number: len(segments_below(trace)) == n + 2, "a roll")
            until(lambda n=number: not segments_below(trace)[n].lock.exists(), "it is closed")
    time.sleep(0.1)
    assert run.end() == 0, run.stderr
    return trace


def test_a_later_segment_is_complete_alone_and_takes_no_more_than_a_hundredth(
    rolled: Path, tmp_path: Path
) -> None:
    first, second, third = segments_below(rolled)
    formats = [one.directory / "tracefs/formats.gz" for one in (first, second, third)]
    assert {path.stat().st_nlink for path in formats} == {3}, "they share one file"
    for segment in (second, third):
        assert beside_bytes(segment) <= MOST_BYTES
        assert b"\tendedearly\n" in (segment.directory / "tracefs/commands").read_bytes()
    alone = tmp_path / "alone" / third.directory.name
    shutil.copytree(third.directory, alone)
    done = lttv("text", alone.parent)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "complete on all CPUs since" in line
    assert "segment 2" in done.stdout

"""A bounded store for half an hour under load, in one run, and with a kill every 20 s.

The load is numbered marks on every CPU: 4 MB a second on two CPUs, so that the store of 200 MB is
new after 50 s.  The rings hold more than a second of them: other programs may take the CPU.
LTTD_RETENTION_SECONDS says how long each form takes.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from lttd.tracedir import SegmentPaths, segments_below
from tests.numbered import CPUS, RUN, assert_none_twice, first_of_run, lost, numbering, numbers
from tests.running import QUIET, Launcher, Run, assert_whole, info, needs_kernel
from tests.test_retaining_live import MIB, Sizes, watched

pytestmark = [*needs_kernel(), pytest.mark.nightly]

LASTS_S = float(os.environ.get("LTTD_RETENTION_SECONDS", "1800"))
MINUTE_S = 60
KILL_EVERY_S = 20
MARKS_PER_S, SIZE = 10_000, 180
OPTIONS = ("--max-size", "200M", "--segment-size", "20M", "--buffer-size", "16M", *QUIET)
# Of one segment on disk: its limit, an eighth of blocks ahead, its index and other files, and what
# comes until the next one is used.
SEGMENT_BYTES = 25 * MIB
SLOW_SYNC_S = 0.3
SLOW = f"""
import os, time
def slow(sync):
    def slowly(fd):
        time.sleep({SLOW_SYNC_S})
        sync(fd)
    return slowly
os.fsync, os.fdatasync = slow(os.fsync), slow(os.fdatasync)
"""


class Watch:
    """The memory and the descriptors of a process, once a second."""

    def __init__(self, run: Run) -> None:
        self._process = Path(f"/proc/{run.process.pid}")
        self.resident_bytes: list[int] = []
        self.descriptors: list[int] = []

    def look(self) -> None:
        pages = int((self._process / "statm").read_text().split()[1])
        self.resident_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(os.listdir(self._process / "fd")))

    def line(self, minute: int) -> str:
        memory = self.resident_bytes[minute * MINUTE_S :][:MINUTE_S]
        open_files = self.descriptors[minute * MINUTE_S :][:MINUTE_S]
        return (
            f"minute {minute + 1}: RSS {min(memory) / MIB:.1f} to {max(memory) / MIB:.1f} MiB,"
            f" median {median(memory) / MIB:.1f},"
            f" {min(open_files)} to {max(open_files)} descriptors"
        )


def store_line(sizes: Sizes, trace: Path) -> str:
    return (
        f"{len(sizes.seen)} segments seen, {len(segments_below(trace))} there, at most"
        f" {sizes.most_bytes / MIB:.1f} MiB, {sizes.most_segment_bytes / MIB:.1f} MiB of one"
    )


def assert_bound(sizes: Sizes) -> None:
    assert sizes.most_bytes <= 200 * MIB + sizes.most_segment_bytes


def assert_strict_bound(sizes: Sizes) -> None:
    assert sizes.most_segment_bytes <= SEGMENT_BYTES
    assert sizes.most_bytes <= 200 * MIB + SEGMENT_BYTES


def test_segments_and_store_keep_their_sizes_while_each_sync_takes_long(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    words = lttd.words("-t", trace, "--summary", "json", *OPTIONS, sync_s=5)
    words[2] = SLOW + words[2]
    run = Run(lttd, words, tmp_path)
    lttd.runs.append(run)
    run.recording()
    with watched(trace) as sizes, numbering(run, 0, MARKS_PER_S, SIZE):
        time.sleep(min(LASTS_S, 1.5 * MINUTE_S))
    assert run.end() == 0
    print(store_line(sizes, trace))
    assert_strict_bound(sizes)
    assert json.loads(run.stdout)["events_lost"] == 0
    assert_whole(trace)


def test_a_store_stays_within_its_size_for_half_an_hour_under_load(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, "--summary", "json", *OPTIONS).recording()
    watch, begin = Watch(run), time.monotonic()
    with watched(trace) as sizes, numbering(run, 0, MARKS_PER_S, SIZE) as written:
        for second in range(1, int(LASTS_S) + 1):
            time.sleep(max(begin + second - time.monotonic(), 0))
            watch.look()
            if second % MINUTE_S == 0:
                print(
                    f"{watch.line(second // MINUTE_S - 1)}; {store_line(sizes, trace)}", flush=True
                )
    assert run.end() == 0
    assert_strict_bound(sizes)
    lost_events = json.loads(run.stdout)["events_lost"], info(trace)["events_lost"]
    print(f"{sum(written.values())} marks, {lost_events} events lost")
    assert lost_events == (0, 0)
    assert_whole(trace, "--events")
    segments = segments_below(trace)
    for cpu in CPUS:
        found = [number for one in segments for number in numbers(one, cpu)]
        assert found == list(range(found[0], written[cpu]))
    # The first minute ends with all buffers in use.  At a roll two segments are open for a moment,
    # longer on a busy machine, and that costs some 4 MiB in any minute: the median leaves it out.
    first, last = watch.resident_bytes[:MINUTE_S], watch.resident_bytes[-MINUTE_S:]
    assert median(last) <= max(first) * 1.05
    assert median(watch.descriptors[-MINUTE_S:]) <= median(watch.descriptors[:MINUTE_S])


def assert_counted(segments: Sequence[SegmentPaths], run: int, written: dict[int, int]) -> int:
    """Assert that each missing mark of a killed run is counted; return how many are missing."""
    missing = 0
    for cpu in CPUS:
        found = [number for one in segments for number in numbers(one, cpu)]
        assert_none_twice(found)
        lacking = written[cpu] - sum(number // RUN == run for number in found)
        assert lacking == sum(lost(one, cpu) for one in segments), (run, cpu)
        missing += lacking
    return missing


def test_a_store_is_whole_and_counts_each_loss_when_lttd_is_killed_every_20_seconds(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    words = ("-t", trace, "--append", "--summary", "none", *OPTIONS)
    run, end, kills, missing = lttd.start(*words).recording(), time.monotonic() + LASTS_S, 0, 0
    with watched(trace) as sizes:
        while time.monotonic() < end:
            first = first_of_run(trace)
            with numbering(run, kills, MARKS_PER_S, SIZE) as written:
                time.sleep(KILL_EVERY_S)
                run.signal(signal.SIGKILL).wait()
            run = lttd.start(*words).recording()
            assert_whole(trace, "--events")
            own = [one for one in segments_below(trace) if one.number >= first]
            missing += assert_counted(own, kills, written)
            kills += 1
            if kills % 3 == 0:
                words_of_loss = f"{kills} kills: {missing} marks lost, all counted"
                print(f"{words_of_loss}; {store_line(sizes, trace)}", flush=True)
    assert run.end() == 0
    assert_bound(sizes)
    assert_whole(trace, "--events")

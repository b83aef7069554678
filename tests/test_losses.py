"""Losses under load: every count agrees, and each gap is in the place of its hole."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from lttd.index import SeekIndex, read_gaps
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import SegmentPaths, segments
from tests.marks import marks, numbers_by_row
from tests.running import (
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    info,
    loaded,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()

TINY = ("--buffer-size", "64K", "--flush-interval", "20ms")
REASONS = {"overwrite": "overwritten", "no-overwrite": "dropped"}
COUNTERS = {"overwrite": "overrun", "no-overwrite": "dropped events"}


def kernel_losses(run: Run, mode: str) -> dict[str, int]:
    return {f"ftrace_{cpu}": stats[COUNTERS[mode]] for cpu, stats in run.stats().items()}


def scraped_losses(port: int, mode: str) -> dict[str, int]:
    labels = rf'channel="ftrace",cpu="(\d+)",source="[^"]*",reason="{REASONS[mode]}"'
    pattern = rf"events_lost_total\{{{labels}\}} (\S+)"
    return {f"ftrace_{cpu}": int(float(n)) for cpu, n in re.findall(pattern, scraped(port))}


def gap_losses(segment: SegmentPaths, stream: str, mode: str) -> int:
    gaps = read_gaps(segment.stream(stream).gaps)
    assert all(gap.unit is Unit.EVENTS for gap in gaps)
    counts = [gap.count for gap in gaps if gap.reason.name.lower() == REASONS[mode]]
    return sum(count or 0 for count in counts)


@pytest.mark.parametrize("mode", ["overwrite", "no-overwrite"])
def test_kernel_metrics_summary_and_info_agree_on_the_losses(
    lttd: Launcher, tmp_path: Path, syscall_load: Path, mode: str
) -> None:
    port = free_port()
    options = [*TINY, f"--{mode}", "--events", "raw_syscalls:*", "--summary", "json"]
    run = lttd.start("-t", tmp_path / "t", *options, "--metrics", f"127.0.0.1:{port}").recording()
    with loaded(syscall_load, (0, 1)):
        until(lambda: sum(kernel_losses(run, mode).values()) > 1000, "events are lost")
        # A pause of the reader is not an error.
        run.stop()
        lost = sum(kernel_losses(run, mode).values())
        until(lambda: sum(kernel_losses(run, mode).values()) > lost + 100_000, "more are lost")
        run.signal(signal.SIGCONT)
        lost = sum(scraped_losses(port, mode).values())
        until(lambda: sum(scraped_losses(port, mode).values()) > lost, "it goes on")
    # No more events, whatever else runs here, so that all counts settle.
    (run.instance / "events/enable").write_text("0")
    until(lambda: scraped_losses(port, mode) == kernel_losses(run, mode), "metrics agree")
    kernel = kernel_losses(run, mode)
    assert run.end() == 0
    summary = json.loads(run.stdout)
    told = {stream["name"]: stream["lost"].get(REASONS[mode], 0) for stream in summary["streams"]}
    assert told == kernel
    assert summary["events_lost"] == sum(kernel.values()) > 100_000
    found = info(tmp_path / "t")
    assert found["streams"] == summary["streams"]
    assert found["events_lost"] == summary["events_lost"]
    (segment,) = segments(tmp_path / "t")
    assert {name: gap_losses(segment, name, mode) for name in kernel} == kernel
    assert_whole(tmp_path / "t", "--events")


@pytest.mark.parametrize("mode", ["overwrite", "no-overwrite"])
def test_every_hole_in_the_event_numbers_has_a_gap(
    lttd: Launcher, tmp_path: Path, mode: str
) -> None:
    run = lttd.start("-t", tmp_path / "t", *TINY, *QUIET, f"--{mode}").recording()
    with marks(run) as marking:

        def is_dry() -> bool:
            return run.stats()[0]["entries"] == 0

        marking.write(100)
        until(is_dry, "the first marks are taken")
        for _ in range(3):
            run.stop()
            lost = kernel_losses(run, mode)["ftrace_0"]
            while kernel_losses(run, mode)["ftrace_0"] < lost + 777:
                marking.write(50)
            run.signal(signal.SIGCONT)
            until(is_dry, "the ring is taken")
            marking.write(100)
            until(is_dry, "what came later is taken")
        kernel = kernel_losses(run, mode)["ftrace_0"]
    assert run.end() == 0

    (segment,) = segments(tmp_path / "t")
    rows = numbers_by_row(segment, "ftrace_0")
    flat = [number for row in rows for number in row]
    assert flat == sorted(flat)
    missing = sorted(set(range(marking.number)) - set(flat))
    assert len(missing) == kernel
    if mode == "no-overwrite":
        assert missing == marking.refused
    holes = np.zeros(len(rows) + 1, int)
    seen = 0
    for at, row in enumerate(rows):
        for number in row:
            holes[at] += number - seen
            seen = number + 1
    holes[-1] = marking.number - seen
    told = np.zeros(len(rows) + 1, int)
    for gap in read_gaps(segment.stream("ftrace_0").gaps):
        assert gap.reason in (Reason.OVERWRITTEN, Reason.DROPPED)
        told[gap.row] += gap.count or 0
    assert told.tolist() == holes.tolist()
    discarded = SeekIndex(segment.stream("ftrace_0").index).entries()["events_discarded"]
    assert discarded.tolist() == np.cumsum(holes[:-1]).tolist()
    assert_whole(tmp_path / "t", "--events")

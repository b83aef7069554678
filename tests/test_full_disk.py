"""Run lttd on a disk that is full, or fills up."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lttd.index import read_gaps
from lttd.subbuffer import Reason
from lttd.tracedir import segments
from tests.daemon_runs import TRACE, only_line
from tests.running import (
    Launcher,
    assert_whole,
    free_port,
    get,
    info,
    loaded,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "lttdtest", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            continue
    return filler


def test_a_disk_that_is_full_from_the_start_leaves_no_trace(lttd: Launcher, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        fill(disk)
        run = lttd.run("-t", disk / TRACE, "--duration", "1s")
        assert "no space left: free some, or record elsewhere" in only_line(run)
        assert run.process.returncode == 1
        assert os.listdir(disk) == ["filler"]


def test_a_disk_that_fills_up_stops_recording_and_leaves_a_whole_trace(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    with small_disk(tmp_path / "disk", "8M") as disk:
        with loaded(syscall_load):
            run = lttd.start("-t", disk / TRACE, "--events", "raw_syscalls:*", "--summary", "none")
            assert run.wait() == 1
        assert "no space left: free some, or record elsewhere" in only_line(run)
        assert os.listdir(next(iter(segments(disk / TRACE))).directory.parent)
        assert_whole(disk / TRACE, "--events")
        # All but one write, which is at most 4 MiB.
        assert info(disk / TRACE)["payload_bytes"] > 3 << 20


def test_recording_continues_past_a_full_disk_if_asked_to_and_counts_the_loss(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    # Large enough that the load does not fill it before the test sees lttd healthy again.
    with small_disk(tmp_path / "disk", "768M") as disk:
        filler = disk / "filler"
        options = ["--events", "raw_syscalls:*", "--on-write-error", "continue"]
        options += ["--flush-interval", "100ms", "--summary", "json"]
        port = free_port()
        options += ["--metrics", f"127.0.0.1:{port}"]
        run = lttd.start("-t", disk / TRACE, *options).recording()
        with loaded(syscall_load):
            until(lambda: list(disk.glob("*/*/streams/ftrace_0")), "a stream")
            data = next(iter(disk.glob("*/*/streams/ftrace_0")))
            until(lambda: data.stat().st_size > 1 << 20, "something is written")
            fill(disk)
            until(lambda: re.search(r"write_errors_total.* [1-9]", scraped(port)), "errors")
            until(lambda: get(port, "/healthz")[0] == 503, "lttd is unhealthy")
            told = get(port, "/healthz")[1]
            assert "no space left" in told or told == "ok\n", "a small batch may fit"
            filler.unlink()
            stuck = data.stat().st_size
            until(lambda: data.stat().st_size > stuck + (1 << 20), "writing goes on")
            until(lambda: get(port, "/healthz") == (200, "ok\n"), "lttd is healthy again")
            assert run.end() == 1
        assert "no space left" in run.stderr
        summary = json.loads(run.stdout)
        refused = summary["streams"][0]["lost"]["storage_subbuffers"]
        assert refused > 0
        assert info(disk / TRACE)["streams"] == summary["streams"]
        assert_whole(disk / TRACE, "--events")
        (segment,) = segments(disk / TRACE)
        gaps = read_gaps(segment.stream("ftrace_0").gaps)
        assert sum(gap.count or 0 for gap in gaps if gap.reason is Reason.STORAGE) == refused


def test_a_disk_that_stays_full_has_room_to_close_the_trace(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    with small_disk(tmp_path / "disk", "8M") as disk:
        options = ["--events", "raw_syscalls:*", "--on-write-error", "continue"]
        run = lttd.start("-t", disk / TRACE, *options, "--summary", "json").recording()
        with loaded(syscall_load):
            until(lambda: run.stats()[0]["read events"] > 500_000, "much more than there is room")
            fill(disk)
            assert run.end() == 1
        assert "Traceback" not in run.stderr
        assert "no space left" in run.lines[0]
        # The last flush is small, and may fit into the last page.
        assert re.search("no space left|can be written again", run.lines[-1])
        assert info(disk / TRACE)["state"] == "closed"
        assert info(disk / TRACE)["streams"] == json.loads(run.stdout)["streams"]
        assert_whole(disk / TRACE, "--events")
        (segment,) = segments(disk / TRACE)
        assert not segment.reserve.exists()


def test_a_full_disk_costs_the_oldest_segments_and_no_event_where_the_trace_has_a_limit(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    # The load fills a segment while the next one is made, so segments are larger than asked for.
    with small_disk(tmp_path / "disk", "192M") as disk:
        options = ["--events", "raw_syscalls:*", "--segment-size", "8M", "--max-size", "1G"]
        options += ["--buffer-size", "32M", "--summary", "json"]
        run = lttd.start("-t", disk / TRACE, *options).recording()
        (first,) = disk.glob("*/*-ftrace")
        with loaded(syscall_load):
            until(lambda: not first.exists(), "the oldest segment goes")
            read = run.stats()[0]["read events"]
            until(lambda: run.stats()[0]["read events"] > read + 2_000_000, "recording goes on")
        assert run.end() == 0
        assert "the disk is full: deleting the oldest segments" in run.stderr
        summary = json.loads(run.stdout)
        assert [each["lost"].get("storage_subbuffers", 0) for each in summary["streams"]] == [0, 0]
        assert summary["payload_bytes"] > 192 << 20
        assert_whole(disk / TRACE, "--events")


def test_a_start_on_a_full_disk_drops_the_oldest_segments_where_the_trace_has_a_limit(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    with small_disk(tmp_path / "disk", "192M") as disk:
        options = ["--events", "raw_syscalls:*", "--segment-size", "2M", "--max-size", "1G"]
        options += ["--buffer-size", "1M", "--summary", "none"]
        run = lttd.start("-t", disk / TRACE, *options).recording()
        with loaded(syscall_load):
            until(lambda: len(list(disk.glob("*/*-ftrace"))) > 3, "some segments")
        assert run.end() == 0, run.stderr
        fill(disk)
        first, *_ = sorted(disk.glob("*/*-ftrace"))
        again = lttd.start("-t", disk / TRACE, "--append", *options).recording()
        assert again.end() == 0, again.stderr
        assert "the disk is full: deleting the oldest segments" in again.stderr
        assert not first.exists()
        assert_whole(disk / TRACE, "--events")

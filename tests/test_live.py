"""Record the running kernel for a short time, from the command line to the disk."""

import json
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.manifest import Manifest
from lttd.sources.inotify import IN_OPEN, Inotify
from lttd.stored import StoredStream
from lttd.tracedir import segments
from tests.running import (
    QUIET,
    Launcher,
    assert_whole,
    free_port,
    get,
    info,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel(alone=True)

CALLS = 300_000


def streams_of(trace: Path) -> list[StoredStream]:
    (segment,) = segments(trace)
    manifest = Manifest.read(segment.manifest)
    return [StoredStream(segment, manifest, record) for record in manifest.streams]


def entries_on_disk(trace: Path) -> int:
    (segment,) = segments(trace)
    sizes = (path.stat().st_size for path in segment.index.glob("*.idx"))
    return sum((size - len(INDEX_HEADER)) // ENTRY_BYTES for size in sizes)


@pytest.mark.parametrize("layout", ["packed", "sparse"])
def test_every_event_of_a_burst_is_in_the_trace(
    lttd: Launcher, tmp_path: Path, syscall_load: Path, layout: str
) -> None:
    # The rings hold everything: bench/live.py measures whether a machine keeps up.
    loads = " & ".join(f"{syscall_load} {cpu} {CALLS}" for cpu in range(os.cpu_count() or 1))
    options = ["--events", "raw_syscalls:*", "--buffer-size", "40M", "--layout", layout]
    run = lttd.run("-t", tmp_path / "t", *options, "--", "sh", "-c", f"{loads} & wait")
    assert run.process.returncode == 0, run.stderr

    report = assert_whole(tmp_path / "t", "--events")
    (segment,) = report["segments"]
    decoded = {stream["name"]: stream["events"] for stream in segment["streams"]}
    for stream in streams_of(tmp_path / "t"):
        assert decoded[stream.name] == stream.record.counters["read events"]
    assert sum(decoded.values()) >= 2 * CALLS * (os.cpu_count() or 1)
    assert info(tmp_path / "t")["events_lost"] == 0


def test_an_event_is_on_disk_and_indexed_within_the_flush_interval(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.start("-t", tmp_path / "t", *QUIET, "--flush-interval", "200ms").recording()
    marker = run.instance / "trace_marker"

    def longest_delay_s() -> float:
        delays_s = []
        for number in range(5):
            time.sleep(0.07 * number)  # at other phases of the flush interval
            before = entries_on_disk(tmp_path / "t")
            marker.write_text(f"marker {number}\n")
            written = time.monotonic()
            until(lambda before=before: entries_on_disk(tmp_path / "t") > before, "the entry")
            delays_s.append(time.monotonic() - written)
        return max(delays_s)

    # Other load may delay some events by more, but not all.
    assert any(longest_delay_s() < 0.2 + 0.3 for _ in range(5))
    assert run.end() == 0
    for stream in streams_of(tmp_path / "t"):
        entries = stream.index.entries()
        stored = sum(int(bits) // 8 for bits in entries["packet_bits"])
        assert stored == stream.paths.data.stat().st_size
        assert (entries["packet_bits"] == entries["content_bits"]).all()


def ask_all(port: int) -> None:
    assert "\nlttd_segments 3\n" in scraped(port)
    assert get(port, "/healthz") == (200, "ok\n")
    assert "page.js" in get(port, "/")[1]
    state = json.loads(get(port, "/status.json")[1])
    assert (state["segments"], state["sources"][0]["streams"][0]["lost"]) == (3, {})


def test_scrapes_and_health_checks_do_not_touch_the_trace_directory(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port = tmp_path / "t", free_port()
    for number in range(2):
        assert lttd.run("-t", trace, *QUIET, "--append", "--", "true").process.returncode == 0
        assert len(segments(trace)) == number + 1
    options = ["--append", "--metrics", f"127.0.0.1:{port}"]
    run = lttd.start("-t", trace, *QUIET, *options).recording()
    until(lambda: get(port, "/healthz")[0] == 200, "the endpoint")
    with closing(Inotify()) as disk:
        assert disk.watch(str(trace), IN_OPEN) >= 0
        for segment in segments(trace):
            assert disk.watch(str(segment.directory), IN_OPEN) >= 0
        assert disk.heard(), "listing the segments is heard"
        # The store looks at the trace every few seconds: once in a while at this moment.
        for _ in range(4):
            disk.heard()
            ask_all(port)
            if not (touched := disk.heard()):
                break
        assert not touched
    # An unreadable directory changes nothing.
    trace.rename(tmp_path / "gone")
    assert "\nlttd_segments 3\n" in scraped(port)
    (tmp_path / "gone").rename(trace)
    assert run.end() == 0

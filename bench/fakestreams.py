"""Run lttd's reader and recorder on fake streams, whose ftrace pages come from memory.

``bench.streams`` runs this in a process of its own, which prints one JSON object.
"""

import argparse
import json
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

import trio

from bench.common import cpu_s
from lttd.abi.ftrace import PageLayout, rows_of_pages
from lttd.clock import take_snapshot
from lttd.files import Disk
from lttd.open_segment import SegmentContents
from lttd.opening import prepare_trace
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.sources.base import Nothing
from lttd.sources.rows import RowBook
from lttd.subbuffer import (
    TAKE_BYTES,
    Batch,
    BufferPool,
    Reason,
    StreamId,
    StreamInfo,
    make_batch,
)

LAYOUT: Final = PageLayout()
CONTENT_BYTES: Final = 4064  # the content of a full page of raw_syscalls events
FLUSH_INTERVAL_S: Final = 1.0
PACE_S: Final = 0.05


def pages(size_bytes: int) -> bytes:
    """Return *size_bytes* bytes of full ftrace pages."""
    page = struct.pack("<QQ", 1, CONTENT_BYTES) + struct.pack("<I", 29) * (CONTENT_BYTES // 4)
    return page.ljust(LAYOUT.subbuffer_bytes, b"\0") * (size_bytes // LAYOUT.subbuffer_bytes)


class FakeStream:
    """A stream that delivers the takes that are due, and is readable by poll while one is due."""

    def __init__(self, cpu: int, template: bytes, takes: int, pool: BufferPool) -> None:
        self.info = StreamInfo(
            StreamId("fake", cpu), "ftrace", LAYOUT.subbuffer_bytes, LAYOUT.header_bytes
        )
        self.left = takes
        self.due = 0
        """The number of takes that are due and not taken yet."""
        self._template = template
        self._pool = pool
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._book = RowBook()
        self.turns: list[int]
        """The CPU of each take so far, in order; all streams share the list."""

    def fileno(self) -> int:
        """Return an eventfd, readable while something is due."""
        return self._fd

    def take(self, flush: bool) -> Batch | Nothing:
        """Copy the template, as the kernel would, and read its headers."""
        if not self.left:
            return Nothing.EVER
        if not self.due:
            return Nothing.YET
        self._gave()
        self.turns.append(self.info.id.cpu)
        buffer, size = self._pool.take(), len(self._template)
        buffer[:size] = self._template
        rows = rows_of_pages(buffer, size, LAYOUT).rows
        self._book.number(rows, time.monotonic_ns())
        return make_batch(self.info.id, rows, pool=self._pool, buffer=buffer)

    def make_due(self, takes: int) -> None:
        """Make *takes* more takes due."""
        os.eventfd_write(self._fd, takes)
        self.due += takes

    def _gave(self) -> None:
        self.left -= 1
        self.due -= 1
        if not self.due and self.left:
            os.eventfd_read(self._fd)  # after the last take it stays readable: the end

    def urgent(self) -> bool:
        return False

    def losses(self) -> Batch | None:
        """Return None: nothing is ever lost."""
        return None

    def unplaced(self) -> Mapping[Reason, int]:
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return no counters: there is no kernel."""
        return {}

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


async def make_due_at(takes_per_s: float | None, streams: list[FakeStream]) -> None:
    """Make data due: all of it at once, or at a rate, evenly spread over the streams."""
    if takes_per_s is None:
        for stream in streams:
            stream.make_due(stream.left)
        return
    shares, given, began = [s.left for s in streams], 0, trio.current_time()
    while given < sum(shares):
        await trio.sleep(PACE_S)
        wanted = min(sum(shares), int((trio.current_time() - began) * takes_per_s))
        for number, stream in enumerate(streams):
            # Take number n belongs to stream n modulo the number of streams.
            more = _so_far(wanted, number, len(streams)) - _so_far(given, number, len(streams))
            if more:
                stream.make_due(more)
        given = wanted


def _so_far(takes: int, number: int, streams: int) -> int:
    return (takes + streams - 1 - number) // streams


async def record(
    trace: Path, streams: list[FakeStream], backlog_bytes: int, takes_per_s: float | None
) -> dict[str, Any]:
    """Record *streams* until they end; return CPU time, memory and the order of turns."""
    disk, turns = Disk(), list[int]()
    number = prepare_trace(disk, trace, append=False)
    recorder = Recorder(backlog_bytes=backlog_bytes)
    recorder.start()
    try:
        contents = SegmentContents(
            source={"kind": "fake", "spec": "fake", "clock": "mono", "settings": {}},
            layout="packed",
            streams=tuple(stream.info for stream in streams),
            snapshot=take_snapshot(time.monotonic_ns),
            disk=disk,
        )
        segment = recorder.open_segment(trace, number, contents)
        reader = Reader(recorder, FLUSH_INTERVAL_S)
        reader.add([(stream, segment.lanes[stream.info.id]) for stream in streams])
        for stream in streams:
            stream.turns = turns
        before = getrusage(RUSAGE_SELF)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            nursery.start_soon(make_due_at, takes_per_s, streams)
            await reader.all_ended.wait()
            nursery.cancel_scope.cancel()
        recorder.drain()
        after = getrusage(RUSAGE_SELF)
        segment.close(take_snapshot(time.monotonic_ns))
        stored = {summary.name: summary.payload_bytes for summary in segment.summaries()}
    finally:
        recorder.close()
    return {
        "cpu_s": cpu_s(after) - cpu_s(before),
        "stored_bytes": sum(stored.values()),
        "streams_served": sum(size > 0 for size in stored.values()),
        "least_share": min(stored.values()) / max(stored.values()),
        "longest_wait_rounds": longest_wait(turns, len(streams)) / len(streams),
        "peak_memory_bytes": peak_memory_bytes(),
        "backlog_high_water_bytes": recorder.backlog_high_water_bytes,
    }


def longest_wait(takes: list[int], streams: int) -> int:
    """Return the largest number of other streams' turns between two turns of one stream.

    Takes of one stream in a row are one turn.
    """
    turns = [stream for at, stream in enumerate(takes) if not at or takes[at - 1] != stream]
    last, longest = dict.fromkeys(range(streams), -1), 0
    for number, stream in enumerate(turns):
        longest = max(longest, number - last[stream] - 1)
        last[stream] = number
    return longest


def peak_memory_bytes(process: int | str = "self") -> int:
    """Return the peak of a process's resident memory."""
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.M)
    return int(match[1]) << 10 if match else 0


def main() -> None:
    """Record fake streams as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--mib", type=int, required=True, help="of all streams together")
    parser.add_argument("--take-kib", type=int, required=True)
    parser.add_argument("--backlog-mib", type=int, default=64)
    parser.add_argument("--mib-per-s", type=float, help="default: all at once")
    arguments = parser.parse_args()
    arguments.trace.mkdir(mode=0o750, exist_ok=True)
    template = pages(arguments.take_kib << 10)
    backlog_bytes = arguments.backlog_mib << 20
    pool = BufferPool(backlog_bytes + TAKE_BYTES)
    takes = (arguments.mib << 10) // arguments.take_kib // arguments.streams
    streams = [FakeStream(cpu, template, takes, pool) for cpu in range(arguments.streams)]
    rate = arguments.mib_per_s * 1024 / arguments.take_kib if arguments.mib_per_s else None
    print(json.dumps(trio.run(record, arguments.trace, streams, backlog_bytes, rate)))


if __name__ == "__main__":
    main()

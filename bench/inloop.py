"""Run lttd's own reader and recorder on rings that were filled before.

Only the CPU time of the draining counts, without interpreter, imports, opening and closing.
``bench.drain`` runs this in a process of its own, which prints one JSON object.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import trio

from bench.common import cpu_s
from lttd.clock import take_snapshot
from lttd.config import SourceSpec
from lttd.files import Disk
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.opening import prepare_trace
from lttd.reader import Reader
from lttd.recorder import BACKLOG_BYTES, Recorder
from lttd.sources.base import Source
from lttd.sources.registry import open_source
from lttd.subbuffer import TAKE_BYTES, BufferPool


def open_segment(recorder: Recorder, source: Source, trace: Path, layout: str) -> OpenSegment:
    """Create the trace directory and a segment for all streams of *source*."""
    trace.mkdir(mode=0o750, exist_ok=True)
    disk = Disk()
    number = prepare_trace(disk, trace, append=False)
    contents = SegmentContents(
        source=asdict(source.info),
        layout=layout,
        streams=tuple(stream.info for stream in source.streams),
        snapshot=take_snapshot(source.now),
        disk=disk,
    )
    return recorder.open_segment(trace, number, contents)


async def drain(source: Source, trace: Path, layout: str) -> dict[str, Any]:
    """Drain *source* into *trace*; return the bytes, and the CPU seconds of the draining."""
    recorder = Recorder()
    recorder.start()
    try:
        segment = open_segment(recorder, source, trace, layout)
        reader = Reader(recorder, flush_interval_s=1.0)
        reader.add([(stream, segment.lanes[stream.info.id]) for stream in source.streams])
        source.stop()
        before = getrusage(RUSAGE_SELF)
        await reader.drain()
        recorder.drain()
        after = getrusage(RUSAGE_SELF)
        segment.close(take_snapshot(source.now))
        summaries = segment.summaries()
    finally:
        recorder.close()
    if reader.failures():
        raise reader.failures()[0]
    stored_bytes = sum(summary.payload_bytes for summary in summaries)
    return {
        "cpu_s": cpu_s(after) - cpu_s(before),
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "before_s": cpu_s(before),
        "delivered_bytes": stored_bytes + sum(summary.padding_bytes for summary in summaries),
        "stored_bytes": stored_bytes,
        "backlog_high_water_bytes": recorder.backlog_high_water_bytes,
    }


def main() -> None:
    """Drain the instance that the command line names, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("instance")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--layout", default="packed")
    arguments = parser.parse_args()
    source = open_source(
        SourceSpec("ftrace", arguments.instance), BufferPool(BACKLOG_BYTES + TAKE_BYTES)
    )
    try:
        print(json.dumps(trio.run(drain, source, arguments.trace, arguments.layout)))
    finally:
        source.close()


if __name__ == "__main__":
    main()

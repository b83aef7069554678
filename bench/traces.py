"""Record real traces for the benchmarks of the viewer, and lengthen them by repetition.

A repetition has the sub-buffers of the real trace, with later time stamps in their headers.  They
go through the writer like the batches of a source; formats, names and clocks are the original's.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import CannotMeasureError, cpus, tracefs
from bench.recorders import environment, last_line, lttd_command
from lttd.abi.ftrace import layout_of, rows_of_pages
from lttd.files import Disk
from lttd.manifest import Manifest, StreamRecord
from lttd.sources.rows import RowBook
from lttd.stored import StoredStream
from lttd.subbuffer import Batch
from lttd.tracedir import create_segment, segment_name
from lttd.view.commands.cut import cut
from lttd.view.times import Moment, Window
from lttd.view.trace import Trace
from lttd.writer import StreamFile

BUSY: Final = "import os\nfor _ in range({count}): os.getppid(); os.stat('/tmp')"
"""Four syscall events for each turn of the loop."""
BURSTS: Final = """\
import os, time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    for _ in range(40): os.getppid()
    time.sleep(0.0005)
"""


def record(trace: Path, load: str, events: str) -> Trace:
    """Record *events* while a Python program *load* runs on each of two CPUs, until both end.

    Raises:
        CannotMeasureError: this kernel cannot be recorded here.
    """
    tracefs()
    alone = f"{shlex.quote(sys.executable)} -c {shlex.quote(load)}"
    both = "".join(f"taskset -c {cpu} {alone} & " for cpu in cpus())
    command = lttd_command(
        "--trace-dir", str(trace), "--events", events, "--buffer-size", "32M",
        "--summary", "none", "--", "sh", "-c", f"{both}wait",
    )  # fmt: skip
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, env=environment()
    )
    if done.returncode:
        raise CannotMeasureError(last_line(done.stderr))
    return Trace(trace)


def first_subbuffers(trace: Trace, out: Path, count: int) -> Trace:
    """Cut off the begin of a trace: *count* sub-buffers over all streams.

    Raises:
        CannotMeasureError: it has fewer.
    """
    (segment,) = trace.segments
    begins = np.sort(np.concatenate([s.index.entries()["begin"] for s in segment.streams]))
    if len(begins) <= count:
        raise CannotMeasureError(f"{trace.path}: only {len(begins)} sub-buffers were recorded")
    return cut(trace, Window(end=Moment(int(begins[count - 1]), wall=False)), out)


def repeated(trace: Trace, out: Path, times: int) -> Trace:
    """Write a trace that repeats *trace* *times* times."""
    (segment,) = trace.segments
    out.mkdir(mode=0o750, exist_ok=True)
    disk = Disk()
    paths = create_segment(disk, out, segment_name(1, "ftrace"))
    shutil.copytree(segment.paths.directory / "tracefs", paths.directory / "tracefs")
    records = []
    for stream in segment.streams:
        record_ = StreamRecord(stream.info)
        file = StreamFile(disk, paths.stream(record_.name), record_, "packed", 0)
        for batch in _batches(stream, times, period_ns(trace)):
            file.append(batch)
        file.sync()
        file.close()
        records.append(record_)
    old = segment.manifest
    manifest = Manifest(
        source=old.source, layout="packed", machine=old.machine, streams=records,
        clock_snapshots=old.clock_snapshots,
    )  # fmt: skip
    for record_ in records:
        made = StoredStream(paths, manifest, record_)
        record_.summary = made.derived_summary(made.index.entries(), [])
    manifest.state = "closed"
    disk.replace(paths.manifest, manifest.encode())
    return Trace(out)


def period_ns(trace: Trace) -> int:
    """Return the time from one repetition to the next, in ns."""
    assert trace.span is not None
    return trace.span.end - trace.span.begin


def _batches(stream: StoredStream, times: int, period: int) -> Iterator[Batch]:
    """Yield a stream's sub-buffers with their padding, *times* times."""
    layout, size = layout_of(stream.info, stream.byteorder), stream.info.subbuffer_bytes
    entries = stream.index.entries()
    padded = bytearray(size * len(entries))
    for number, entry in enumerate(entries):
        at, stored = int(entry["offset_bytes"]), int(entry["packet_bits"]) >> 3
        padded[number * size : number * size + stored] = stream.read(at, at + stored)
    stamps = np.ndarray((len(entries),), f"{layout.byteorder}u8", padded, strides=(size,))
    last, book = int(entries["end"][-1]), RowBook()
    for number in range(times):
        rows = rows_of_pages(padded, len(padded), layout).rows
        book.number(rows, last + number * period)
        yield Batch(stream.info.id, memoryview(padded), rows, held_bytes=len(padded))
        stamps += np.uint64(period)

"""Open segments of a recorder, for tests without a source."""

from pathlib import Path

from lttd.clock import Snapshot
from lttd.files import Disk
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.subbuffer import StreamInfo

SNAPSHOT = Snapshot(100, 100, 100, 1_000_000_100, 1)
SOURCE = {"kind": "fake", "spec": "fake", "clock": "mono"}


def segment_of(
    recorder: Recorder, trace: Path, *streams: StreamInfo, number: int = 1, disk: Disk | None = None
) -> OpenSegment:
    """Open segment *number* of *trace* with these streams."""
    trace.mkdir(exist_ok=True)
    contents = SegmentContents(SOURCE, "packed", streams, SNAPSHOT, disk or Disk())
    return recorder.open_segment(trace, number, contents)

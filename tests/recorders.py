"""Open segments of a recorder, for tests without a source."""

from pathlib import Path

from lttd.clock import Snapshot
from lttd.disk_policy import DiskPolicy, OnFailure
from lttd.files import Disk
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.subbuffer import StreamInfo

SNAPSHOT = Snapshot(100, 100, 100, 1_000_000_100, 1)
WAITING = DiskPolicy(OnFailure.WAIT, OnFailure.WAIT)
SOURCE = {"kind": "fake", "spec": "fake", "clock": "mono"}


def segment_of(
    recorder: Recorder, trace: Path, *streams: StreamInfo, number: int = 1, disk: Disk | None = None
) -> OpenSegment:
    """Open segment *number* of *trace* with these streams."""
    trace.mkdir(exist_ok=True)
    contents = SegmentContents(SOURCE, "packed", streams, SNAPSHOT, disk or Disk())
    return recorder.open_segment(trace, number, contents)


def rolled(recorder: Recorder, before: OpenSegment, disk: Disk | None = None) -> OpenSegment:
    """Open the segment after *before*, and let all further batches go there."""
    source = SOURCE | {"rolled_from": before.paths.directory.name}
    streams = tuple(each.record.info for each in before.files.values())
    contents = SegmentContents(
        *(source, before.manifest.layout, streams, SNAPSHOT, disk or Disk()),
        *(before.baselines, before.lanes),
    )
    after = recorder.prepare_segment(before.paths.directory.parent, contents)
    after.reveal(before.paths.number + 1)
    recorder.watch(after)
    for stream, files in after.files.items():
        recorder.roll(after.lanes[stream], files)
    return after

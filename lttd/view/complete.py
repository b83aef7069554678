"""Tell since when a trace is complete on all CPUs, after its first segments were deleted.

At a roll all streams go on in the next segment at one moment, which that segment's manifest has
as ``rolled_at``: no later event is in the segment before.
"""

from typing import NamedTuple

from lttd.view.trace import Segment, Trace


class Since(NamedTuple):
    """A moment, on the trace clock and on the wall clock."""

    time: int
    realtime_ns: int | None
    """None if the segment has no clock snapshot."""


def complete_since(trace: Trace) -> Since | None:
    """Return since when no segment of any source is missing; None if none is, or it is unknown."""
    by_name = {segment.paths.directory.name: segment for segment in trace.segments}
    if trace.segments[0].paths.directory == trace.path:
        return None  # a segment that is opened alone
    newest = {segment.manifest.source_name: segment for segment in trace.segments}
    found = [since for segment in newest.values() if (since := _since(segment, by_name))]
    return max(found, key=lambda since: (since.realtime_ns or 0, since.time), default=None)


def _since(segment: Segment, by_name: dict[str, Segment]) -> Since | None:
    for _ in by_name:  # a damaged manifest may lead round
        before = by_name.get(str(segment.manifest.source.get("rolled_from")))
        if before is None:
            break
        segment = before
    source = segment.manifest.source
    if not source.get("rolled_from") or "cut" in source:
        return None
    time = source.get("rolled_at")
    if not isinstance(time, int):
        # The next segment had not ended its preparation when its recorder was killed.
        begins = [ends[0] for stream in segment.streams if (ends := stream.ends()) is not None]
        time = max(begins, default=0)
    wall = segment.conversion
    return Since(time, wall.to_realtime_ns(time) if wall else None)

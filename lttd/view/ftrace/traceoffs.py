"""Find the last event before a traceoff trigger turned tracing off.

The kernel tells nobody when it did so.  The recorder noted a moment by which tracing was off
(``tracefs/traceoffs``); as nothing is recorded from the stop to that moment, the last event at or
before it is the last one before the stop.

Rule: the event may be in an earlier segment than the note: the recorder writes it later.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from lttd.abi.ftrace import NAME, layout_of
from lttd.abi.ftrace_events import walk
from lttd.errors import TraceDamagedError
from lttd.index import FOREVER
from lttd.stored import StoredStream
from lttd.view.ftrace.saved import SavedFiles
from lttd.view.trace import Segment, Trace

MOST_SHOWN: Final = 64
"""Of one segment, the newest."""
_LINE: Final = re.compile(rb"^(\d{1,20}+)\t([^\n]{1,4096}+)$", re.MULTILINE)
# A sub-buffer may have events after the time only.
_ENTRIES: Final = 2


class Traceoff(NamedTuple):
    """One stop of tracing by a trigger; times are of the trace clock."""

    by: str
    """The event that has the trigger."""
    last: int | None
    """The time of the last event before it; None: none is stored, or it cannot be read."""
    last_realtime_ns: int | None
    off_by: int
    """When the recorder saw it."""
    off_by_realtime_ns: int | None


def traceoffs_of(trace: Trace) -> list[Traceoff]:
    """Return the stops of a trace in the order in which they were noted."""
    return [
        _traceoff(trace.segments[number::-1], off_by, by)
        for number, segment in enumerate(trace.segments)
        for off_by, by in list(_noted(segment))[-MOST_SHOWN:]
    ]


def _noted(segment: Segment) -> Iterator[tuple[int, str]]:
    if not any(stream.info.abi == NAME for stream in segment.streams):
        return
    cut = segment.manifest.source.get("cut")
    end = cut.get("end") if isinstance(cut, dict) else None  # what a cut left out is not known
    last = min(end, FOREVER) if isinstance(end, int) else FOREVER
    try:
        text = SavedFiles(segment).read("traceoffs")
    except TraceDamagedError:
        return
    for found in _LINE.finditer(text):
        if (off_by := int(found[1])) <= last:
            yield off_by, found[2].decode(errors="replace")


def _traceoff(segments: Sequence[Segment], off_by: int, by: str) -> Traceoff:
    """Look for the last event in *segments*, the newest of which comes first."""
    rings = _rings(segments[0])
    wall = segments[0].conversion
    last: int | None = None
    for segment in segments:
        if _rings(segment) == rings:
            times = (_last_time(stream, off_by) for stream in segment.streams)
            last = max((time for time in times if time is not None), default=None)
            if last is not None:
                break
    known = [None if time is None or wall is None else wall.to_realtime_ns(time)
             for time in (last, off_by)]  # fmt: skip
    return Traceoff(by, last, known[0], off_by, known[1])


def _rings(segment: Segment) -> tuple[object, ...]:
    """Return what segments of the same rings have in common."""
    source = segment.manifest.source
    settings = source.get("settings")
    instance = settings.get("instance") if isinstance(settings, dict) else None
    return segment.manifest.machine.get("boot_id"), segment.manifest.clock, instance


def _last_time(stream: StoredStream, until: int) -> int | None:
    """Return the time of the last event of a stream at or before *until*."""
    if stream.info.abi != NAME or stream.abi is None:
        return None
    layout = layout_of(stream.info, stream.byteorder)
    last: int | None = None
    try:
        index = stream.opened_index()
        behind = index.first_beginning_after(until)
        entries = index.entries(max(behind - _ENTRIES, 0), behind)
        for block in stream.blocks(entries):
            begin = block.headers.offset_bytes
            for walked in walk(block.data, begin, begin + block.headers.content_bytes, layout):
                times = walked.time[walked.time <= np.uint64(until)]
                last = max(last or 0, int(times.max())) if len(times) else last
    except (TraceDamagedError, OSError):
        return None
    return last

"""Count the events that a killed lttd took of a ring and did not store.

The kernel's ``read events`` counts all events taken of a ring, by any process.  Every few seconds a
running lttd writes a mark: this counter, and the number of sub-buffers taken at that moment.  So
only the data that was stored after the last mark must be decoded:

    unstored = read events now - read events at the mark - events stored after the mark

Rule: a mark is used only if all sub-buffers before it are stored; else an earlier one is used.
Source: Linux kernel/trace/ring_buffer.c, ``cpu_buffer->read``.
"""

from dataclasses import dataclass

from lttd.sources.base import Owner
from lttd.sources.ftrace.record import Progress


@dataclass(frozen=True, slots=True)
class Unstored:
    """Events that a killed lttd took and did not store."""

    count: int | None
    """None: some may be missing, of unknown number."""
    begin: int
    """The trace-clock time of the last stored event; 0 if there is none."""


def unstored(stream: str, read_events: int, progress: Progress, owner: Owner) -> Unstored | None:
    """Return the missing events of *stream*, whose counter is *read_events* now; None: none."""
    marks = progress.marks.get(stream, ())
    if not marks or read_events == marks[0][1]:
        return None  # nothing was taken
    for taken_subbuffers, read_before in reversed(marks):
        stored = owner.stored(progress.segment, stream, taken_subbuffers)
        if stored is None:
            continue
        missing = read_events - read_before - stored.events
        if missing == 0:
            return None
        # The counter is below the stored number: somebody cleared the ring and its counters.
        return Unstored(missing if missing > 0 else None, stored.end)
    return Unstored(None, 0)

"""How many events a killed lttd had taken of a ring and not stored.

The kernel's ``read events`` counts what was taken of a ring, whoever took it.  A live lttd writes
every few seconds how far that counter was when it had taken so many sub-buffers (a mark), so that
only what was stored after the last mark has to be decoded:

    unstored = read events now - read events at the mark - events stored after the mark

Rule: a mark counts only if all sub-buffers before it are stored; else the one before it is used.
Source: Linux kernel/trace/ring_buffer.c, ``cpu_buffer->read``.
"""

from dataclasses import dataclass

from lttd.sources.base import Owner
from lttd.sources.ftrace.record import Progress


@dataclass(frozen=True, slots=True)
class Unstored:
    """Events that a killed lttd took and did not store."""

    count: int | None
    """None: some may be missing, and how many is not known."""
    begin: int
    """Trace clock of the last event that was stored; 0 where none is."""


def unstored(stream: str, read_events: int, progress: Progress, owner: Owner) -> Unstored | None:
    """Return what is missing of *stream*, whose counter is *read_events* now; None: nothing."""
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
        # Less than what is stored: somebody cleared the ring, and its counters with it.
        return Unstored(missing if missing > 0 else None, stored.end)
    return Unstored(None, 0)

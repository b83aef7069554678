"""Count the events of a ring that a killed lttd lost: taken and not stored, or overwritten before.

The kernel's ``read events`` counts all events taken of a ring, by any process, and ``overrun``
those that it overwrote.  Every few seconds a running lttd writes a mark: these counters, and the
number of sub-buffers taken at that moment.  So only the data that was stored after the last mark
must be decoded:

    unstored = read events now - read events at the mark - events stored after the mark
    untold   = overrun now - overrun at the mark - overwritten events in gaps after the mark

``untold`` has the events overwritten before sub-buffers that were taken and not stored, and those
before sub-buffers that are still in the ring, which count them when they are taken.  Refused events
(``dropped events``, ``commit overrun``) are counted likewise.

Rule: a mark is used only if all sub-buffers before it are stored; else an earlier one is used.
Rule: overrun at the mark excludes what is in no gap, or in a gap after the mark's last sub-buffer:
gaps are stored before the data that they precede, so each gap is in one of both numbers.
Source: Linux kernel/trace/ring_buffer.c, ``cpu_buffer->read``, ``cpu_buffer->overrun``.
"""

from typing import NamedTuple

from lttd.sources.base import Owner, Stored
from lttd.sources.ftrace.loss import LossCounts, Mark
from lttd.sources.ftrace.record import Progress
from lttd.subbuffer import Reason


class Unstored(NamedTuple):
    """Events that a killed lttd lost."""

    taken: int | None
    """Those that it took and did not store; None: some may be missing, of unknown number."""
    begin: int
    """The trace-clock time of the last stored event; 0 if there is none."""
    lost: LossCounts | None
    """Those that the kernel lost, and no stored gap has; None: unknown."""

    @property
    def is_loss(self) -> bool:
        """Tell whether any event is missing, as far as known."""
        return self.taken != 0 or any(self.lost or ())


def unstored(stream: str, now: Mark, progress: Progress, owner: Owner) -> Unstored | None:
    """Return the missing events of *stream*, whose counters are those of *now*; None: no marks."""
    marks = progress.marks.get(stream, ())
    if not marks:
        return None
    has_taken = now.read_events != marks[0].read_events
    for mark in reversed(marks):
        stored = owner.stored(progress.segment, stream, mark.subbuffers)
        if stored is None:
            continue
        taken = now.read_events - mark.read_events - stored.events if has_taken else 0
        lost = _untold(now, mark, stored)
        if min((taken, *(lost or ()))) < 0:
            # A counter is below the stored number: somebody cleared the ring and its counters.
            return Unstored(None, stored.end, None)
        return Unstored(taken, stored.end, lost)
    return Unstored(None if has_taken else 0, 0, None)


def _untold(now: Mark, mark: Mark, stored: Stored) -> LossCounts | None:
    if now.lost is None or mark.lost is None or stored.lost is None:
        return None
    if Reason.DISCARDED in stored.lost:
        return None  # recovery made these gaps again: why the events were lost is unknown
    return now.lost.without(mark.lost.by_reason()).without(stored.lost)

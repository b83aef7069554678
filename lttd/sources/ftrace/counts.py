"""Follow ``per_cpu/cpuN/stats`` over time: totals over resets, and events that others read.

Rule: the kernel does not count resets.  A counter that fell was reset: clearing ``trace``, writing
``trace_clock`` or removing a probe empties the ring and resets its counters.
Rule: ``bytes`` is not what the ring holds, but more, by an excess that only a reset removes.  While
a ring overwrites itself, Linux 6.18 now and then forgets to subtract a page (one in some 100,000);
before 6.6 it did not subtract what was read of a page in part.  What the ring holds is never less
than nothing, so the least count since the excess last grew is a bound of it.
"""

import time
from collections.abc import Mapping
from typing import Final

from lttd.sources.ftrace.loss import growth
from lttd.sources.tracefs import StatsFile

# The fields of ``stats`` that only grow until a reset.
COUNTS: Final = ("overrun", "commit overrun", "dropped events", "read events")
# A write that deletes a probe ends so long after it emptied the ring, on a slow machine.
LATELY_NS: Final = 3_000_000_000


class RingCounts:
    """The counters of one CPU's ring; their values at the start are the base."""

    def __init__(self, stats: StatsFile) -> None:
        self._stats = stats
        self._last = stats.read()
        was_touched = self._last.get("overrun", 1) or self._last.get("read events", 1)
        self._excess_bytes = self._last.get("bytes", 0) if was_touched else 0
        """At most so many of the ``bytes`` are none; 0 of a ring that only grew since its reset."""
        self._may_exceed = False
        """Whether the excess may have grown since the last read()."""
        self._grown = dict.fromkeys(COUNTS, 0)
        self._emptied = False
        self._shrank_ns = 0
        self.counting = False
        """Whether each take must report its number of events."""
        self.foreign_read_events = 0
        """The number of events that other processes consumed, as far as noticed."""
        self._read_before = 0
        self._our_events: int | None = 0
        self.unsure = False
        """Whether the last look_for_others() could not tell: another process may have read."""

    def read(self) -> dict[str, int]:
        """Return the present fields."""
        fields, grown = self._stats.read(), {}
        for name in COUNTS:
            before, after = self._last.get(name, 0), fields.get(name, 0)
            self._emptied |= after < before
            grown[name] = growth(before, after)
            self._grown[name] += grown[name]
        left = self._last.get("entries", 0) - grown["read events"]
        if not grown["overrun"] and fields.get("entries", 0) < left:
            self._shrank_ns = time.monotonic_ns()
        counted = fields.get("bytes", 0)
        grows = self._may_exceed or grown["overrun"]
        self._excess_bytes = counted if grows else min(self._excess_bytes, counted)
        self._may_exceed = False
        self._last = fields
        return fields

    def unread_bytes(self) -> int:
        """Return how many bytes the ring holds, at least."""
        return self.read().get("bytes", 0) - self._excess_bytes

    def since_the_base(self) -> Mapping[str, int]:
        """Return the present fields, with counts from the base on."""
        fields = self.read()
        return fields | {name: self._grown[name] for name in COUNTS if name in fields}

    def was_emptied(self) -> bool:
        """Tell whether a counter fell since the last call."""
        emptied, self._emptied = self._emptied, False
        return emptied

    def shrank_lately(self) -> bool:
        """Tell whether the ring held less, a moment ago, than the reads explain; once.

        A reader at work at that moment can make it look so: ask only with another reason to.  The
        kernel resets the ring first, and then waits: lttd hears of the write after that.
        """
        lately = time.monotonic_ns() - self._shrank_ns < LATELY_NS
        self._shrank_ns = 0
        return lately

    def text(self) -> bytes:
        """Return the text of the file."""
        return self._stats.text()

    def took(self, events: int | None, *, partial: bool = False) -> None:
        """Note that lttd consumed *events*; None: it did not count them.

        *partial*: the kernel still wrote into their sub-buffer.
        """
        self._may_exceed |= partial
        known = self._our_events is not None and events is not None
        self._our_events = (self._our_events or 0) + (events or 0) if known else None

    def look_for_others(self) -> int | None:
        """Return how many events others consumed between the last call and the last read().

        None: lttd took events meanwhile without counting them.
        """
        grown = self._grown["read events"] - self._read_before
        ours, self._our_events = self._our_events, 0
        self._read_before = self._grown["read events"]
        self.unsure = ours is None
        if ours is None:
            return None
        others = max(grown - ours, 0)
        self.foreign_read_events += others
        return others

    def close(self) -> None:
        """Close the descriptor."""
        self._stats.close()

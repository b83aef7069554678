"""``per_cpu/cpuN/stats`` over time: totals that outlive a reset, and who read what.

Rule: the kernel has no counter of resets.  A count that fell was reset, and began anew: whoever
clears ``trace``, writes ``trace_clock`` or removes a probe empties the ring that way.
"""

from collections.abc import Mapping
from typing import Final

from lttd.sources.ftrace.loss import growth
from lttd.sources.tracefs import StatsFile

# What ``stats`` counts up for as long as nobody resets it, whoever reads.
COUNTS: Final = ("overrun", "commit overrun", "dropped events", "read events")


class RingCounts:
    """The counters of one CPU's ring; what they say when it is made is the base."""

    def __init__(self, stats: StatsFile) -> None:
        self._stats = stats
        self._last = stats.read()
        self._grown = dict.fromkeys(COUNTS, 0)
        self._emptied = False
        self.shrank = False
        """At the last read() the ring held less than what was read since explains.

        A reader at work at that moment can make it look so: ask only with another reason to.
        """
        self.counting = False
        """Whoever takes must say how many events that were."""
        self.foreign_read_events = 0
        """Seen to be consumed by somebody else."""
        self._read_before = 0
        self._our_events: int | None = 0
        self.unsure = False
        """The last look_for_others() could not tell: somebody may have read then."""

    def read(self) -> dict[str, int]:
        """Return the fields as they are now."""
        fields, grown = self._stats.read(), {}
        for name in COUNTS:
            before, after = self._last.get(name, 0), fields.get(name, 0)
            self._emptied |= after < before
            grown[name] = growth(before, after)
            self._grown[name] += grown[name]
        left = self._last.get("entries", 0) - grown["read events"]
        self.shrank = not grown["overrun"] and fields.get("entries", 0) < left
        self._last = fields
        return fields

    def since_the_base(self) -> Mapping[str, int]:
        """Return the fields as they are now, counts from the base on."""
        fields = self.read()
        return fields | {name: self._grown[name] for name in COUNTS if name in fields}

    def was_emptied(self) -> bool:
        """Tell whether a counter fell since this was last asked."""
        emptied, self._emptied = self._emptied, False
        return emptied

    def text(self) -> bytes:
        """Return the file verbatim."""
        return self._stats.text()

    def took(self, events: int | None) -> None:
        """Take note that we consumed so many events; None: nobody counted them."""
        known = self._our_events is not None and events is not None
        self._our_events = (self._our_events or 0) + (events or 0) if known else None

    def look_for_others(self) -> int | None:
        """Return how many events others have consumed since the last call, as of the last read().

        None: we took meanwhile, and nobody counted.
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
        """Give the descriptor back."""
        self._stats.close()

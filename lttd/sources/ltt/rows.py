"""Complete the rows that ``lttd.abi.ltt`` has parsed: numbers, running maxima, losses.

The tracer's counters are totals modulo 2**32 at the moment when a sub-buffer was closed.  Their
growth was lost between the end of the sub-buffer before and the end of this one.

Rule: after the begin of another trace (in an appended file) the counters count from 0.
Invariant: events of the gaps so far = growth of events_lost.
"""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np

from lttd.abi.ltt import U64, Headers, Taken
from lttd.clock import Snapshot
from lttd.sources.rows import RowBook
from lttd.subbuffer import Gap, Reason, Unit

NAME: Final = re.compile(r"(?P<channel>[^.].*)_(?P<cpu>0|[1-9][0-9]{0,4})")
"""The name of a channel's file, both of the tracer's and of lttd's."""
# The tracer takes the two times one after the other.
_START_UNCERTAINTY_NS: Final = 1000
_MODULUS: Final = np.uint64(1 << 32)


def start_snapshot(begin: int, wall_ns: int) -> Snapshot:
    """Return the clocks at the moment when a trace was made, by metadata's first header.

    The other two clocks are unknown; the snapshot gives them the value of the trace clock.
    """
    return Snapshot(begin, begin, begin, wall_ns, _START_UNCERTAINTY_NS)


class LttBook:
    """The rows of one stream, and what the counters in their headers say was lost."""

    def __init__(self) -> None:
        self._rows = RowBook()
        self._run = -1
        self._counters = {"events_lost": 0, "corrupted": 0}

    def enter(self, taken: Taken) -> tuple[Gap, ...]:
        """Complete the rows; return the tracer's losses, in the order of the rows."""
        rows, headers = taken.rows, taken.headers
        if not len(rows):
            return ()
        before = self._rows.end
        self._rows.number(rows)
        ends = [before or int(rows["begin"][0]), *rows["end"].tolist()]
        gaps = [
            Gap(row, reason, unit, int(lost[row]), min(ends[row], ends[row + 1]), ends[row + 1])
            for lost, reason, unit in (
                (self._growth("events_lost", headers), Reason.DISCARDED, Unit.EVENTS),
                # The ring wrapped on a sub-buffer before all of its events were committed.
                (self._growth("corrupted", headers), Reason.COMMIT_OVERRUN, Unit.SUBBUFFERS),
            )
            for row in np.flatnonzero(lost).tolist()
        ]
        self._run = int(headers.run[-1])
        gaps.sort(key=lambda gap: gap.row)
        self._rows.count(rows, gaps)
        return tuple(gaps)

    @property
    def end(self) -> int:
        """The end of the last row, in ns."""
        return self._rows.end

    def unread(self, row: int, length_bytes: int, *, torn: bool = False) -> Gap:
        """Return a gap before *row*, at the end of the last row: bytes that do not parse."""
        reason = Reason.TORN if torn else Reason.DAMAGED
        return Gap(row, reason, Unit.BYTES, length_bytes, self.end, self.end)

    def count_from(self, headers: Headers) -> None:
        """Count from the first header's values on: earlier losses belong to another trace."""
        self._run = int(headers.run[0])
        self._counters = {name: int(getattr(headers, name)[0]) for name in self._counters}

    @property
    def counters(self) -> Mapping[str, int]:
        """The tracer's totals, by its own names, as the last sub-buffer has them."""
        counters = self._counters
        return {"events_lost": counters["events_lost"], "subbuf_corrupt": counters["corrupted"]}

    def _growth(self, name: str, headers: Headers) -> U64:
        """Return, per row, the growth of a counter since the row before."""
        values: U64 = getattr(headers, name)
        last = 0 if int(headers.run[0]) != self._run else self._counters[name]
        before = np.concatenate((np.array([last], np.uint64), values[:-1]))
        before[1:][headers.run[1:] != headers.run[:-1]] = 0
        self._counters[name] = int(values[-1])
        return (values - before) % _MODULUS

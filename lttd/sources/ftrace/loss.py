"""What one CPU's ftrace ring lost, and where it belongs.  No I/O: samples and pages come in.

Rule: the kernel's counters are the total; what pages say (a count of events missed before them)
only places it.  What they do not place becomes a gap at the next row, or at the end.
Invariant: overwritten events told <= growth of ``overrun`` since the first sample; equal at the end
(for a ring that a killed lttd left, whose earlier losses its own segment tells, the pages alone
count).

In overwrite mode ``overrun`` and the counts in pages are the same events.  In no-overwrite mode
pages say nothing and ``dropped events`` counts refused events: a ring's length *later* in the
stream than the moment they were noticed, because the full ring was still to be read then.
Source: Linux kernel/trace/ring_buffer.c, rb_get_reader_page() and ring_buffer_read_page().
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lttd.subbuffer import Gap, Reason, Rows, Unit


class Sample(NamedTuple):
    """The loss counters of ``per_cpu/cpuN/stats`` and the trace clock when they were read."""

    now: int
    overrun: int
    dropped: int
    commit_overrun: int

    @classmethod
    def of(cls, stats: Mapping[str, int], now: int) -> "Sample":
        """Pick the counters out of *stats*; one that this kernel lacks never counts."""
        return cls(
            now,
            stats.get("overrun", 0),
            stats.get("dropped events", 0),
            stats.get("commit overrun", 0),
        )


class _Interval(NamedTuple):
    """A loss that no page tells: it lies before the first row that begins at *place_from*."""

    reason: Reason
    lost: int | None
    begin: int
    end: int
    place_from: int
    unit: Unit = Unit.EVENTS


def growth(before: int, after: int) -> int:
    """Return how far a counter came; one that fell was reset by the kernel and began anew."""
    return after - before if after >= before else after


class LossLedger:
    """Losses of one stream: what the kernel counted, what was told, what is still to be told."""

    def __init__(self, first: Sample, *, pages_only: bool = False) -> None:
        self._last = first
        self._pages_only = pages_only
        self._overwritten = 0
        self._settled = 0
        self._told = 0
        self._pending: list[_Interval] = []
        self._ripe = 0  # how many of them, from the first on, are older than all that is to come
        # How far the stream had come: now, at the last sample, at the one that was settled, and at
        # the one settled before, which is where what is settled next began.
        self._last_begin = self._sampled_begin = self._settled_begin = self._since = first.now

    def sampled(self, sample: Sample, place_from: int | None = None) -> None:
        """Take note of counters.

        *place_from*: the trace clock just before the last take; a ring that refused events until
        then goes on with a sub-buffer that begins later.  Without it, *sample*'s own time.
        """
        last, self._last = self._last, sample
        self._sampled_begin = self._last_begin
        self._overwritten += growth(last.overrun, sample.overrun)
        if self._pages_only:
            return
        at = sample.now if place_from is None else place_from
        for reason, count in (
            (Reason.DROPPED, growth(last.dropped, sample.dropped)),
            (Reason.COMMIT_OVERRUN, growth(last.commit_overrun, sample.commit_overrun)),
        ):
            if count:
                self._pending.append(_Interval(reason, count, last.now, sample.now, at))

    @property
    def sampled_at(self) -> int:
        """Trace clock at the last sample."""
        return self._last.now

    def suspect(
        self,
        reason: Reason,
        now: int,
        count: int | None = None,
        unit: Unit = Unit.EVENTS,
        begin: int | None = None,
    ) -> None:
        """Take note that *count* events are missing, or that some may be and nobody knows.

        *begin*: since when; None: since the last sample.

        Of the latter the same reason again before a batch came is one interval that grows: somebody
        may write to a file in a loop.
        """
        since = self._last.now if begin is None else begin
        interval = _Interval(reason, count, since, now, now, unit)
        last = self._pending[-1] if len(self._pending) > self._ripe else None
        if count is None and last and (last.reason, last.lost, last.unit) == (reason, None, unit):
            self._pending[-1] = interval._replace(begin=last.begin)
        else:
            self._pending.append(interval)

    def lost_before_all(
        self,
        reason: Reason,
        count: int | None,
        begin: int,
        end: int,
        unit: Unit = Unit.EVENTS,
    ) -> None:
        """Take note of a loss that lies before every row to come."""
        self._pending.insert(0, _Interval(reason, count, begin, end, 0, unit))
        self._ripe += 1

    def page_turned(self) -> None:
        """Say that the kernel turned to a new page, or had none, since the last sample.

        Turning a page makes it say what was overwritten before: of the events overwritten by the
        last sample, those that no page told by then, no page will tell.
        """
        self._settled = self._overwritten
        self._settled_begin = self._sampled_begin

    def ran_dry(self) -> None:
        """Say that everything written by the last sample has been delivered."""
        self._ripe = len(self._pending)

    def place(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> tuple[Gap, ...]:
        """Return the gaps that belong before *rows*.

        *rows* have their final ``begin``; *missed* is what their pages say.  Call sampled() first
        when *missed* is not empty, or page counts are held against an old total.
        """
        if not len(rows):
            return ()
        gaps: list[Gap] = []
        if missed or self._pending:
            gaps = self._from_pages(rows, missed) + self._from_counters(rows)
            gaps.sort(key=lambda gap: gap.row)
        self._last_begin = int(rows["begin"][-1])
        self._settle()
        return tuple(gaps)

    def rest(self, *, final: bool = False) -> tuple[Gap, ...]:
        """Return, for a batch without rows, what belongs after everything that was delivered.

        With *final*, all that was counted and never told.
        """
        if final:
            self.page_turned()
        self._settle()
        count = len(self._pending) if final else self._ripe
        ripe, self._pending, self._ripe = self._pending[:count], self._pending[count:], 0
        return tuple(_gap(0, interval) for interval in ripe)

    def unplaced(self) -> Counter[Reason]:
        """Return how many events were lost by the last sample that no gap has told yet."""
        found: Counter[Reason] = Counter()
        if not self._pages_only:
            found[Reason.OVERWRITTEN] = max(self._overwritten - self._told, 0)
        for interval in self._pending:
            found[interval.reason] += _events(interval.unit, interval.lost)
        return found

    def _from_pages(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> list[Gap]:
        gaps = []
        begins = rows["begin"]
        for row, said in missed:
            count = said
            if not self._pages_only:
                # A page may tell of what was lost before we came.
                ours = max(0, self._overwritten - self._told)
                if not ours:
                    continue
                count = said if said is None else min(said, ours)
            self._told += count or 0
            before = int(begins[row - 1]) if row else self._last_begin
            end = int(begins[row])
            gaps.append(Gap(row, Reason.OVERWRITTEN, Unit.EVENTS, count, min(before, end), end))
        return gaps

    def _from_counters(self, rows: Rows) -> list[Gap]:
        gaps = []
        waiting = []
        ripe = 0
        for number, interval in enumerate(self._pending):
            row = int(np.searchsorted(rows["begin"], np.uint64(interval.place_from)))
            if row < len(rows):
                gaps.append(_gap(row, interval))
            else:
                waiting.append(interval)
                ripe += number < self._ripe
        self._pending, self._ripe = waiting, ripe
        return gaps

    def _settle(self) -> None:
        """Let what is settled and was not told come next, wherever that is."""
        count = self._settled - self._told
        if count > 0 and not self._pages_only:
            self._told += count
            begin = min(self._since, self._last.now)
            interval = _Interval(Reason.OVERWRITTEN, count, begin, self._last.now, 0)
            self._pending.insert(0, interval)
            self._ripe += 1
        self._since = self._settled_begin


def _gap(row: int, interval: _Interval) -> Gap:
    return Gap(row, interval.reason, interval.unit, interval.lost, interval.begin, interval.end)


def _events(unit: Unit, count: int | None) -> int:
    return (count or 0) if unit is Unit.EVENTS else 0

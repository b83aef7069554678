"""Find the losses of one CPU's ftrace ring, and their places.  Does no I/O.

Rule: the kernel's counters are the total; the counts in pages (events missed before them) only give
the places.  A loss without a place becomes a gap at the next row, or at the end.
Invariant: overwritten events in gaps <= growth of ``overrun`` since the first sample; equal at the
end.  A ring that a killed lttd left inherits those of its losses that no stored gap has; if their
number is unknown, only the pages of that ring count.

In overwrite mode ``overrun`` and the counts in pages are the same events.  In no-overwrite mode
pages have no counts, and ``dropped events`` counts refused events.  Their place is a ring's length
*after* the place of the sample, because the full ring is still to be read then.
Source: Linux kernel/trace/ring_buffer.c, rb_get_reader_page() and ring_buffer_read_page().
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lttd.subbuffer import Gap, Reason, Rows, Unit


class Sample(NamedTuple):
    """The loss counters of ``per_cpu/cpuN/stats``, and the trace-clock time of their reading."""

    now: int
    overrun: int
    dropped: int
    commit_overrun: int

    @classmethod
    def of(cls, stats: Mapping[str, int], now: int) -> "Sample":
        """Take the counters from *stats*."""
        return cls(now, *LossCounts.of(stats))


class LossCounts(NamedTuple):
    """Numbers of lost events, as the kernel counts them."""

    overrun: int
    dropped: int
    commit_overrun: int

    @classmethod
    def of(cls, stats: Mapping[str, int]) -> "LossCounts":
        """Take the counters from *stats*; a counter that this kernel lacks is 0."""
        names = "overrun", "dropped events", "commit overrun"
        return cls(*(stats.get(name, 0) for name in names))

    def by_reason(self) -> Mapping[Reason, int]:
        """Return the numbers by the reason of a gap."""
        reasons = (Reason.OVERWRITTEN, Reason.DROPPED, Reason.COMMIT_OVERRUN)
        return dict(zip(reasons, self, strict=True))

    def without(self, others: Mapping[Reason, int]) -> "LossCounts":
        """Return these numbers less *others*."""
        return LossCounts(*(n - others.get(why, 0) for why, n in self.by_reason().items()))


class Mark(NamedTuple):
    """The position of a stream at one moment, and the kernel's counters then."""

    subbuffers: int
    """The number of sub-buffers taken."""
    read_events: int
    """The kernel's ``read events`` after them."""
    lost: LossCounts | None
    """The kernel's counts, without losses in no gap or in a gap after them; None: unknown."""


class _Interval(NamedTuple):
    """A loss that no page counts: it lies before the first row that begins at *place_from*."""

    reason: Reason
    lost: int | None
    begin: int
    end: int
    place_from: int
    unit: Unit = Unit.EVENTS


def growth(before: int, after: int) -> int:
    """Return the growth of a counter; a counter that fell was reset, and counts from 0."""
    return after - before if after >= before else after


class LossLedger:
    """The losses of one stream: those that the kernel counted, and those that are in gaps."""

    def __init__(self, first: Sample, *, pages_only: bool = False) -> None:
        self._last = first
        self._pages_only = pages_only
        self._overwritten = 0
        self._settled = 0
        self._told = 0
        self._pending: list[_Interval] = []
        self._ripe = 0  # the number of them, from the first on, that are older than later rows
        self._after_rows: Counter[Reason] = Counter()
        """Events in gaps after the last row so far."""
        self._inherited: tuple[int, int] | None = None
        """The interval of inherited overwritten events, until they are in gaps."""
        # The position of the stream: now, at the last sample, at the last settled one, and at the
        # one settled before, where the next settled losses begin.
        self._last_begin = self._sampled_begin = self._settled_begin = self._since = first.now

    def inherit(self, lost: LossCounts, begin: int, end: int) -> None:
        """Count events that the kernel lost before the first sample, and no stored gap has.

        *begin* and *end* are the times of the last stored event and of the oldest in the ring.
        Call it before the first take.
        """
        self._pages_only = False
        self._pending.clear()  # the suspicion of such losses
        self._overwritten += lost.overrun
        if lost.overrun:
            self._inherited = begin, end
        for reason, count in lost.by_reason().items():
            if count and reason is not Reason.OVERWRITTEN:
                now = self._last.now
                self.suspect(reason, now, count, begin=min(begin, now))

    def accounted(self, *, with_last_gaps: bool = False) -> LossCounts | None:
        """Return the counts of the last sample, without losses that are in no gap.

        Those in gaps after the last row are left out, too, except *with_last_gaps*.  None: only the
        pages count, so that the counts say nothing.
        """
        if self._pages_only:
            return None
        last = self._last
        counts = LossCounts(last.overrun, last.dropped, last.commit_overrun)
        counts = counts.without(self.unplaced())
        return counts if with_last_gaps else counts.without(self._after_rows)

    def sampled(self, sample: Sample, place_from: int | None = None) -> None:
        """Note the counters of *sample*.

        *place_from* is the trace-clock time just before the last take (default: that of *sample*).
        After a ring has refused events until then, its next sub-buffer begins later.
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
        """Note that *count* events are missing; None: some may be.

        *begin* is the begin of the interval; None: the last sample.

        Several intervals of unknown number with the same reason become one until the next batch,
        because a process may write to a file in a loop.
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
        """Note a loss that lies before all later rows."""
        self._pending.insert(0, _Interval(reason, count, begin, end, 0, unit))
        self._ripe += 1

    def page_turned(self) -> None:
        """Note that the kernel turned to a new page, or had none, since the last sample.

        A new page has the count of the events overwritten before it.  So events that the last
        sample counted, and that no page has counted by then, will be in no page.
        """
        self._settled = self._overwritten
        self._settled_begin = self._sampled_begin

    def ran_dry(self) -> None:
        """Note that all events written before the last sample are delivered."""
        self._ripe = len(self._pending)

    def until_now(self) -> tuple[Gap, ...]:
        """Return the gaps of all losses so far that lie before the events which are in the ring.

        Events that a later page will count are not among them.
        """
        self._settle()
        return self._first_pending(len(self._pending))

    def forgive(self, sample: Sample, most: int | None = None) -> int:
        """Let events that were lost until *sample* be no loss; return how many were overwritten.

        These are the events that no gap contains; at most *most*, and those beyond it stay losses.
        """
        overwritten = self._overwritten - self._told + growth(self._last.overrun, sample.overrun)
        forgiven = max(overwritten, 0) if most is None else max(min(overwritten, most), 0)
        self._last = sample
        self._settled = self._told
        self._overwritten = self._told + max(overwritten - forgiven, 0)
        return forgiven

    def begin_at(self, begin: int) -> None:
        """Forget suspicions from before *begin*: what is taken from now on begins there."""
        self._pending = [each for each in self._pending if each.end > begin]
        self._ripe = min(self._ripe, len(self._pending))
        self._last_begin = self._sampled_begin = self._settled_begin = self._since = begin

    def place(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> tuple[Gap, ...]:
        """Return the gaps that belong before *rows*.

        *rows* have their final ``begin``; *missed* has the counts in their pages.  Call sampled()
        first if *missed* is not empty; otherwise page counts are compared with an old total.
        """
        if not len(rows):
            return ()
        gaps: list[Gap] = []
        if missed or self._pending or self._inherited:
            gaps = self._from_pages(rows, missed)
            if self._inherited:
                self._settle()  # the others of these lie before the rows
            gaps += self._from_counters(rows)
            gaps.sort(key=lambda gap: gap.row)
        self._after_rows.clear()
        self._last_begin = int(rows["begin"][-1])
        self._settle()
        return tuple(gaps)

    def rest(self, *, final: bool = False) -> tuple[Gap, ...]:
        """Return the gaps after all delivered rows, for a batch without rows.

        With *final*, return all counted losses that are in no gap yet.
        """
        if final:
            self.page_turned()
        self._settle()
        return self._first_pending(len(self._pending) if final else self._ripe)

    def _first_pending(self, count: int) -> tuple[Gap, ...]:
        first, self._pending, self._ripe = self._pending[:count], self._pending[count:], 0
        for interval in first:
            self._after_rows[interval.reason] += _events(interval.unit, interval.lost)
        return tuple(_gap(0, interval) for interval in first)

    def unplaced(self) -> Counter[Reason]:
        """Return the number of events that the last sample counts as lost and no gap contains."""
        found: Counter[Reason] = Counter()
        if not self._pages_only:
            found[Reason.OVERWRITTEN] = max(self._overwritten - self._told, 0)
        for interval in self._pending:
            if interval.reason is not Reason.UNWANTED:
                found[interval.reason] += _events(interval.unit, interval.lost)
        return found

    def _from_pages(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> list[Gap]:
        gaps = []
        begins = rows["begin"]
        for row, said in missed:
            count = said
            if not self._pages_only:
                # A page may count events that were lost before lttd began.
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
        """Make settled losses without a place the next gap."""
        count = self._settled - self._told
        if count > 0 and not self._pages_only:
            self._told += count
            now = self._last.now
            begin, end = self._inherited or (min(self._since, now), now)
            self._pending.insert(0, _Interval(Reason.OVERWRITTEN, count, begin, end, 0))
            self._ripe += 1
        if self._settled:
            self._inherited = None
        self._since = self._settled_begin


def _gap(row: int, interval: _Interval) -> Gap:
    return Gap(row, interval.reason, interval.unit, interval.lost, interval.begin, interval.end)


def _events(unit: Unit, count: int | None) -> int:
    return (count or 0) if unit is Unit.EVENTS else 0

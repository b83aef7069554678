"""Count the losses of one CPU's ring: samples of the kernel's counters for the loss ledger.

Rule: nothing here takes events from the ring.  Counters may be read at any time, also by the watch
on other tools; if that fails, the next take raises the error, because it would fail as well.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from lttd.errors import LttdError, SourceError
from lttd.sources.base import OVERWRITTEN_IDLE
from lttd.sources.ftrace.counts import RingCounts
from lttd.sources.ftrace.loss import LossCounts, LossLedger, Sample
from lttd.subbuffer import Gap, Reason, Rows, Unit

# A take is shorter than this, in ns; a ring of 1 MiB takes longer to fill again.
SOON: Final = 1_000_000


class Ring:
    """The losses of one CPU's ring."""

    def __init__(
        self, cpu: int, counts: RingCounts, now: Callable[[], int], *, previous_run: bool
    ) -> None:
        """Take over *counts*; *now* reads the trace clock."""
        fields, began = counts.read(), now()
        self.cpu = cpu
        self.read_events_before = fields.get("read events", 0)
        """The number of events that the kernel counted as read when lttd took the ring over."""
        self.lost_before = LossCounts.of(fields)
        """The kernel's counts of lost events at that moment."""
        self.failure: SourceError | None = None
        """The error of a sample outside of a take; the next take raises it."""
        self._counts = counts
        self._now = now
        self._oldest = fields.get("oldest event ts")
        self._ticked_at = began
        self._took_partial = False
        self._has_inherited = False
        """Whether the first take is still to come in a ring with losses of a killed lttd."""
        self.idle = False
        """Whether the ring overwrites itself, and nobody wants its events yet."""
        self.was_idle = False
        self.overwritten = 0
        """The events that were overwritten while it was idle: no loss."""
        self._overwritten_before = 0
        self._passed_over = 0
        self._passed_over_before = 0
        self._paused_at = began
        self._ledger = LossLedger(Sample.of(fields, began), pages_only=previous_run)
        if previous_run and (fields.get("dropped events") or fields.get("commit overrun")):
            # The killed run stored some of these losses in its own segment; how many is unknown.
            self._ledger.suspect(Reason.DROPPED, began)

    def counters(self) -> Mapping[str, int]:
        """Return the fields of ``stats``: times in trace-clock units, counts since the take-over.

        lttd adds ``foreign read events``, those that other processes consumed, as far as noticed.
        What happened to events that nobody wanted is not among the counts, but has its own.
        """
        found = self._counts.since_the_base()
        more = {"foreign read events": self.foreign_read_events}
        if self.was_idle:
            more["overrun"] = found.get("overrun", 0) - self.overwritten
            more["read events"] = found.get("read events", 0) - self._passed_over
            more[OVERWRITTEN_IDLE] = self.overwritten
        return {**found, **more}

    def fields(self) -> Mapping[str, int]:
        """Return the fields of ``stats`` as they are."""
        return self._counts.read()

    def unread_bytes(self) -> int:
        """Return how many bytes the ring holds, at least."""
        return self._counts.unread_bytes()

    def accounted(self, *, with_last_gaps: bool = False) -> LossCounts | None:
        """Return the kernel's counts of losses that are in gaps; see LossLedger.

        None: unknown, and while the ring is idle, which loses events that nobody wants.
        """
        return None if self.idle else self._ledger.accounted(with_last_gaps=with_last_gaps)

    def text(self) -> bytes:
        """Return ``stats`` verbatim."""
        return self._counts.text()

    def close(self) -> None:
        """Close the descriptor."""
        self._counts.close()

    # -- around a take

    def sample(self, before: int | None = None, unwanted: int | None = None) -> Mapping[str, int]:
        """Give the kernel's counters to the ledger; *before* is the time before a take.

        While it is idle, at most *unwanted* events were overwritten unwanted since pause().
        """
        fields = self._counts.read()
        now = self._now()
        if before is not None and now - before > SOON:
            before = None  # lttd was delayed, and the ring may have filled again meanwhile
        sample = Sample.of(fields, now)
        if self.idle:
            known = self.overwritten - self._overwritten_before
            more = None if unwanted is None else unwanted - known
            self.overwritten += self._ledger.forgive(sample, more)
        else:
            self._ledger.sampled(sample, before)
        return fields

    def try_to_sample(self, before: int | None = None, unwanted: int | None = None) -> None:
        """Call sample(), but leave an error for the next take."""
        try:
            self.sample(before, unwanted)
        except LttdError as error:
            self.failure = SourceError(str(error))

    @property
    def counts_our_reads(self) -> bool:
        """Tell whether took() must be given the number of events."""
        return self._counts.counting

    def took(self, subbuffers: int, events: int | None, *, partial: bool) -> None:
        """Note that lttd consumed so many sub-buffers and events; *events* is None if not counted.

        *partial*: the kernel still wrote into the last sub-buffer, so the next take may begin with
        the rest of it, for which the kernel turns no page.
        """
        self._counts.took(events, partial=partial)
        if subbuffers > self._took_partial or (self._has_inherited and self._is_empty()):
            self._ledger.page_turned()
        self._took_partial, self._has_inherited = partial, False

    def _is_empty(self) -> bool:
        with suppress(LttdError):  # the next take reports it
            return not self._counts.read().get("entries")
        return False

    def took_nothing(self) -> None:
        """Note that the consumed sub-buffers were lost."""
        self._counts.took(None)

    def page_turned(self) -> None:
        """Note that the kernel turned to a new page, or had none, since the last sample."""
        self._ledger.page_turned()

    def ran_dry(self) -> None:
        """Note that all events written before the last sample are delivered."""
        self._ledger.ran_dry()

    def place(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> tuple[Gap, ...]:
        """Return the gaps that belong before *rows*; see LossLedger.place()."""
        return self._ledger.place(rows, missed)

    # -- while nobody wants the events; see lttd.flight

    def pause(self) -> tuple[Gap, ...]:
        """Let the ring overwrite itself without loss until wanted(); return the losses so far."""
        self.idle = self.was_idle = True
        self._overwritten_before, self._passed_over_before = self.overwritten, self._passed_over
        self._paused_at = self._now()
        return self._ledger.until_now()

    @property
    def wrapped(self) -> bool:
        """Tell whether the ring has overwritten events since pause(), by the last sample."""
        return self.overwritten > self._overwritten_before

    def pass_over(self, events: int) -> None:
        """Note that lttd consumed events that nobody wants, and stores none of them."""
        self._passed_over += events

    def wanted(self, begin: int | None) -> None:
        """Count losses again: those of the events that are in the ring, and of all later ones.

        *begin* is the time of the first of them, if older ones were overwritten; then there is a
        hole before them, which is no loss.
        """
        self.idle = False
        if begin is None:
            return
        self._ledger.begin_at(begin)
        count = self.overwritten - self._overwritten_before
        count += self._passed_over - self._passed_over_before
        known, since = count if self.wrapped else None, min(self._paused_at, begin)
        self._ledger.lost_before_all(Reason.UNWANTED, known, since, begin)

    # -- between takes

    def ticked(self) -> tuple[Gap, ...]:
        """Return the gaps that belong after all delivered rows, and sample the counters again."""
        gaps = self._ledger.rest()
        self.sample()
        self._count_others()
        self._ticked_at = self._ledger.sampled_at
        return gaps

    def ended(self, *, producers_stopped: bool, is_dry: bool) -> tuple[Gap, ...]:
        """Return the gaps since the last take, and one for events that stay in the ring."""
        fields = self.sample() if producers_stopped else self._counts.read()
        self._count_others()
        left = fields.get("entries", 0)
        if left and not is_dry:
            # If the kernel still writes, it is unknown how many events are from before the stop.
            self.suspect(Reason.ABANDONED, left if producers_stopped else None)
        return self._ledger.rest(final=True)

    def unplaced(self) -> Mapping[Reason, int]:
        """Return the number of events that the last sample counts as lost and no gap contains."""
        return self._ledger.unplaced()

    def suspect(self, reason: Reason, count: int | None = None, unit: Unit = Unit.EVENTS) -> None:
        """Note that *count* units are missing at this time; None: some may be."""
        self._ledger.suspect(reason, self._now(), count, unit)

    def inherit(self, taken: int | None, lost: LossCounts | None, begin: int) -> None:
        """Count *taken* events that a killed lttd took of this ring and lost; None: some.

        *lost* are those that the kernel lost, and no stored gap has; None: unknown.  *begin* is the
        trace-clock time of the last stored event.
        """
        now = self._now()
        end = max(min(self._oldest or now, now), begin)
        if lost is not None:
            self._ledger.inherit(lost, begin, end)
            # The ring may begin with the rest of a sub-buffer that the killed lttd took in part.
            self._took_partial = self._has_inherited = True
        if taken != 0:
            self._ledger.lost_before_all(Reason.KILLED, taken, begin, end)

    def lost_take(self, subbuffers: int) -> None:
        """Count *subbuffers* of a take that failed; the next rows follow them.

        The kernel may have begun the next sub-buffer before lttd took these.
        """
        begin, now = self._ledger.sampled_at, self._now()
        self._ledger.lost_before_all(Reason.REFUSED, subbuffers, begin, now, Unit.SUBBUFFERS)

    # -- what other tools do; see ftrace.watch

    @property
    def foreign_read_events(self) -> int:
        """The number of events that other processes consumed, as far as noticed."""
        return self._counts.foreign_read_events

    def count_reads(self) -> None:
        """Count the taken events from now on, so that the events of other readers are known.

        The number that they took before is unknown, if lttd took events since the last tick but
        one: the tick may have ended after the opening and before the report of it.
        """
        counts = self._counts
        if counts.counting:
            return
        counts.counting = True
        before = counts.unsure
        self.try_to_sample()
        others = counts.look_for_others()
        if before or counts.unsure:
            self.suspect(Reason.FOREIGN_READ)
        if others:
            self.suspect(Reason.FOREIGN_READ, others)

    def trust_reads(self) -> None:
        """Stop counting: no other process has a consuming file open."""
        if self._counts.counting:
            self.try_to_sample()
            self._count_others()  # the last events that they took
            self._counts.counting = False

    def _count_others(self) -> None:
        """Count the events that other processes read since the last call, if that is known."""
        others = self._counts.look_for_others()
        if others:
            self.suspect(Reason.FOREIGN_READ, others)

    def was_emptied(self) -> bool:
        """Tell whether a counter ran backwards since the last call."""
        return self._counts.was_emptied()

    def looks_emptied(self) -> bool:
        """Read the counters now, after an act that may have emptied the ring."""
        self.try_to_sample()
        return self._counts.was_emptied() or self._counts.shrank_lately()

    def note_emptied(self) -> None:
        """Note that another process emptied the ring, whose number of events is unknown.

        Data since the last tick may have another clock already, so the gap begins there.
        """
        begin = self._ticked_at
        self.try_to_sample()
        self._counts.was_emptied()
        self._took_partial = False
        self._ledger.suspect(Reason.EMPTIED, self._now(), begin=begin)

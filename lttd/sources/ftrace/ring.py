"""What one CPU's ring has lost: the kernel's counters, read over time, and the ledger they feed.

Rule: nothing here takes events from the ring.  Counters may be read at any time, also by whoever
watches other tools; a read that fails is told by the next take, which would fail as well.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lttd.errors import LttdError, SourceError
from lttd.sources.ftrace.counts import RingCounts
from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.subbuffer import Gap, Reason, Rows, Unit

# A take lasts less, in trace-clock ns; a ring of a MiB takes longer to fill up once more.
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
        """How many events the kernel had counted as read when lttd took the ring over."""
        self.failure: SourceError | None = None
        """Why the counters could not be read where nobody waited for them: for the next take."""
        self._counts = counts
        self._now = now
        self._oldest = fields.get("oldest event ts")
        self._ticked_at = began
        self._took_partial = False
        self._ledger = LossLedger(Sample.of(fields, began), pages_only=previous_run)
        if previous_run and (fields.get("dropped events") or fields.get("commit overrun")):
            # The killed run told some of them in its own segment; how many, nobody knows.
            self._ledger.suspect(Reason.DROPPED, began)

    def counters(self) -> Mapping[str, int]:
        """Return the fields of ``stats``, times in trace-clock units, counts since we took over.

        One is ours: ``foreign read events``, which somebody else was seen to consume.
        """
        return {**self._counts.since_the_base(), "foreign read events": self.foreign_read_events}

    def fields(self) -> Mapping[str, int]:
        """Return the fields of ``stats`` as they are."""
        return self._counts.read()

    def text(self) -> bytes:
        """Return ``stats`` verbatim."""
        return self._counts.text()

    def close(self) -> None:
        """Give the descriptor back."""
        self._counts.close()

    # -- around a take

    def sample(self, before: int | None = None) -> Mapping[str, int]:
        """Show the kernel's counters to the ledger; *before*: the trace clock before a take."""
        fields = self._counts.read()
        now = self._now()
        if before is not None and now - before > SOON:
            before = None  # we were held up, and the ring may have filled up anew meanwhile
        self._ledger.sampled(Sample.of(fields, now), before)
        return fields

    def try_to_sample(self, before: int | None = None) -> None:
        """Do so where the next sample will do as well."""
        try:
            self.sample(before)
        except LttdError as error:
            self.failure = SourceError(str(error))

    @property
    def counts_our_reads(self) -> bool:
        """Whether took() must be given the number of events."""
        return self._counts.counting

    def took(self, subbuffers: int, events: int | None, *, partial: bool) -> None:
        """Take note that we consumed so many events; None: nobody counted them.

        *partial*: the last of the sub-buffers was taken before the kernel was done with it, so that
        the next take may begin with the rest of it, for which the kernel turns no page.
        """
        self._counts.took(events)
        if subbuffers > self._took_partial:
            self._ledger.page_turned()
        self._took_partial = partial

    def took_nothing(self) -> None:
        """Take note that what was consumed came to nothing."""
        self._counts.took(None)

    def page_turned(self) -> None:
        """Say that the kernel turned to a new page, or had none, since the last sample."""
        self._ledger.page_turned()

    def ran_dry(self) -> None:
        """Say that everything written by the last sample has been delivered."""
        self._ledger.ran_dry()

    def place(self, rows: Rows, missed: Sequence[tuple[int, int | None]]) -> tuple[Gap, ...]:
        """Return the gaps that belong before *rows*; see LossLedger.place()."""
        return self._ledger.place(rows, missed)

    # -- beside takes

    def ticked(self) -> tuple[Gap, ...]:
        """Return what belongs after all that was delivered, and look at the counters again."""
        gaps = self._ledger.rest()
        self.sample()
        self._count_others()
        self._ticked_at = self._ledger.sampled_at
        return gaps

    def ended(self, *, producers_stopped: bool, is_dry: bool) -> tuple[Gap, ...]:
        """Return all that was lost since the last take, and what is in the ring and stays there."""
        fields = self.sample() if producers_stopped else self._counts.read()
        self._count_others()
        left = fields.get("entries", 0)
        if left and not is_dry:
            # Where others write on, how many of them are from before our stop cannot be told.
            self.suspect(Reason.ABANDONED, left if producers_stopped else None)
        return self._ledger.rest(final=True)

    def unplaced(self) -> Mapping[Reason, int]:
        """Return how many events were lost by the last sample that no gap tells yet."""
        return self._ledger.unplaced()

    def suspect(self, reason: Reason, count: int | None = None, unit: Unit = Unit.EVENTS) -> None:
        """Take note that *count* are missing from here on, or until here; None: some may be."""
        self._ledger.suspect(reason, self._now(), count, unit)

    def lost_before_all(self, count: int | None, begin: int) -> None:
        """Have it counted that a killed lttd took *count* events of this ring and lost them.

        *begin*: trace clock of the last event before them; None: their number is not known.
        """
        now = self._now()
        end = max(min(self._oldest or now, now), begin)
        self._ledger.lost_before_all(Reason.KILLED, count, begin, end)

    def lost_take(self, subbuffers: int) -> None:
        """Have *subbuffers* counted that were taken and broke off; the next rows follow them.

        The kernel may have begun the next one before lttd took these.
        """
        begin, now = self._ledger.sampled_at, self._now()
        self._ledger.lost_before_all(Reason.REFUSED, subbuffers, begin, now, Unit.SUBBUFFERS)

    # -- what other tools do; see ftrace.watch

    @property
    def foreign_read_events(self) -> int:
        """What somebody else was seen to consume."""
        return self._counts.foreign_read_events

    def count_reads(self) -> None:
        """Count from now on how many events we take, so that what others take is known.

        What they took before is not, if we took meanwhile, too: since the last tick, and in the one
        before, too, which may have ended after the opening and before it was heard of.
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
        """Count no longer: nobody else has a file open that consumes."""
        if self._counts.counting:
            self.try_to_sample()
            self._count_others()  # what they took last
            self._counts.counting = False

    def _count_others(self) -> None:
        """Count what was read since the last time, and not by us; as far as that is known."""
        others = self._counts.look_for_others()
        if others:
            self.suspect(Reason.FOREIGN_READ, others)

    def was_emptied(self) -> bool:
        """Tell whether the counters were seen to run backwards since this was last asked."""
        return self._counts.was_emptied()

    def looks_emptied(self) -> bool:
        """Ask the counters now: somebody did what may have emptied the ring."""
        self.try_to_sample()
        return self._counts.was_emptied() or self._counts.shrank_lately()

    def note_emptied(self) -> None:
        """Take note that somebody emptied the ring: how much was in it, nobody knows.

        What was taken since the last tick may be of another clock already: the gap reaches so far.
        """
        begin = self._ticked_at
        self.try_to_sample()
        self._counts.was_emptied()
        self._took_partial = False
        self._ledger.suspect(Reason.EMPTIED, self._now(), begin=begin)

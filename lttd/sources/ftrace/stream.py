"""One CPU of a tracefs instance as a stream: its turns, and the batches of its takes.

Rule: every state and transition of a turn lives in TRANSITIONS below.
Rule: take() is the only place that consumes from the ring, and it is the hot path: one readv per
thousand sub-buffers, a splice for those that came meanwhile, arrays.

A turn is a series of calls of take() until one returns Nothing.  With *flush*, a turn reads at most
one partial sub-buffer, and after it only full ones: otherwise a recorder that traces itself would
never end its turn.  After the source was stopped, no more events are added (or, in an instance that
lttd does not control, none that count), and the turn goes on until the ring is empty.
"""

import enum
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from lttd.abi.ftrace import NAME, NEAR, PageLayout, Pages, last_event_time, rows_of_pages
from lttd.abi.ftrace_events import count
from lttd.errors import LttdError, SourceError
from lttd.sources.base import Nothing
from lttd.sources.ftrace.first_take import FirstTake
from lttd.sources.ftrace.killed import Unstored
from lttd.sources.ftrace.loss import Mark
from lttd.sources.ftrace.raw import RawFile
from lttd.sources.ftrace.ring import Ring
from lttd.sources.pipe import Pipe, TakeBrokeOffError
from lttd.sources.rows import RowBook, damage_gaps
from lttd.subbuffer import (
    LAST_TAKE_BYTES,
    NO_ROWS,
    Batch,
    BufferPool,
    Gap,
    Reason,
    RowFlag,
    Rows,
    StreamId,
    StreamInfo,
    losses_batch,
    make_batch,
)

WALKED_BYTES: Final = 16 << 10
# The kernel prints microseconds, cut off or rounded.
_CUT_NS: Final = 999
# A stopped ring is empty when a read returns nothing and `entries` is 0 (60 of 60 rounds).  If a
# kernel counts entries that it does not deliver, lttd tries this often.
LAST_ATTEMPTS: Final = 5


class State(enum.Enum):
    """What the next take of a turn does."""

    FILLING = enum.auto()  # splice; if that returns nothing, flush
    DRAINED = enum.auto()  # flush only: with a fast writer, more splices would return only a few
    # pages each
    FLUSHED = enum.auto()  # splice only: the turn has had its partial sub-buffer
    ENDING = enum.auto()  # neither: the turn ends
    OVER = enum.auto()  # nothing: the stream has ended


class Event(enum.Enum):
    """The result of a take."""

    SPLICED = enum.auto()  # full sub-buffers; there may be more
    SPLICED_ALL = enum.auto()  # full sub-buffers, and there are no more
    FLUSHED = enum.auto()  # the partial sub-buffer
    GAVE_NOTHING = enum.auto()  # or failed: the turn is over
    ENDED = enum.auto()  # nothing more will ever come


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.FILLING: {
        Event.SPLICED: State.FILLING,
        Event.SPLICED_ALL: State.DRAINED,
        Event.FLUSHED: State.FLUSHED,
        Event.GAVE_NOTHING: State.FILLING,
        Event.ENDED: State.OVER,
    },
    State.DRAINED: {
        Event.FLUSHED: State.ENDING,
        Event.GAVE_NOTHING: State.FILLING,
        Event.ENDED: State.OVER,
    },
    State.FLUSHED: {
        Event.SPLICED: State.FLUSHED,
        Event.SPLICED_ALL: State.ENDING,
        Event.FLUSHED: State.FLUSHED,  # only once the source was stopped
        Event.GAVE_NOTHING: State.FILLING,
        Event.ENDED: State.OVER,
    },
    State.ENDING: {
        Event.FLUSHED: State.FLUSHED,  # only once the source was stopped
        Event.GAVE_NOTHING: State.FILLING,
        Event.ENDED: State.OVER,
    },
    State.OVER: {Event.GAVE_NOTHING: State.OVER, Event.ENDED: State.OVER},
}


@dataclass(slots=True)
class Shared:
    """What the streams of one source have in common."""

    layout: PageLayout
    pool: BufferPool
    pipe: Pipe
    now: Callable[[], int]
    """Reads the trace clock."""
    channel: str
    overwrite: bool
    pollable: bool
    """False where poll would spin."""
    previous_run: bool = False
    stopped_at: int | None = None
    """The trace-clock time just after stop(); None before."""
    same_clock: Callable[[], bool] = lambda: True
    """Tells whether the trace clock is still that of the segment."""
    paused: bool = False
    """Whether the content of the rings does not fit the segment: it has another clock, say."""
    producers_stopped: bool = False
    """Whether stop() has turned tracing off, so that the kernel writes no more."""

    @property
    def stopped(self) -> bool:
        """Tell whether this is the last drain."""
        return self.stopped_at is not None


class FtraceStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(self, raw: RawFile, ring: Ring, shared: Shared) -> None:
        """Take over *raw* and *ring*, both of one CPU."""
        self.info = StreamInfo(
            StreamId(shared.channel, ring.cpu),
            NAME,
            shared.layout.subbuffer_bytes,
            shared.layout.header_bytes,
            read_events_before=ring.read_events_before,
        )
        self.ring = ring
        self.state = State.FILLING
        self.first_mark = Mark(0, ring.read_events_before, ring.accounted())
        """The mark as of the take-over, or of the end of the last pause."""
        self.complete_since = shared.now()
        """Since when, on the trace clock, no event was overwritten in a pause()."""
        self.wanted_from: tuple[int, int] | None = None
        """See PausableStream."""
        self.is_paused = False
        self._first_take = FirstTake()
        self._until: int | None = None
        self._has_all = False
        """Whether everything until then was taken."""
        self._gaps: tuple[Gap, ...] = ()
        """Losses that the next batch without rows has."""
        self._raw = raw
        self._shared = shared
        self._book = RowBook()
        # The error of a take that returned data all the same; the next take raises it.
        self._failure: TakeBrokeOffError | None = None

    @property
    def over(self) -> bool:
        """Tell whether nothing more will ever come."""
        return self.state is State.OVER

    def mark(self, *, with_last_gaps: bool = False) -> Mark:
        """Return how far the ring was read; see LossLedger.accounted()."""
        lost = self.ring.accounted(with_last_gaps=with_last_gaps)
        return Mark(self._book.sequence, self.ring.fields().get("read events", 0), lost)

    def inherit(self, unstored: Unstored) -> None:
        """Count the losses of a killed lttd; see Ring."""
        self.ring.inherit(unstored.taken, unstored.lost, unstored.begin)
        # If this run is killed before it stores its gaps for them, the next one counts them again.
        before = self.info.read_events_before - (unstored.taken or 0)
        self.first_mark = Mark(0, before, self.ring.accounted())

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 if poll would spin."""
        return self._raw.fileno() if self._shared.pollable else -1

    def urgent(self) -> bool:
        """Return False: the kernel does not report this."""
        return False

    def at_rest(self) -> bool:
        """Tell whether tracing was turned off; see RestingStream."""
        return self._shared.producers_stopped

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume full sub-buffers or, with *flush*, the one being written; see Stream.take()."""
        if self.state is State.OVER:
            return Nothing.EVER
        if self._shared.paused:
            return Nothing.OFFLINE
        if self._has_all:
            return Nothing.YET
        self._raise_failure()
        if not flush and self.state in (State.DRAINED, State.ENDING):
            self._happened(Event.GAVE_NOTHING)
            return Nothing.YET
        buffer = self._shared.pool.take(self._most_bytes())
        try:
            taken = self._take(buffer, flush=flush)
        except BaseException:
            self._shared.pool.give(buffer)
            self._happened(Event.GAVE_NOTHING)
            raise
        if isinstance(taken, Nothing):
            self._shared.pool.give(buffer)
            self._happened(Event.GAVE_NOTHING)
        return taken

    def losses(self) -> Batch | None:
        """Return losses that the kernel counted and no batch contains; see Stream.losses()."""
        shared, ring, gaps = self._shared, self.ring, self._gaps
        self._gaps = ()
        if not shared.stopped:
            gaps += ring.ticked()
        else:
            if not ring.idle:  # else nobody wants what it holds
                stopped = shared.producers_stopped
                gaps += ring.ended(producers_stopped=stopped, is_dry=self.over)
            self._happened(Event.ENDED)
        return self._losses(gaps)

    def want(self, until: int | None) -> None:
        """Take until the trace clock shows *until*; see PausableStream.want()."""
        self._until, self._has_all, self.is_paused = until, False, False

    def pause(self) -> Batch | None:
        """Let the ring overwrite itself until it is wanted; see PausableStream.pause()."""
        self.is_paused = True
        self._leave()
        gaps, self._gaps = self._gaps, ()
        return self._losses(gaps)

    def _leave(self) -> None:
        if not self.ring.idle:
            self._first_take = FirstTake()
            self._gaps += self.ring.pause()
            self._happened(Event.GAVE_NOTHING)  # its turn is over, and the next one a new one

    def _losses(self, gaps: tuple[Gap, ...]) -> Batch | None:
        if not gaps:
            return None
        self._book.count(NO_ROWS, gaps)
        return losses_batch(self.info.id, gaps)

    def unplaced(self) -> Mapping[Reason, int]:
        """Read the kernel's counters for losses that no batch contains; see Stream.unplaced()."""
        if not self._shared.stopped:
            self.ring.sample()
        return self.ring.unplaced()

    def counters(self) -> Mapping[str, int]:
        """Return the kernel's counters; see Ring.counters()."""
        return self.ring.counters()

    def stats_text(self) -> bytes:
        """Return ``stats`` verbatim."""
        return self.ring.text()

    def close(self) -> None:
        """Close the descriptors, which releases the lock."""
        self._happened(Event.ENDED)
        self._raw.close()
        self.ring.close()

    def _happened(self, event: Event) -> None:
        """Follow the table; a pair that it lacks is a bug in this file."""
        self.state = TRANSITIONS[self.state][event]

    def _raise_failure(self) -> None:
        """Raise an error of the last take, or since then, once."""
        failure = self._failure or self.ring.failure
        if failure is not None:
            self._failure = self.ring.failure = None
            if isinstance(failure, TakeBrokeOffError):  # behind what the last take gave
                self._lose_take(failure)
            raise failure

    # -- a take

    def _take(self, buffer: memoryview, *, flush: bool) -> Batch | Nothing:
        before = self._before_take()
        flag = RowFlag(0)
        try:
            self._raw.skip_remainder(buffer)
            got = self._take_full(buffer)
            if flush and got is Nothing.YET:
                flag = RowFlag.PARTIAL
                got = self._flush(buffer)
            elif flush and isinstance(got, int) and (more := self._flush_after(buffer[got:])):
                flag = RowFlag.PARTIAL
                got += more
        except TakeBrokeOffError as error:
            self._lose_take(error)
            raise
        return got if isinstance(got, Nothing) else self._taken(buffer, got, flag, before)

    def _before_take(self) -> int | None:
        if self.ring.idle:
            self._first_take.read_events = self.ring.sample().get("read events", 0)
        # Only the losses of a no-overwrite ring need this: see LossLedger.sampled().
        if self._shared.overwrite:
            return None
        # Events refused so far lie before all later ones, however long the take lasts.
        self.ring.sample()
        return self._shared.now()

    def _take_full(self, buffer: memoryview) -> Nothing | int:
        """Take full sub-buffers; return their bytes."""
        if self.state in (State.DRAINED, State.ENDING):
            return Nothing.YET
        # Of a ring that refuses events while it is full, lttd splices once, so that the gap for
        # the refused events gets the right place.
        most_bytes = max(self._most_bytes(), self.info.subbuffer_bytes)
        once = not self._shared.overwrite
        full = self._full_subbuffers()
        taken = self._raw.take_full(buffer[:most_bytes], full=full, once=once)
        if not taken.used_bytes:
            return taken.why
        if not full and taken.used_bytes > self.info.subbuffer_bytes:
            self._full_subbuffers()  # now that the ring holds little, it is known what to subtract
        if taken.broke_off is not None:
            self._broke_off(taken.broke_off)
        self._happened(Event.SPLICED_ALL if taken.drained else Event.SPLICED)
        return taken.used_bytes

    def _most_bytes(self) -> int:
        return LAST_TAKE_BYTES if self.at_rest() else self._shared.pool.wanted_bytes

    def _full_subbuffers(self) -> int:
        """Return how many sub-buffers the kernel has left, at least; the last may be open."""
        content_bytes = self.info.subbuffer_bytes - self.info.header_bytes
        with suppress(LttdError):  # then splice finds them
            return max(-(-self.ring.unread_bytes() // content_bytes) - 1, 0)
        return 0

    def _flush(self, buffer: memoryview) -> Nothing | int:
        """Read the sub-buffer being written, at most once a turn; return its bytes."""
        stopped = self._shared.stopped
        if not stopped and self.state in (State.FLUSHED, State.ENDING):
            # That splice returns nothing now does not mean that the ring is empty.
            return Nothing.YET
        for _ in range(LAST_ATTEMPTS if stopped else 1):
            got = self._raw.read(buffer)
            if isinstance(got, int) and got:
                self._happened(Event.FLUSHED)
                return got
            if got == 0:  # a ring that had lapped us would give
                self.ring.page_turned()
            elif got is not Nothing.YET:
                return got
            if stopped and not self.ring.fields().get("entries"):
                break
        else:
            if stopped:
                self.ring.suspect(Reason.REFUSED)
        self.ring.ran_dry()
        if self.ring.idle:
            # It is empty: later events are the first.
            self._want(self._shared.now(), 0, has_hole=self.ring.wrapped)
        if not stopped:
            return Nothing.YET
        self._happened(Event.ENDED)
        return Nothing.EVER

    def _flush_after(self, rest: memoryview) -> int:
        """Read the sub-buffer being written into the *rest* of a take; return its bytes, or 0.

        Each batch has fixed costs, so it goes into that of the full ones before it.  An error is
        left to the next take.  In a ring that refuses events, their gap lies between the two.
        """
        shared = self._shared
        may = self.state is State.DRAINED and shared.overwrite and not shared.stopped
        if not may or len(rest) < self.info.subbuffer_bytes:
            return 0
        try:
            got = self._raw.read(rest)
        except TakeBrokeOffError as error:
            self._broke_off(error)
            return 0
        except SourceError:
            return 0
        if isinstance(got, Nothing) or not got:
            return 0
        self._happened(Event.FLUSHED)
        return got

    def _broke_off(self, error: TakeBrokeOffError) -> None:
        """Leave the error of a take that returned data all the same to the next take."""
        self.ring.took_nothing()
        self._failure = error

    def _lose_take(self, error: TakeBrokeOffError) -> None:
        """Count data that was taken from the ring and then lost."""
        self.ring.took_nothing()
        lost = -(-error.used_bytes // self.info.subbuffer_bytes)
        self.ring.lost_take(lost)

    # -- a batch of what was taken

    def _taken(
        self, buffer: memoryview, used_bytes: int, flag: RowFlag, before: int | None
    ) -> Batch | Nothing:
        """Make a batch of *used_bytes* that the kernel has just released.

        Return Nothing if they have another clock: the change of the clock has emptied the ring.
        """
        shared, ring, size = self._shared, self.ring, self.info.subbuffer_bytes
        now = shared.now()
        if shared.producers_stopped and shared.stopped_at is not None:
            now = min(now, shared.stopped_at)
        rows, missed, damaged = rows_of_pages(buffer, used_bytes, shared.layout)
        events = self._events_in(buffer, rows) if ring.counts_our_reads else None
        ring.took(used_bytes // size, events, partial=bool(flag))
        drained = bool(flag) or self.state in (State.DRAINED, State.ENDING)
        last_end = self._last_end(rows, buffer, now, drained=drained)
        if self._is_out_of_time(rows, last_end, now) and not shared.same_clock():
            shared.paused = True
            ring.suspect(Reason.EMPTIED)
            return Nothing.OFFLINE
        if ring.idle:
            rows, missed, damaged = self._wanted(buffer, Pages(rows, missed, damaged))
        if missed or before is not None:
            ring.try_to_sample(before)
        earlier = self._book.begin
        self._book.number(rows, min(last_end, now))
        rows["flags"][-1:] |= np.uint64(flag)
        gaps = ring.place(rows, missed)
        if damaged:
            gaps += damage_gaps(rows, damaged, size, earlier, now)
        self._book.count(rows, gaps)
        stopped_at = None if shared.producers_stopped else shared.stopped_at
        if stopped_at is not None and self._book.begin > stopped_at:
            # lttd could not stop the writers; it needs no sub-buffer that begins after the stop.
            self._happened(Event.ENDED)
        if self._until is not None and not ring.idle and self._book.begin > self._until:
            self._has_all = True
            self._leave()
        return make_batch(self.info.id, rows, pool=shared.pool, buffer=buffer, gaps=gaps)

    def _wanted(self, buffer: memoryview, found: Pages) -> Pages:
        """Return what is wanted of the first rows after a pause; see FirstTake."""
        rows, missed, damaged = found
        if missed:
            # These pages say how much is missing before them; what was overwritten since is lost.
            counts = [count for _, count in missed]
            self.ring.try_to_sample(unwanted=None if None in counts else sum(filter(None, counts)))
        first = self._first_take.first_row(len(rows), missed, wrapped=self.ring.wrapped)
        passed_over = self._events_in(buffer, rows[:first]) if first else 0
        self.ring.pass_over(passed_over)
        rows = rows[first:]
        if len(rows):
            # If the counters cannot be read, the pages alone tell of a hole.
            has_hole = self.ring.wrapped or bool(missed)
            self._want(int(rows["begin"][0]), passed_over, has_hole=has_hole)
        later = [(row - first, at) for row, at in damaged if row > first or not first]
        return Pages(rows, [], later)

    def _want(self, begin: int, passed_over: int, *, has_hole: bool) -> None:
        """End a pause; *begin* is the time of the first row."""
        self.wanted_from = self._book.sequence, self._first_take.read_events + passed_over
        if has_hole:
            self.complete_since = begin
        self.ring.wanted(begin if has_hole else None)
        lost = self.ring.accounted()
        if lost != self.ring.accounted(with_last_gaps=True):
            lost = None  # whether these gaps are in this segment is not known
        self.first_mark = Mark(*self.wanted_from, lost)

    def _is_out_of_time(self, rows: Rows, last_end: int, now: int) -> bool:
        """Tell whether rows begin before the rows of the last take, or end later than now."""
        if not len(rows):
            return False
        first, last = int(rows["begin"][0]), int(rows["begin"][-1])
        return first < self._book.begin or max(last, last_end) > now

    def _events_in(self, buffer: memoryview, rows: Rows) -> int:
        """Return the number of events in sub-buffers, as in the kernel's ``read events``."""
        offsets = rows["offset_bytes"].astype(np.int64)
        ends = offsets + (rows["content_bits"].astype(np.int64) >> 3)
        walked = count(buffer, offsets, ends, self._shared.layout)
        return sum(int(some.row_events.sum()) for some in walked)

    def _last_end(self, rows: Rows, buffer: memoryview, now: int, *, drained: bool) -> int:
        """Return the end of the last of *rows*, which is the time of its last event.

        If the sub-buffer is large (a walk takes 0.2 ms per 16 KiB), return a bound instead: the
        begin of the oldest sub-buffer in the ring, as for the other rows; or *now*, if the take
        emptied the ring and the last sub-buffer began just before.  An event that is later than
        *now* has another clock.
        """
        if not len(rows):
            return now
        begin, size = int(rows["begin"][-1]), self.info.subbuffer_bytes
        at = int(rows["offset_bytes"][-1])
        if size > WALKED_BYTES:
            if drained and now - begin <= NEAR:
                return now
            oldest = self._oldest_in_ring() if not drained else 0
            if oldest >= begin:
                return oldest
        return last_event_time(buffer[at : at + size], self._shared.layout)

    def _oldest_in_ring(self) -> int:
        """Return the begin of the oldest sub-buffer in the ring, or 1.5 us more; 0: unknown."""
        with suppress(LttdError):
            return self.ring.fields().get("oldest event ts", -_CUT_NS) + _CUT_NS
        return 0

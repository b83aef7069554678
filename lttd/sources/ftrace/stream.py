"""One CPU of a tracefs instance as a stream: turns, and batches of what a take gave.

Rule: every state and transition of a turn lives in TRANSITIONS below.
Rule: take() is the only place that consumes from the ring, and it is the hot path: splice into a
pipe that is empty before and after, one readv, arrays.

A turn is what the reader calls take() for until it gets Nothing.  With *flush* it holds at most one
partial sub-buffer, then only what splice still gives: a recorder that traces itself would else
never end its turn.  Once the source was stopped, nothing is added any more (or, where the buffer is
not ours, nothing that counts), and the turn goes on until the ring is dry.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from lttd.abi.ftrace import NEAR, PageLayout, last_event_time, rows_of_pages
from lttd.abi.ftrace_events import count
from lttd.sources.base import Nothing
from lttd.sources.ftrace.raw import RawFile
from lttd.sources.ftrace.ring import Ring
from lttd.sources.pipe import Pipe, TakeBrokeOffError
from lttd.sources.rows import RowBook, damage_gaps
from lttd.subbuffer import (
    NO_ROWS,
    Batch,
    BufferPool,
    Reason,
    RowFlag,
    Rows,
    StreamId,
    StreamInfo,
    losses_batch,
    make_batch,
)

WALKED_BYTES: Final = 16 << 10
# A stopped ring is dry when there is nothing to read and `entries` is 0 (60 of 60 rounds).  Should
# a kernel count entries that it does not give, it is asked this often.
LAST_ATTEMPTS: Final = 5


class State(enum.Enum):
    """What the next take of a turn does."""

    FILLING = enum.auto()  # splice; where that gives nothing, flush
    DRAINED = enum.auto()  # flush: a fast writer has finished the next sub-buffer at once, and to
    # splice again would be to run after it, a few pages at a time
    FLUSHED = enum.auto()  # splice only: the turn has had its partial sub-buffer
    ENDING = enum.auto()  # neither: the turn ends
    OVER = enum.auto()  # nothing: the stream has ended


class Event(enum.Enum):
    """What a take did."""

    SPLICED = enum.auto()  # full sub-buffers; there may be more
    SPLICED_ALL = enum.auto()  # full sub-buffers, fewer than there was room for
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
        Event.FLUSHED: State.FLUSHED,
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
    """Trace clock just after stop(); None before."""
    same_clock: Callable[[], bool] = lambda: True
    """Reads whether the trace clock is the one of the segment."""
    paused: bool = False
    """What the rings hold does not belong into this segment: another clock, say."""
    producers_stopped: bool = False
    """stop() could keep the kernel from writing any more."""

    @property
    def stopped(self) -> bool:
        """Whether this is the last drain."""
        return self.stopped_at is not None


class FtraceStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(self, raw: RawFile, ring: Ring, shared: Shared) -> None:
        """Take over *raw* and *ring*, both of one CPU."""
        self.info = StreamInfo(
            StreamId(shared.channel, ring.cpu),
            "ftrace",
            shared.layout.subbuffer_bytes,
            shared.layout.header_bytes,
            read_events_before=ring.read_events_before,
        )
        self.ring = ring
        self.state = State.FILLING
        self.unstored = 0
        """How many events a killed lttd took before and did not store."""
        self._raw = raw
        self._shared = shared
        self._book = RowBook()
        # What went wrong in a take that gave something all the same: the next one raises it.
        self._failure: TakeBrokeOffError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will ever come."""
        return self.state is State.OVER

    def mark(self) -> tuple[int, int]:
        """Return how many sub-buffers were taken, and the kernel's ``read events`` for them."""
        return self._book.sequence, self.ring.fields().get("read events", 0)

    def tell_unstored(self, lost: int | None, begin: int) -> None:
        """Have it counted that a killed lttd took *lost* events of this ring; see Ring."""
        self.unstored = lost or 0
        self.ring.lost_before_all(lost, begin)

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 where poll would spin."""
        return self._raw.fileno() if self._shared.pollable else -1

    def urgent(self) -> bool:
        """Return False: the kernel says nothing of the kind."""
        return False

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume full sub-buffers or, with *flush*, the one being written; see Stream.take()."""
        if self.state is State.OVER:
            return Nothing.EVER
        if self._shared.paused:
            return Nothing.OFFLINE
        self._raise_failure()
        if not flush and self.state in (State.DRAINED, State.ENDING):
            self._happened(Event.GAVE_NOTHING)
            return Nothing.YET
        buffer = self._shared.pool.take()
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
        """Return what the kernel counted as lost and no batch told; see Stream.losses()."""
        shared = self._shared
        if shared.stopped:
            gaps = self.ring.ended(producers_stopped=shared.producers_stopped, is_dry=self.over)
            self._happened(Event.ENDED)
        else:
            gaps = self.ring.ticked()
        if not gaps:
            return None
        self._book.count(NO_ROWS, gaps)
        return losses_batch(self.info.id, gaps)

    def unplaced(self) -> Mapping[Reason, int]:
        """Ask the kernel what it has lost by now that no batch tells yet; see Stream.unplaced()."""
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
        """Give the descriptors, and with them the lock, back."""
        self._happened(Event.ENDED)
        self._raw.close()
        self.ring.close()

    def _happened(self, event: Event) -> None:
        """Follow the table; a pair that it lacks is a bug in this file."""
        self.state = TRANSITIONS[self.state][event]

    def _raise_failure(self) -> None:
        """Raise what went wrong since the last take, or in it, once."""
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
            got = self._splice(buffer)
            if flush and got is Nothing.YET:
                flag = RowFlag.PARTIAL
                got = self._flush(buffer)
        except TakeBrokeOffError as error:
            self._lose_take(error)
            raise
        return got if isinstance(got, Nothing) else self._taken(buffer, got, flag, before)

    def _before_take(self) -> int | None:
        # Only a no-overwrite ring's losses need it: see LossLedger.sampled().
        if self._shared.overwrite:
            return None
        # What was refused by now lies before all that comes later, however long the take lasts.
        self.ring.sample()
        return self._shared.now()

    def _splice(self, buffer: memoryview) -> Nothing | int:
        """Take full sub-buffers; return their bytes."""
        if self.state in (State.DRAINED, State.ENDING):
            return Nothing.YET
        # A ring that refuses events while it is full is asked once, so that what it refused
        # meanwhile is told in its place.
        spliced = self._raw.splice(buffer, once=not self._shared.overwrite)
        if not spliced.used_bytes:
            return spliced.why
        if spliced.broke_off is not None:
            self.ring.took_nothing()
            self._failure = spliced.broke_off
        self._happened(Event.SPLICED_ALL if spliced.drained else Event.SPLICED)
        return spliced.used_bytes

    def _flush(self, buffer: memoryview) -> Nothing | int:
        """Read the sub-buffer being written, at most once a turn; return its bytes."""
        stopped = self._shared.stopped
        if not stopped and self.state in (State.FLUSHED, State.ENDING):
            # That splice gives nothing just now does not mean that nothing is there.
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
        if not stopped:
            return Nothing.YET
        self._happened(Event.ENDED)
        return Nothing.EVER

    def _lose_take(self, error: TakeBrokeOffError) -> None:
        """Count what was taken from the ring and came to nothing."""
        self.ring.took_nothing()
        lost = -(-error.used_bytes // self.info.subbuffer_bytes)
        self.ring.lost_take(lost)

    # -- a batch of what was taken

    def _taken(
        self, buffer: memoryview, used_bytes: int, flag: RowFlag, before: int | None
    ) -> Batch | Nothing:
        """Make a batch of *used_bytes* that the kernel has just released.

        Nothing, if they are of another clock: whoever changed it has emptied the ring before.
        """
        shared, ring, size = self._shared, self.ring, self.info.subbuffer_bytes
        now = shared.now()
        if shared.producers_stopped and shared.stopped_at is not None:
            now = min(now, shared.stopped_at)
        rows, missed, damaged = rows_of_pages(buffer, used_bytes, shared.layout)
        events = self._events_in(buffer, rows) if ring.counts_our_reads else None
        ring.took(used_bytes // size, events, partial=bool(flag))
        if self._is_out_of_time(rows, now) and not shared.same_clock():
            shared.paused = True
            ring.suspect(Reason.EMPTIED)
            return Nothing.OFFLINE
        if missed or before is not None:
            ring.try_to_sample(before)
        earlier = self._book.begin
        drained = bool(flag) or self.state in (State.DRAINED, State.ENDING)
        self._book.number(rows, self._last_end(rows, buffer, now, drained=drained))
        rows["flags"] |= np.uint64(flag)
        gaps = ring.place(rows, missed)
        if damaged:
            gaps += damage_gaps(rows, damaged, size, earlier, now)
        self._book.count(rows, gaps)
        stopped_at = None if shared.producers_stopped else shared.stopped_at
        if stopped_at is not None and self._book.begin > stopped_at:
            # Not ours to stop: what begins later is no longer asked for.
            self._happened(Event.ENDED)
        return make_batch(self.info.id, rows, pool=shared.pool, buffer=buffer, gaps=gaps)

    def _is_out_of_time(self, rows: Rows, now: int) -> bool:
        """Tell whether sub-buffers begin when none can that follows the last one."""
        if not len(rows):
            return False
        return int(rows["begin"][0]) < self._book.begin or int(rows["begin"][-1]) > now

    def _events_in(self, buffer: memoryview, rows: Rows) -> int:
        """Count the events of sub-buffers, as the kernel counts ``read events``."""
        offsets = rows["offset_bytes"].astype(np.int64)
        ends = offsets + (rows["content_bits"].astype(np.int64) >> 3)
        walked = count(buffer, offsets, ends, self._shared.layout)
        return sum(int(some.row_events.sum()) for some in walked)

    def _last_end(self, rows: Rows, buffer: memoryview, now: int, *, drained: bool) -> int:
        """Return when the last of *rows* ends: when its last event was.

        Or *now*, where a sub-buffer is large (a walk takes 0.2 ms per 16 KiB), the take drained the
        ring and the sub-buffer was begun just before: then there is nothing that it could overlap.
        """
        if not len(rows):
            return now
        at, size = int(rows["offset_bytes"][-1]), self.info.subbuffer_bytes
        if size > WALKED_BYTES and drained and now - int(rows["begin"][-1]) <= NEAR:
            return now
        return min(last_event_time(buffer[at : at + size], self._shared.layout), now)

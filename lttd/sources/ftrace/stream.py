"""One CPU of a tracefs instance: ``per_cpu/cpuN/trace_pipe_raw``, and its lock, stats and losses.

Rule: take() is the only place that consumes from the ring, and it is the hot path: splice into a
pipe that is empty before and after, one readv, arrays.

A turn is what the reader calls take() for until it gets Nothing.  With *flush* it holds at most one
partial sub-buffer, then only what splice still gives: a recorder that traces itself would else
never end its turn.  Once the source was stopped, nothing is added any more (or, where the buffer is
not ours, nothing that counts), and the turn goes on until the ring is dry.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from lttd.abi.ftrace import NEAR, PageLayout, last_event_time, rows_of_pages
from lttd.abi.ftrace_events import count
from lttd.errors import LockedError, LttdError, SourceError
from lttd.locks import holder_of, is_listed, lock_holder
from lttd.sources.base import Nothing
from lttd.sources.ftrace.counts import RingCounts
from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.sources.pipe import Pipe, TakeBrokeOffError, fill
from lttd.sources.rows import RowBook, damage
from lttd.sources.tracefs import explained
from lttd.subbuffer import (
    ROW_DTYPE,
    Batch,
    BufferPool,
    Reason,
    RowFlag,
    Rows,
    StreamId,
    StreamInfo,
    Unit,
    make_batch,
)

_NO_ROWS: Final = np.zeros(0, ROW_DTYPE)

# What splice and read of trace_pipe_raw may say without anything being wrong.
EXPECTED: Final[dict[int, Nothing]] = {
    errno.EAGAIN: Nothing.YET,  # no full sub-buffer (splice), nothing at all (read)
    errno.EBUSY: Nothing.YET,  # the ring is being resized
    errno.ENOMEM: Nothing.YET,  # no page to swap in; the kernel counts what it then loses
    errno.EINTR: Nothing.YET,  # a signal's handler raised nothing; the tick comes back
    errno.ENODEV: Nothing.OFFLINE,  # the CPU has no buffer now
}
# A take lasts less, in trace-clock ns; a ring of a MiB takes longer to fill up once more.
SOON: Final = 1_000_000
WALKED_BYTES: Final = 16 << 10
# A stopped ring is dry when there is nothing to read and `entries` is 0 (60 of 60 rounds).  Should
# a kernel count entries that it does not give, it is asked this often.
LAST_ATTEMPTS: Final = 5


def lock_raw(path: str) -> int:
    """Open a ``trace_pipe_raw`` for non-blocking reads and take the lock that makes it ours.

    One that is seen to be locked is not even opened: its owner hears of openings, and would have to
    take us for somebody who consumes.

    Raises:
        LockedError: another recorder has it.
        LttdError: it cannot be opened.
    """
    try:
        if is_listed(status := os.stat(path)):
            raise _locked(path, holder_of(status))
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise explained(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock_holder(fd)
        os.close(fd)
        raise _locked(path, holder) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _locked(path: str, holder: str) -> LockedError:
    return LockedError(f"{path}: {holder} reads it; stop that, or record from another instance")


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


class FtraceStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(self, cpu: int, fd: int, counts: RingCounts, shared: Shared) -> None:
        """Take over *fd*, locked, and *counts*."""
        fields, now = counts.read(), shared.now()
        self.info = StreamInfo(
            StreamId(shared.channel, cpu),
            "ftrace",
            shared.layout.subbuffer_bytes,
            shared.layout.header_bytes,
            read_events_before=fields.get("read events", 0),
        )
        self._fd = fd
        self._counts = counts
        self._shared = shared
        # What went wrong in a take that gave something all the same: the next one raises it.
        self._broken: SourceError | None = None
        # The rest of a sub-buffer that could not be read to its end is not a sub-buffer.
        self._remainder_bytes = 0
        # The last take found fewer full sub-buffers than it had room for.  A fast writer finishes
        # the next one at once: to go on would be to run after it, a few pages at a time.
        self._emptied = False
        self._gathers = shared.overwrite
        # The last thing taken was a part of a sub-buffer; the next may be its continuation.
        self._begun = False
        # This turn has had its partial sub-buffer.
        self._flushed = False
        self.over = False
        """Nothing more will ever come."""
        self.unstored = 0
        """How many events a killed lttd took before and did not store."""
        self._book = RowBook()
        self._base = fields
        self._ticked_at = now
        self._ledger = LossLedger(Sample.of(fields, now), pages_only=shared.previous_run)
        if shared.previous_run and (fields.get("dropped events") or fields.get("commit overrun")):
            # The killed run told some of them in its own segment; how many, nobody knows.
            self._ledger.suspect(Reason.DROPPED, now)

    def mark(self) -> tuple[int, int]:
        """Return how many sub-buffers were taken, and the kernel's ``read events`` for them."""
        return self._book.sequence, self._counts.read().get("read events", 0)

    def tell_unstored(self, count: int | None, begin: int) -> None:
        """Have it counted that a killed lttd took *count* events of this ring and lost them.

        *begin*: trace clock of the last event before them; None: their number is not known.
        """
        self.unstored = count or 0
        now = self._shared.now()
        oldest = self._base.get("oldest event ts") or now
        self._ledger.lost_before_all(Reason.KILLED, count, begin, max(min(oldest, now), begin))

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 where poll would spin."""
        return self._fd if self._shared.pollable else -1

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume full sub-buffers or, with *flush*, the one being written; see Stream.take()."""
        if self.over:
            return Nothing.EVER
        if self._shared.paused:
            return Nothing.OFFLINE
        broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        emptied, self._emptied = self._emptied, False
        if emptied and not flush:
            return Nothing.YET
        buffer = self._shared.pool.take()
        try:
            taken = self._take(buffer, flush=flush, emptied=emptied)
        except BaseException:
            self._shared.pool.give(buffer)
            raise
        if isinstance(taken, Nothing):
            self._shared.pool.give(buffer)
        return taken

    def _take(self, buffer: memoryview, *, flush: bool, emptied: bool) -> Batch | Nothing:
        before = self._before_take()
        flags = RowFlag(0)
        try:
            self._pass_remainder(buffer)
            why, used = (Nothing.YET, 0) if emptied else self._splice(buffer)
            if flush and why is Nothing.YET:
                flags = RowFlag.PARTIAL
                why, used = self._flush(buffer)
        except TakeBrokeOffError as error:
            self._lose_take(error)
            raise
        return self._taken(buffer, used, flags, before) if why is None else why

    def urgent(self) -> bool:
        """Return False: the kernel says nothing of the kind."""
        return False

    def losses(self) -> Batch | None:
        """Return what the kernel counted as lost and no batch told; see Stream.losses()."""
        final = self._shared.stopped_at is not None
        if final:
            self._look_for_the_last_time()
        gaps = self._ledger.rest(final=final)
        if not final:
            self.sample()
            self._look_for_others()
            self._ticked_at = self._ledger.sampled_at
        if not gaps:
            return None
        return Batch(self.info.id, memoryview(b""), _NO_ROWS, time.monotonic_ns(), gaps)

    def unplaced(self) -> Mapping[Reason, int]:
        """Ask the kernel what it has lost by now that no batch tells yet; see Stream.unplaced()."""
        if self._shared.stopped_at is None:
            self.sample()
        return self._ledger.unplaced()

    def _look_for_the_last_time(self) -> None:
        """Count what was lost since the last take, and what is in the ring and stays there."""
        stopped = self._shared.producers_stopped
        fields = self.sample() if stopped else self._counts.read()
        self._look_for_others()
        left = fields.get("entries", 0)
        if left and not self.over:
            # Where others write on, how many of them are from before our stop cannot be told.
            count = left if stopped else None
            self._ledger.suspect(Reason.ABANDONED, self._shared.now(), count)
        self.over = True

    def counters(self) -> Mapping[str, int]:
        """Return the fields of ``stats``, times in trace-clock units, counts since we took over.

        One is ours: ``foreign read events``, which somebody else was seen to consume.
        """
        return {**self._counts.since_the_base(), "foreign read events": self.foreign_read_events}

    def stats_text(self) -> bytes:
        """Return ``stats`` verbatim."""
        return self._counts.text()

    def sample(self, before: int | None = None) -> Mapping[str, int]:
        """Show the kernel's counters to the ledger; *before*: the trace clock before a take."""
        fields = self._counts.read()
        now = self._shared.now()
        if before is not None and now - before > SOON:
            before = None  # we were held up, and the ring may have filled up anew meanwhile
        self._ledger.sampled(Sample.of(fields, now), before)
        return fields

    def _try_to_sample(self, before: int | None = None) -> None:
        """Do so where the next sample will do as well; the next take says why it could not."""
        try:
            self.sample(before)
        except LttdError as error:
            self._broken = SourceError(str(error))

    def _look_for_others(self) -> None:
        """Count what was read since the last time, and not by us; as far as that is known."""
        others = self._counts.look_for_others()
        if others:
            self._ledger.suspect(Reason.FOREIGN_READ, self._shared.now(), others)

    # -- what other tools do; see ftrace_watch

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
        self._try_to_sample()
        others = counts.look_for_others()
        if before or counts.unsure:
            self.suspect(Reason.FOREIGN_READ)
        if others:
            self._ledger.suspect(Reason.FOREIGN_READ, self._shared.now(), others)

    def trust_reads(self) -> None:
        """Count no longer: nobody else has a file open that consumes."""
        if self._counts.counting:
            self._try_to_sample()
            self._look_for_others()  # what they took last
            self._counts.counting = False

    def was_emptied(self) -> bool:
        """Tell whether the counters were seen to run backwards since this was last asked."""
        return self._counts.was_emptied()

    def looks_emptied(self) -> bool:
        """Ask the counters now: somebody did what may have emptied the ring."""
        self._try_to_sample()
        return self._counts.was_emptied() or self._counts.shrank

    def note_emptied(self) -> None:
        """Take note that somebody emptied the ring: how much was in it, nobody knows.

        What was taken since the last tick may be of another clock already: the gap reaches so far.
        """
        begin = self._ticked_at
        self._try_to_sample()
        self._counts.was_emptied()
        self._begun = False
        self._ledger.suspect(Reason.EMPTIED, self._shared.now(), begin=begin)

    def suspect(self, reason: Reason) -> None:
        """Take note that events may be missing from here on, or until here."""
        self._ledger.suspect(reason, self._shared.now())

    def close(self) -> None:
        """Give the descriptors, and with them the lock, back."""
        self.over = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._counts.close()

    def _before_take(self) -> int | None:
        # Only a no-overwrite ring's losses need it: see LossLedger.sampled().
        if self._shared.overwrite:
            return None
        # What was refused by now lies before all that comes later, however long the take lasts.
        self.sample()
        return self._shared.now()

    def _flush(self, buffer: memoryview) -> tuple[Nothing | None, int]:
        """Read the sub-buffer being written; end the turn if that was done, or gives nothing."""
        stopped = self._shared.stopped_at is not None
        if stopped or not self._flushed:
            for _ in range(LAST_ATTEMPTS if stopped else 1):
                why, used = self._read(buffer)
                if why is not Nothing.YET:
                    return why, used
                self.over = stopped and not self._counts.read().get("entries")
                if self.over:
                    break
            if stopped and not self.over:
                self.over = True
                self._ledger.suspect(Reason.REFUSED, self._shared.now())
            self._ledger.ran_dry()
        # Else splice gives nothing just now, which does not mean that nothing is there.
        self._flushed = False
        return Nothing.EVER if self.over else Nothing.YET, 0

    def _splice(self, buffer: memoryview) -> tuple[Nothing | None, int]:
        """Fill *buffer* with whole sub-buffers, as far as there are any."""
        pipe, used = self._shared.pipe, 0
        limit = len(buffer) // self.info.subbuffer_bytes * self.info.subbuffer_bytes
        moved = pipe.capacity_bytes
        try:
            # Less than the pipe takes: the ring had no more.  A ring that refuses events while it
            # is full is asked once, so that what it refused meanwhile is told in its place.
            while used < limit and moved >= pipe.capacity_bytes and (self._gathers or not used):
                moved = pipe.move(self._fd, limit - used, buffer[used:])
                used += moved
        except OSError as error:
            if not used:
                return self._expected(error), 0
            moved = 0
        except TakeBrokeOffError as error:
            if not used:
                raise
            self._lose_take(error)
            self._broken = error  # raised by the next take: what came before it is whole
        self._emptied = used < limit and moved < pipe.capacity_bytes
        return (None, used) if used else (Nothing.YET, 0)

    def _read(self, buffer: memoryview) -> tuple[Nothing | None, int]:
        """Read one sub-buffer, never less: what a short read left would come back as zeros."""
        try:
            used = os.readv(self._fd, [buffer[: self.info.subbuffer_bytes]])
        except BlockingIOError:
            used = 0
        except OSError as error:
            return self._expected(error), 0
        if used:
            self._flushed = True
            try:
                fill(self._fd, buffer, self.info.subbuffer_bytes, used)
            except TakeBrokeOffError as error:
                self._remainder_bytes = error.unread_bytes
                raise
            return None, self.info.subbuffer_bytes
        # Nothing (said as EAGAIN, or as 0 with tracing off): a ring that had lapped us would give.
        self._ledger.page_turned()
        return Nothing.YET, 0

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

    def _pass_remainder(self, buffer: memoryview) -> None:
        """Read what is left of a sub-buffer that broke off, and throw it away."""
        while self._remainder_bytes:
            try:
                got = os.readv(self._fd, [buffer[: self._remainder_bytes]])
            except OSError as error:
                self._expected(error)
                return
            if not got:
                return
            self._remainder_bytes -= got

    def _lose_take(self, error: TakeBrokeOffError) -> None:
        """Count what was taken from the ring and came to nothing."""
        self._counts.took(None)
        count = -(-error.used_bytes // self.info.subbuffer_bytes)
        self._ledger.suspect(Reason.REFUSED, self._shared.now(), count, Unit.SUBBUFFERS)

    def _expected(self, error: OSError) -> Nothing:
        why = EXPECTED.get(error.errno or 0)
        if why is None:
            told = explained(f"CPU {self.info.id.cpu}: trace_pipe_raw", error)
            raise SourceError(str(told)) from error
        return why

    def _taken(
        self, buffer: memoryview, used_bytes: int, flag: RowFlag, before: int | None
    ) -> Batch | Nothing:
        """Make a batch of *used_bytes* that the kernel has just released.

        Nothing, if they are of another clock: whoever changed it has emptied the ring before.
        """
        taken_ns = time.monotonic_ns()
        shared, ledger = self._shared, self._ledger
        now = shared.now()
        if shared.producers_stopped and shared.stopped_at is not None:
            now = min(now, shared.stopped_at)
        rows, missed, damaged = rows_of_pages(buffer, used_bytes, shared.layout)
        self._counts.took(self._events_in(buffer, rows) if self._counts.counting else None)
        if used_bytes > self._begun * self.info.subbuffer_bytes:
            ledger.page_turned()
        self._begun = bool(flag)
        if self._is_out_of_time(rows, now) and not shared.same_clock():
            shared.paused = True
            ledger.suspect(Reason.EMPTIED, now)
            return Nothing.OFFLINE
        if missed or before is not None:
            self._try_to_sample(before)
        earlier = self._book.begin
        self._book.enter(rows, self._end_of(rows, buffer, now, drained=self._emptied or bool(flag)))
        rows["flags"] |= np.uint64(flag)
        gaps = ledger.place(rows, missed)
        if damaged:
            gaps += damage(rows, damaged, self.info.subbuffer_bytes, earlier, now)
        if shared.stopped_at is not None and not shared.producers_stopped:
            # Not ours to stop: what begins later than that is no longer asked for.
            self.over = self._book.begin > shared.stopped_at
        return make_batch(self.info.id, rows, taken_ns, pool=shared.pool, buffer=buffer, gaps=gaps)

    def _end_of(self, rows: Rows, buffer: memoryview, now: int, *, drained: bool) -> int:
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

"""Accept triggers, wait for the ends of their windows, and keep the segments that hold them.

    accepted    it has a number, and no segment of its window can be deleted any more
    recorded    kept.json of these segments has it, so that a kill does not lose it
    due         the end of its window has passed: all streams are flushed, all data is on disk
    complete    kept.json of every segment of the window has its true bounds

Rule: nothing here waits for the disk on the reading loop, and no trigger that was accepted is lost:
while the disk fails or hangs, triggers wait in the order in which they came.
Rule: windows are measured on CLOCK_BOOTTIME; the wall clock, which may step, is only reported.
Invariant: between its true bounds, a complete window has every event that lttd could take.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

import trio

from lttd.errors import LttdError, StorageError
from lttd.flight import Reach, Reached, Rings
from lttd.health import Limiter
from lttd.terminal import Level
from lttd.trigger import Refusal, Trigger, TriggerRefusedError

# A storm of alerts says the same thing a thousand times; the first of them keep the window.
BURST: Final = 32
PER_SECOND: Final = 1.0
MOST_WAITING: Final = 256
READY_S: Final = 2.0
"""A sender waits so long for the start of lttd; an HTTP client's own deadline is longer."""
RECORDED_S: Final = 2.0
"""A sender waits so long for the record of its trigger on a slow disk."""
RETRY_S: Final = 1.0
# Alerts are known again after a restart while a segment of theirs is kept.
MOST_ALERTS: Final = 4096
_NS: Final = 1_000_000_000
# Snapshots of two clocks are taken one after the other.
_SAME_NS: Final = 1_000_000


class Now(NamedTuple):
    """The present time by two clocks."""

    boot_ns: int
    real_ns: int

    def boot_of(self, real_ns: int) -> int:
        """Place a wall-clock time on CLOCK_BOOTTIME, as the wall clock is now."""
        return self.boot_ns - (self.real_ns - real_ns)

    def real_of(self, boot_ns: int) -> int:
        """Place a time of CLOCK_BOOTTIME on the wall clock, as that is now."""
        return self.real_ns - (self.boot_ns - boot_ns)


class Keeper(Protocol):
    """The segments of a trace; times are CLOCK_BOOTTIME.  keep() writes to the disk."""

    def reach_ns(self) -> int:
        """Return the time since when the trace has everything."""
        ...

    def protect(self, begin_ns: int) -> object:
        """Let nothing delete a segment that ends after *begin_ns*; return what ends that."""
        ...

    def unprotect(self, token: object) -> None:
        """End a protection."""
        ...

    def keep(self, begin_ns: int, end_ns: int, trigger: Trigger) -> Trigger:
        """Note *trigger* in every segment that overlaps the window; return it as it was noted.

        Its begin is later than asked for if not all of these segments may be kept.

        Raises:
            StorageError: not all of them have it; the call can be repeated.
            LttdError: one of them cannot have it.
        """
        ...


@dataclass(slots=True, eq=False)
class Pending:
    """A trigger whose window is not complete."""

    trigger: Trigger
    begin_ns: int
    """The bounds on CLOCK_BOOTTIME."""
    end_ns: int
    due_at: float
    """When the window ends, on trio's clock."""
    protection: object
    reach: Reach
    recorded: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    error: LttdError | None = None
    """Why it cannot be kept."""

    def begin_at(self, reached: Reached) -> None:
        """Let the window begin where the rings had everything, if it would begin earlier.

        If it would have ended by then, it ends with the first takes, except for an alert, which
        states a time of its own.
        """
        reach_ns = reached.since_ns
        later_ns = reach_ns - self.begin_ns
        if later_ns <= 0:
            return
        if reach_ns > self.end_ns and self.trigger.alert is None:
            self.end_ns = max(reached.until_ns, reach_ns)
        if reach_ns > self.end_ns:
            late_s = (reach_ns - self.end_ns) / _NS
            words = f"the rings began {late_s:.3f} s after the end of its window"
            self.error = LttdError(f"trigger {self.trigger.number}: {words}")
            return
        self.begin_ns = reach_ns
        begin_ns = (self.trigger.begin_ns or 0) + later_ns
        note = _reach_note(self.trigger, begin_ns - self.trigger.asked_begin_ns)
        self.trigger = replace(self.trigger, begin_ns=begin_ns, note=note)


class TriggerCounts(NamedTuple):
    """The totals for the metrics and the status."""

    accepted: Mapping[str, int]
    """By sender."""
    refused: Mapping[str, int]
    """By the name of the refusal, in lower case."""
    completed: int
    waiting: int


class Triggers:
    """The triggers of a run."""

    def __init__(
        self,
        keeper: Keeper,
        rings: Rings,
        work: Callable[[Callable[[], None]], Awaitable[bool]],
        settle: Callable[[], None],
        now: Callable[[], Now],
        say: Callable[[str, Level], None],
    ) -> None:
        """*work* calls a function in the helper thread, and raises its StorageErrors.

        It returns False if the run ends.  *settle*, called there, writes and syncs everything that
        was taken.
        """
        self._keeper = keeper
        self._rings = rings
        self._work = work
        self._settle = settle
        self._now = now
        self._say = say
        self._limiter = Limiter(say)
        self._ready = trio.Event()
        self._changed = trio.Event()
        self._running = trio.CancelScope()
        self._stopped = trio.Event()
        self._ending = False
        self._ended = now()
        self._next_number = 0
        self._waiting: list[Pending] = []
        self._alerts: dict[tuple[str, str], None] = {}
        self._room = float(BURST)
        self._room_at = trio.current_time()
        self._retry_at = -math.inf
        self._accepted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._completed = 0

    def counts(self) -> TriggerCounts:
        """Return the totals so far."""
        waiting = len(self._waiting)
        return TriggerCounts(self._accepted, self._refused, self._completed, waiting)

    # -- accepting

    def begin(self, stored: Iterable[Trigger]) -> None:
        """Accept triggers from now on; *stored* are those of the trace so far."""
        for trigger in stored:
            self._next_number = max(self._next_number, trigger.number)
            self._know(trigger)
        self._next_number += 1
        self._ready.set()

    async def accept(self, trigger: Trigger) -> Pending | None:
        """Accept a trigger; return when it is recorded, or the disk is too slow for that.

        Return None if its alert is known already.

        Raises:
            TriggerRefusedError: it is not accepted.
        """
        try:
            pending = await self._take(trigger.within_limits())
        except TriggerRefusedError as error:
            refusal = error.refusal.name.lower()
            self._refused[refusal] += 1
            self._limiter.say(refusal, f"a trigger is refused: {error}", Level.WARNING)
            raise
        if pending is not None:
            with trio.move_on_after(RECORDED_S):
                await pending.recorded.wait()
            if pending.error is not None:
                raise pending.error
        return pending

    async def accept_alert(self, trigger: Trigger) -> Trigger | None:
        """Accept a trigger of the metrics port; see ``lttd.trigger.Accept``."""
        pending = await self.accept(trigger)
        return None if pending is None else pending.trigger

    async def _take(self, trigger: Trigger) -> Pending | None:
        with trio.move_on_after(READY_S):
            await self._ready.wait()
        if not self._ready.is_set() or self._ending:
            raise TriggerRefusedError(Refusal.NOT_NOW)
        if trigger.alert in self._alerts:
            return None
        now = self._now()
        trigger = replace(trigger, at_ns=min(trigger.at_ns, now.real_ns))
        asked_ns, end_ns = now.boot_of(trigger.asked_begin_ns), now.boot_of(trigger.asked_end_ns)
        reach_ns = self._keeper.reach_ns()
        if end_ns < reach_ns:
            late_s = (reach_ns - end_ns) / _NS
            words = f"the trace begins {late_s:.1f} s after the end of its window"
            raise TriggerRefusedError(Refusal.OUT_OF_REACH, words)
        if not self._has_room():
            raise TriggerRefusedError(Refusal.TOO_MANY)
        begin_ns = max(asked_ns, reach_ns)
        note = _reach_note(trigger, begin_ns - asked_ns)
        trigger = replace(
            trigger, number=self._next_number, begin_ns=now.real_of(begin_ns), note=note
        )
        due_at = trio.current_time() + (end_ns - now.boot_ns) / _NS
        protection = self._keeper.protect(begin_ns)
        reach = self._rings.want(due_at)
        pending = Pending(trigger, begin_ns, end_ns, due_at, protection, reach)
        self._next_number += 1
        self._know(trigger)
        self._accepted[trigger.by] += 1
        self._waiting.append(pending)
        self._changed.set()
        return pending

    def _has_room(self) -> bool:
        now = trio.current_time()
        self._room = min(self._room + (now - self._room_at) * PER_SECOND, BURST)
        self._room_at = now
        if self._room < 1 or len(self._waiting) >= MOST_WAITING:
            return False
        self._room -= 1
        return True

    def _know(self, trigger: Trigger) -> None:
        if trigger.alert is not None:
            self._alerts[trigger.alert] = None
            while len(self._alerts) > MOST_ALERTS:
                del self._alerts[next(iter(self._alerts))]

    # -- keeping

    async def run(self) -> None:
        """Record and complete triggers until finish() is called."""
        try:
            with self._running:
                await self._run()
        finally:
            self._stopped.set()

    async def _run(self) -> None:
        while True:
            now = trio.current_time()
            if now >= self._retry_at:
                await self._record([each for each in self._waiting if not each.recorded.is_set()])
                now = trio.current_time()
                await self._complete([each for each in self._waiting if each.due_at <= now])
            due_at = min((each.due_at for each in self._waiting), default=math.inf)
            with trio.move_on_at(max(due_at, self._retry_at)):
                await self._changed.wait()
            self._changed = trio.Event()

    async def _record(self, pending: Sequence[Pending]) -> None:
        """Note triggers in the segments that exist, so that the start after a kill finds them."""

        def record() -> None:
            for each in pending:
                self._note(each, each.trigger)

        if pending:
            await self._find_reach(pending)
        if pending and await self._try(record):
            for each in pending:
                each.recorded.set()
            self._drop_failed(pending)

    async def _find_reach(self, pending: Sequence[Pending]) -> None:
        """Let windows begin where the rings did, if nothing was read before (lttd.flight)."""
        for each in pending:
            reached = await each.reach()
            if reached is not None:
                each.begin_at(reached)

    async def _complete(self, due: Sequence[Pending]) -> None:
        due = [each for each in due if each.error is None]
        if not due:
            return
        await self._find_reach(due)
        if not self._ending:
            await self._rings.flush()

        def complete() -> None:
            self._settle()
            for each in due:
                self._note(each, self._completed_form(each))

        if await self._try(complete):
            self._finish(due)

    @staticmethod
    def _completed_form(pending: Pending) -> Trigger:
        # By the offset between the clocks at the acceptance, as the begin.
        end_ns = (pending.trigger.begin_ns or 0) + pending.end_ns - pending.begin_ns
        return replace(pending.trigger, end_ns=end_ns, complete=True)

    def _note(self, pending: Pending, trigger: Trigger) -> None:
        """Note a trigger in its segments; runs in the helper thread."""
        if pending.error is None and not pending.trigger.complete:
            try:
                kept = self._keeper.keep(pending.begin_ns, pending.end_ns, trigger)
            except StorageError:
                raise
            except LttdError as error:
                pending.error = error
            else:
                pending.trigger = kept

    async def _try(self, do: Callable[[], None]) -> bool:
        """Do something in the helper thread; after a failure let it be tried again later."""
        try:
            done = await self._work(do)
        except StorageError as error:
            self._retry_at = trio.current_time() + RETRY_S
            words = f"triggers wait, because their segments cannot be marked: {error}"
            self._limiter.say("storage", words, Level.ERROR)
            return False
        return done

    def _drop_failed(self, pending: Sequence[Pending]) -> None:
        self._finish([each for each in pending if each.error is not None])

    def _finish(self, pending: Sequence[Pending]) -> None:
        for each in pending:
            self._waiting.remove(each)
            self._keeper.unprotect(each.protection)
            if each.error is None:
                self._completed += 1
                self._say(completed_line(each.trigger), Level.NOTICE)
            else:
                self._say(f"a trigger cannot be kept: {each.error}", Level.ERROR)
                each.error.said = True
            each.recorded.set()
            each.done.set()
        if pending and not self._waiting:
            self._rings.close()

    # -- the end

    def stop(self) -> None:
        """Accept no more triggers, and complete none before finish(): recording ends now."""
        self._ending = True
        self._running.cancel()
        self._ended = self._now()

    async def finish(self) -> None:
        """Complete the waiting triggers with what was recorded; call it after stop().

        The segments are closed by then.
        """
        await self._stopped.wait()
        ended_ns = self._ended.boot_ns
        for each in self._waiting:
            if each.end_ns > ended_ns:
                early_s = (each.end_ns - ended_ns) / _NS
                words = f"recording ended {early_s:.1f} s before the end of the window"
                each.trigger = replace(each.trigger, note=joined(each.trigger.note, words))
                each.end_ns = max(ended_ns, each.begin_ns)
        await self._complete(list(self._waiting))


def _reach_note(trigger: Trigger, missing_ns: int) -> str:
    if missing_ns <= _SAME_NS:
        return ""
    reached_s = (trigger.before_ns - missing_ns) / _NS
    words = f"the trace reached back {max(reached_s, 0):.1f} s before it"
    return f"{words}, {trigger.before_ns / _NS:g} s were asked for"


def joined(note: str, words: str) -> str:
    """Return a note with one more reason."""
    return f"{note}; {words}" if note else words


def completed_line(trigger: Trigger) -> str:
    """Return the line for the log about a window that is complete."""
    assert trigger.begin_ns is not None
    assert trigger.end_ns is not None
    lasted_s = (trigger.end_ns - trigger.begin_ns) / _NS
    line = f"trigger {trigger.number} ({trigger.reason}) by {trigger.by}: {lasted_s:.1f} s are kept"
    return line + (f"; {trigger.note}" if trigger.note else "")

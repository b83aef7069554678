"""Takes batches from the kernel's streams and offers them to the recorder; never awaits the disk.

Rule: every state and transition of a stream lives in TRANSITIONS below.
Rule: wait *or* tick: a stream is taken from when poll says so, and flushed at every tick, because
poll on trace_pipe_raw says nothing of partly filled sub-buffers and is not to be trusted everywhere
(Linux ffe3986fece6, v6.9).  One tick serves all streams; turns are bounded.
Rule: a stream that cannot be read is asked again, first after RETRY_FIRST_S, then ever more seldom,
for as long as recording runs; lttd is unhealthy meanwhile.  Only a StreamLostError is final.
Rule: on_beat() is called whenever the loop has come round, and every beat_interval_s where it
sleeps or waits for room; never from beside it, so that a loop that hangs gives no sign of life.
Invariant: between two awaits at most one stream's turn runs, so nothing here needs a lock.
"""

import enum
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from lttd.errors import LttdError, SourceError, StreamLostError
from lttd.health import Health, Trouble
from lttd.lane import Lane
from lttd.recorder import Recorder
from lttd.sources.base import Nothing, Stream

# At most this many takes before other streams get their turn: 8 MiB are about 50 ms of the fastest
# CPU seen here, and half of the ring that such a CPU wants.
TURN_BATCHES: Final = 2
# A stream that could not be read is asked again after this, doubled each time; at ticks.
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 10.0
_MOST_DOUBLED: Final = 10
# At the end nobody waits: so many attempts to drain, one after the other.
LAST_ATTEMPTS: Final = 5


class State(enum.Enum):
    """Where one stream stands."""

    CATCHING_UP = enum.auto()  # there may be more at once
    WAITING = enum.auto()  # for poll or the tick
    PARKED = enum.auto()  # the CPU is away: for the tick
    BACKING_OFF = enum.auto()  # it could not be read: until it is time to try again
    FLUSHING = enum.auto()  # the end has come: until nothing is left
    DONE = enum.auto()


class Event(enum.Enum):
    """What just happened to a stream."""

    GOT = enum.auto()
    NOTHING_YET = enum.auto()
    WENT_OFFLINE = enum.auto()
    ENDED = enum.auto()
    FAILED = enum.auto()  # this time
    LOST = enum.auto()  # for good
    WOKEN = enum.auto()  # by poll or the tick
    RETRY = enum.auto()  # woken when it is time to try again
    STOP = enum.auto()


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.CATCHING_UP: {
        Event.GOT: State.CATCHING_UP,
        Event.NOTHING_YET: State.WAITING,
        Event.WENT_OFFLINE: State.PARKED,
        Event.ENDED: State.DONE,
        Event.FAILED: State.BACKING_OFF,
        Event.LOST: State.DONE,
        Event.WOKEN: State.CATCHING_UP,
        Event.STOP: State.FLUSHING,
    },
    State.WAITING: {
        Event.FAILED: State.BACKING_OFF,
        Event.LOST: State.DONE,
        Event.WOKEN: State.CATCHING_UP,
        Event.STOP: State.FLUSHING,
    },
    State.PARKED: {
        Event.FAILED: State.BACKING_OFF,
        Event.LOST: State.DONE,
        Event.WOKEN: State.CATCHING_UP,
        Event.STOP: State.FLUSHING,
    },
    State.BACKING_OFF: {
        Event.FAILED: State.BACKING_OFF,
        Event.LOST: State.DONE,
        Event.WOKEN: State.BACKING_OFF,
        Event.RETRY: State.CATCHING_UP,
        Event.STOP: State.FLUSHING,
    },
    State.FLUSHING: {
        Event.GOT: State.FLUSHING,
        Event.NOTHING_YET: State.DONE,
        Event.WENT_OFFLINE: State.DONE,
        Event.ENDED: State.DONE,
        Event.FAILED: State.FLUSHING,
        Event.LOST: State.DONE,
    },
    State.DONE: {
        Event.FAILED: State.DONE,
        Event.LOST: State.DONE,
        Event.WOKEN: State.DONE,
        Event.STOP: State.DONE,
    },
}

_EVENT_OF: Final = {
    Nothing.YET: Event.NOTHING_YET,
    Nothing.OFFLINE: Event.WENT_OFFLINE,
    Nothing.EVER: Event.ENDED,
}


def after(state: State, event: Event) -> State:
    """Return the state that follows; a pair that the table lacks is a bug in this file."""
    return TRANSITIONS[state][event]


class StreamReader:
    """One stream, its state, and the lane that its batches go to."""

    def __init__(self, stream: Stream, lane: Lane, recorder: Recorder, health: Health) -> None:
        self.stream = stream
        self.state = State.CATCHING_UP
        self.batches = 0
        """How many were taken so far."""
        self.failure: SourceError | None = None
        """Why it can never be read again."""
        self.lane = lane
        self.closed = False
        self._recorder = recorder
        self._health = health
        self._failed_at: float | None = None
        """When the first of the attempts failed that have failed since the last success."""
        self._failed_attempts = 0
        self._retry_at = 0.0

    def has_more(self) -> bool:
        """Tell whether another turn may find something at once."""
        return self.state in (State.CATCHING_UP, State.FLUSHING)

    def happened(self, event: Event) -> None:
        """Follow the table."""
        self.state = after(self.state, event)

    def wake(self) -> None:
        """Say that poll or the tick has come; it may be time to try again, too."""
        due = self.state is State.BACKING_OFF and trio.current_time() >= self._retry_at
        self.happened(Event.RETRY if due else Event.WOKEN)

    def stop(self) -> None:
        """Say that the end has come: what is left is to be taken now."""
        self._failed_attempts = 0
        self.happened(Event.STOP)

    def turn(self, *, flush: bool) -> None:
        """Take what there is, as long as the backlog has room, at most a turn's worth."""
        for _ in range(TURN_BATCHES):
            if not self.has_more() or not self._recorder.has_room():
                return
            try:
                taken = self.stream.take(flush)
            except (LttdError, OSError) as error:
                self._fail(error)
                return
            if self._failed_at is not None:
                self._succeed(self._failed_at)
            if isinstance(taken, Nothing):
                self.happened(_EVENT_OF[taken])
            else:
                self._recorder.offer(self.lane, taken)
                self.batches += 1
                self.happened(Event.GOT)

    def tell_losses(self, *, attempts: int = 1) -> None:
        """Offer what the kernel's counters say was lost and no batch has told.

        Of a stream that has failed, too: what was lost with it is known only then.  With more than
        one of *attempts*, this is the last call: a stream that fails in all of them is given up.
        """
        for attempt in range(1, attempts + 1):
            try:
                batch = self.stream.losses()
            except (LttdError, OSError) as error:
                if attempt == attempts > 1:
                    self._lose(error)
                else:
                    self._fail(error)
                continue
            if batch is not None:
                self._recorder.offer(self.lane, batch)
            return

    def close(self) -> None:
        """Give the descriptor of a stream that has ended back, and wake who waits for it."""
        self.closed = True
        if self.stream.fileno() >= 0:
            trio.lowlevel.notify_closing(self.stream.fileno())
        self.stream.close()

    def _fail(self, error: LttdError | OSError) -> None:
        """Back off; at the end, or where that is final, give the stream up."""
        now = trio.current_time()
        if self._failed_at is None:
            self._failed_at, self._failed_attempts = now, 0
        self._failed_attempts += 1
        given_up = self.state is State.FLUSHING and self._failed_attempts >= LAST_ATTEMPTS
        if given_up or isinstance(error, StreamLostError):
            self._lose(error)
            return
        if self.state is not State.DONE:
            words = f"cannot be read, trying again: {error}"
            self._health.begins(Trouble.STREAM_FAILING, words, self._where)
        doubled = min(self._failed_attempts - 1, _MOST_DOUBLED)
        self._retry_at = now + min(RETRY_FIRST_S * 2**doubled, RETRY_MOST_S)
        self.happened(Event.FAILED)

    def _lose(self, error: LttdError | OSError) -> None:
        if self.failure is None:  # the first says why
            self.failure = error if isinstance(error, SourceError) else SourceError(str(error))
        self._health.ends(Trouble.STREAM_FAILING, "", self._where)
        self._health.begins(Trouble.STREAM_LOST, f"is given up: {error}", self._where)
        self.happened(Event.LOST)

    def _succeed(self, failed_at: float) -> None:
        lasted_s = trio.current_time() - failed_at
        words = f"is read again after {lasted_s:.1f} s, {self._failed_attempts} attempts failed"
        self._failed_at = None
        self._health.ends(Trouble.STREAM_FAILING, words, self._where)

    @property
    def _where(self) -> str:
        return f"{self.lane.stats.source}: stream {self.stream.info.id.name}"


@dataclass(slots=True)
class Pulse:
    """What the watchdog, /healthz and the metrics want to know of the reading loop."""

    turns: int = 0
    last_turn_ns: int = 0
    """CLOCK_MONOTONIC."""
    backlog_full: bool = False


class Reader:
    """Serves all streams of all sources in one trio task tree."""

    def __init__(
        self,
        recorder: Recorder,
        flush_interval_s: float,
        on_tick: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
        beat_interval_s: float = math.inf,
        health: Health | None = None,
    ) -> None:
        self.pulse = Pulse(last_turn_ns=time.monotonic_ns())
        self.first_cycle = trio.Event()
        """Set when every stream has been read once."""
        self.all_ended = trio.Event()
        """Set when no stream will ever give anything again."""
        self.open_ended = False
        """True: others may come even then, so that all_ended stays unset."""
        self._nursery: trio.Nursery | None = None
        self._readers: list[StreamReader] = []
        self._recorder = recorder
        self._flush_interval_s = flush_interval_s
        self._on_tick = on_tick
        self._on_beat = on_beat
        self._beat_interval_s = beat_interval_s
        self._health = health or Health()
        self._ticked = trio.Event()
        self._room_queue = trio.StrictFIFOLock()

    def add(self, streams: Sequence[tuple[Stream, Lane]]) -> None:
        """Serve these streams, too; from when run() runs, at once."""
        for stream, lane in streams:
            # One that has ended, and goes on in this one, need not be asked for losses any more.
            self._readers = [one for one in self._readers if one.lane is not lane or not one.closed]
            reader = StreamReader(stream, lane, self._recorder, self._health)
            self._readers.append(reader)
            if self._nursery is not None:
                self._serve(reader, self._nursery)

    def failures(self) -> list[SourceError]:
        """Return why streams cannot be read any more; their states are DONE."""
        return [reader.failure for reader in self._readers if reader.failure is not None]

    async def run(self) -> None:
        """Read until cancelled; then call drain()."""
        async with trio.open_nursery() as nursery:
            for reader in self._readers:
                self._serve(reader, nursery)
            nursery.start_soon(self._tick)
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def drain(self) -> None:
        """Take everything that is left, partly filled sub-buffers included, and the last losses.

        Cancelled, it takes no more; what is left then is among the losses.
        """
        for reader in self._readers:
            reader.stop()
        try:
            await self._turns(self._readers, flush=True)
        finally:
            for reader in self._readers:
                reader.tell_losses(attempts=LAST_ATTEMPTS)

    def _serve(self, reader: StreamReader, nursery: trio.Nursery) -> None:
        if reader.stream.fileno() >= 0:
            nursery.start_soon(self._serve_polled, reader)

    async def _serve_polled(self, reader: StreamReader) -> None:
        while reader.state is not State.DONE:
            try:
                await trio.lowlevel.wait_readable(reader.stream.fileno())
            except trio.ClosedResourceError:
                return  # it has ended
            batches = reader.batches
            reader.wake()
            await self._turns([reader], flush=False)
            if reader.batches == batches:
                # Poll says readable, yet there is nothing: asking again would spin.
                await self._ticked.wait()

    async def _tick(self) -> None:
        next_tick = trio.current_time()
        while True:
            present = list(self._readers)
            for reader in present:
                reader.wake()
            await self._turns(present, flush=True)
            for reader in present:
                reader.tell_losses()
                if reader.state is State.DONE and not (reader.failure or reader.closed):
                    # The kernel keeps a ring whose file is gone as long as somebody has it open.
                    reader.close()
            self.first_cycle.set()
            self._ticked.set()
            self._ticked = trio.Event()
            ended = all(reader.state is State.DONE for reader in self._readers)
            if ended and not self.open_ended:
                self.all_ended.set()
            self._on_tick()
            # Ticks that were missed are not made up for.
            next_tick = max(next_tick + self._flush_interval_s, trio.current_time())
            await self._sleep_until(next_tick)

    async def _sleep_until(self, deadline: float) -> None:
        while (now := trio.current_time()) + self._beat_interval_s < deadline:
            self._on_beat()
            await trio.sleep_until(now + self._beat_interval_s)
        await trio.sleep_until(deadline)

    async def _turns(self, readers: Sequence[StreamReader], *, flush: bool) -> None:
        """Give each of *readers* turn after turn, urgent ones first, until all have run dry."""
        busy = [reader for reader in readers if reader.has_more()]
        while busy:
            busy = sorted(busy, key=lambda each: not each.stream.urgent())
            for at, reader in enumerate(busy):
                if not self._recorder.has_room():
                    busy = busy[at:] + busy[:at]  # who gets no turn now is first in the next round
                    break
                reader.turn(flush=flush)
                self.pulse.turns += 1
            self.pulse.last_turn_ns = time.monotonic_ns()
            self._on_beat()
            busy = [reader for reader in busy if reader.has_more()]
            if busy and (self._room_queue.locked() or not self._recorder.has_room()):
                # One at a time, first come first served: a release makes room for one take, not
                # for all who wait, and nobody who comes by takes it before them.
                async with self._room_queue:
                    if not self._recorder.has_room():
                        await self._room()
            else:
                await trio.lowlevel.checkpoint()

    async def _room(self) -> None:
        """Wait until the backlog has room.  Meanwhile the kernel counts what it loses."""
        room = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self.pulse.backlog_full = True
        self._recorder.call_when_room(lambda: token.run_sync_soon(room.set))
        while not room.is_set():
            self._on_beat()
            with trio.move_on_after(self._beat_interval_s):
                await room.wait()
        self.pulse.backlog_full = False

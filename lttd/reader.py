"""Take batches from the kernel's streams and offer them to the recorder, without awaiting the disk.

Rule: TRANSITIONS below holds every state and transition of a stream.
Rule: wait *or* tick: lttd takes from a stream when poll reports it, and flushes it at every tick,
because poll on trace_pipe_raw does not report partly filled sub-buffers, and is broken in some
kernels (Linux ffe3986fece6, v6.9).  One tick serves all streams; turns are bounded.
Rule: a stream that cannot be read is tried again, first after RETRY_FIRST_S, then at growing
intervals, as long as recording runs; lttd is unhealthy meanwhile.  Only a StreamLostError is final.
Rule: while paused, nothing is taken and the rings overwrite themselves; the tick goes on.
Rule: the loop calls on_beat() each time it comes round, and every beat_interval_s while it sleeps
or waits for room.  No other task calls it, so a loop that hangs sends no beat.
Invariant: between two awaits at most one stream's turn runs, so there are no locks.
"""

import enum
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from lttd.errors import LttdError, SourceError, StreamLostError
from lttd.health import Health, Trouble
from lttd.lane import Lane
from lttd.recorder import Recorder
from lttd.sources.base import Nothing, PausableStream, Stream

# At most this many takes before other streams get their turn: 8 MiB are about 50 ms of the fastest
# CPU measured, and half of the ring that such a CPU needs.
TURN_BATCHES: Final = 2
# A stream that could not be read is tried again after this time, doubled each time, at a tick.
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 10.0
_MOST_DOUBLED: Final = 10
# The number of attempts to drain a stream at the end, one directly after the other.
LAST_ATTEMPTS: Final = 5


class State(enum.Enum):
    """The states of one stream."""

    CATCHING_UP = enum.auto()  # there may be more to take at once
    WAITING = enum.auto()  # waits for poll or the tick
    PARKED = enum.auto()  # the CPU is offline: waits for the tick
    BACKING_OFF = enum.auto()  # it could not be read: waits until the next attempt
    FLUSHING = enum.auto()  # recording ends: take until nothing is left
    DONE = enum.auto()


class Event(enum.Enum):
    """The events that change a stream's state."""

    GOT = enum.auto()
    NOTHING_YET = enum.auto()
    WENT_OFFLINE = enum.auto()
    ENDED = enum.auto()
    FAILED = enum.auto()  # a take failed
    LOST = enum.auto()  # the stream can never be read again
    WOKEN = enum.auto()  # poll or the tick woke it
    RETRY = enum.auto()  # it is time for the next attempt
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
    """Return the next state; a pair that the table lacks is a bug in this module."""
    return TRANSITIONS[state][event]


class StreamReader:
    """One stream, its state, and the lane for its batches."""

    def __init__(self, stream: Stream, lane: Lane, recorder: Recorder, health: Health) -> None:
        self.stream = stream
        self.state = State.CATCHING_UP
        self.batches = 0
        """The number of batches taken so far."""
        self.failure: SourceError | None = None
        """Why the stream can never be read again."""
        self.lane = lane
        self.closed = False
        self._recorder = recorder
        self._health = health
        self._failed_at: float | None = None
        """The time of the first failed attempt since the last success."""
        self._failed_attempts = 0
        self._retry_at = 0.0

    def has_more(self) -> bool:
        """Tell whether another turn may find data at once."""
        return self.state in (State.CATCHING_UP, State.FLUSHING)

    def happened(self, event: Event) -> None:
        """Change the state by the table."""
        self.state = after(self.state, event)

    def wake(self) -> None:
        """Wake the stream at poll or the tick; if it backs off, only when its time has come.

        A stream that is drained at the end of recording needs no waking.
        """
        if self.state is State.FLUSHING:
            return
        due = self.state is State.BACKING_OFF and trio.current_time() >= self._retry_at
        self.happened(Event.RETRY if due else Event.WOKEN)

    def stop(self) -> None:
        """Begin the drain at the end of recording."""
        self._failed_attempts = 0
        self.happened(Event.STOP)

    def pause(self) -> None:
        """Let the ring overwrite itself until the next turn; offer the losses before."""
        assert isinstance(self.stream, PausableStream)
        batch = self.stream.pause()
        if batch is not None:
            self._recorder.offer(self.lane, batch)

    def let_go(self) -> None:
        """End without a drain: nobody wants what the ring holds."""
        self.stop()
        if self.state is State.FLUSHING:
            self.happened(Event.ENDED)

    def turn(self, *, flush: bool) -> None:
        """Take the available data while the backlog has room, for at most one turn."""
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
        """Offer the losses that the kernel's counters show and no batch contains.

        Also for a failed stream: only then its losses are known.  More than one of *attempts* means
        the last call: a stream that fails in all of them is given up.
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
        """Close the descriptor of a stream that has ended, and wake the task that waits for it."""
        self.closed = True
        if self.stream.fileno() >= 0:
            trio.lowlevel.notify_closing(self.stream.fileno())
        self.stream.close()

    def _fail(self, error: LttdError | OSError) -> None:
        """Back off; at the end, or if the error is final, give the stream up."""
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
        if self.failure is None:  # the first error is the reason
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
    """The state of the reading loop, for the watchdog, /healthz and the metrics."""

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
        """Set when every stream has ended for good."""
        self.open_ended = False
        """True: streams may appear even then, so all_ended stays unset."""
        self._nursery: trio.Nursery | None = None
        self._readers: list[StreamReader] = []
        self._recorder = recorder
        self.flush_interval_s = flush_interval_s
        """The longest time until an event is taken; it may change at any time."""
        self._on_tick = on_tick
        self._on_beat = on_beat
        self._beat_interval_s = beat_interval_s
        self._health = health or Health()
        self._ticked = trio.Event()
        self.paused = False
        """Whether nothing is taken; see pause()."""
        self._resumed = trio.Event()
        self._room_queue = trio.StrictFIFOLock()

    def add(self, streams: Sequence[tuple[Stream, Lane]]) -> None:
        """Serve these streams, too; at once if run() is running."""
        for stream, lane in streams:
            # An ended stream that a new one continues need not be asked for losses any more.
            self._readers = [one for one in self._readers if one.lane is not lane or not one.closed]
            reader = StreamReader(stream, lane, self._recorder, self._health)
            self._readers.append(reader)
            if self.paused:
                reader.pause()
            if self._nursery is not None:
                self._serve(reader, self._nursery)

    def failures(self) -> list[SourceError]:
        """Return the errors of streams that can never be read again; their states are DONE."""
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

    def pause(self) -> None:
        """Take nothing until resume(): the rings overwrite themselves, which is no loss.

        All streams are PausableStreams.
        """
        if not self.paused:
            self.paused = True
            for reader in self._readers:
                reader.pause()

    def resume(self) -> None:
        """Take again, first all that the rings hold."""
        if not self.paused:
            return
        self.paused = False
        self._resumed.set()
        self._resumed = trio.Event()
        for reader in self._readers:
            reader.wake()
        if self._nursery is not None:
            self._nursery.start_soon(partial(self._turns, list(self._readers), flush=True))

    async def flush_once(self) -> None:
        """Give every stream one turn that flushes it, and offer the losses of those then empty.

        Streams that have more get further turns after the next await of the caller.
        """
        present = self._to_flush()
        for reader in present:
            await trio.lowlevel.checkpoint()
            if self.paused:
                return
            reader.wake()
            reader.turn(flush=True)
            if not reader.has_more():
                reader.tell_losses()
            self._turned()
            self._on_beat()
        more = [reader for reader in present if reader.has_more()]
        if more and self._nursery is not None:
            self._nursery.start_soon(partial(self._turns, more, flush=False))

    async def flush_all(self) -> None:
        """Take all that the rings hold now, partly filled sub-buffers included, and the losses."""
        present = self._to_flush()
        # The first round ends turns that were flushed earlier; the second begins new ones.
        for _ in range(2):
            left = present
            while left:
                for reader in left:
                    await trio.lowlevel.checkpoint()
                    if self.paused:
                        return
                    reader.wake()
                    reader.turn(flush=True)
                    self._on_beat()
                left = [reader for reader in left if reader.has_more()]
                if left and not self._recorder.has_room():
                    await self._room_in_turn()
        for reader in present:
            reader.tell_losses()

    def _to_flush(self) -> list[StreamReader]:
        if self.paused:
            return []
        return [each for each in self._readers if each.state is not State.FLUSHING]

    async def drain(self) -> None:
        """Take all remaining data, partly filled sub-buffers included, and the last losses.

        When cancelled, it takes no more; the rest then counts as lost.  While paused, nobody wants
        what the rings hold.
        """
        if self.paused:
            for reader in self._readers:
                reader.let_go()
            return
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
            if self.paused:
                await self._resumed.wait()
            try:
                await trio.lowlevel.wait_readable(reader.stream.fileno())
            except trio.ClosedResourceError:
                return  # the stream has ended
            if self.paused:
                continue
            batches = reader.batches
            reader.wake()
            await self._turns([reader], flush=False)
            if reader.batches == batches:
                # Poll reports data, but there is none: another poll would spin.
                await self._ticked.wait()

    async def _tick(self) -> None:
        next_tick = trio.current_time()
        while True:
            present = list(self._readers)
            if self.paused:
                self._turned()
            else:
                for reader in present:
                    reader.wake()
                await self._turns(present, flush=True)
            for reader in present:
                reader.tell_losses()
                if reader.state is State.DONE and not (reader.failure or reader.closed):
                    # The kernel keeps a removed ring as long as its file is open.
                    reader.close()
            self.first_cycle.set()
            self._ticked.set()
            self._ticked = trio.Event()
            ended = all(reader.state is State.DONE for reader in self._readers)
            if ended and not self.open_ended:
                self.all_ended.set()
            self._on_tick()
            # Missed ticks are not made up for.
            next_tick = max(next_tick + self.flush_interval_s, trio.current_time())
            await self._sleep_until(next_tick)

    async def _sleep_until(self, deadline: float) -> None:
        while (now := trio.current_time()) + self._beat_interval_s < deadline:
            self._on_beat()
            await trio.sleep_until(now + self._beat_interval_s)
        await trio.sleep_until(deadline)

    async def _turns(self, readers: Sequence[StreamReader], *, flush: bool) -> None:
        """Give each of *readers* turns, urgent ones first, until all are empty."""
        busy = [reader for reader in readers if reader.has_more()]
        while busy and not self.paused:
            busy = sorted(busy, key=lambda each: not each.stream.urgent())
            for at, reader in enumerate(busy):
                if not self._recorder.has_room():
                    busy = busy[at:] + busy[:at]  # a stream without a turn is first next time
                    break
                reader.turn(flush=flush)
                self._turned()
            self._on_beat()
            busy = [reader for reader in busy if reader.has_more()]
            if busy and (self._room_queue.locked() or not self._recorder.has_room()):
                # In order of arrival, one at a time: a release makes room for one take, not for
                # all waiting streams, and no later stream may get it first.
                await self._room_in_turn()
            else:
                await trio.lowlevel.checkpoint()

    def _turned(self) -> None:
        self.pulse.turns += 1
        self.pulse.last_turn_ns = time.monotonic_ns()

    async def _room_in_turn(self) -> None:
        async with self._room_queue:
            if not self._recorder.has_room():
                await self._room()

    async def _room(self) -> None:
        """Wait until the backlog has room.  Meanwhile the kernel counts its losses."""
        room = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self.pulse.backlog_full = True
        self._recorder.call_when_room(lambda: token.run_sync_soon(room.set))
        while not room.is_set():
            self._on_beat()
            with trio.move_on_after(self._beat_interval_s):
                await room.wait()
        self.pulse.backlog_full = False

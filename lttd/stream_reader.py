"""The state of one stream that is read, and its turns.

Rule: TRANSITIONS below holds every state and transition of a stream.
Rule: a stream that cannot be read is tried again, first after RETRY_FIRST_S, then at growing
intervals, as long as recording runs; lttd is unhealthy meanwhile.  Only a StreamLostError is final.
"""

import enum
from typing import Final

import trio

from lttd.errors import LttdError, SourceError, StreamLostError
from lttd.health import Health, Trouble
from lttd.lane import Lane
from lttd.recorder import Recorder
from lttd.sources.base import Nothing, PausableStream, RestingStream, Stream

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

    def at_rest(self) -> bool:
        """Tell whether the ring keeps what it holds, however long that is not taken."""
        return isinstance(self.stream, RestingStream) and self.stream.at_rest()

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

"""Decide in mode flight when the rings are read, and when they may overwrite themselves.  Pure.

    WAITING    nothing is read or written; the rings overwrite themselves
    REACHING   a trigger was accepted: the first takes show how far back each ring reaches
    WRITING    everything is read, until the window of the last trigger is over
    CLOSING    nothing is read; the segment of the windows is being closed

Rule: TRANSITIONS holds every state and transition.
Rule: a trigger that comes while another one's window is open shares its segment.  One that comes
while that segment is closed begins at once: no trigger waits for the disk.  If the ring overwrote
events meanwhile, a gap of its own reason lies between the two windows.
Invariant: the rings are read exactly in the states that READS lists.
"""

import enum
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol


class State(enum.Enum):
    """The states of a run in mode flight."""

    WAITING = enum.auto()
    REACHING = enum.auto()
    WRITING = enum.auto()
    CLOSING = enum.auto()


class Event(enum.Enum):
    """The events that change it."""

    ASKED = enum.auto()  # a trigger was accepted
    REACHED = enum.auto()  # every ring was read once since
    OVER = enum.auto()  # no accepted trigger has a window that still lasts, and all was read
    CLOSED = enum.auto()  # the segment of the windows before is closed


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.WAITING: {
        Event.ASKED: State.REACHING,
        Event.REACHED: State.WAITING,
        Event.OVER: State.WAITING,
        Event.CLOSED: State.WAITING,
    },
    State.REACHING: {
        Event.ASKED: State.REACHING,
        Event.REACHED: State.WRITING,
        Event.CLOSED: State.REACHING,
    },
    State.WRITING: {
        Event.ASKED: State.WRITING,
        Event.REACHED: State.WRITING,
        Event.OVER: State.CLOSING,
        Event.CLOSED: State.WRITING,
    },
    State.CLOSING: {
        Event.ASKED: State.REACHING,
        Event.REACHED: State.CLOSING,
        Event.OVER: State.CLOSING,
        Event.CLOSED: State.WAITING,
    },
}
READS: Final = frozenset({State.REACHING, State.WRITING})


def after(state: State, event: Event) -> State:
    """Return the next state; a pair that the table lacks is a bug of the caller."""
    return TRANSITIONS[state][event]


class Reached(NamedTuple):
    """The time of which the first takes for a trigger have everything; CLOCK_BOOTTIME."""

    since_ns: int
    until_ns: int


Reach = Callable[[], Awaitable[Reached | None]]
"""Returns of which time the rings had everything, once that is known.

None: they are read all the time, and the trace itself says how far it reaches back.
"""


class Rings(Protocol):
    """The reading of the rings, as triggers need it; see AlwaysRead for a run without this mode."""

    def want(self, until: float) -> Reach:
        """Read from now on until *until*, on trio's clock: a trigger was accepted."""
        ...

    async def flush(self) -> None:
        """Take everything that they hold now; call it after the end of a window."""
        ...

    def close(self) -> None:
        """Close the segment of the windows, once they are over: all of them are kept."""
        ...


class AlwaysRead:
    """The rings of a run that reads and writes all the time."""

    def __init__(self, flush: Callable[[], Awaitable[None]]) -> None:
        self._flush = flush

    def want(self, until: float) -> Reach:
        """Do nothing."""
        del until

        async def reach_ns() -> None:
            return None

        return reach_ns

    async def flush(self) -> None:
        """Take everything that they hold now."""
        await self._flush()

    def close(self) -> None:
        """Do nothing."""

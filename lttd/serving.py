"""Bound the clients of a server that runs beside the reading loop: their rate, number and time.

The metrics port (endpoint.py) and the control socket (control.py) share it.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

RECEIVE_BYTES: Final = 4 << 10
# Input after the request is discarded for this long, so that no reset overtakes the answer.
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 64 << 10
# An exchange costs 0.7 ms of CPU: at this rate all clients together take about 2 % of the loop.
ACCEPT_INTERVAL_S: Final = 0.03

# The machine lacks a resource; the connection stays in the listen queue meanwhile.
ACCEPT_LATER: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_LATER_S: Final = 1.0


class Paced(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts clients at a bounded rate."""

    def __init__(self, listener: trio.abc.Listener[trio.SocketStream]) -> None:
        self._listener = listener
        self._not_before = 0.0

    async def accept(self) -> trio.SocketStream:
        """Accept the next client, not before its time."""
        while True:
            await trio.sleep_until(self._not_before)
            try:
                stream = await self._listener.accept()
            except OSError as error:
                if error.errno not in ACCEPT_LATER:
                    raise
                self._not_before = trio.current_time() + ACCEPT_LATER_S
            else:
                self._not_before = trio.current_time() + ACCEPT_INTERVAL_S
                return stream

    async def aclose(self) -> None:
        """Close the listener."""
        await self._listener.aclose()


class Connections:
    """The open connections of a server.

    When one more than *most* comes, the oldest is closed: an exchange takes milliseconds, so that
    one is stuck.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._scopes: dict[trio.CancelScope, None] = {}  # oldest first

    @contextmanager
    def admitted(self, longest_s: float) -> Iterator[trio.CancelScope]:
        """Hold a place; cancel the body after *longest_s*, or when its place is needed."""
        with trio.move_on_after(longest_s) as scope:
            self._scopes[scope] = None
            if len(self._scopes) > self._most:
                oldest = next(iter(self._scopes))
                del self._scopes[oldest]
                oldest.cancel()
            try:
                yield scope
            finally:
                self.leave(scope)

    def leave(self, scope: trio.CancelScope) -> None:
        """Free the place of *scope*, whose body may go on."""
        self._scopes.pop(scope, None)


async def linger(stream: trio.abc.HalfCloseableStream) -> None:
    """Wait a short time until the client has closed, too, and discard its input."""
    await stream.send_eof()
    with trio.move_on_after(LINGER_S):
        left_bytes = LINGER_BYTES
        while left_bytes > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
            left_bytes -= len(data)

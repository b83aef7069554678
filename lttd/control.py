"""Answer requests on the control socket beside the reading loop, without delaying it.

Rule: as on the metrics port, this module bounds everything that a client does: the rate and the
number of connections, the bytes of a request, and the time until it is complete.  A request that is
being carried out (a trigger waits for its window) holds no place among the connections; the number
of these is bounded, too, and ``status`` is always answered.
Rule: a request whose line is incomplete is not carried out.
Rule: every request that changes something is a line on stderr, with the user who made it; so is the
reason why one was refused or failed, unless the part that carries it out has written it.
Invariant: no input of a client, and no failure to answer it, ends serve().
"""

import os
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import trio

from lttd.control_protocol import (
    OWNERS_ONLY,
    REQUEST_BYTES,
    STATUS,
    Handler,
    Peer,
    done,
    parse_request,
    refused,
)
from lttd.errors import LttdError, StorageError, UsageError
from lttd.health import Limiter, Say
from lttd.parsers import shown
from lttd.serving import RECEIVE_BYTES, Connections, Paced, linger
from lttd.start import unforeseen
from lttd.terminal import Level, say

REQUEST_DEADLINE_S: Final = 5.0
# The longest time of a connection, beside that of carrying out its request.
CONNECTION_DEADLINE_S: Final = 10.0
MAX_CONNECTIONS: Final = 16
MAX_WAITING: Final = 64
# So often a line for each kind of request and user.
LINE_INTERVAL_NS: Final = 1_000_000_000


class Control:
    """Carries out requests by a table of handlers, which run on the loop of serve()."""

    def __init__(self, handlers: Mapping[str, Handler], say: Say = say) -> None:
        """*say* writes a line."""
        self._handlers = handlers
        self._limiter = Limiter(say, interval_ns=LINE_INTERVAL_NS)
        self._connections = Connections(MAX_CONNECTIONS)
        self._waiting = 0
        self._ending = False

    def end(self) -> None:
        """Refuse all requests but ``status`` from now on: the recording ends."""
        self._ending = True

    async def serve(
        self,
        listening: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer until cancelled; *listening* stays open."""
        own = listening.dup()
        own.setblocking(False)
        listener = Paced(trio.SocketListener(trio.socket.from_stdlib_socket(own)))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._handle_socket, [listener])
            task_status.started()

    async def _handle_socket(self, stream: trio.SocketStream) -> None:
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        await self.handle(stream, Peer(*struct.unpack("=iII", raw)))

    async def handle(self, stream: trio.abc.HalfCloseableStream, peer: Peer) -> None:
        """Answer the one request of *stream*, and close it."""
        with self._connections.admitted(CONNECTION_DEADLINE_S) as scope:
            try:
                answer = await self._answer(stream, peer, scope)
                if answer is not None:
                    await stream.send_all(answer)
                    await linger(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has gone away
            finally:
                await trio.aclose_forcefully(stream)

    async def _answer(
        self, stream: trio.abc.ReceiveStream, peer: Peer, scope: trio.CancelScope
    ) -> bytes | None:
        """Return the answer to the request of *stream*; None if the client left without one."""
        try:
            with trio.fail_after(REQUEST_DEADLINE_S):
                line = await _receive_line(stream)
            if line is None:
                return None
            request = parse_request(line)
            handler = self._permitted(request, peer)
            return done(await self._carry_out(handler, request, peer, scope))
        except LttdError as error:
            return refused(error)
        except trio.TooSlowError:
            return refused(UsageError("the request took too long"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:  # noqa: BLE001  (a bug here must not end the recording)
            self._limiter.say("failed", f"a request failed: {unforeseen(error)}", Level.ERROR)
            return refused(LttdError("lttd could not do this; its log says why"))

    def _permitted(self, request: Mapping[str, Any], peer: Peer) -> Handler:
        """Return the handler of a request that *peer* may make now, and report the request.

        Raises:
            LttdError: it may not be made.
        """
        do = request["do"]
        handler = self._handlers.get(do)
        if handler is None:
            raise UsageError(f"{shown(do)} is not a request; there are {', '.join(self._handlers)}")
        if do == STATUS:
            return handler
        refusal = ""
        if do in OWNERS_ONLY and peer.uid not in (0, os.geteuid()):
            refusal = "only root and the user who records may do that"
        elif self._ending:
            refusal = "the recording is ending"
        elif self._waiting >= MAX_WAITING:
            refusal = f"{MAX_WAITING} requests wait already; try again later"
        words = f"{do}: asked by {peer}" + (refusal and f"; {refusal}")
        self._limiter.say((do, peer.uid), words, Level.NOTICE)
        if refusal:
            raise LttdError(f"{do}: {refusal}")
        return handler

    async def _carry_out(
        self, handler: Handler, request: Mapping[str, Any], peer: Peer, scope: trio.CancelScope
    ) -> Mapping[str, Any]:
        self._connections.leave(scope)
        scope.deadline = float("inf")
        self._waiting += request["do"] != STATUS
        try:
            return await handler(request, peer)
        except LttdError as error:
            self._report(request["do"], peer, error)
            raise
        finally:
            self._waiting -= request["do"] != STATUS
            scope.deadline = trio.current_time() + CONNECTION_DEADLINE_S

    def _report(self, do: str, peer: Peer, error: LttdError) -> None:
        if not error.said:
            level = Level.ERROR if isinstance(error, StorageError) else Level.NOTICE
            why = str(error).removeprefix(f"{do}: ")
            self._limiter.say((do, peer.uid, "refused"), f"{do}: refused to {peer}: {why}", level)


async def _receive_line(stream: trio.abc.ReceiveStream) -> bytes | None:
    """Return the line without its line break; None: nothing came before the end.

    Raises:
        UsageError: it is too long, or has no end.
    """
    received = bytearray()
    while data := await stream.receive_some(RECEIVE_BYTES):
        end = data.find(b"\n")
        received += data if end < 0 else data[:end]
        if len(received) >= REQUEST_BYTES:
            raise UsageError(f"a request has at most {REQUEST_BYTES >> 10} KiB")
        if end >= 0:
            return bytes(received)
    if received:
        raise UsageError("the request ends without a line break")
    return None

"""Serve /metrics, /healthz and the status page over HTTP without delaying the reading loop.

Rule: one request per connection, then close; a scrape every few seconds needs no more.
Rule: this module bounds everything that a client does: the rate and the number of connections, the
bytes of a request, the time of a connection, and the rate of rendering.
Invariant: no input of a client, and no failure to answer it, ends serve().
"""

import errno
import re
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import h11
import trio

from lttd.errors import UsageError
from lttd.health import Limiter
from lttd.hosts import allows
from lttd.serving import RECEIVE_BYTES, Connections, Paced, linger
from lttd.start import unforeseen
from lttd.terminal import Level, printable, say

# Prometheus sends about 300 bytes.
REQUEST_BYTES: Final = 8 << 10
BODY_RECEIVE_BYTES: Final = 64 << 10
REQUEST_DEADLINE_S: Final = 5.0
# The longest time of a connection; a scrape's own deadline is 10 s by default.
CONNECTION_DEADLINE_S: Final = 10.0
MAX_CONNECTIONS: Final = 16
# Rendering 256 streams costs 3 ms: at this rate it takes about 1 % of the loop.
RENDER_INTERVAL_S: Final = 0.25

# Of every answer: browsers keep nothing, let no other site read or frame it, and load nothing for
# it from elsewhere.
SAFETY: Final = (
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
TEXT_TYPE: Final = "text/plain; charset=utf-8"

_PORT: Final = re.compile(r"\d{1,5}", re.ASCII)

_REMEDY: Final = {
    errno.EADDRINUSE: "the port is in use; choose another, or stop its program (`ss -ltnp`)",
    errno.EADDRNOTAVAIL: "this machine has no such address; 127.0.0.1 and [::1] always work",
    errno.EACCES: "no permission for this port; choose one above 1023",
    errno.EPERM: "no permission for this port; choose one above 1023",
    errno.EAFNOSUPPORT: "this machine lacks that address family; 127.0.0.1 usually works",
}


@dataclass(frozen=True, slots=True)
class Address:
    """The address to listen on."""

    host: str | None
    """A name or a numeric address without brackets; None: all addresses of the machine."""
    port: int

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse ``ADDR:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (all addresses).

    Raises:
        UsageError: it has another form.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and _PORT.fullmatch(port) and int(port) < 1 << 16):
        raise UsageError(f"--metrics {text} is not ADDR:PORT; write one such as 127.0.0.1:9469")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"--metrics {text}: an IPv6 address needs brackets; write [::1]:9469")
    if (bracketed and ":" not in host) or set(host) & set("[]/ "):
        raise UsageError(f"--metrics {text} is not an address; write one such as 127.0.0.1:9469")
    return Address(host or None, int(port))


async def open_listeners(address: Address) -> list[trio.SocketListener]:
    """Bind *address*; connections queue in the kernel until serve() is called.

    Raises:
        UsageError: it cannot be bound; the message has the remedy.
    """
    try:
        return await trio.open_tcp_listeners(
            address.port, host=address.host, backlog=MAX_CONNECTIONS
        )
    except UnicodeError as error:  # a label of 300 characters, say
        raise UsageError(
            f"--metrics {address} is not a host name; write a numeric address such as 127.0.0.1"
        ) from error
    except socket.gaierror as error:
        raise UsageError(
            f"--metrics {address}: {error.strerror}; give a numeric address such as 127.0.0.1"
        ) from error
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, error.strerror or str(error))
        raise UsageError(f"--metrics {address}: {remedy}") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request."""

    status: int
    body: bytes
    content_type: str = TEXT_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    """Further header fields."""


Route = Callable[[], Answer]


class Post(Protocol):
    """A path that takes requests with a body."""

    most_bytes: int
    """The largest body."""

    def refuse(self, authorization: bytes | None) -> Answer | None:
        """Return the answer to a request that may not post, before its body is read."""
        ...

    async def answer(self, query: bytes, body: bytes) -> Answer:
        """Carry out the request, and answer it."""
        ...


class Endpoint:
    """Answers requests by a function for each path, which runs on the loop of serve()."""

    def __init__(
        self,
        render: Callable[[], bytes],
        health: Callable[[], tuple[bool, str]],
        host_names: Collection[str] = frozenset(),
        pages: Mapping[bytes, Route] | None = None,
        posts: Mapping[bytes, Post] | None = None,
    ) -> None:
        """*host_names*: further names of this machine, besides those of hosts.py.

        *pages*: further paths, besides /metrics and /healthz.  *posts*: paths that take a body.
        """
        self._posts = posts or {}
        self._host_names = host_names
        self._render = render
        self._health = health
        self._routes = {b"/metrics": self._metrics, b"/healthz": self._healthz, **(pages or {})}
        self._made: dict[bytes, tuple[Answer, float]] = {}  # by path; answer, and when
        self._connections = Connections(MAX_CONNECTIONS)
        self._limiter = Limiter(say)

    def allow_hosts(self, host_names: Collection[str]) -> None:
        """Replace the further names of this machine."""
        self._host_names = host_names

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer until cancelled, then close the listeners."""
        paced = [Paced(listener) for listener in listeners]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.handle, paced)
            task_status.started()

    async def handle(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Answer the one request of *stream*, and close it."""
        with self._connections.admitted(CONNECTION_DEADLINE_S):
            try:
                await self._exchange(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has gone away
            finally:
                await trio.aclose_forcefully(stream)

    async def _exchange(self, stream: trio.abc.HalfCloseableStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        method = b""
        answer = Answer(408, b"the request took too long\n")
        with trio.move_on_after(REQUEST_DEADLINE_S):
            try:
                request = await _receive_request(connection, stream)
                if request is None:
                    return
                method = request.method
                answer = self._refuse_host(request) or await self._answer(
                    connection, request, stream
                )
            except h11.RemoteProtocolError as error:
                answer = Answer(error.error_status_hint, f"{printable(str(error))}\n".encode())
        await _send(connection, stream, answer, with_body=method != b"HEAD")
        await linger(stream)

    def _refuse_host(self, request: h11.Request) -> Answer | None:
        hosts = [value for name, value in request.headers if name == b"host"]
        # h11 has refused HTTP/1.1 without exactly one.
        if all(allows(host.decode("latin-1"), self._host_names) for host in hosts):
            return None
        return Answer(421, b"not a name of this server; --web-allow-host NAME makes it one\n")

    async def _answer(
        self, connection: h11.Connection, request: h11.Request, stream: trio.abc.Stream
    ) -> Answer:
        path = request.target.partition(b"?")[0]
        if (post := self._posts.get(path)) is not None:
            return await self._answer_post(post, connection, request, stream)
        make = self._routes.get(path)
        if make is None:
            return Answer(404, b"there are %s\n" % b", ".join(self._routes))
        if request.method not in (b"GET", b"HEAD"):
            return _other_method("GET, HEAD")
        now = trio.current_time()
        made, made_at = self._made.get(path, (None, 0.0))
        if made is None or now >= made_at + RENDER_INTERVAL_S:
            made = self._make(path.decode("ascii"), make)
            self._made[path] = (made, now)
        return made

    async def _answer_post(
        self, post: Post, connection: h11.Connection, request: h11.Request, stream: trio.abc.Stream
    ) -> Answer:
        if request.method != b"POST":
            return _other_method("POST")
        fields = dict(request.headers)
        refused = post.refuse(fields.get(b"authorization")) or _refuse_length(
            fields.get(b"content-length"), post.most_bytes
        )
        path, _, query = request.target.partition(b"?")
        name = path.decode("ascii")
        if refused is not None:
            return self._refused(name, refused)
        body = await _receive_body(connection, stream)
        try:
            answer = await post.answer(query, body)
        except Exception as error:  # noqa: BLE001  (a bug here must not end the recording)
            return self._failed(name, error)
        return self._refused(name, answer) if answer.status == HTTPStatus.BAD_REQUEST else answer

    def _refused(self, path: str, answer: Answer) -> Answer:
        """Return the answer to a request that nobody carries out; its sender may not look at it."""
        words = f"POST {path}: refused with status {answer.status}: {answer.body.decode().strip()}"
        self._limiter.say((path, answer.status), words, Level.WARNING)
        return answer

    def _make(self, path: str, make: Route) -> Answer:
        try:
            return make()
        except Exception as error:  # noqa: BLE001  (a bug here must not end the recording)
            return self._failed(path, error)

    def _failed(self, path: str, error: Exception) -> Answer:
        self._limiter.say(path, f"{path} could not be answered: {unforeseen(error)}", Level.ERROR)
        return Answer(500, b"lttd could not make this answer; its log says why\n")

    def _metrics(self) -> Answer:
        return Answer(200, self._render(), METRICS_TYPE)

    def _healthz(self) -> Answer:
        healthy, reason = self._health()
        return Answer(200 if healthy else 503, f"{printable(reason)}\n".encode())


async def _receive_request(
    connection: h11.Connection, stream: trio.abc.ReceiveStream
) -> h11.Request | None:
    """Return the request's head, or None if the client closed before its end.

    Raises:
        h11.RemoteProtocolError: it is not HTTP, or too long.
    """
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if isinstance(event, h11.ConnectionClosed):
            return None
        connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))


async def _receive_body(connection: h11.Connection, stream: trio.abc.Stream) -> bytes:
    """Return the body of a request whose head has been received.

    Raises:
        h11.RemoteProtocolError: the client closed before its end.
    """
    if connection.they_are_waiting_for_100_continue:
        await stream.send_all(
            connection.send(h11.InformationalResponse(status_code=100, headers=[]))
        )
    body = bytearray()
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
        else:
            connection.receive_data(bytes(await stream.receive_some(BODY_RECEIVE_BYTES)))
    return bytes(body)


def _refuse_length(length: bytes | None, most_bytes: int) -> Answer | None:
    """Return the answer to a request whose body is too long, or of unknown length."""
    if length is None:
        return Answer(411, b"send a Content-Length\n")
    # h11 has refused a length that is not a number, or several that differ.
    if len(length) > 18 or int(length) > most_bytes:
        return Answer(413, b"the body may have %d bytes\n" % most_bytes)
    return None


def _other_method(allowed: str) -> Answer:
    words = allowed.replace(", ", " and ")
    return Answer(405, f"{words} only\n".encode(), headers=(("Allow", allowed),))


async def _send(
    connection: h11.Connection,
    stream: trio.abc.SendStream,
    answer: Answer,
    *,
    with_body: bool,
) -> None:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
        *SAFETY,
        *answer.headers,
    ]
    phrase = HTTPStatus(answer.status).phrase.encode()
    head = h11.Response(status_code=answer.status, headers=headers, reason=phrase)
    await stream.send_all(connection.send(head))
    if with_body:
        await stream.send_all(connection.send(h11.Data(data=answer.body)))

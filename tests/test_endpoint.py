"""The HTTP endpoint answers in full, and no client uses more than its share."""

import gc
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import h11
import pytest
import trio
import trio.testing
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from lttd import endpoint, serving
from lttd.endpoint import Address, Endpoint, open_listeners, parse_address
from lttd.errors import UsageError
from lttd.hosts import parse_host_names

BODY = b"# HELP x y\n# TYPE x counter\nx 1\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def healthy() -> tuple[bool, str]:
    return True, "ok"


class Rendering:
    def __init__(self, body: bytes = BODY) -> None:
        self.body = body
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.body


async def reply_to(stream: trio.abc.HalfCloseableStream, request: bytes) -> bytes:
    await stream.send_all(request)
    return await all_of(stream)


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some(1 << 16):
        received += data
    return bytes(received)


async def exchange(server: Endpoint, request: bytes) -> bytes:
    """Send *request* over a new connection; return the whole answer."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, theirs)
        reply = await reply_to(ours, request)
        await ours.aclose()
    return reply


def parsed(reply: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Parse *reply* as a strict client does."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(reply)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = bytearray()
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return response.status_code, headers, bytes(body)


async def test_metrics_are_served_with_their_type() -> None:
    status, headers, body = parsed(await exchange(Endpoint(Rendering(), healthy), GET))
    assert (status, body) == (200, BODY)
    assert headers["content-type"] == CONTENT_TYPE_PLAIN_0_0_4
    assert headers["connection"] == "close"


async def test_a_query_does_not_belong_to_the_path() -> None:
    request = GET.replace(b"/metrics", b"/metrics?name[]=up")
    assert parsed(await exchange(Endpoint(Rendering(), healthy), request))[0] == 200


async def test_a_head_request_gets_the_headers_of_get_without_a_body() -> None:
    server = Endpoint(Rendering(), healthy)
    of_get = parsed(await exchange(server, GET))[1]
    reply = await exchange(server, GET.replace(b"GET", b"HEAD"))
    assert parsed(reply, "HEAD")[:2] == (200, of_get)
    assert reply.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET, 200),
        (GET.replace(b"/metrics", b"/nothing"), 404),
        (GET.replace(b"GET", b"PUT"), 405),
        (GET.replace(b"localhost", b"evil.example"), 421),
        (b"x\r\n\r\n", 400),
    ],
)
async def test_no_answer_may_be_cached_framed_or_read_by_other_sites(
    request_: bytes, status: int
) -> None:
    found, headers, _ = parsed(await exchange(Endpoint(Rendering(), healthy), request_))
    assert found == status
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = dict(
        part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "access-control-allow-origin" not in headers


async def test_a_further_path_is_made_at_the_same_bounded_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    times = itertools.count(1)
    pages = {b"/": lambda: endpoint.Answer(200, b"%d" % next(times), "text/html")}
    server = Endpoint(Rendering(), healthy, pages=pages)
    request = GET.replace(b"/metrics", b"/")
    for body in (b"1", b"1"):
        status, headers, found = parsed(await exchange(server, request))
        assert (status, headers["content-type"], found) == (200, "text/html", body)
    await trio.sleep(endpoint.RENDER_INTERVAL_S)
    assert parsed(await exchange(server, request))[2] == b"2"


async def test_an_unknown_path_gets_the_known_ones() -> None:
    server = Endpoint(Rendering(), healthy, pages={b"/": lambda: endpoint.Answer(200, b"")})
    status, _, body = parsed(await exchange(server, GET.replace(b"/metrics", b"/favicon.ico")))
    assert (status, body) == (404, b"there are /metrics, /healthz, /\n")


async def test_healthz_answers_ok_or_503_with_the_reason() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    status, _, body = parsed(await exchange(Endpoint(Rendering(), healthy), request))
    assert (status, body) == (200, b"ok\n")
    sick = Endpoint(Rendering(), lambda: (False, "backlog full: 7 of 7 bytes"))
    status, _, body = parsed(await exchange(sick, request))
    assert (status, body) == (503, b"backlog full: 7 of 7 bytes\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://x/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"OPTIONS /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
        (b"\x00" * 100_000, 400),
        (b"\r\n" * 50_000, 400),
    ],
)
async def test_a_bad_request_gets_the_matching_status(
    request_: bytes, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    rendering = Rendering()
    got, headers, _ = parsed(await exchange(Endpoint(rendering, healthy), request_))
    assert got == status
    assert rendering.times == 0
    assert (headers.get("allow") == "GET, HEAD") == (status == 405)


NODE = os.uname().nodename


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.0.0.1:9469",
            "[::1]:9469",
            "[fe80::1%25eth0]",
            "192.0.2.7:80",
            "10.1.2.3:",
        ),
        *("localhost", "LocalHost.:9469", NODE, f"{NODE.upper()}:9469", NODE.partition(".")[0]),
        *("db1.example.com:9469", "DB1.example.com."),
    ],
)
async def test_the_endpoint_answers_to_the_names_of_this_machine(host: str) -> None:
    server = Endpoint(Rendering(), healthy, parse_host_names(["db1.example.COM.", "x"]))
    assert parsed(await exchange(server, GET.replace(b"localhost", host.encode())))[0] == 200


@pytest.mark.parametrize("path", [b"/metrics", b"/healthz", b"/"])
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9469", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(
            "",
            ":9469",
            "[evil.example]",
            "[127.0.0.1]",
            "::1",
            "127.1",
            "0x7f000001",
            "localhost:x",
        ),
        *(f"{NODE}.evil.example", "localhost evil.example", "evil\xff", "127.0.0.1@evil.example"),
    ],
)
async def test_any_other_host_name_is_refused_as_misdirected(host: str, path: bytes) -> None:
    rendering = Rendering()
    request = GET.replace(b"localhost", host.encode("latin-1")).replace(b"/metrics", path)
    status, _, body = parsed(await exchange(Endpoint(rendering, healthy), request))
    assert status == 421
    assert body == b"not a name of this server; --web-allow-host NAME makes it one\n"
    assert rendering.times == 0


async def test_http_1_0_passes_without_a_host_and_fails_with_a_foreign_one() -> None:
    server = Endpoint(Rendering(), healthy)
    assert parsed(await exchange(server, b"GET /metrics HTTP/1.0\r\n\r\n"))[0] == 200
    request = b"GET /metrics HTTP/1.0\r\nHost: evil.example\r\n\r\n"
    assert parsed(await exchange(server, request))[0] == 421


@pytest.mark.parametrize(
    "name", ["", "*", "*.example.com", "http://x", "x:9469", "a b", "x/", "[::1]", "é", "x" * 300]
)
def test_an_invalid_host_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="write a host's name, without scheme, port"):
        parse_host_names([name])


async def test_only_the_first_of_pipelined_requests_is_answered() -> None:
    rendering = Rendering()
    reply = await exchange(Endpoint(rendering, healthy), GET * 100)
    assert reply.count(b"HTTP/1.1") == 1
    assert rendering.times == 1


async def test_many_scrapes_at_once_are_rendered_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rendering = Rendering()
    server = Endpoint(rendering, healthy)
    for _ in range(10):
        await exchange(server, GET)
    assert rendering.times == 1
    await trio.sleep(endpoint.RENDER_INTERVAL_S)
    await exchange(server, GET)
    assert rendering.times == 2


async def test_a_request_that_comes_byte_by_byte_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Endpoint(Rendering(), healthy).handle, theirs)
        for byte in GET:
            await ours.send_all(bytes([byte]))
            await trio.sleep(0.01)
        assert parsed(await all_of(ours))[0] == 200
        await ours.aclose()


async def test_a_request_that_never_ends_gets_an_answer_and_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Endpoint(Rendering(), healthy).handle, theirs)
        await ours.send_all(GET[:-1])
        assert parsed(await all_of(ours))[0] == 408
    spent_s = trio.current_time() - begin
    assert spent_s == pytest.approx(endpoint.REQUEST_DEADLINE_S + serving.LINGER_S)


async def test_a_client_that_does_not_read_its_answer_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # a send waits until the peer receives it
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Endpoint(Rendering(), healthy).handle, theirs)
        await ours.send_all(GET)
    assert trio.current_time() - begin == pytest.approx(endpoint.CONNECTION_DEADLINE_S)


async def test_a_client_that_keeps_sending_is_read_up_to_a_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Endpoint(Rendering(), healthy).handle, theirs)
        await ours.send_all(GET)
        sent_bytes = 0
        with suppress(trio.BrokenResourceError):
            while sent_bytes < 10 * serving.LINGER_BYTES:
                await ours.send_all(bytes(4096))
                await trio.testing.wait_all_tasks_blocked()
                sent_bytes += 4096
    assert sent_bytes <= serving.LINGER_BYTES + 2 * serving.RECEIVE_BYTES


async def test_a_client_that_disconnects_causes_no_error() -> None:
    for request in (b"", b"GET /met", GET):
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(request)
        await ours.aclose()
        await Endpoint(Rendering(), healthy).handle(theirs)


async def test_idle_clients_do_not_keep_a_scrape_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Endpoint(Rendering(), healthy)
    sitting = []
    async with trio.open_nursery() as nursery:
        for _ in range(10 * endpoint.MAX_CONNECTIONS):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(server.handle, theirs)
            await trio.testing.wait_all_tasks_blocked()
            sitting.append(ours)
        begin = trio.current_time()
        assert parsed(await exchange(server, GET))[0] == 200
        assert trio.current_time() == begin
        dropped = 0
        for stream in sitting:
            with trio.move_on_after(0.001):
                dropped += await stream.receive_some() == b""
        assert dropped == len(sitting) - endpoint.MAX_CONNECTIONS + 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", [b"/metrics", b"/healthz"])
async def test_an_exception_in_rendering_gives_a_500_and_one_line_in_the_log(
    path: bytes, capfd: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    def broken() -> bytes:
        raise KeyError("sched_0")

    def broken_health() -> tuple[bool, str]:
        raise KeyError("sched_0")

    server = Endpoint(broken, broken_health)
    for _ in range(5):
        reply = await exchange(server, GET.replace(b"/metrics", path))
        assert parsed(reply)[0] == 500
    err = capfd.readouterr().err
    assert err.startswith(f"lttd: {path.decode()} could not be answered: unforeseen KeyError")
    assert err.count("\n") == 1


class HungryListener(trio.abc.Listener[trio.SocketStream]):
    """A listener of a process that has no descriptor left for a while."""

    def __init__(self, errors: list[int], accept: Callable[[], trio.SocketStream]) -> None:
        self.errors = errors
        self.accept_stream = accept

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, "fake")
        return self.accept_stream()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_the_endpoint_limits_the_rate_of_new_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pair = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(pair[0]))
    paced = serving.Paced(HungryListener([], lambda: stream))
    begin = trio.current_time()
    for _ in range(101):
        await paced.accept()
    assert trio.current_time() - begin == pytest.approx(100 * serving.ACCEPT_INTERVAL_S)
    await stream.aclose()
    pair[1].close()


async def test_the_endpoint_waits_quietly_while_no_descriptor_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pair = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(pair[0]))
    paced = serving.Paced(HungryListener([*sorted(serving.ACCEPT_LATER)], lambda: stream))
    begin = trio.current_time()
    assert await paced.accept() is stream
    assert trio.current_time() - begin == pytest.approx(4 * serving.ACCEPT_LATER_S)
    await stream.aclose()
    pair[1].close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9469", Address("127.0.0.1", 9469)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9469", Address("::1", 9469)),
        ("[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65535)),
        (":9469", Address(None, 9469)),
    ],
)
def test_a_parsed_address_is_written_back_alike(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "9469",
            "localhost",
            "localhost:",
            "localhost:http",
            "x:65536",
            "x:-1",
            "x:\uff11",
            "x:" + "1" * 5000,
        ),
        *("::1:9469", "[::1]", "[::1]9469", "[]:1", "[x]:1", "[::1:9469", "::1]:9469", "a b:1"),
        "http://localhost:9469",
    ],
)
def test_an_invalid_address_is_refused_in_one_line_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    message = str(caught.value)
    assert message.startswith((f"--metrics {text} is not ", f"--metrics {text}: "))
    assert "127.0.0.1" in message or "[::1]" in message
    assert "\n" not in message


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
async def test_a_busy_port_is_refused_when_the_endpoint_opens(host: str | None) -> None:
    try:
        listeners = await open_listeners(Address(host, 0))
    except UsageError as error:
        pytest.skip(str(error))
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(UsageError, match=rf":{port}: the port is in use; choose another"):
        await open_listeners(Address(host, port))
    for listener in listeners:
        await listener.aclose()


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("192.0.2.1", "no such address"),
        ("no-such-host.invalid", "(give|write) a numeric address"),
        ("x" * 300, "(give|write) a numeric address"),
        ("a..b", "(give|write) a numeric address"),
    ],
)
async def test_an_address_of_another_machine_is_refused_with_a_remedy(
    host: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=remedy):
        await open_listeners(Address(host, 0))


async def test_serve_answers_on_real_sockets_and_ends_with_its_listeners_closed() -> None:
    # The body does not fit into the buffers of the sockets.
    server = Endpoint(Rendering(BODY * 100_000), healthy)
    listeners = await open_listeners(Address("127.0.0.1", 0))
    port = listeners[0].socket.getsockname()[1]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            for _ in range(3):
                client = await trio.open_tcp_stream("127.0.0.1", port)
                status, _, body = parsed(await reply_to(client, GET))
                assert (status, len(body)) == (200, len(BODY) * 100_000)
                await client.aclose()
            garbage = await trio.open_tcp_stream("127.0.0.1", port)
            # More than the server reads: the client must still receive the reason.
            assert b" 431 " in await reply_to(garbage, b"GET /" + b"x" * 20_000)
            await garbage.aclose()
            nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream("127.0.0.1", port)


@pytest.mark.slow
async def test_a_flood_of_bad_clients_takes_a_small_and_bounded_share_of_the_loop() -> None:
    """Measure CPU time, which other load on the machine does not change."""
    server = Endpoint(Rendering(BODY * 10_000), healthy)
    listeners = await open_listeners(Address("127.0.0.1", 0))
    port = listeners[0].socket.getsockname()[1]
    longest_s = 0.0

    async def go_round() -> None:
        nonlocal longest_s
        while True:
            before_s = time.thread_time()
            await trio.lowlevel.checkpoint()
            longest_s = max(longest_s, time.thread_time() - before_s)

    def flood(stop: threading.Event) -> None:
        requests = itertools.cycle((b"", GET[:20], GET, bytes(1 << 16), GET * 1000))
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2) as client:
                client.sendall(next(requests))

    stop = threading.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        for _ in range(4):
            nursery.start_soon(trio.to_thread.run_sync, flood, stop)
        shares = []
        for _ in range(4):
            begin_s, begin = time.thread_time(), trio.current_time()
            await trio.sleep(0.2)
            shares.append((time.thread_time() - begin_s) / (trio.current_time() - begin))
        gc.disable()  # it goes through what thousands of other tests have left
        try:
            nursery.start_soon(go_round)
            await trio.sleep(0.2)
        finally:
            gc.enable()
        stop.set()
        nursery.cancel_scope.cancel()
    # Other load can only raise the figure, through the caches.
    assert min(shares) < 0.06
    assert longest_s < 0.02

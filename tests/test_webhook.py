"""POST /-/trigger over a real socket: who may post, what is answered, and what is taken."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from lttd import endpoint, webhook
from lttd.endpoint import Address, Endpoint, open_listeners
from lttd.trigger import Refusal, Trigger, TriggerRefusedError
from lttd.webhook import Webhook
from tests.test_alerts import CAPTURED, NOW_NS, alert, body_of

TOKEN = b"sekret-token"


class Taker:
    """Accepts triggers, as triggers.py does; the test sets what it refuses."""

    def __init__(self) -> None:
        self.taken: list[Trigger] = []
        self.refusal: Refusal | None = None
        self.bug = False

    async def __call__(self, trigger: Trigger) -> Trigger | None:
        if self.bug:
            raise ZeroDivisionError
        if self.refusal is not None:
            raise TriggerRefusedError(self.refusal)
        if trigger.alert is not None and trigger.alert in [one.alert for one in self.taken]:
            return None
        self.taken.append(replace(trigger, number=len(self.taken) + 1))
        return self.taken[-1]


@asynccontextmanager
async def served(taker: Taker, token: bytes | None = TOKEN) -> AsyncIterator[int]:
    """Serve the path on a port of 127.0.0.1."""
    posts = {webhook.PATH: Webhook(token, taker, lambda: NOW_NS)}
    server = Endpoint(lambda: b"", lambda: (True, "ok"), posts=posts)
    listeners = await open_listeners(Address("127.0.0.1", 0))
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield port
        nursery.cancel_scope.cancel()


def post_of(
    body: bytes = b"",
    *,
    target: str = "/-/trigger",
    method: str = "POST",
    authorization: str | None = "Bearer sekret-token",
    length: str | None = "",
) -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    head += [f"Authorization: {authorization}"] if authorization is not None else []
    if length is not None:
        head.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


async def exchanged(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """Return status, head and body of the answer."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        received = bytearray()
        with trio.fail_after(10):
            while data := await stream.receive_some(1 << 16):
                received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


async def test_an_alert_is_taken_once_however_often_it_is_repeated() -> None:
    taker = Taker()
    async with served(taker) as port:
        request = post_of(CAPTURED, target="/-/trigger?before=5m&after=10s")
        status, _, body = await exchanged(port, request)
        assert status == 200
        first = {"ok": True, "accepted": [1], "known": 0, "resolved": 1, "refused": []}
        assert json.loads(body) == first
        status, _, body = await exchanged(port, request)
        assert (status, json.loads(body)) == (200, first | {"accepted": [], "known": 1})
    (one,) = taker.taken
    assert (one.before_ns, one.after_ns) == (300_000_000_000, 10_000_000_000)


async def test_a_small_json_object_is_taken() -> None:
    taker = Taker()
    async with served(taker) as port:
        status, _, _ = await exchanged(port, post_of(b'{"reason": "\\u001b[2J"}'))
    assert status == 200
    assert taker.taken[0].reason == "\x1b[2J"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post_of(b"{}", authorization=None), 401),
        (post_of(b"{}", authorization="Bearer sekret-tokem"), 401),
        (post_of(b"{}", authorization="Bearer "), 401),
        (post_of(b"{}", authorization="Basic sekret-token"), 401),
        (post_of(b"{}", authorization="sekret-token"), 401),
        (post_of(b"{}", authorization="Bearer s\xe9kret"), 401),
        (post_of(b"{}", target="/-/trigger/x"), 404),
        (post_of(method="GET"), 405),
        (post_of(b"{}", method="PUT"), 405),
        (post_of(length=None), 411),
        (post_of(length=None)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (post_of(length="1048577"), 413),
        (post_of(length="9" * 18), 413),
        (post_of(length="9" * 30), 400),
        (post_of(length="-1"), 400),
        (post_of(b"{"), 400),
        (post_of(b'{"reason": "x"}', target="/-/trigger?before=25h"), 400),
        (post_of(b'{"reason": "x"}').replace(b"localhost", b"evil.example"), 421),
    ],
)
async def test_a_request_that_is_not_right_gets_its_status_and_triggers_nothing(
    request_: bytes, status: int
) -> None:
    taker = Taker()
    async with served(taker) as port:
        got, head, body = await exchanged(port, request_)
    assert got == status
    assert taker.taken == []
    assert body.count(b"\n") == 1
    assert (b"WWW-Authenticate: Bearer" in head) == (status == 401)
    assert (b"Allow: POST" in head) == (status == 405)


@pytest.mark.parametrize("status", [401, 413])
async def test_a_refusal_does_not_wait_for_the_body(status: int) -> None:
    authorization = None if status == 401 else "Bearer sekret-token"
    request = post_of(authorization=authorization, length=f"{(2 << 20) if status == 413 else 100}")
    async with served(Taker()) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(request)
            with trio.fail_after(endpoint.REQUEST_DEADLINE_S / 2):
                assert (await stream.receive_some(1 << 16)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_client_that_asks_first_is_told_to_send_its_body() -> None:
    body = b'{"reason": "x"}'
    head = post_of(length=str(len(body)))[:-2] + b"Expect: 100-continue\r\n\r\n"
    taker = Taker()
    async with served(taker) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(head)
            with trio.fail_after(10):
                assert (await stream.receive_some(1 << 16)).startswith(b"HTTP/1.1 100 ")
                await stream.send_all(body)
                assert (await stream.receive_some(1 << 16)).startswith(b"HTTP/1.1 200 ")
    assert len(taker.taken) == 1


async def test_a_body_of_one_mebibyte_is_read_and_a_broken_off_one_is_not() -> None:
    taker = Taker()
    big = json.dumps({"reason": "x" * (webhook.MOST_BODY_BYTES - 14)}).encode()
    assert len(big) == webhook.MOST_BODY_BYTES
    async with served(taker) as port:
        assert (await exchanged(port, post_of(big)))[0] == 200
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(post_of(b'{"reason": "x"}')[:-1])
            await stream.send_eof()
            with trio.fail_after(10):
                assert (await stream.receive_some(1 << 16)).startswith(b"HTTP/1.1 400 ")
    assert len(taker.taken) == 1


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal.NOT_NOW, 503),
        (Refusal.TOO_MANY, 429),
        (Refusal.OUT_OF_REACH, 200),
        (Refusal.TOO_LARGE, 200),
    ],
)
async def test_a_refused_trigger_says_whether_to_repeat_it(refusal: Refusal, status: int) -> None:
    taker = Taker()
    taker.refusal = refusal
    async with served(taker) as port:
        got, _, body = await exchanged(port, post_of(body_of(alert(), alert())))
    assert got == status
    assert json.loads(body)["refused"] == [refusal.value] * 2


async def test_nobody_may_post_while_triggers_by_http_are_off() -> None:
    async with served(Taker(), token=None) as port:
        status, _, body = await exchanged(port, post_of(CAPTURED))
    assert status == 403
    assert b"--web-enable-trigger" in body


async def test_a_post_that_nobody_carries_out_is_a_line_in_the_log_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    requests = [post_of(b"{"), post_of(authorization="Bearer x"), post_of(length="1048577")]
    async with served(Taker()) as port:
        for request in requests * 5:
            await exchanged(port, request)
        await exchanged(port, post_of(CAPTURED))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == ["POST /-/trigger"] * 3
    assert [re.search(r"status (\d+): ", line)[1] for line in lines] == ["400", "401", "413"]
    assert "send the token of --web-token-file" in lines[1]


async def test_a_bug_is_answered_with_500_and_ends_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    taker = Taker()
    taker.bug = True
    async with served(taker) as port:
        assert (await exchanged(port, post_of(b'{"reason": "x"}')))[0] == 500
        taker.bug = False
        assert (await exchanged(port, post_of(b'{"reason": "x"}')))[0] == 200
    assert capsys.readouterr().err.count("/-/trigger could not be answered") == 1

"""The control socket carries out complete requests of those who may, and no client harms it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lttd import control
from lttd.control import Control
from lttd.control_protocol import REQUEST_BYTES, Handler, Peer, encode, parse_request
from lttd.errors import LttdError, NothingToRecordError, StorageError, UsageError
from lttd.serving import LINGER_BYTES
from lttd.terminal import Level

ROOT = Peer(1, 0, 0)
MEMBER = Peer(4711, 1000, 1000)


class Asked:
    """A control with a handler that remembers its requests; *lines* are those on stderr."""

    def __init__(self, **handlers: Handler) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self.lines: list[str] = []
        self.levels: list[Level] = []
        table = dict.fromkeys(("status", "roll", "release", "reload"), self.remember)
        self.control = Control({**table, **handlers}, self.say)

    def say(self, line: str, level: Level) -> None:
        self.lines.append(line)
        self.levels.append(level)

    async def remember(self, request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        self.requests.append(request)
        return {"number": len(self.requests)}

    async def reply(self, data: bytes, peer: Peer = ROOT, *, ends: bool = False) -> bytes:
        """Send *data* over a new connection, and its end if *ends*; return the whole answer."""
        ours, theirs = trio.testing.memory_stream_pair()
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.control.handle, theirs, peer)
            await ours.send_all(data)
            if ends:
                await ours.send_eof()
            while more := await ours.receive_some(1 << 16):
                received += more
            await ours.aclose()
        return bytes(received)

    async def answer(self, request: object, peer: Peer = ROOT) -> dict[str, Any]:
        reply = await self.reply(json.dumps(request).encode() + b"\n", peer)
        assert reply.endswith(b"\n")
        assert reply.count(b"\n") == 1
        value: dict[str, Any] = json.loads(reply)
        return value


async def test_a_request_is_answered_with_what_its_handler_returns() -> None:
    asked = Asked()
    assert await asked.answer({"do": "roll", "why": "\x1b"}) == {"ok": True, "number": 1}
    assert asked.requests == [{"do": "roll", "why": "\x1b"}]


@pytest.mark.parametrize(
    ("error", "status"),
    [(LttdError("no"), 1), (UsageError("no"), 2), (NothingToRecordError("n", "o"), 77)],
)
async def test_an_error_of_a_handler_is_the_answer_with_its_exit_status(
    error: LttdError, status: int
) -> None:
    async def fail(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        raise error

    answer = await Asked(roll=fail).answer({"do": "roll"})
    assert answer == {"ok": False, "error": str(error), "status": status}


async def test_a_bug_in_a_handler_is_a_line_in_the_log_and_an_answer() -> None:
    async def fail(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        raise KeyError("x")

    asked = Asked(roll=fail)
    answer = await asked.answer({"do": "roll"})
    assert (answer["ok"], answer["status"]) == (False, 1)
    assert "its log says why" in answer["error"]
    assert any("unforeseen KeyError" in line for line in asked.lines)


@pytest.mark.parametrize("line", [
    b"", b"x", b"{", b"[]", b"7", b'"status"', b"{}", b'{"do": 7}', b'{"do": null}', b"\xff\xfe",
    b"[" * 60_000, b'{"do": NaN}', b'{"do": ' + b"7" * 60_000 + b"}", b"\0" * 1000,
    b'{"do": "roll\x01"}', b"GET / HTTP/1.1\r",
])  # fmt: skip
async def test_a_line_that_is_not_a_request_is_refused_as_wrong_usage(line: bytes) -> None:
    asked = Asked()
    answer = json.loads(await asked.reply(line + b"\n"))
    assert (answer["ok"], answer["status"]) == (False, 2)
    assert asked.requests == []


async def test_an_unknown_request_is_refused_with_those_that_there_are() -> None:
    answer = await Asked().answer({"do": "rol\nl\x1b"})
    assert answer["error"] == (
        "'rol\\nl\\x1b' is not a request; there are status, roll, release, reload"
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_wrong_usage(line: bytes) -> None:
    with suppress(UsageError):
        assert isinstance(parse_request(line)["do"], str)


async def test_half_a_line_is_not_carried_out() -> None:
    asked = Asked()
    reply = await asked.reply(encode({"do": "roll"})[:-1], ends=True)
    assert json.loads(reply)["error"] == "the request ends without a line break"
    assert await asked.reply(b"", ends=True) == b""
    assert asked.requests == []


async def test_only_the_first_of_several_lines_is_carried_out() -> None:
    asked = Asked()
    assert (await asked.reply(encode({"do": "roll"}) * 100)).count(b"\n") == 1
    assert len(asked.requests) == 1


async def test_a_line_that_is_too_long_is_refused_and_read_up_to_a_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked = Asked()
    answer = json.loads(await asked.reply(b" " * (1 << 20)))
    assert answer["error"] == "a request has at most 64 KiB"
    longest = b" " * (REQUEST_BYTES - 20) + encode({"do": "roll"})
    assert json.loads(await asked.reply(longest))["ok"]
    assert json.loads(await asked.reply(b" " * 20 + longest))["error"]
    assert len(asked.requests) == 1


async def test_a_client_that_keeps_sending_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    sent_bytes = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Asked().control.handle, theirs, ROOT)
        with suppress(trio.BrokenResourceError):
            while sent_bytes < 10 * LINGER_BYTES:
                await ours.send_all(bytes(4096))
                await trio.testing.wait_all_tasks_blocked()
                sent_bytes += 4096
    assert sent_bytes <= REQUEST_BYTES + LINGER_BYTES + 8192


async def test_a_request_that_comes_byte_by_byte_is_carried_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Asked().control.handle, theirs, ROOT)
        for byte in encode({"do": "roll"}):
            await ours.send_all(bytes([byte]))
            await trio.sleep(0.01)
        assert await ours.receive_some() == encode({"ok": True, "number": 1})
        await ours.aclose()


async def test_a_request_that_never_ends_is_refused_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked = Asked()
    begin = trio.current_time()
    answer = json.loads(await asked.reply(b'{"do"'))
    assert answer["error"] == "the request took too long"
    assert trio.current_time() - begin == pytest.approx(control.REQUEST_DEADLINE_S)


async def test_a_client_that_does_not_read_its_answer_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # a send waits until the peer receives it
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Asked().control.handle, theirs, ROOT)
        await ours.send_all(encode({"do": "roll"}))
    assert trio.current_time() - begin == pytest.approx(control.CONNECTION_DEADLINE_S)


async def test_a_client_that_leaves_does_not_stop_what_it_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended = []

    async def slow(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        await trio.sleep(60)
        ended.append(True)
        return {}

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Asked(roll=slow).control.handle, theirs, ROOT)
        await ours.send_all(encode({"do": "roll"}))
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
    assert ended == [True]


async def test_idle_and_waiting_clients_keep_no_request_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def forever(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        await trio.sleep_forever()
        return {}

    asked = Asked(trigger=forever)
    async with trio.open_nursery() as nursery:
        kept = []
        for data in [b"{"] * 100 + [encode({"do": "trigger"})] * (control.MAX_WAITING - 1):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(asked.control.handle, theirs, ROOT)
            await ours.send_all(data)
            await trio.testing.wait_all_tasks_blocked()
            kept.append(ours)
        assert (await asked.answer({"do": "roll"}))["ok"]
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(asked.control.handle, theirs, ROOT)
        await ours.send_all(encode({"do": "trigger"}))
        await trio.testing.wait_all_tasks_blocked()
        busy = await asked.answer({"do": "roll"})
        assert busy["error"] == "roll: 64 requests wait already; try again later"
        assert (await asked.answer({"do": "status"}))["ok"]
        nursery.cancel_scope.cancel()


async def test_the_group_may_do_all_but_reload_and_release() -> None:
    asked = Asked()
    may = {do: (await asked.answer({"do": do}, MEMBER))["ok"] for do in ("status", "roll")}
    assert may == {"status": True, "roll": True}
    for do in ("release", "reload"):
        answer = await asked.answer({"do": do}, MEMBER)
        assert answer["error"] == f"{do}: only root and the user who records may do that"
        assert (await asked.answer({"do": do}, ROOT))["ok"]


async def test_each_change_is_logged_with_its_user_and_no_client_floods_the_log() -> None:
    asked = Asked()
    for _ in range(50):
        await asked.answer({"do": "status"}, MEMBER)
        await asked.answer({"do": "roll"}, MEMBER)
        await asked.answer({"do": "reload"}, MEMBER)
    assert asked.lines[:2] == [
        "roll: asked by user 1000 (pid 4711)",
        "reload: asked by user 1000 (pid 4711); only root and the user who records may do that",
    ]
    assert len(asked.lines) < 10


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (LttdError("segment 9: there is none"), Level.NOTICE),
        (UsageError("keep: segment 9: there is none"), Level.NOTICE),
        (StorageError(Path("segment 9"), "there is none"), Level.ERROR),
    ],
)
async def test_a_refusal_is_logged_once_with_its_reason(error: LttdError, level: Level) -> None:
    async def refuse(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        raise error

    asked = Asked(keep=refuse)
    for _ in range(20):
        assert not (await asked.answer({"do": "keep"}, MEMBER))["ok"]
    line = "keep: refused to user 1000 (pid 4711): segment 9: there is none"
    assert asked.lines[:2] == ["keep: asked by user 1000 (pid 4711)", line]
    assert asked.levels[1] == level
    assert len(asked.lines) < 10


async def test_a_refusal_that_its_part_has_logged_is_not_logged_again() -> None:
    async def refuse(_request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        error = LttdError("no")
        error.said = True
        raise error

    asked = Asked(reload=refuse)
    assert not (await asked.answer({"do": "reload"}))["ok"]
    assert asked.lines == ["reload: asked by user 0 (pid 1)"]


async def test_only_status_is_answered_while_the_recording_ends() -> None:
    asked = Asked()
    asked.control.end()
    assert (await asked.answer({"do": "status"}))["ok"]
    assert (await asked.answer({"do": "roll"}))["error"] == "roll: the recording is ending"

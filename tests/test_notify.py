"""Messages to systemd: states and watchdog; a hanging loop sends none."""

import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from lttd.notify import READY, STATUS_INTERVAL_S, Heart, Notifier
from lttd.open_segment import OpenSegment
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.sources.base import Nothing
from lttd.subbuffer import TAKE_BYTES
from tests.fakes import FakeStream, batch_of, event, info, page
from tests.recorders import SNAPSHOT, segment_of

WATCHDOG_S = 20.0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield receiving


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier()
    yield notifier
    notifier.close()


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_nothing_is_sent_without_a_service_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier()
    assert not notifier.is_heard
    assert notifier.beat_interval_s == float("inf")

    def status() -> str:
        raise AssertionError("nobody wants to know")

    Heart(notifier, status).beat(0.0)
    notifier.send(READY)


def test_a_child_process_cannot_notify_for_lttd(manager: socket.socket) -> None:
    Notifier().close()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def test_the_watchdog_of_another_process_is_not_fed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier()
    Heart(notifier, lambda: "well").beat(0.0)
    notifier.close()
    assert heard(manager) == ["STATUS=well"]


def test_the_watchdog_is_fed_once_per_quarter_of_its_time(
    manager: socket.socket, notifier: Notifier
) -> None:
    heart = Heart(notifier, lambda: "same")
    for beat in range(1000):
        heart.beat(beat * WATCHDOG_S / 1000)
    assert heard(manager).count("WATCHDOG=1") == 4


def test_a_changed_status_line_is_sent_at_most_once_a_second(
    manager: socket.socket, notifier: Notifier
) -> None:
    texts = iter(["one", "two", "two", "three"])
    heart = Heart(notifier, lambda: next(texts))
    for tenth in range(40):
        heart.beat(tenth * STATUS_INTERVAL_S / 10)
    said = [message for message in heard(manager) if message != "WATCHDOG=1"]
    assert said == ["STATUS=one", "STATUS=two", "STATUS=three"]


def reading(
    recorder: Recorder,
    notifier: Notifier,
    trace: Path,
    stream: FakeStream,
    *,
    flush_interval_s: float,
) -> tuple[OpenSegment, Reader]:
    """Return an open segment, and a reader of *stream* whose heart feeds the watchdog."""
    segment = segment_of(recorder, trace, stream.info)
    heart = Heart(notifier, lambda: "reading")
    reader = Reader(
        recorder,
        flush_interval_s,
        on_beat=lambda: heart.beat(trio.current_time()),
        beat_interval_s=notifier.beat_interval_s,
    )
    reader.add([(stream, segment.lanes[stream.info.id])])
    return segment, reader


# The interval of the listener, and the largest error of its times.
LOOK_S = 0.5


def longest_silence_s(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


class Listener:
    """A listener that keeps the times of the watchdog messages."""

    def __init__(self, manager: socket.socket) -> None:
        self.manager = manager
        self.fed_at: list[float] = []

    async def listen(self, until: float) -> None:
        while trio.current_time() < until:
            if "WATCHDOG=1" in heard(self.manager):
                self.fed_at.append(trio.current_time())
            await trio.sleep(LOOK_S)


async def test_an_hourly_tick_still_feeds_the_watchdog(
    manager: socket.socket,
    notifier: Notifier,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    stream = FakeStream(info(), ())
    _, reader = reading(recorder, notifier, tmp_path / "t", stream, flush_interval_s=3600.0)
    listener = Listener(manager)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await listener.listen(until=trio.current_time() + 7000.0)
        nursery.cancel_scope.cancel()
    assert len(stream.takes) == 2, "the ticks came when they were due"
    assert longest_silence_s(listener.fed_at) <= WATCHDOG_S / 2 + LOOK_S


async def test_a_full_backlog_still_feeds_the_watchdog(
    manager: socket.socket,
    notifier: Notifier,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder(backlog_bytes=TAKE_BYTES)  # its threads do not run, so nothing is written
    stream = FakeStream(info(), ())
    for number in range(2):
        batch = batch_of(stream.info, [page(number, event(b"abcd"))], first=number)
        batch = replace(batch, held_bytes=TAKE_BYTES)
        stream.script.append(batch)
    segment, reader = reading(recorder, notifier, tmp_path / "t", stream, flush_interval_s=1.0)
    listener = Listener(manager)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await listener.listen(until=trio.current_time() + 10 * WATCHDOG_S)
        assert reader.pulse.backlog_full
        nursery.cancel_scope.cancel()
    assert longest_silence_s(listener.fed_at) <= WATCHDOG_S / 2 + LOOK_S
    recorder.start()
    segment.close(SNAPSHOT)
    recorder.close()
    assert segment.lanes[stream.info.id].stats.stored_subbuffers == 1


async def test_a_hanging_loop_does_not_feed_the_watchdog(
    manager: socket.socket,
    notifier: Notifier,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    stream = FakeStream(info(), ())
    _, reader = reading(recorder, notifier, tmp_path / "t", stream, flush_interval_s=1.0)
    fed: list[list[str]] = []

    def hang(flush: bool) -> Nothing:
        # The thread is blocked in the kernel, so no other code of the loop runs.
        heard(manager)
        autojump_clock.jump(10 * WATCHDOG_S)
        fed.append(heard(manager))
        nursery.cancel_scope.cancel()
        return Nothing.YET

    stream.take = hang  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
    assert fed == [[]]


def test_a_newline_in_a_status_does_not_begin_a_message(
    manager: socket.socket, notifier: Notifier
) -> None:
    notifier.status("recording to /x\nMAINPID=1\nSTOPPING=1\x1b")
    assert heard(manager) == ["STATUS=recording to /x\\x0aMAINPID=1\\x0aSTOPPING=1\\x1b"]

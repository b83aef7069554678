"""The reading loop, with fake streams for behaviour that no kernel shows on demand."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from lttd.errors import LttdError, SourceError, StreamLostError
from lttd.health import Health, Trouble
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.sources.base import Nothing
from lttd.stream_reader import (
    LAST_ATTEMPTS,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    TRANSITIONS,
    TURN_BATCHES,
    Event,
    State,
    after,
)
from lttd.subbuffer import (
    SLOT_BYTES,
    TAKE_BYTES,
    Batch,
    Gap,
    Reason,
    StreamInfo,
    Unit,
    losses_batch,
)
from tests.fakes import FakeStream, batch_of, event, info, page
from tests.recorders import SNAPSHOT, segment_of


def small_batches(stream: StreamInfo, number: int) -> list[Batch]:
    return [batch_of(stream, [page(i, event(b"abcd"))], first=i) for i in range(1, number + 1)]


class Noting(FakeStream):
    """A stream that appends itself to *order* at each turn."""

    def __init__(self, stream: StreamInfo, script: list[Batch], order: list[int]) -> None:
        super().__init__(stream, script)
        self.order = order

    def take(self, flush: bool) -> Batch | Nothing:
        self.order.append(self.info.id.cpu)
        return super().take(flush)


class Polled(FakeStream):
    """A stream with the descriptor of a pipe, for poll."""

    def __init__(self, script: list[Batch | Nothing | Exception]) -> None:
        super().__init__(info(), script)
        self.fds = os.pipe()

    def fileno(self) -> int:
        return self.fds[0] if self.fds else -1

    def close(self) -> None:
        super().close()
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


def test_every_state_has_a_row_and_leads_to_the_end() -> None:
    assert TRANSITIONS.keys() == set(State)
    for state, row in TRANSITIONS.items():
        if state is not State.FLUSHING:
            assert after(state, Event.STOP) in (State.FLUSHING, State.DONE)
        assert State.DONE not in row.values() or Event.FAILED in row


async def test_every_stream_gets_a_turn_before_any_gets_a_second(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    infos = [info(cpu=cpu) for cpu in range(3)]
    segment = segment_of(recorder, tmp_path / "t", *infos)
    order: list[int] = []

    reader = Reader(recorder, flush_interval_s=1.0)
    streams = [Noting(each, small_batches(each, TURN_BATCHES * 2), order) for each in infos]
    reader.add([(s, segment.lanes[s.info.id]) for s in streams])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await reader.first_cycle.wait()
        nursery.cancel_scope.cancel()
    assert order[: 3 * TURN_BATCHES] == [cpu for cpu in range(3) for _ in range(TURN_BATCHES)]
    segment.close(SNAPSHOT)
    assert [lane.stats.stored_subbuffers for lane in segment.lanes.values()] == [
        2 * TURN_BATCHES
    ] * 3


async def test_an_offline_cpu_is_tried_again_only_at_each_tick(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), [Nothing.OFFLINE, Nothing.OFFLINE])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    with trio.move_on_after(2.5):
        await reader.run()
    assert len(stream.takes) == 3
    assert all(stream.takes), "every one of them was to flush"
    segment.close(SNAPSHOT)


async def test_reading_stops_while_the_backlog_is_full_and_then_resumes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = Recorder(
        backlog_bytes=TAKE_BYTES
    )  # its threads do not run yet, so nothing is written
    stream = FakeStream(info(), ())
    for number in range(3):
        batch = batch_of(stream.info, [page(number, event(b"abcd"))], first=number)
        batch = replace(batch, held_bytes=TAKE_BYTES)
        stream.script.append(batch)
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    lane = segment.lanes[stream.info.id]
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, lane)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await trio.testing.wait_all_tasks_blocked()
        assert lane.stats.subbuffers == 1
        assert reader.pulse.backlog_full
        recorder.start()
        await reader.first_cycle.wait()
        nursery.cancel_scope.cancel()
    assert lane.stats.subbuffers == 3
    assert not reader.pulse.backlog_full
    segment.close(SNAPSHOT)
    recorder.close()


async def test_a_lost_stream_is_reported_and_the_others_are_read_on(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    bad = FakeStream(info(cpu=0), [StreamLostError("gone")])
    good = FakeStream(info(cpu=1), small_batches(info(cpu=1), 3))
    segment = segment_of(recorder, tmp_path / "t", bad.info, good.info)
    health = Health()
    reader = Reader(recorder, flush_interval_s=1.0, health=health)
    reader.add([(s, segment.lanes[s.info.id]) for s in (bad, good)])
    with trio.move_on_after(0.5):
        await reader.run()
    assert [each.trouble for each in health.conditions()] == [Trouble.STREAM_LOST]
    await reader.drain()
    assert [str(error) for error in reader.failures()] == ["gone"]
    segment.close(SNAPSHOT)
    assert segment.lanes[good.info.id].stats.stored_subbuffers == 3


class Failing(FakeStream):
    """A stream that fails while *error* is set, and keeps the times of its takes."""

    def __init__(self, error: Exception | None, script: list[Batch] | None = None) -> None:
        super().__init__(info(), script or [])
        self.error = error
        self.asked_at: list[float] = []

    def take(self, flush: bool) -> Batch | Nothing:
        self.asked_at.append(trio.current_time())
        if self.error is not None:
            raise self.error
        return super().take(flush)


async def test_an_unreadable_stream_is_tried_at_growing_intervals(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = Failing(SourceError("Input/output error"), small_batches(info(), 3))
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    lines: list[str] = []
    health = Health(lambda line, _: lines.append(line), lambda: int(trio.current_time() * 1e9))
    reader = Reader(recorder, flush_interval_s=0.05, health=health)
    reader.add([(stream, segment.lanes[stream.info.id])])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await reader.first_cycle.wait()
        assert health.verdict() == (
            False,
            "fake: stream fake_0: cannot be read, trying again: Input/output error",
        )
        await trio.sleep(100)
        pauses_s = np.diff(stream.asked_at)
        assert all(pauses_s[1:] >= pauses_s[:-1] - 0.051)
        assert RETRY_FIRST_S <= pauses_s[0] <= RETRY_FIRST_S + 0.06
        assert RETRY_MOST_S <= pauses_s[-1] <= RETRY_MOST_S + 0.06
        stream.error = None
        await trio.sleep(RETRY_MOST_S + 0.1)
        assert health.verdict() == (True, "ok")
        nursery.cancel_scope.cancel()
    await reader.drain()
    segment.close(SNAPSHOT)
    assert segment.lanes[stream.info.id].stats.stored_subbuffers == 3
    assert reader.failures() == []
    assert len(lines) == 2
    assert "is read again after 1" in lines[1]


@pytest.mark.parametrize(
    "error", [SourceError("EIO"), LttdError("what else"), OSError(5, "Input/output error")]
)
async def test_any_error_of_one_attempt_causes_only_a_pause(
    recorder: Recorder,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    error: Exception,
) -> None:
    stream = FakeStream(info(), [error, *small_batches(info(), 3)])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    with trio.move_on_after(1.5):
        await reader.run()
    assert segment.lanes[stream.info.id].stats.subbuffers == 3
    await reader.drain()
    segment.close(SNAPSHOT)
    assert reader.failures() == []


@pytest.mark.parametrize("failures", [LAST_ATTEMPTS - 1, LAST_ATTEMPTS])
async def test_the_final_drain_retries_before_it_gives_a_stream_up(
    recorder: Recorder,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    failures: int,
) -> None:
    errors = [SourceError("Input/output error")] * failures
    stream = FakeStream(info(), [*errors, *small_batches(info(), 2)])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    await reader.drain()
    segment.close(SNAPSHOT)
    healed = failures < LAST_ATTEMPTS
    assert segment.lanes[stream.info.id].stats.subbuffers == (2 if healed else 0)
    assert len(reader.failures()) == (0 if healed else 1)


async def test_an_error_in_the_last_count_of_losses_fails_the_run(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class Uncounted(FakeStream):
        def losses(self) -> Batch | None:
            raise SourceError("stats: Input/output error")

    stream = Uncounted(info(), [])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    await reader.drain()
    segment.close(SNAPSHOT)
    assert [str(error) for error in reader.failures()] == ["stats: Input/output error"]


async def test_the_losses_of_a_failed_stream_are_reported(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), [StreamLostError("broke")])
    gap = Gap(0, Reason.REFUSED, Unit.SUBBUFFERS, 1, 5, 5)
    stream.lost = losses_batch(stream.info.id, (gap,))
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    lane = segment.lanes[stream.info.id]
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, lane)])
    with trio.move_on_after(1.5):
        await reader.run()
    await reader.drain()
    segment.close(SNAPSHOT)
    assert lane.stats.subbuffers_lost == {Reason.REFUSED: 1}
    assert [str(error) for error in reader.failures()] == ["broke"]


async def test_the_final_drain_takes_the_remaining_data_and_losses(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), small_batches(info(), 2))
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    stream.lost = batch_of(stream.info, [])
    await reader.drain()
    assert stream.lost is None
    assert segment.lanes[stream.info.id].stats.subbuffers == 2
    segment.close(SNAPSHOT)


class Resting(FakeStream):
    """A stream whose ring keeps what it holds, or does not."""

    resting = True

    def at_rest(self) -> bool:
        return self.resting


@pytest.mark.parametrize("resting", [True, False])
async def test_the_final_drain_of_rings_at_rest_waits_for_the_writers_at_each_take(
    tmp_path: Path, *, resting: bool
) -> None:
    recorder = Recorder()  # its threads do not run yet, so nothing is written
    streams = [Resting(info(cpu=cpu), ()) for cpu in range(2)]
    for stream in streams:
        batches = small_batches(stream.info, 3)
        stream.script.extend(replace(batch, held_bytes=2 * SLOT_BYTES) for batch in batches)
    streams[1].resting = resting
    segment = segment_of(recorder, tmp_path / "t", *(stream.info for stream in streams))
    lanes = [segment.lanes[stream.info.id] for stream in streams]
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add(list(zip(streams, lanes, strict=True)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(lane.stats.subbuffers for lane in lanes) == (1 if resting else 6)
        assert not reader.pulse.backlog_full, "it has room for more"
        recorder.start()
    assert [lane.stats.subbuffers for lane in lanes] == [3, 3]
    assert recorder.has_room()
    segment.close(SNAPSHOT)
    recorder.close()


async def test_an_aborted_final_drain_still_counts_the_last_losses(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), small_batches(info(), 3 * TURN_BATCHES))
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    stream.lost = batch_of(stream.info, [])
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.drain()
    assert stream.script, "it was broken off"
    assert stream.lost is None
    segment.close(SNAPSHOT)


async def test_a_stream_that_appears_later_is_read_to_its_end(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    first = FakeStream(info(cpu=0), [])
    segment = segment_of(recorder, tmp_path / "t", first.info)
    later = FakeStream(info(cpu=1), small_batches(info(cpu=1), 3))
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(first, segment.lanes[first.info.id])])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await reader.first_cycle.wait()
        segment.add_streams([later.info])
        reader.add([(later, segment.lanes[later.info.id])])
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    segment.close(SNAPSHOT)
    assert segment.lanes[later.info.id].stats.stored_subbuffers == 3


async def test_an_open_ended_source_continues_after_its_streams_end(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), [Nothing.EVER])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.open_ended = True
    reader.add([(stream, segment.lanes[stream.info.id])])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await trio.sleep(3)
        assert not reader.all_ended.is_set()
        reader.open_ended = False
        await reader.all_ended.wait()
        nursery.cancel_scope.cancel()
    segment.close(SNAPSHOT)


async def test_urgent_streams_are_served_first(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    infos = [info(cpu=cpu) for cpu in range(3)]
    segment = segment_of(recorder, tmp_path / "t", *infos)
    order: list[int] = []

    streams = [Noting(each, [], order) for each in infos]
    streams[2].is_urgent = True
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(s, segment.lanes[s.info.id]) for s in streams])
    await reader.drain()
    segment.close(SNAPSHOT)
    assert order == [2, 0, 1]


def test_a_known_stream_keeps_its_files(recorder: Recorder, tmp_path: Path) -> None:
    segment = segment_of(recorder, tmp_path / "t", info(cpu=0))
    lane = segment.lanes[info(cpu=0).id]
    segment.add_streams([info(cpu=0), info(cpu=1)])
    assert segment.lanes[info(cpu=0).id] is lane
    assert len(segment.manifest.streams) == 2
    segment.close(SNAPSHOT)


async def test_each_tick_counts_the_losses_that_no_batch_reports(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), [])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    lane = segment.lanes[stream.info.id]
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, lane)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        for total in (7, 14):
            gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 1)
            stream.lost = batch_of(stream.info, [], gaps=(gap,))
            await trio.sleep(1.5)
            assert lane.stats.events_lost[Reason.OVERWRITTEN] == total
        nursery.cancel_scope.cancel()
    segment.close(SNAPSHOT)


async def test_a_stream_that_polls_as_readable_without_data_is_polled_again_after_the_tick(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = Polled([])
    os.write(stream.fds[1], b"!")
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        for polls in (1, 2, 3):
            await trio.sleep(0.9)
            assert stream.takes.count(False) == polls
        nursery.cancel_scope.cancel()
    stream.close()
    segment.close(SNAPSHOT)


async def test_a_stream_that_ends_during_a_poll_is_closed_and_may_return(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    first = Polled([Nothing.YET, Nothing.EVER])
    segment = segment_of(recorder, tmp_path / "t", first.info)
    lane = segment.lanes[first.info.id]
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.open_ended = True
    reader.add([(first, lane)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        await trio.sleep(1.5)
        assert first.fileno() == -1
        again = Polled(small_batches(info(), 3))
        reader.add([(again, lane)])
        os.write(again.fds[1], b"!")
        await trio.sleep(0.2)
        assert lane.stats.subbuffers == 3, "poll told of them, not the tick"
        nursery.cancel_scope.cancel()
    again.close()
    segment.close(SNAPSHOT)


class ScarceRoom:
    """A recorder that has room for one take at a time."""

    def __init__(self) -> None:
        self.room = 0
        self.wanted: list[Callable[[], None]] = []
        self.order: list[int] = []

    def has_room(self) -> bool:
        return self.room > 0

    def call_when_room(self, callback: Callable[[], None]) -> None:
        if self.has_room():
            callback()
        else:
            self.wanted.append(callback)

    def offer(self, lane: object, batch: Batch) -> None:
        self.room -= 1
        self.order.append(batch.stream.cpu)

    def make_room(self) -> None:
        self.room += 1
        wanted, self.wanted = self.wanted, []
        for callback in wanted:
            callback()


async def test_a_stream_that_waits_for_room_is_not_overtaken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = ScarceRoom()
    reader = Reader(recorder, flush_interval_s=1.0)  # type: ignore[arg-type]
    infos = [info(cpu=cpu) for cpu in range(8)]
    reader.add([(FakeStream(each, small_batches(each, 40)), None) for each in infos])  # type: ignore[misc]
    async with trio.open_nursery() as nursery:
        for each in reader._readers:
            nursery.start_soon(partial(reader._turns, [each], flush=False))
        while len(recorder.order) < 160:
            await trio.lowlevel.checkpoint()
            while recorder.room < 3:
                recorder.make_room()
        nursery.cancel_scope.cancel()
    # A stream has its next turn after all the others had theirs, perhaps twice.
    for cpu in range(8):
        turns = [at for at, taken in enumerate(recorder.order) if taken == cpu]
        assert max(np.diff(turns)) <= 3 * 8


async def test_a_full_flush_takes_all_that_was_there_although_a_tick_has_begun_the_turn(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    # The first None ends the turn of a tick, whose flush came before the last event.
    batches = small_batches(info(), 3 * TURN_BATCHES)
    stream = FakeStream(info(), [*batches[:-1], Nothing.YET, batches[-1]])
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=3600)
    reader.add([(stream, segment.lanes[stream.info.id])])
    stream.lost = batch_of(stream.info, [])
    await reader.flush_all()
    assert not stream.script
    assert all(stream.takes)
    assert stream.lost is None
    assert segment.lanes[stream.info.id].stats.subbuffers == 3 * TURN_BATCHES
    segment.close(SNAPSHOT)


async def test_a_full_flush_leaves_streams_that_are_drained_alone(
    recorder: Recorder, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream(info(), small_batches(info(), 2))
    segment = segment_of(recorder, tmp_path / "t", stream.info)
    reader = Reader(recorder, flush_interval_s=1.0)
    reader.add([(stream, segment.lanes[stream.info.id])])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.flush_all)
        nursery.start_soon(reader.drain)
    assert not stream.script
    segment.close(SNAPSHOT)

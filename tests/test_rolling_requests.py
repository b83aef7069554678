"""Requests to roll, and segments that cannot be made: with a source of fakes, on a real disk."""

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd.config import Config
from lttd.errors import LttdError, StorageError
from lttd.health import Health
from lttd.housekeeping import Housekeeping
from lttd.manifest import Manifest
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording
from lttd.roll import MOST_UNCLOSED, RollLimits
from lttd.rolling import LEAST_TAKE_BYTES, RETRY_S, Rolling
from lttd.sources.base import Attachments, SourceInfo
from lttd.subbuffer import TAKE_BYTES, StreamId
from lttd.tracedir import SegmentPaths, segments_below
from lttd.view.trace import Trace
from tests.failing_disk import FailingDisk
from tests.fakes import FakeStream, batch_of, event, info, page
from tests.running import PATIENCE_S

PAGES = 4
BATCH_BYTES = batch_of(info(), [page(10, event(b"abcd"))] * PAGES).payload_bytes


class FakeSource:
    """A source of one stream, whose data a test gives it."""

    watch = None
    grows = False
    open_ended = True

    def __init__(self) -> None:
        self.stream = FakeStream(info(), [])
        self.streams = [self.stream]
        self.info = SourceInfo("fake", "fake", "mono", live=False)
        self.marked: list[str] = []
        self.subbuffers = 0

    def data(self) -> None:
        """Give the next take four sub-buffers."""
        at = self.subbuffers
        pages = [page(10 * (at + n) + 10, event(b"abcd")) for n in range(PAGES)]
        self.stream.script.append(batch_of(info(), pages, first=at, last_end=None))
        self.subbuffers += PAGES

    def discover(self) -> Sequence[FakeStream]:
        return ()

    def leave_out(self, thread_ids: Iterable[int]) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def now(self) -> int:
        return 10 * self.subbuffers

    def attachments(self) -> Attachments:
        return lambda _: ()

    def mark_progress(self, segment: str) -> None:
        self.marked.append(segment)

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        return {info().id: self.subbuffers}

    def notes(self) -> Sequence[str]:
        return ()

    def close(self) -> None: ...


@dataclass
class Run:
    """A run that rolls."""

    trace: Path
    source: FakeSource
    rolling: Rolling
    house: Housekeeping
    disk: FailingDisk
    health: Health
    lines: list[str]
    told: list[tuple[str, SegmentPaths]]
    made: list[SegmentPaths]

    def stored(self) -> list[int]:
        """Return the number of sub-buffers in each segment that is closed."""
        paths = (one.manifest for one in segments_below(self.trace) if one.manifest.exists())
        manifests = [Manifest.read(path) for path in paths]
        summaries = [one.streams[0].summary for one in manifests if one.state == "closed"]
        return [summary.subbuffers for summary in summaries if summary]

    def hidden(self) -> list[Path]:
        """Return the segments that are made ahead."""
        return list(self.trace.glob(".next-*"))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110  (of files)
            await trio.sleep(0.01)

    async def take(self) -> None:
        """Let one take bring four sub-buffers."""
        self.source.data()
        await self.until(lambda: not self.source.stream.script)


@pytest.fixture
async def run(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Run]:
    trace, disk, source, lines = tmp_path / "t", FailingDisk(), FakeSource(), []
    trace.mkdir()
    health = Health(lambda line, _: lines.append(line))

    def look() -> None:
        rolling.look()

    recorder = Recorder(sync_interval_s=100, health=health)
    reader = Reader(recorder, 0.05, on_beat=look, health=health)
    recorder.start()
    recordings = [Recording.begin(recorder, trace, 1, source, "packed", disk)]
    reader.add(recordings[0].streams_and_lanes())
    failures: list[LttdError] = []
    config = Config(trace, ())
    house = Housekeeping(config, recordings, recorder, reader, failures.append)
    rolling = Rolling(RollLimits(), recordings, recorder, reader, house, health)
    rolling.next_number = 2
    made = Run(trace, source, rolling, house, disk, health, lines, [], [])
    rolling.on_prepared.append(made.made.append)
    rolling.on_opened.append(lambda paths: made.told.append(("opened", paths)))
    rolling.on_closed.append(lambda paths: made.told.append(("closed", paths)))
    nursery.start_soon(reader.run)
    nursery.start_soon(rolling.run)
    try:
        yield made
        await rolling.finish()
        recordings[0].close()
        assert failures == []
    finally:
        house.helpers.close()
        recorder.close()
        nursery.cancel_scope.cancel()


async def test_a_roll_flushes_first_and_returns_when_the_old_segment_is_closed(run: Run) -> None:
    run.source.data()
    (closed,) = await run.rolling.roll()
    assert run.stored() == [PAGES], "what was not read yet belongs to the old segment"
    first, second = segments_below(run.trace)
    assert closed == first
    assert run.told == [("opened", second), ("closed", first)]
    assert run.source.marked[-1] == second.directory.name
    record = Manifest.read(second.manifest).streams[0]
    assert (record.subbuffers_before, record.info.read_events_before) == (PAGES, PAGES)


async def test_requests_that_come_together_share_a_roll(run: Run) -> None:
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await run.rolling.answer({}, None))

    async with trio.open_nursery() as clients:
        for _ in range(5):
            clients.start_soon(ask)
    first, _ = segments_below(run.trace)
    assert answers == [{"closed": [str(first.directory)]}] * 5


async def test_recording_goes_on_in_the_old_segment_until_the_next_one_can_be_made(
    run: Run, autojump_clock: trio.testing.MockClock
) -> None:
    run.disk.bad["open"] = {".reserve"}  # a full disk
    run.source.data()
    with pytest.raises(StorageError, match="space left"):
        await run.rolling.roll()
    assert len(segments_below(run.trace)) == 1, "nothing of the next segment stays"
    assert run.health.verdict()[0] is False
    assert len(run.lines) == 1
    assert "the next segment cannot be made, so the present one grows" in run.lines[0]
    run.source.data()
    await trio.sleep(2.5 * RETRY_S)
    async with run.house.one_at_a_time:  # no attempt is under way
        assert len(segments_below(run.trace)) == 1
    assert len(run.lines) == 1, "one line, not one per attempt"
    run.disk.bad["open"] = set()
    await run.until(run.stored)
    assert run.stored() == [2 * PAGES]
    assert run.health.verdict() == (True, "ok")
    assert [segment.number for segment in segments_below(run.trace)] == [1, 2]


async def test_a_limit_rolls_only_a_segment_with_data(
    run: Run, autojump_clock: trio.testing.MockClock
) -> None:
    run.rolling.limit(RollLimits(payload_bytes=1, age_ns=1_000_000_000))
    await trio.sleep(60)
    assert len(segments_below(run.trace)) == 1
    run.source.data()
    await run.until(run.stored)
    assert run.stored() == [PAGES]


async def test_the_next_segment_is_made_ahead_and_hidden_until_data_goes_to_it(run: Run) -> None:
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    run.source.data()
    await run.until(lambda: run.made)
    assert [one.directory for one in run.made] == run.hidden()
    assert len(segments_below(run.trace)) == len(Trace(run.trace).segments) == 1
    run.disk.bad["open"] = {".reserve", "fake_0", "fake_0.idx"}  # nothing more can be made
    run.source.data()
    await run.until(run.stored)
    assert run.stored() == [2 * PAGES]
    assert run.hidden() == []
    assert run.lines == []
    first, second = segments_below(run.trace)
    assert (first.number, second.number) == (1, 2)
    assert Manifest.read(second.manifest).source["rolled_from"] == first.directory.name


async def test_a_failure_to_make_a_segment_ahead_is_no_trouble_before_the_limit(run: Run) -> None:
    run.disk.bad["open"] = {".reserve"}
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    run.source.data()
    await run.until(lambda: run.disk.refused)
    async with run.house.one_at_a_time:  # the attempt is over
        assert (run.hidden(), run.lines) == ([], [])
    run.disk.bad["open"] = set()
    run.source.data()
    await run.until(run.stored)
    assert (run.stored(), run.lines) == ([2 * PAGES], [])


async def test_a_segment_made_ahead_for_other_settings_is_made_anew(run: Run) -> None:
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    run.source.data()
    await run.until(lambda: run.made)
    run.source.info = replace(run.source.info, settings={"events": ["sched:*"]})
    run.source.data()
    await run.until(run.stored)
    assert run.hidden() == []
    assert Manifest.read(segments_below(run.trace)[1].manifest).source["settings"] == {
        "events": ["sched:*"]
    }


async def test_a_segment_made_ahead_does_not_outlive_the_recording(run: Run) -> None:
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    run.source.data()
    await run.until(run.hidden)
    await run.rolling.finish()
    assert run.hidden() == []
    assert [one.number for one in segments_below(run.trace)] == [1]


async def test_takes_become_smaller_near_the_limit(run: Run) -> None:
    wanted: list[int] = []
    run.rolling.want_takes = wanted.append
    run.rolling.limit(RollLimits(payload_bytes=64 << 20))
    run.source.data()
    await run.until(lambda: wanted)
    assert wanted[-1] == TAKE_BYTES
    run.rolling.limit(RollLimits(payload_bytes=4 << 20))
    run.rolling.look()
    assert LEAST_TAKE_BYTES < wanted[-1] <= (4 << 20) // 8
    run.rolling.limit(RollLimits(payload_bytes=BATCH_BYTES + 1))
    run.rolling.look()
    assert wanted[-1] == LEAST_TAKE_BYTES


async def test_a_segment_stays_within_its_size_and_a_take_while_older_ones_wait_for_the_disk(
    run: Run,
) -> None:
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    run.disk.syncs.clear()
    for number in range(MOST_UNCLOSED):
        await run.take()
        await run.until(lambda: len(run.hidden()) == 1)
        await run.take()
        await run.until(lambda n=number: len(run.told) == n + 1)  # data goes to the next one
    for _ in range(4):
        await run.take()
    assert run.stored() == [], "all wait for the disk"
    assert len(segments_below(run.trace)) == MOST_UNCLOSED + 1, "the present one grows"
    run.disk.syncs.set()
    await run.until(lambda: len(run.stored()) == MOST_UNCLOSED + 1)
    assert run.stored() == [2 * PAGES] * MOST_UNCLOSED + [4 * PAGES]
    assert run.lines == []


async def test_a_roll_waits_for_no_other_work_on_the_disk(run: Run) -> None:
    run.rolling.limit(RollLimits(payload_bytes=2 * BATCH_BYTES))
    await run.take()
    await run.until(lambda: run.made)
    deleting = threading.Event()
    async with run.house.one_at_a_time, trio.open_nursery() as nursery:
        for helper in (run.house.helpers.sources, run.house.helpers.store):
            nursery.start_soon(helper.run, lambda: assert_set(deleting))
        await run.take()
        await run.until(lambda: run.told)
        deleting.set()
    await run.until(run.stored)
    assert run.stored() == [2 * PAGES]


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


async def test_a_segment_that_cannot_be_closed_is_reported_and_the_next_ones_are_closed(
    run: Run,
) -> None:
    run.rolling.limit(RollLimits(payload_bytes=4 * BATCH_BYTES))
    await run.take()
    await run.until(lambda: run.made)
    run.disk.bad["open"] = {".trace.json.new"}
    with pytest.raises(StorageError, match="space left"):
        await run.rolling.roll()
    assert isinstance(run.rolling._recorder.failure, StorageError)
    assert (run.stored(), [event for event, _ in run.told]) == ([], ["opened"])
    run.disk.bad["open"] = set()
    first, second = segments_below(run.trace)
    assert await run.rolling.roll() == [second]
    assert Manifest.read(first.manifest).state == "open"
    assert Manifest.read(second.manifest).state == "closed"


async def test_a_request_at_the_end_of_recording_is_refused(run: Run) -> None:
    run.rolling.stop()
    async with trio.open_nursery() as clients:

        async def ask() -> None:
            with pytest.raises(LttdError, match="recording ends"):
                await run.rolling.roll()

        clients.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await run.rolling.finish()
    assert len(segments_below(run.trace)) == 1

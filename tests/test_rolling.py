"""A roll: later data goes to a new segment, and both segments count exactly what is theirs."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lttd.health import Health
from lttd.index import SeekIndex, read_gaps
from lttd.manifest import Manifest
from lttd.open_segment import OpenSegment
from lttd.recorder import Recorder
from lttd.sources.base import When
from lttd.sources.ltt.metadata import Metadata
from lttd.stats import StreamSummary, summarize
from lttd.subbuffer import Batch, Gap, Reason, Unit
from lttd.view.cli import main
from lttd.view.commands.follow import follow
from lttd.view.commands.text import Show
from lttd.view.complete import Since, complete_since
from lttd.view.filters import Filter
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.failing_disk import FailingDisk
from tests.fakes import batch_of, event, info, page
from tests.ftraced import FORMATS, tick
from tests.recorders import SNAPSHOT, WAITING, rolled, segment_of

STREAM = info()


class Source:
    """Makes the batches of one stream, whose numbers and losses go on over the whole run."""

    def __init__(self) -> None:
        self.subbuffers = 0
        self.discarded = 0

    def batch(self, count: int, lost: int = 0, content: bytes = b"") -> Batch:
        at = self.subbuffers
        gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, lost, 10 * at, 10 * at + 5)
        pages = [page(10 * (at + n) + 10, content or event(tick(at + n))) for n in range(count)]
        batch = batch_of(
            *(STREAM, pages),
            first=at,
            gaps=(gap,) if lost else (),
            last_end=None,
            discarded_before=self.discarded,
        )
        self.subbuffers += count
        self.discarded += lost
        return batch


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(sync_interval_s=100, policy=WAITING)
    made.start()
    yield made
    made.close()


def close(*segments: OpenSegment) -> None:
    """Close segments in turn; assert that each one is whole."""
    for segment in segments:
        segment.close(SNAPSHOT)
    for segment in segments:
        segment.write_manifest()
        assert check(segment.paths, events=True).findings == []


def summary_of(segment: OpenSegment) -> StreamSummary:
    (record,) = Manifest.read(segment.paths.manifest).streams
    assert record.summary is not None
    return record.summary


def entries_of(segment: OpenSegment) -> list[tuple[int, int]]:
    """Return sequence and events_discarded of each entry."""
    entries = SeekIndex(segment.paths.stream("fake_0").index).entries()
    return [(int(each["sequence"]), int(each["events_discarded"])) for each in entries]


def test_batches_before_a_roll_are_in_the_old_segment_and_those_after_it_in_the_new_one(
    recorder: Recorder, tmp_path: Path
) -> None:
    source, first = Source(), segment_of(recorder, tmp_path / "t", STREAM)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(3, lost=7))
    second = rolled(recorder, first)
    recorder.offer(lane, source.batch(2, lost=5))
    third = rolled(recorder, second)
    close(first, second, third)
    assert entries_of(first) == [(0, 7), (1, 7), (2, 7)]
    assert entries_of(second) == [(3, 12), (4, 12)]
    assert entries_of(third) == []
    records = [Manifest.read(each.paths.manifest).streams[0] for each in (first, second, third)]
    assert [record.baseline_discarded for record in records] == [0, 7, 12]
    assert [record.subbuffers_before for record in records] == [0, 3, 5]
    assert third.manifest.source["rolled_from"] == second.paths.directory.name


def test_the_summaries_of_the_segments_add_up_to_that_of_the_run(
    recorder: Recorder, tmp_path: Path
) -> None:
    source, first = Source(), segment_of(recorder, tmp_path / "t", STREAM)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(3, lost=7))
    second = rolled(recorder, first)
    recorder.offer(lane, source.batch(2, lost=5))
    close(first, second)
    one, other = summary_of(first), summary_of(second)
    assert (one.subbuffers, one.lost) == (3, {"overwritten": 7})
    assert (other.subbuffers, other.lost) == (2, {"overwritten": 5})
    assert Trace(tmp_path / "t").summaries() == [summarize(lane.stats)]


def test_data_that_could_not_be_written_before_a_roll_is_counted_once(
    recorder: Recorder, tmp_path: Path
) -> None:
    disk, source = FailingDisk(), Source()
    first = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(1))
    recorder.drain()
    disk.bad["write"] = {"fake_0", "fake_0.gaps"}
    recorder.offer(lane, source.batch(4, lost=7))
    second = rolled(recorder, first, disk)
    recorder.drain()
    disk.bad["write"] = set()
    recorder.offer(lane, source.batch(2))
    close(first, second)
    assert entries_of(first) == [(0, 0)]
    assert entries_of(second) == [(5, 7), (6, 7)]
    assert summary_of(first).lost == {}
    assert summary_of(second).lost == {"overwritten": 7, "storage_subbuffers": 4}
    gaps = read_gaps(second.paths.stream("fake_0").gaps)
    assert {(gap.reason, gap.count) for gap in gaps} == {
        (Reason.OVERWRITTEN, 7),
        (Reason.STORAGE, 4),
    }
    assert Trace(tmp_path / "t").summaries() == [summarize(lane.stats)]


def test_a_file_that_is_removed_is_a_loss_of_its_own_segment(
    recorder: Recorder, tmp_path: Path
) -> None:
    source, first = Source(), segment_of(recorder, tmp_path / "t", STREAM)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(3))
    second = rolled(recorder, first)
    recorder.offer(lane, source.batch(2))
    recorder.drain()
    first.paths.stream("fake_0").data.unlink()
    first.close(SNAPSHOT)
    second.close(SNAPSHOT)
    assert summary_of(first).lost == {"removed_subbuffers": 3}
    assert summary_of(second).lost == {}
    assert lane.stats.removed_subbuffers == 3


def test_a_failed_sync_of_the_old_segment_is_a_gap_there(
    recorder: Recorder, tmp_path: Path
) -> None:
    disk, source = FailingDisk(), Source()
    first = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(3))
    second = rolled(recorder, first)
    recorder.offer(lane, source.batch(2))
    recorder.drain()
    disk.bad["sync"] = {"fake_0"}
    recorder._sync(first)
    disk.bad["sync"] = set()
    close(first, second)
    (gap,) = read_gaps(first.paths.stream("fake_0").gaps)
    assert (gap.row, gap.reason, gap.count) == (3, Reason.UNSYNCED, None)
    assert read_gaps(second.paths.stream("fake_0").gaps) == []
    assert [summary_of(each).gaps_unknown for each in (first, second)] == [1, 0]


def test_a_sync_that_comes_after_the_close_reports_no_lost_lock(tmp_path: Path) -> None:
    health = Health()
    recorder = Recorder(sync_interval_s=100, health=health)
    recorder.start()
    first = segment_of(recorder, tmp_path / "t", STREAM)
    second = rolled(recorder, first)
    first.close(SNAPSHOT)
    with ExitStack() as others:
        for _ in range(32):  # they get the numbers of the closed descriptors
            others.enter_context(Path("/dev/null").open())
        recorder._sync(first)  # the thread that syncs had it in its list
    assert health.verdict() == (True, "ok")
    second.close(SNAPSHOT)
    recorder.close()


def test_a_stream_that_is_new_in_a_later_segment_has_nothing_before(
    recorder: Recorder, tmp_path: Path
) -> None:
    first = segment_of(recorder, tmp_path / "t", STREAM)
    second = rolled(recorder, first)
    other = info("other")
    second.add_streams([other])
    recorder.offer(second.lanes[other.id], batch_of(other, [page(1, event(b"abcd"))]))
    close(first, second)
    assert other.id not in first.files
    records = {each.name: each for each in Manifest.read(second.paths.manifest).streams}
    assert records["other_0"].subbuffers_before == 0
    assert records["other_0"].summary is not None
    assert records["other_0"].summary.subbuffers == 1


def test_blocks_ahead_of_the_data_take_an_eighth_of_a_limited_segment(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.segment_bytes = 16 << 20
    segment = segment_of(recorder, tmp_path / "t", STREAM)
    lane, path = segment.lanes[STREAM.id], segment.paths.stream("fake_0").data
    source, most_bytes = Source(), 0
    while lane.stats.stored_bytes < 6 << 20:
        recorder.offer(lane, source.batch(256, content=bytes(4080)))
        recorder.drain()
        ahead_bytes = path.stat().st_blocks * 512 - path.stat().st_size
        most_bytes = max(most_bytes, ahead_bytes)
    assert 0 < most_bytes <= (2 << 20) + (64 << 10)
    segment.close(SNAPSHOT)
    assert path.stat().st_blocks * 512 < path.stat().st_size + (64 << 10), "they are freed"


def test_the_metadata_of_a_segment_ends_where_the_next_one_begins() -> None:
    metadata, stream = Metadata(), info("metadata")
    metadata.attachments()
    second = metadata.attachments()
    metadata.add(batch_of(stream, [page(1, b"one.")]))
    metadata.roll()
    third = metadata.attachments()
    metadata.add(batch_of(stream, [page(2, b"two.")]))
    metadata.roll()
    assert b"one." in b"".join(each.data for each in second(When.ROLLED))
    assert b"two." in b"".join(each.data for each in third(When.ROLLED))
    assert list(second(When.CLOSE)) == []


# -- segments that are deleted


def test_a_trace_without_its_first_segment_says_since_when_it_is_complete(
    recorder: Recorder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, first = Source(), segment_of(recorder, tmp_path / "t", STREAM)
    lane = first.lanes[STREAM.id]
    recorder.offer(lane, source.batch(3))
    second = rolled(recorder, first)
    second.manifest.source["rolled_at"] = 45
    recorder.offer(lane, source.batch(2))
    third = rolled(recorder, second)
    recorder.offer(lane, source.batch(2))
    close(first, second, third)
    trace = tmp_path / "t"
    assert complete_since(Trace(trace)) is None
    shutil.rmtree(first.paths.directory)
    assert complete_since(Trace(trace)) == Since(45, 1_000_000_045)
    assert main(["info", str(trace)]) == 0
    assert "complete    since 0.000000045  1970-01-01T00:00:01" in capfd.readouterr().out
    assert main(["text", str(trace)]) == 0
    assert "complete on all CPUs since 0.000000045 " in capfd.readouterr().err
    assert main(["text", "--begin", "0.000000050", str(trace)]) == 0
    assert "complete on all CPUs" not in capfd.readouterr().err
    shutil.rmtree(second.paths.directory)
    # The time of that roll is not known: no stream begins later than its first sub-buffer.
    assert complete_since(Trace(trace)) == Since(60, 1_000_000_060)


def test_a_segment_that_is_opened_alone_says_nothing_of_others(
    recorder: Recorder, tmp_path: Path
) -> None:
    first = segment_of(recorder, tmp_path / "t", STREAM)
    second = rolled(recorder, first)
    close(first, second)
    assert complete_since(Trace(second.paths.directory)) is None


def test_follow_goes_on_into_the_next_segment_and_ends_with_the_last_one(
    recorder: Recorder, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source, opened = Source(), [segment_of(recorder, tmp_path / "t", STREAM)]
    lane = opened[0].lanes[STREAM.id]
    name = "tracefs/events/clock/tick/format"
    opened[0].attach(name, FORMATS["clock/tick"], append=False)

    def record() -> None:
        recorder.offer(lane, source.batch(2))
        recorder.drain()

    def roll() -> None:
        opened.append(rolled(recorder, opened[-1]))
        opened[-1].share(name, opened[0].paths)

    steps = iter([record, roll, record, opened[0].close, record, roll, record])

    def sleep(_: float) -> None:
        step = next(steps, None)
        if step is None:
            for segment in opened[1:]:
                if segment.manifest.state == "open":
                    segment.close(SNAPSHOT)
        elif step == opened[0].close:
            opened[0].close(SNAPSHOT)
        else:
            step()

    assert follow(tmp_path / "t", Show(Filter()), until_closed=True, sleep=sleep) == 0
    out = capfdbinary.readouterr().out
    assert [int(n) for n in re.findall(rb"count=(\d+)", out)] == list(range(source.subbuffers))
    assert source.subbuffers == 8

"""The backlog, the writer threads and the segments, on a real file system."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from lttd.beneath import OpenDirectory
from lttd.errors import LockedError, LostFileError, StorageError, UsageError
from lttd.files import Disk
from lttd.health import Health
from lttd.index import SeekIndex, read_gaps
from lttd.lane import Lane
from lttd.lockfile import Lock
from lttd.manifest import Manifest, read_synced
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.opening import locked_trace, prepare_trace
from lttd.recorder import Recorder
from lttd.subbuffer import TAKE_BYTES, Gap, Reason, Unit
from lttd.tracedir import SegmentPaths, segments
from lttd.view.verify import check
from tests.failing_disk import FailingDisk
from tests.fakes import batch_of, event, info, page
from tests.forgetful import ForgetfulDisk
from tests.recorders import SNAPSHOT, SOURCE, WAITING, segment_of
from tests.running import PATIENCE_S


def test_an_offered_batch_is_stored_indexed_and_counted(recorder: Recorder, tmp_path: Path) -> None:
    stream = info("sched", 1)
    segment = segment_of(recorder, tmp_path / "t", stream)
    lane = segment.lanes[stream.id]
    contents = [event(b"abcd"), event(b"abcdefgh"), b""]
    pages = [page(10 + i, content) for i, content in enumerate(contents)]
    recorder.offer(lane, batch_of(stream, pages))
    segment.close(SNAPSHOT)

    paths = segment.paths.stream("sched_1")
    assert paths.data.read_bytes() == b"".join(
        p[: 16 + len(c)] for p, c in zip(pages, contents, strict=True)
    )
    entries = SeekIndex(paths.index).entries()
    assert entries["offset_bytes"].tolist() == [0, 24, 52]
    assert entries["content_bits"].tolist() == [24 * 8, 28 * 8, 16 * 8]
    assert entries["begin"].tolist() == [10, 11, 12]
    assert not paths.gaps.exists()
    manifest = Manifest.read(segment.paths.manifest)
    (record,) = manifest.streams
    assert manifest.state == "closed"
    assert record.summary is not None
    assert (record.summary.payload_bytes, record.summary.padding_bytes) == (68, 3 * 4096 - 68)
    assert recorder.backlog_bytes == 0


def test_a_sub_buffer_that_does_not_fit_is_refused_as_a_whole_and_counted(tmp_path: Path) -> None:
    failed: list[bool] = []
    recorder = Recorder(on_failure=lambda: failed.append(True))
    recorder.start()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream, disk=FailingDisk(room_bytes=50))
    lane = segment.lanes[stream.id]
    for number in range(3):
        recorder.offer(lane, batch_of(stream, [page(number, event(b"abcd"))], first=number))
    segment.close(SNAPSHOT)
    recorder.close()

    assert failed == [True]
    assert isinstance(recorder.failure, StorageError)
    assert "no space left" in str(recorder.failure)
    paths = segment.paths.stream("fake_0")
    assert paths.data.stat().st_size == 48
    assert len(SeekIndex(paths.index)) == 2
    assert read_gaps(paths.gaps) == [Gap(2, Reason.STORAGE, Unit.SUBBUFFERS, 1, 2, 1 << 40)]
    stats = lane.stats
    assert stats.delivered_bytes == stats.stored_bytes + stats.padding_bytes + stats.refused_bytes


def test_an_abandoned_backlog_is_counted_as_a_gap(tmp_path: Path) -> None:
    recorder = Recorder()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream)
    recorder.offer(segment.lanes[stream.id], batch_of(stream, [page(1, event(b"abcd"))] * 5))
    recorder.abandon_backlog()
    recorder.start()
    segment.close(SNAPSHOT)
    recorder.close()
    (record,) = Manifest.read(segment.paths.manifest).streams
    assert record.summary is not None
    assert record.summary.lost == {"backlog_subbuffers": 5}


def test_an_empty_backlog_accepts_a_batch_above_its_limit() -> None:
    recorder = Recorder(backlog_bytes=TAKE_BYTES // 2)
    assert recorder.has_room()


def test_a_sync_records_how_far_it_went(recorder: Recorder, tmp_path: Path) -> None:
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream)
    assert read_synced(segment.paths.synced) == {}
    gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2)
    batch = batch_of(stream, [page(1, event(b"abcd"))], gaps=(gap,))
    recorder.offer(segment.lanes[stream.id], batch)
    recorder.drain()
    segment.sync()
    value = json.loads(segment.paths.synced.read_bytes())
    assert value == {"streams": {"fake_0": {"entries": 1, "data_bytes": 24, "gaps": 1}}}
    segment.close(SNAPSHOT)


def test_a_second_segment_continues_the_count_of_lost_events(
    recorder: Recorder, tmp_path: Path
) -> None:
    stream = info()
    first = segment_of(recorder, tmp_path / "t", stream)
    gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2)
    recorder.offer(first.lanes[stream.id], batch_of(stream, [page(1, b"")], gaps=(gap,)))
    first.close(SNAPSHOT)
    second = segment_of(recorder, tmp_path / "t", stream, number=2)
    recorder.offer(second.lanes[stream.id], batch_of(stream, [page(2, b"")]))
    second.close(SNAPSHOT)
    entries = SeekIndex(second.paths.stream("fake_0").index).entries()
    assert entries["events_discarded"].tolist() == [7]
    assert [s.number for s in segments(tmp_path / "t")] == [1, 2]


def test_a_segment_that_lttd_discards_itself_is_not_reported_as_removed(
    recorder: Recorder, tmp_path: Path
) -> None:
    segment = segment_of(recorder, tmp_path / "t", info())
    assert segment.moved() is None
    segment.discard()
    assert segment.moved() is None


def test_the_names_of_a_segment_are_durable_with_its_data_and_when_it_is_closed(
    recorder: Recorder, tmp_path: Path
) -> None:
    disk = ForgetfulDisk()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream, disk=disk)
    directories = {tmp_path / "t", segment.paths.streams, segment.paths.index}
    recorder.offer(segment.lanes[stream.id], batch_of(stream, [page(1, b"")]))
    recorder.drain()
    segment.sync()
    assert directories <= set(disk.synced_directories)
    other = info("other")
    disk.synced_directories.clear()
    segment.add_streams([other])
    segment.close(SNAPSHOT)
    assert directories <= set(disk.synced_directories)


def test_an_open_segment_is_locked_and_a_closed_one_is_not(
    recorder: Recorder, tmp_path: Path
) -> None:
    segment = segment_of(recorder, tmp_path / "t", info())
    with pytest.raises(LockedError, match=r"in use by .+ \(pid \d+\)"):
        Lock(segment.paths.base, segment.paths.lock)
    segment.close(SNAPSHOT)
    Lock(segment.paths.base, segment.paths.lock).release()


def test_a_directory_with_other_files_is_refused_as_a_trace(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        prepare_trace(Disk(), tmp_path, append=True)


def test_a_recorder_adds_to_a_trace_only_if_asked_to(recorder: Recorder, tmp_path: Path) -> None:
    segment_of(recorder, tmp_path / "t", info()).close(SNAPSHOT)
    with pytest.raises(UsageError, match="--append"):
        prepare_trace(Disk(), tmp_path / "t", append=False)
    assert prepare_trace(Disk(), tmp_path / "t", append=True) == 2


def test_the_gaps_of_a_refused_batch_are_stored(tmp_path: Path) -> None:
    recorder = Recorder()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream)
    gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2)
    recorder.offer(segment.lanes[stream.id], batch_of(stream, [page(1, b"")], gaps=(gap,)))
    recorder.abandon_backlog()
    recorder.start()
    segment.close(SNAPSHOT)
    recorder.close()
    gaps = read_gaps(segment.paths.stream("fake_0").gaps)
    assert [(g.reason, g.count) for g in gaps] == [(Reason.BACKLOG, 1), (Reason.OVERWRITTEN, 7)]
    assert segment.summaries()[0].events_lost == 7


def test_stream_files_that_failed_to_open_are_made_at_the_second_try(
    recorder: Recorder, tmp_path: Path
) -> None:
    disk = FailingDisk()
    segment = segment_of(recorder, tmp_path / "t", info(cpu=0), disk=disk)
    disk.bad["open"] = {"fake_2"}
    with pytest.raises(StorageError):
        segment.add_streams([info(cpu=1), info(cpu=2)])
    assert list(segment.lanes) == [info(cpu=0).id]
    disk.bad["open"].clear()
    segment.add_streams([info(cpu=1), info(cpu=2)])
    segment.close(SNAPSHOT)
    manifest = Manifest.read(segment.paths.manifest)
    assert [record.name for record in manifest.streams] == ["fake_0", "fake_1", "fake_2"]


# -- recording continues past failures


@dataclass
class Going:
    """A recording that continues past failures; each sub-buffer of its stream has one event."""

    recorder: Recorder
    segment: OpenSegment
    lane: Lane
    disk: FailingDisk
    health: Health
    lines: list[str]
    offered: int = 0
    discarded: int = 0

    def offer(self, count: int, gaps: tuple[Gap, ...] = ()) -> None:
        pages = [page(10 + self.offered + at, event(b"abcd")) for at in range(count)]
        batch = batch_of(
            self.lane.files.record.info,
            pages,
            first=self.offered,
            gaps=gaps,
            last_end=None,
            discarded_before=self.discarded,
        )
        self.discarded += sum(gap.count or 0 for gap in gaps if gap.unit is Unit.EVENTS)
        self.offered += count
        self.recorder.offer(self.lane, batch)
        self.recorder.drain()

    def retry(self) -> None:
        """Sync, as the sync thread does every few seconds."""
        self.recorder._sync(self.segment)
        self.recorder.drain()

    def close(self) -> list[Gap]:
        """Return the gaps; assert that the trace is whole and accounts for all missing data."""
        self.segment.close(SNAPSHOT)
        assert check(self.segment.paths, events=True).findings == []
        stats = self.lane.stats
        assert stats.delivered_bytes == (
            stats.stored_bytes + stats.padding_bytes + stats.refused_bytes
        )
        gaps = read_gaps(self.segment.paths.stream("fake_0").gaps)
        lost = [gap.count or 0 for gap in gaps if gap.reason is Reason.STORAGE]
        stored = len(SeekIndex(self.segment.paths.stream("fake_0").index))
        assert stored + sum(lost) == self.offered
        assert self.segment.summaries()[0].lost.get("storage_subbuffers", 0) == sum(lost)
        return gaps


@pytest.fixture(params=["packed", "sparse"])
def going(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Going]:
    lines: list[str] = []
    health = Health(lambda line, _: lines.append(line))
    # Only the test syncs.
    recorder = Recorder(policy=WAITING, health=health, sync_interval_s=PATIENCE_S)
    recorder.start()
    disk, stream = FailingDisk(), info()
    (tmp_path / "t").mkdir()
    contents = SegmentContents(SOURCE, request.param, (stream,), SNAPSHOT, disk)
    segment = recorder.open_segment(tmp_path / "t", 1, contents)
    yield Going(recorder, segment, segment.lanes[stream.id], disk, health, lines)
    recorder.close()


def test_lttd_is_unhealthy_from_a_failed_write_to_the_next_good_one(going: Going) -> None:
    going.offer(2)
    assert going.health.verdict() == (True, "ok")
    going.disk.bad["write"] = {"fake_0"}
    going.offer(1)
    path = going.segment.paths.stream("fake_0").data
    assert going.health.verdict() == (False, f"{path}: Input/output error")
    going.offer(1)
    assert going.recorder.failure is None
    assert going.recorder.write_errors == {"EIO": 2}
    assert going.lines == [f"{path}: Input/output error"]
    going.disk.bad["write"] = set()
    going.offer(1)
    assert going.health.verdict() == (True, "ok")
    assert going.lines == [f"{path}: Input/output error", f"{path}: can be written again"]
    assert going.close() == [Gap(2, Reason.STORAGE, Unit.SUBBUFFERS, 2, 12, 13)]


def test_a_failed_stream_without_new_data_is_tried_again_and_recovers(going: Going) -> None:
    going.disk.bad["write"] = {"fake_0"}
    going.offer(1)
    going.retry()
    assert not going.health.verdict()[0], "that a gap fits tells nothing yet"
    going.retry()
    assert going.health.verdict() == (True, "ok")
    assert going.close() == [Gap(0, Reason.STORAGE, Unit.SUBBUFFERS, 1, 10, 10)]


def test_a_long_outage_leaves_one_gap_for_each_reason_and_unit(going: Going) -> None:
    going.disk.bad["write"] = {"fake_0", "fake_0.gaps"}
    kernel = [
        Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2),
        Gap(0, Reason.DAMAGED, Unit.BYTES, 4096, 3, 4),
        Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, None, 5, 6),
    ]
    for number in range(300):
        going.offer(1, gaps=(kernel[number % 3],))
        assert len(going.lane.untold.gaps()) <= 4
    going.disk.bad["write"] = set()
    going.lane.stats.delivered_bytes -= 100 * 4096  # no row counts these here
    going.lane.stats.padding_bytes -= 100 * 4096
    assert set(going.close()) == {
        Gap(0, Reason.STORAGE, Unit.SUBBUFFERS, 300, 10, 309),
        Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 700, 1, 2),
        Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, None, 5, 6),
        Gap(0, Reason.DAMAGED, Unit.BYTES, 409_600, 3, 4),
    }


@pytest.mark.parametrize("name", ["fake_0", "fake_0.idx"])
def test_the_first_sub_buffers_of_a_batch_that_fit_are_stored(going: Going, name: str) -> None:
    before = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2)
    behind = Gap(9, Reason.OVERWRITTEN, Unit.EVENTS, 3, 18, 19)
    going.offer(1)
    going.disk.bad["write"] = {name}
    going.offer(10, gaps=(behind, before))
    stored = len(SeekIndex(going.segment.paths.stream("fake_0").index))
    assert stored in (5, 6)
    going.disk.bad["write"] = set()
    going.offer(1)
    assert going.close() == [
        Gap(1, before.reason, before.unit, before.count, 1, 2),
        Gap(stored, Reason.STORAGE, Unit.SUBBUFFERS, 11 - stored, 10 + stored, 20),
        Gap(stored, behind.reason, behind.unit, behind.count, 18, 19),
    ]


def test_nothing_is_appended_after_bytes_that_could_not_be_cut_off(going: Going) -> None:
    going.offer(1)
    going.disk.bad |= {"write": {"fake_0"}, "cut": {"fake_0"}}
    going.offer(1)
    going.disk.bad["write"] = set()
    going.offer(1)
    going.disk.bad["cut"] = set()
    going.offer(1)
    assert going.close() == [Gap(1, Reason.STORAGE, Unit.SUBBUFFERS, 2, 11, 12)]


def test_a_later_sync_does_not_confirm_data_of_a_failed_one(going: Going) -> None:
    going.offer(1)
    going.retry()
    vouched = read_synced(going.segment.paths.synced)
    going.offer(1)
    going.disk.bad["sync"] = {"fake_0"}
    going.retry()
    path = going.segment.paths.stream("fake_0").data
    words = "Input/output error: some data since the last sync may not be on the disk"
    assert f"{path}: {words}" in going.health.verdict()[1]
    going.disk.bad["sync"] = set()
    going.offer(1)
    going.retry()
    assert going.health.verdict() == (False, f"{path}: {words}"), "until the segment is closed"
    assert read_synced(going.segment.paths.synced) == vouched
    assert going.close() == [Gap(2, Reason.UNSYNCED, Unit.BYTES, None, 10, 11)]
    assert read_synced(going.segment.paths.synced) == vouched
    assert going.segment.summaries()[0].gaps_unknown == 1
    assert going.recorder.last_write_error is not None


def test_a_failed_sync_of_one_stream_does_not_stop_the_others(going: Going) -> None:
    other = info("other")
    going.segment.add_streams([other])
    going.disk.bad["sync"] = {"fake_0"}
    going.offer(1)
    going.recorder.offer(going.segment.lanes[other.id], batch_of(other, [page(1, b"")]))
    going.recorder.drain()
    going.retry()
    assert read_synced(going.segment.paths.synced).keys() == {"other_0"}


def test_a_sync_that_fails_at_the_end_is_stored_as_a_gap(going: Going) -> None:
    going.offer(1)
    going.disk.bad["sync"] = {"fake_0"}
    with pytest.raises(StorageError):
        going.segment.sync()
    going.disk.bad["sync"] = set()
    assert going.close() == [Gap(1, Reason.UNSYNCED, Unit.BYTES, None, 0, 10)]


# -- other processes change the trace


def act_on(path: Path, act: str) -> None:
    if act == "removed":
        path.unlink()
    elif act == "renamed":
        path.rename(path.with_name("elsewhere"))
    elif act == "replaced":
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.rename(path)
    else:
        os.truncate(path, int(act))


@pytest.mark.parametrize(
    ("act", "left", "words"),
    [
        ("removed", 0, "somebody removed it"),
        ("renamed", 0, "somebody renamed it"),
        ("replaced", 0, "somebody put another file in its place"),
        ("0", 0, "somebody cut it to 0 of "),
        ("50", 2, "somebody cut it to 50 of "),
    ],
)
@pytest.mark.parametrize("seen_by", ["sync", "write", "close"])
def test_the_content_of_a_removed_data_file_is_counted_as_lost(
    going: Going, act: str, left: int, words: str, seen_by: str
) -> None:
    going.offer(5)
    path = going.segment.paths.stream("fake_0").data
    if act == "50" and going.segment.manifest.layout == "sparse":
        left = 0
    act_on(path, act)
    if seen_by == "sync":
        going.retry()
        assert going.health.verdict()[1].startswith(f"{path}: {words}")
        assert [line for line in going.lines if words in line] == going.lines
        assert len(going.lines) == 1
    if seen_by == "write" or seen_by == "sync":
        going.offer(1)
    unwritten = going.offered - 5
    if act in ("0", "50"):
        stats = going.lane.stats
        assert stats.removed_subbuffers == (5 - left if seen_by != "close" else 0)
    going.segment.close(SNAPSHOT)
    (summary,) = going.segment.summaries()
    removed = summary.lost["removed_subbuffers"]
    assert removed + summary.subbuffers + summary.lost.get("storage_subbuffers", 0) == going.offered
    if seen_by == "write" and act in ("removed", "renamed", "replaced"):
        left, unwritten = 0, 0  # it was written to a file that has been removed
    assert summary.subbuffers == left
    assert summary.lost.get("storage_subbuffers", 0) == unwritten
    assert going.lane.stats.all_bytes_lost[Reason.REMOVED] > 0
    assert isinstance(going.recorder.last_write_error, LostFileError)
    assert going.recorder.write_errors == {}


@pytest.mark.parametrize("name", ["index/fake_0.idx", "index/fake_0.gaps"])
@pytest.mark.parametrize("act", ["removed", "0"])
def test_a_removed_index_or_gaps_file_ends_the_stream_and_keeps_its_data(
    going: Going, name: str, act: str
) -> None:
    gap = Gap(0, Reason.DAMAGED, Unit.BYTES, 1, 1, 2)
    going.offer(2, gaps=(gap,))
    act_on(going.segment.paths.streams / name, act)
    going.retry()
    assert not going.health.verdict()[0]
    going.segment.close(SNAPSHOT)
    (summary,) = going.segment.summaries()
    # A repair finds data without an index entry.
    assert summary.subbuffers + summary.lost.get("removed_subbuffers", 0) == 2
    assert isinstance(going.recorder.last_write_error, LostFileError)


def test_a_second_link_to_a_file_is_not_a_loss(going: Going, tmp_path: Path) -> None:
    going.offer(1)
    (tmp_path / "backup").hardlink_to(going.segment.paths.stream("fake_0").data)
    going.retry()
    going.offer(1)
    assert going.close() == []
    assert going.recorder.last_write_error is None


@pytest.mark.parametrize("what", ["trace", "segment"])
@pytest.mark.parametrize("seen_by", ["sync", "close"])
def test_a_renamed_directory_is_reported_and_recording_continues(
    going: Going, tmp_path: Path, what: str, seen_by: str
) -> None:
    going.offer(1)
    segment = going.segment.paths.directory
    path = tmp_path / "t" if what == "trace" else segment
    path.rename(path.with_name("elsewhere"))
    if seen_by == "sync":
        going.retry()
        words = f"{path}: somebody renamed or removed it while it was recorded"
        assert words in going.health.verdict()[1]
        assert len(going.lines) == 1
    going.offer(1)
    going.segment.close(SNAPSHOT)
    assert going.recorder.last_write_error is not None
    (summary,) = going.segment.summaries()
    assert (summary.subbuffers, summary.lost) == (2, {})
    now = path.with_name("elsewhere") / (segment.name if what == "trace" else "")
    with closing(OpenDirectory.open(now)) as base:
        assert check(SegmentPaths(now, base), events=True).findings == []


@pytest.mark.parametrize("act", ["removed", "replaced"])
def test_a_removed_lock_is_reported_and_its_replacement_is_left_alone(
    going: Going, act: str
) -> None:
    lock = going.segment.paths.lock
    going.offer(1)
    lock.unlink()
    if act == "replaced":
        lock.touch()
    going.retry()
    words = f"{lock}: somebody removed it: nothing keeps lttv check --repair or another lttd"
    assert words in going.health.verdict()[1]
    assert len(going.lines) == 1
    going.segment.close(SNAPSHOT)
    assert lock.exists() == (act == "replaced")
    assert going.recorder.last_write_error is not None


@pytest.mark.parametrize("act", ["removed", "replaced"])
def test_a_removed_lock_of_the_trace_is_reported_until_it_is_back(tmp_path: Path, act: str) -> None:
    lines: list[str] = []
    disk, health = Disk(), Health(lambda line, _: lines.append(line))
    with (
        locked_trace(disk, tmp_path / "t", append=False) as number,
        closing(Recorder(health=health)) as recorder,
    ):
        recorder.start()
        segment = segment_of(recorder, tmp_path / "t", disk=disk, number=number)
        lock = tmp_path / "t" / ".lock"
        recorder.look(segment)
        assert lines == []
        lock.rename(tmp_path / "elsewhere")
        if act == "replaced":
            lock.touch()
        recorder.look(segment)
        assert f"{lock}: somebody removed it: nothing keeps lttv check" in health.verdict()[1]
        assert len(lines) == 1
        (tmp_path / "elsewhere").rename(lock)
        recorder.look(segment)
        assert health.verdict() == (True, "ok")
        segment.close(SNAPSHOT)
    assert not lock.exists()


def test_removing_the_trace_counts_all_its_data_as_lost(going: Going, tmp_path: Path) -> None:
    going.offer(3)
    shutil.rmtree(tmp_path / "t")
    going.retry()
    assert "somebody removed it" in going.health.verdict()[1]
    going.offer(1)
    with pytest.raises(StorageError):
        going.segment.close(SNAPSHOT)
    (summary,) = going.segment.summaries()
    assert summary.subbuffers == 0
    assert summary.lost == {"storage_subbuffers": 1, "removed_subbuffers": 3}


def test_recording_ends_if_a_file_is_removed_unless_asked_to_continue(tmp_path: Path) -> None:
    failed: list[bool] = []
    recorder = Recorder(on_failure=lambda: failed.append(True), sync_interval_s=PATIENCE_S)
    recorder.start()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream)
    recorder.offer(segment.lanes[stream.id], batch_of(stream, [page(1, b"")]))
    recorder.drain()
    segment.paths.stream("fake_0").data.unlink()
    recorder._sync(segment)
    assert failed == [True]
    assert "fake_0: somebody removed it while it was recorded" in str(recorder.failure)
    segment.close(SNAPSHOT)
    recorder.close()

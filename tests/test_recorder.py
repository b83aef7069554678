"""Backlog, writer threads and segments, on a real file system."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.clock import Snapshot
from lttd.errors import LockedError, StorageError, UsageError
from lttd.files import Disk, File, Lock, storage_error
from lttd.index import SeekIndex, read_gaps
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.subbuffer import TAKE_BYTES, Gap, Reason, StreamInfo, Unit
from lttd.tracedir import Manifest, prepare_trace, read_synced, segments
from tests.fakes import batch_of, event, info, page

SNAPSHOT = Snapshot(100, 100, 100, 1_000_000_100, 1)
SOURCE = {"kind": "fake", "spec": "fake", "clock": "mono"}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    recorder.start()
    yield recorder
    recorder.close()


def segment_of(
    recorder: Recorder, trace: Path, *streams: StreamInfo, number: int = 1, disk: Disk | None = None
) -> OpenSegment:
    trace.mkdir(exist_ok=True)
    contents = SegmentContents(SOURCE, "packed", streams, SNAPSHOT, disk or Disk())
    return recorder.open_segment(trace, number, contents)


class FullDisk(Disk):
    """Has room for *room_bytes* in data files, then none."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def open(self, path: Path, *, truncate: bool = False) -> File:
        disk = self

        class FullFile(File):
            def write_at(self, pieces: list[bytes | memoryview], offset_bytes: int) -> int:  # type: ignore[override]
                wanted = sum(map(len, pieces))
                if path.parent.name == "streams" and wanted > disk.room_bytes:
                    super().write_at([b"".join(pieces)[: disk.room_bytes]], offset_bytes)
                    raise storage_error(path, OSError(errno.ENOSPC, "full"))
                disk.room_bytes -= wanted * (path.parent.name == "streams")
                return super().write_at(pieces, offset_bytes)

        return FullFile(path, truncate=truncate)


def test_what_was_offered_is_on_disk_indexed_and_counted(
    recorder: Recorder, tmp_path: Path
) -> None:
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


def test_a_batch_whose_file_is_full_is_refused_whole_and_told(tmp_path: Path) -> None:
    failed: list[bool] = []
    recorder = Recorder(on_failure=lambda: failed.append(True))
    recorder.start()
    stream = info()
    segment = segment_of(recorder, tmp_path / "t", stream, disk=FullDisk(50))
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
    assert read_gaps(paths.gaps) == [Gap(2, Reason.STORAGE, Unit.SUBBUFFERS, 1, 100, 100)]
    stats = lane.stats
    assert stats.delivered_bytes == stats.stored_bytes + stats.padding_bytes + stats.refused_bytes


def test_an_abandoned_backlog_is_counted_in_the_trace(tmp_path: Path) -> None:
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


def test_an_empty_backlog_takes_a_batch_larger_than_its_limit() -> None:
    recorder = Recorder(backlog_bytes=TAKE_BYTES // 2)
    assert recorder.has_room()


def test_a_sync_writes_down_how_far_it_went(recorder: Recorder, tmp_path: Path) -> None:
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


def test_a_second_segment_goes_on_counting_lost_events(recorder: Recorder, tmp_path: Path) -> None:
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


def test_an_open_segment_is_locked_and_a_closed_one_is_not(
    recorder: Recorder, tmp_path: Path
) -> None:
    segment = segment_of(recorder, tmp_path / "t", info())
    with pytest.raises(LockedError, match=r"in use by .+ \(pid \d+\)"):
        Lock(segment.paths.directory)
    segment.close(SNAPSHOT)
    Lock(segment.paths.directory).release()


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        prepare_trace(Disk(), tmp_path, append=True)


def test_a_trace_is_added_to_only_when_that_was_asked_for(
    recorder: Recorder, tmp_path: Path
) -> None:
    segment_of(recorder, tmp_path / "t", info()).close(SNAPSHOT)
    with pytest.raises(UsageError, match="--append"):
        prepare_trace(Disk(), tmp_path / "t", append=False)
    assert prepare_trace(Disk(), tmp_path / "t", append=True) == 2


def test_losses_told_with_a_refused_batch_still_stand_in_the_trace(tmp_path: Path) -> None:
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


def test_streams_whose_files_could_not_be_made_are_made_at_the_second_time(
    recorder: Recorder, tmp_path: Path
) -> None:
    class Failing(Disk):
        bad = ""

        def open(self, path: Path, *, truncate: bool = False) -> File:
            if self.bad and path.name == self.bad:
                raise storage_error(path, OSError(errno.ENOSPC, "full"))
            return super().open(path, truncate=truncate)

    disk = Failing()
    segment = segment_of(recorder, tmp_path / "t", info(cpu=0), disk=disk)
    disk.bad = "fake_2"
    with pytest.raises(StorageError):
        segment.add_streams([info(cpu=1), info(cpu=2)])
    assert list(segment.lanes) == [info(cpu=0).id]
    disk.bad = ""
    segment.add_streams([info(cpu=1), info(cpu=2)])
    segment.close(SNAPSHOT)
    manifest = Manifest.read(segment.paths.manifest)
    assert [record.name for record in manifest.streams] == ["fake_0", "fake_1", "fake_2"]

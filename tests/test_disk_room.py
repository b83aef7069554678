"""A full disk costs the oldest segments where they may go; a ceiling on what is written holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lttd.disk_policy import DiskPolicy, OnFailure
from lttd.health import Health
from lttd.index import SeekIndex, read_gaps
from lttd.open_segment import OpenSegment
from lttd.recorder import Recorder
from lttd.subbuffer import Gap, Reason, Unit
from lttd.view.verify import check
from tests.failing_disk import FailingDisk
from tests.fakes import batch_of, event, info, page
from tests.recorders import SNAPSHOT, segment_of

DROPPING = DiskPolicy(OnFailure.DROP_OLDEST, OnFailure.STOP)
STREAM = info()
SUBBUFFER_BYTES = 24


@contextmanager
def recorder_of(health: Health | None = None) -> Iterator[Recorder]:
    recorder = Recorder(policy=DROPPING, health=health)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.close()


def offer(recorder: Recorder, segment: OpenSegment, count: int, first: int = 0) -> None:
    """Offer one batch of *count* sub-buffers, and wait until it is written or refused."""
    pages = [page(10 + first + number, event(b"abcd")) for number in range(count)]
    recorder.offer(segment.lanes[STREAM.id], batch_of(STREAM, pages, first=first))
    recorder.drain()


def room_of(disk: FailingDisk, rounds: int, size_bytes: int) -> Callable[[], int]:
    """Return what frees *size_bytes* on the disk, so many times."""
    left = [size_bytes] * rounds

    def make_room() -> int:
        if not left:
            return 0
        disk.room_bytes = (disk.room_bytes or 0) + left.pop()
        return size_bytes

    return make_room


@pytest.mark.parametrize("first_room_bytes", [0, 50, 7 * SUBBUFFER_BYTES])
def test_what_does_not_fit_is_written_after_old_segments_made_room(
    tmp_path: Path, first_room_bytes: int
) -> None:
    disk = FailingDisk(room_bytes=first_room_bytes)
    with recorder_of() as recorder:
        segment = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
        recorder.make_room = room_of(disk, 10, 3 * SUBBUFFER_BYTES)
        offer(recorder, segment, 15)
        segment.close(SNAPSHOT)
        assert recorder.failure is None
        assert recorder.last_write_error is None
    index = SeekIndex(segment.paths.stream("fake_0").index)
    assert index.entries()["begin"].tolist() == list(range(10, 25))
    assert not segment.paths.stream("fake_0").gaps.exists()
    assert check(segment.paths).whole


def test_where_no_segment_may_go_recording_waits_and_counts_the_loss(tmp_path: Path) -> None:
    disk = FailingDisk(room_bytes=2 * SUBBUFFER_BYTES)
    health = Health()
    with recorder_of(health) as recorder:
        segment = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
        recorder.make_room = room_of(disk, 1, SUBBUFFER_BYTES)
        offer(recorder, segment, 10)
        assert recorder.failure is None
        assert not health.verdict()[0]
        disk.room_bytes = None
        offer(recorder, segment, 1, first=10)
        assert health.verdict() == (True, "ok")
        segment.close(SNAPSHOT)
    paths = segment.paths.stream("fake_0")
    assert SeekIndex(paths.index).entries()["begin"].tolist() == [10, 11, 12, 20]
    assert read_gaps(paths.gaps) == [Gap(3, Reason.STORAGE, Unit.SUBBUFFERS, 7, 13, 1 << 40)]


def test_gaps_between_sub_buffers_keep_their_places_when_a_batch_is_written_in_parts(
    tmp_path: Path,
) -> None:
    disk = FailingDisk(room_bytes=2 * SUBBUFFER_BYTES)
    lost = tuple(
        Gap(row, Reason.OVERWRITTEN, Unit.EVENTS, row + 1, 1, 2) for row in (0, 1, 2, 4, 6)
    )
    with recorder_of() as recorder:
        segment = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
        recorder.make_room = room_of(disk, 3, 2 * SUBBUFFER_BYTES)
        pages = [page(10 + number, event(b"abcd")) for number in range(6)]
        recorder.offer(segment.lanes[STREAM.id], batch_of(STREAM, pages, gaps=lost))
        segment.close(SNAPSHOT)
    found = read_gaps(segment.paths.stream("fake_0").gaps)
    assert [(gap.row, gap.count) for gap in found] == [(0, 1), (1, 2), (2, 3), (4, 5), (6, 7)]


def test_an_error_that_is_no_full_disk_deletes_nothing(tmp_path: Path) -> None:
    disk = FailingDisk()
    with recorder_of() as recorder:
        segment = segment_of(recorder, tmp_path / "t", STREAM, disk=disk)
        asked: list[bool] = []
        recorder.make_room = lambda: asked.append(True) or 1
        disk.bad["write"] = {"fake_0"}
        offer(recorder, segment, 1)
        assert recorder.failure is not None
        assert not asked
        segment.discard()


def test_what_is_above_the_rate_is_counted_and_not_written(tmp_path: Path) -> None:
    lines: list[str] = []
    now = [0]
    health = Health(lambda line, _: lines.append(line))
    with recorder_of(health) as recorder:
        recorder.limit_rate(1, lambda: now[0])
        now[0] = -(1 << 62)  # the burst is spent
        segment = segment_of(recorder, tmp_path / "t", STREAM)
        offer(recorder, segment, 3)
        offer(recorder, segment, 2, first=3)
        assert not health.verdict()[0]
        now[0] = 1 << 62
        offer(recorder, segment, 4, first=5)
        stats = segment.lanes[STREAM.id].stats
        segment.close(SNAPSHOT)
        assert recorder.failure is None
    assert stats.unwritten_subbuffers[Reason.RATE] == 5
    assert stats.delivered_bytes == stats.stored_bytes + stats.padding_bytes + stats.refused_bytes
    paths = segment.paths.stream("fake_0")
    assert read_gaps(paths.gaps) == [Gap(0, Reason.RATE, Unit.SUBBUFFERS, 5, 10, 1 << 40)]
    assert SeekIndex(paths.index).entries()["begin"].tolist() == [15, 16, 17, 18]
    assert segment.summaries()[0].lost == {"rate_subbuffers": 5}
    assert lines == ["more than 1 B a second: the rest is not written"]

"""Recover from every state that a crash can leave."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.errors import LockedError, LttdError
from lttd.files import Disk
from lttd.lockfile import Lock
from lttd.manifest import Manifest, read_synced, this_machine
from lttd.recover import StreamRecovery, recover
from lttd.subbuffer import Reason, StreamId, StreamInfo, Unit
from lttd.tracedir import SegmentPaths, create_segment, segment_name, segments
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.forgetful import ForgetfulDisk, Op, killed, power_loss, put
from tests.lttng_model import LttngModel
from tests.segment_builder import LttRing, Made, segment_at, subbuffer
from tests.segment_builder_ltt import LttBuffer, Tracer
from tests.segment_builder_lttng import LttngRing

LAYOUTS = ("packed", "sparse")
ABIS = ("ftrace", "ltt", "ctf")
BOOT = this_machine()["boot_id"]


def of_ftrace(made: Made) -> None:
    made.append([subbuffer(0), subbuffer(1, words=20)])
    made.append([subbuffer(2, missed=5), subbuffer(3)])
    made.sync()
    made.append([subbuffer(4, events=9)], trailing_loss=3)
    made.append([subbuffer(5, words=28, events=8), subbuffer(6, missed=2), subbuffer(7)])
    made.sync()
    made.append([subbuffer(8), subbuffer(9, missed=4, events=30)])
    made.append([], trailing_loss=1)
    made.append([subbuffer(10, words=16, events=20), subbuffer(11)])


LTT = Tracer(start_tsc=0x7777777777, start_s=0x55555555)
LTT_INFO = StreamInfo(StreamId("kernel", 0), "ltt", 8192, LTT.header_bytes, page_bytes=4096)


def of_ltt(made: Made) -> None:
    """Sub-buffers of one and two pages: full, flushed and empty ones, with losses."""
    buffer = LttBuffer(LTT, subbuffer_bytes=8192, count=16)
    tsc = LTT.start_tsc
    for number in range(12):
        for event in range((number * 37) % 130):
            buffer.log(event % 28 + 1, b"payload!" * (number % 4 + 1), tsc := tsc + 1009)
        buffer.lose(number % 3, number // 10)
        buffer.flush(tsc := tsc + 1009)
    buffer.finalize(tsc)
    blocks = list(iter(buffer.take, None))
    assert {len(block) for block in blocks} == {4096, 8192}
    for first, behind in [(0, 2), (2, 4), (4, 5), (5, 8), (8, 10), (10, 99)]:
        made.append(blocks[first:behind])
        if behind in (4, 8):
            made.sync()


def of_lttng(made: Made) -> None:
    """Packets of an overwriting ring, of which it overwrote some; and discarded events."""
    model = LttngModel(subbuffers=2, overwrite=True)
    blocks = []
    for number in range(12):
        model.write((number * 400) % 2700 + 1)
        model.finish()
        model.discarded += number // 5
        blocks.append(model.closed.pop())
    for first, behind in [(0, 2), (2, 4), (4, 5), (5, 8), (8, 10), (10, 12)]:
        made.append(blocks[first:behind])
        if behind in (4, 8):
            made.sync()


STORIES = {
    "ftrace": (of_ftrace, {}),
    "ltt": (of_ltt, {"make_ring": lambda _: LttRing(LTT_INFO)}),
    "ctf": (of_lttng, {"make_ring": lambda _: LttngRing()}),
}


class Story:
    """A recording as a log of disk operations; made once per layout."""

    def __init__(self, layout: str, abi: str) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.trace = Path(tempfile.mkdtemp(prefix="lttd-story-", dir=memory))
        disk = ForgetfulDisk()
        tell, options = STORIES[abi]
        made = Made(self.trace, layout=layout, disk=disk, **options)
        self.paths = made.paths
        self.has_markers = abi == "ftrace"
        """Whether the files of the segment are enough to decode its events."""
        self.start = len(disk.log)
        tell(made)
        made.leave()
        self.log = disk.log
        self.record = made.records[0]
        self.stream = self.paths.stream(self.record.name)
        whole = made.stream()
        self.data = bytes(whole.read())
        self.entries = whole.index.entries().copy()
        shutil.rmtree(self.trace)


def story(layout: str, abi: str = "ftrace") -> Story:
    return _story(layout, abi)


@cache
def _story(layout: str, abi: str) -> Story:
    return Story(layout, abi)


@contextmanager
def on_disk(recorded: Story, files: dict[Path, bytes]) -> Iterator[SegmentPaths]:
    """Write the files of a story to their places."""
    try:
        recorded.paths.index.mkdir(parents=True)
        put(files)
        yield segment_at(recorded.paths.directory)
    finally:
        shutil.rmtree(recorded.trace)


def of_this_boot(files: dict[Path, bytes]) -> dict[Path, bytes]:
    return {p: c.replace(b"another boot", BOOT.encode()) for p, c in files.items()}


def files_of(paths: SegmentPaths) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in paths.directory.rglob("*") if p.is_file()}


def recovered_is_a_whole_prefix(recorded: Story, paths: SegmentPaths) -> list[StreamRecovery]:
    vouched = read_synced(paths.synced).get(recorded.record.name)
    found = recover(paths, ForgetfulDisk())
    report = check(paths, events=recorded.has_markers)
    assert report.findings == []
    assert report.state == "closed"
    entries = Trace(paths.directory).segments[0].streams[0].index.entries()
    count = len(entries)
    data = recorded.stream.data.read_bytes()
    assert data == recorded.data[: len(data)]
    for name in ("offset_bytes", "packet_bits", "content_bits", "begin", "sequence"):
        assert (entries[name] == recorded.entries[name][:count]).all(), name
    if vouched:
        assert count >= vouched.entries
        assert len(data) >= vouched.data_bytes
    before = files_of(paths)
    again = recover(paths, ForgetfulDisk())
    assert not any(one.changed for one in again)
    assert files_of(paths) == before
    return found


@settings(max_examples=250, deadline=None)
@given(st.data(), st.sampled_from(LAYOUTS), st.sampled_from(ABIS))
def test_any_power_loss_leaves_a_prefix_and_keeps_what_was_synced(
    data: st.DataObject, layout: str, abi: str
) -> None:
    recorded = story(layout, abi)
    until = data.draw(st.integers(recorded.start, len(recorded.log)))
    files = power_loss(recorded.log[:until], {}, lambda a, b: data.draw(st.integers(a, b)))
    with on_disk(recorded, files) as paths:
        recovered_is_a_whole_prefix(recorded, paths)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(LAYOUTS), st.sampled_from(ABIS))
def test_a_kill_loses_no_entry_that_was_written_whole(
    data: st.DataObject, layout: str, abi: str
) -> None:
    recorded = story(layout, abi)
    until = data.draw(st.integers(recorded.start, len(recorded.log)))
    log = recorded.log[:until]
    files = of_this_boot(killed(log, {}, lambda a, b: data.draw(st.integers(a, b))))
    ends = (
        recorded.entries["offset_bytes"] + (recorded.entries["packet_bits"] >> np.uint64(3))
    ).tolist()
    there = len(files[recorded.stream.data])
    with on_disk(recorded, files) as paths:
        recovered_is_a_whole_prefix(recorded, paths)
        entries = Trace(paths.directory).segments[0].streams[0].index.entries()
        if layout == "packed":
            assert len(entries) == sum(end <= there for end in ends)
        assert (
            entries["events_discarded"] == recorded.entries["events_discarded"][: len(entries)]
        ).all()


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(LAYOUTS), st.sampled_from(ABIS))
def test_a_crash_during_recovery_does_not_change_the_outcome(
    data: st.DataObject, layout: str, abi: str
) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    recorded = story(layout, abi)
    files = power_loss(recorded.log[: draw(recorded.start, len(recorded.log))], {}, draw)
    with on_disk(recorded, files) as paths:
        disk = ForgetfulDisk()
        recover(paths, disk)
        outcome = files_of(paths)
        halfway = power_loss(disk.log[: draw(0, len(disk.log))], files, draw)
    with on_disk(recorded, halfway) as paths:
        recovered_is_a_whole_prefix(recorded, paths)
        assert recorded.stream.data.read_bytes() == outcome[recorded.stream.data]
        gaps = recorded.stream.gaps
        assert (gaps.read_bytes() if gaps.exists() else b"") == outcome.get(gaps, b"")


def whole_files(layout: str, abi: str = "ftrace") -> dict[Path, bytes]:
    return killed(story(layout, abi).log, {}, lambda _, most: most)


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["data", "index", "gaps"])
def test_a_file_cut_anywhere_is_recovered(layout: str, which: str, abi: str) -> None:
    recorded = story(layout, abi)
    files = of_this_boot(whole_files(layout, abi))
    del files[recorded.paths.synced]
    path = getattr(recorded.stream, which)
    whole = files[path]
    # No record size is a multiple of this step, so cuts fall everywhere in a record.
    step = max(len(whole) // 150, 1) | 1
    for size in {*range(0, len(whole), step), 1, len(whole) - 1}:
        with on_disk(recorded, files | {path: whole[:size]}) as paths:
            recovered_is_a_whole_prefix(recorded, paths)


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("which", ["data", "index", "gaps"])
def test_a_missing_file_is_recovered(which: str, abi: str) -> None:
    recorded = story("packed", abi)
    files = of_this_boot(whole_files("packed", abi))
    del files[recorded.paths.synced]
    del files[getattr(recorded.stream, which)]
    with on_disk(recorded, files) as paths:
        recovered_is_a_whole_prefix(recorded, paths)


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_data_alone_give_the_same_index(layout: str, abi: str) -> None:
    recorded = story(layout, abi)
    files = whole_files(layout, abi)
    del files[recorded.paths.synced]
    del files[recorded.stream.index]
    with on_disk(recorded, of_this_boot(files)) as paths:
        found = recovered_is_a_whole_prefix(recorded, paths)
        assert found[0].rebuilt_entries == len(recorded.entries) == found[0].entries
        entries = Trace(paths.directory).segments[0].streams[0].index.entries()
        same = ("begin", "events_discarded", "sequence", "stream_id", "instance_id")
        for name in same:
            assert (entries[name] == recorded.entries[name]).all(), name
        if abi != "ftrace":
            assert (entries["end"] == recorded.entries["end"]).all()
            return
        # At the end of a batch the writer's bound may be later or earlier; the last bound is exact.
        assert (entries["end"][:-1] == entries["begin"][1:]).all()
        assert entries["end"][-1] == 12_030


@settings(max_examples=300, deadline=None)
@given(
    st.data(),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["data", "index", "gaps"]),
    st.sampled_from(ABIS),
)
def test_everything_before_a_flipped_byte_stays_readable(
    data: st.DataObject, layout: str, which: str, abi: str
) -> None:
    recorded = story(layout, abi)
    files = whole_files(layout, abi)
    path = getattr(recorded.stream, which)
    whole = files[path]
    at = data.draw(st.integers(0, len(whole) - 1))
    bad = bytearray(whole)
    bad[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del files[recorded.paths.synced]
    with on_disk(recorded, files | {path: bytes(bad)}) as paths:
        check(paths, events=recorded.has_markers)
        recover(paths, ForgetfulDisk())
        check(paths, events=recorded.has_markers)
        stream = Trace(paths.directory).segments[0].streams[0]
        kept = stream.read()
        behind = at if which == "data" else len(recorded.data)
        whole_ones = recorded.entries["offset_bytes"] + (
            recorded.entries["packet_bits"] >> np.uint64(3)
        )
        sound = int((whole_ones <= behind).sum())
        assert len(stream.index) >= min(sound, 8), "what was synced, or stands before the byte"
        end = int(whole_ones[sound - 1]) if sound else 0
        assert bytes(kept[: min(end, len(kept))]) == recorded.data[: min(end, len(kept))]


def test_a_torn_tail_is_cut_and_counted_in_bytes() -> None:
    recorded = story("packed")
    files = of_this_boot(whole_files("packed"))
    size = len(files[recorded.stream.data])
    last = int(recorded.entries["offset_bytes"][-1])
    with on_disk(recorded, files | {recorded.stream.data: recorded.data[: size - 5]}) as paths:
        found = recover(paths, ForgetfulDisk())
        stream = Trace(paths.directory).segments[0].streams[0]
        assert found[0].torn_bytes == size - last
        gap = stream.gaps[-1]
        assert (gap.reason, gap.unit, gap.count) == (Reason.TORN, Unit.BYTES, size - last)
        assert gap.row == len(stream.index) == len(recorded.entries) - 1
        assert stream.summary().lost["torn_bytes"] == size - last
        assert stream.summary().payload_bytes == last


def left_by_lttng(trace: Path, number: int, **source: str) -> Made:
    """Leave an open segment of packets, whose rings the kernel freed."""
    made = Made(trace, number=number, make_ring=lambda _: LttngRing())
    made.manifest.source |= {"frees_rings": True, **source}
    made.write_manifest()
    return made


def unknown_losses(trace: Path) -> list[list[tuple[int, Reason, Unit]]]:
    """Return the gaps of unknown size in each segment."""
    found = [segment.streams[0] for segment in Trace(trace).segments]
    return [
        [(gap.row, gap.reason, gap.unit) for gap in stream.gaps if gap.count is None]
        for stream in found
    ]


def test_a_ring_that_the_kernel_freed_with_lttd_is_a_gap_of_unknown_size(tmp_path: Path) -> None:
    made = left_by_lttng(tmp_path, 1)
    of_lttng(made)
    made.leave()
    (paths,) = segments(tmp_path)
    (found,) = recover(paths, Disk())
    assert found.changed
    assert found.ring_freed
    assert found.stats().unknown == {Reason.ABANDONED: 1}
    assert unknown_losses(tmp_path) == [[(12, Reason.ABANDONED, Unit.SUBBUFFERS)]]
    assert check(paths).findings == []
    (again,) = recover(paths, Disk())
    assert not again.changed


@pytest.mark.parametrize("rolled", [True, False])
def test_the_freed_ring_is_a_gap_of_the_segment_that_was_recorded_last(
    tmp_path: Path, *, rolled: bool
) -> None:
    first = left_by_lttng(tmp_path, 1)
    of_lttng(first)
    second = left_by_lttng(tmp_path, 2, rolled_from=first.paths.directory.name)
    second.records[0].subbuffers_before = None
    if rolled:
        of_lttng(second)
    second.write_manifest()
    for made in (first, second):
        made.leave()
        recover(segments(tmp_path)[made.number - 1], Disk())
    end = (12, Reason.ABANDONED, Unit.SUBBUFFERS)
    assert unknown_losses(tmp_path)[0] == ([] if rolled else [end])
    assert not rolled or unknown_losses(tmp_path)[1] == [end]


def test_a_loss_that_only_the_index_shows_is_written_as_a_gap_again() -> None:
    recorded = story("packed")
    files = whole_files("packed")
    del files[recorded.stream.gaps]
    del files[recorded.paths.synced]
    with on_disk(recorded, files) as paths:
        recovered_is_a_whole_prefix(recorded, paths)
        entries = Trace(paths.directory).segments[0].streams[0].index.entries()
        assert (entries["events_discarded"] == recorded.entries["events_discarded"]).all()
        summary = Trace(paths.directory).summaries()[0]
        assert summary.events_lost == int(recorded.entries["events_discarded"][-1])


def test_recovery_keeps_the_data_after_a_damaged_header() -> None:
    recorded = story("packed")
    files = whole_files("packed")
    del files[recorded.paths.synced]
    bad = bytearray(recorded.data)
    bad[int(recorded.entries["offset_bytes"][5]) + 8] ^= 0x40
    with on_disk(recorded, files | {recorded.stream.data: bytes(bad)}) as paths:
        recover(paths, ForgetfulDisk())
        assert len(Trace(paths.directory).segments[0].streams[0].index) == len(recorded.entries)
        assert [finding.entry for finding in check(paths).findings] == [5]


def test_recovery_reads_only_data_after_the_synced_record() -> None:
    recorded = story("packed")
    files = whole_files("packed")
    bad = bytearray(recorded.data)
    bad[8] ^= 0x40  # the first header is durable, so a restart does not check it
    with on_disk(recorded, files | {recorded.stream.data: bytes(bad)}) as paths:
        assert [one.rebuilt_entries for one in recover(paths, ForgetfulDisk())] == [0]


def test_recovery_reads_no_data_if_none_follow_the_synced_record(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1)])
    made.sync()
    made.leave()
    stream = made.paths.stream("fake_0")
    bad = bytearray(stream.data.read_bytes())
    bad[8] ^= 0x40  # damage in a synced header, which only a full check would find
    stream.data.write_bytes(bad)
    (one,) = recover(made.paths, ForgetfulDisk())
    assert not one.changed
    assert len(made.stream().index) == 2


def test_a_live_segment_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    lock = Lock(made.paths.base, made.paths.lock)
    with pytest.raises(LockedError):
        recover(made.paths, ForgetfulDisk())
    report = check(made.paths)
    assert (report.state, report.findings) == ("live", [])
    lock.release()
    made.leave()


def test_a_segment_without_manifest_and_data_is_left_alone(tmp_path: Path) -> None:
    made = Made(tmp_path / "t").leave()
    made.paths.manifest.unlink()
    assert recover(made.paths, ForgetfulDisk()) == []
    assert check(made.paths).whole


def test_data_without_a_manifest_are_refused_with_their_path(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.leave()
    made.paths.manifest.unlink()
    with pytest.raises(LttdError, match=r"trace\.json"):
        recover(made.paths, ForgetfulDisk())


def test_the_summary_of_a_recovered_segment_matches_its_files(tmp_path: Path) -> None:
    made = Made(tmp_path / "t", cpus=2)
    made.append([subbuffer(0), subbuffer(1, missed=9)])
    made.append([subbuffer(0)], cpu=1, trailing_loss=2)
    made.leave()
    recover(made.paths, ForgetfulDisk())
    lines = Manifest.read(made.paths.manifest).streams
    assert [(line.summary.subbuffers, line.summary.lost) for line in lines if line.summary] == [
        (2, {"overwritten": 9}),
        (1, {"dropped": 2}),
    ]


def test_data_are_synced_before_their_index() -> None:
    recorded = story("packed")
    synced = [
        op.path for op in recorded.log if op.call == "sync" and op.path.parent != recorded.trace
    ]
    data, index = recorded.stream.data, recorded.stream.index
    assert [p for p in synced if p in (data, index)] == [data, index] * 2
    assert isinstance(recorded.log[0], Op)


def test_recovery_removes_the_reserve_of_a_segment_without_a_manifest(tmp_path: Path) -> None:
    paths = create_segment(Disk(), tmp_path, segment_name(1, "fake"))
    paths.reserve.write_bytes(bytes(4096))
    assert recover(paths, Disk()) == []
    assert not paths.reserve.exists()

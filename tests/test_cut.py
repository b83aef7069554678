"""``lttv cut`` makes smaller traces that are whole and have the same content."""

import os
from pathlib import Path

import pytest

from lttd.errors import NotATraceError, StorageError, TraceDamagedError, UsageError
from lttd.files import Disk
from lttd.index import SeekIndex
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.subbuffer import Gap, Reason
from lttd.tracedir import segments
from lttd.view.cli import main
from lttd.view.commands.cut import cut
from lttd.view.times import EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.failing_disk import FailingDisk
from tests.segment_builder import SNAPSHOT, Made, subbuffer


def between(begin: int, end: int) -> Window:
    return Window(Moment(begin, wall=False), Moment(end, wall=False))


def recorded(trace: Path, *, layout: str = "packed", number: int = 1) -> Made:
    """Record two streams with losses.

    Sub-buffer n of fake_0 begins at 1000 * (n + 1). 7 events are lost before sub-buffer 2, 3 before
    4, and 5 after the last. fake_1 has two sub-buffers.
    """
    made = Made(trace, cpus=2, number=number, layout=layout)
    made.append([subbuffer(0), subbuffer(1), subbuffer(2, missed=7)])
    made.append([subbuffer(3, events=30)], trailing_loss=3)
    made.append([subbuffer(number, events=1 + number) for number in range(4, 10)], trailing_loss=5)
    made.append([subbuffer(0), subbuffer(8)], cpu=1)
    attach(made, "tracefs/events/sched/sched_switch/format", b"name: sched_switch\n")
    attach(made, "tracefs/commands", b"1\t1\t1\tinit\n")
    attach(made, "tracefs/per_cpu/cpu0/stats", b"overrun: 7\n")
    attach(made, "streams/metadata", b"/* CTF 1.8 */\n")
    return made


def attach(made: Made, name: str, data: bytes) -> None:
    path = made.paths.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(params=["packed", "sparse"])
def trace(tmp_path: Path, request: pytest.FixtureRequest) -> Trace:
    recorded(tmp_path / "t", layout=request.param).finish()
    return Trace(tmp_path / "t")


def stream(trace: Trace, number: int = 0) -> StoredStream:
    return trace.segments[0].streams[number]


def contents(stored: StoredStream) -> list[bytes]:
    headers = stored.headers(stored.index.entries())
    pairs = zip(headers.offset_bytes.tolist(), headers.payload_bytes.tolist(), strict=True)
    return [bytes(stored.read(at, at + size)) for at, size in pairs]


def assert_whole(path: Path) -> None:
    for segment in segments(path):
        report = check(segment, events=True)
        assert report.whole, report.findings


def test_any_cut_window_is_a_whole_trace_of_the_sub_buffers_that_seek_finds(
    trace: Trace, tmp_path: Path
) -> None:
    whole = contents(stream(trace))
    index = stream(trace).index
    for number, (begin, end) in enumerate(
        (a, b) for a in range(1000, 11_000, 500) for b in range(a, 12_000, 2500)
    ):
        out = tmp_path / str(number)
        made = cut(trace, between(begin, end), out)
        assert_whole(out)
        first, behind = index.first_at_or_after(begin), index.first_beginning_after(end)
        assert contents(stream(made)) == whole[first : max(first, behind)]
        kept = index.entries(first, max(first, behind))
        for field in ("content_bits", "begin", "end", "events_discarded", "sequence"):
            assert (stream(made).index.entries()[field] == kept[field]).all()


def test_a_cut_of_everything_equals_the_trace(trace: Trace, tmp_path: Path) -> None:
    made = cut(trace, EVERYTHING, tmp_path / "c")
    assert made.summaries() == trace.summaries()
    for one, other in zip(made.segments[0].streams, trace.segments[0].streams, strict=True):
        assert one.read() == other.read()
        assert one.paths.index.read_bytes() == other.paths.index.read_bytes()
        assert one.gaps == other.gaps


def test_a_cut_does_not_count_losses_before_its_window(trace: Trace, tmp_path: Path) -> None:
    made = cut(trace, between(5000, 9000), tmp_path / "c")
    # The entry that begins at 4000 ends at 4500; 7 were lost before 3000, 3 before 5000.
    record = stream(made).record
    assert record.baseline_discarded == 7
    assert record.summary is not None
    assert (record.summary.events_lost, record.summary.lost) == (3, {"dropped": 3})
    assert [gap.row for gap in stream(made).gaps] == [0]


def test_a_loss_just_before_the_first_sub_buffer_is_kept(trace: Trace, tmp_path: Path) -> None:
    made = cut(trace, between(3100, 3900), tmp_path / "c")
    assert stream(made).gaps == [
        Gap(0, Reason.OVERWRITTEN, stream(trace).gaps[0].unit, 7, 3000, 3000)
    ]
    assert stream(made).record.baseline_discarded == 0
    assert stream(made).summary().events_lost == 7


def test_a_loss_after_the_last_sub_buffer_is_kept_if_it_is_in_the_window(
    trace: Trace, tmp_path: Path
) -> None:
    # The time of the trailing loss is 10000.
    assert stream(cut(trace, between(9500, 10_000), tmp_path / "c")).summary().events_lost == 5
    assert stream(cut(trace, between(9500, 9900), tmp_path / "d")).summary().events_lost == 0


def test_a_cut_keeps_attachments_and_the_clock_snapshots_of_its_window(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    times = (1000, 2000, 3000, 4000, 5000)
    made.manifest.clock_snapshots = [
        type(SNAPSHOT)(at, at, at, SNAPSHOT.realtime_ns + 3 * at, 1) for at in times
    ]
    made.write_manifest()
    whole = Trace(made.trace)
    small = cut(whole, between(2500, 3500), tmp_path / "c")
    segment = small.segments[0]
    assert [snapshot.trace for snapshot in segment.manifest.clock_snapshots] == [2000, 3000, 4000]
    assert segment.manifest.source["cut"]["begin"] == 2500
    conversions = segment.conversion, whole.segments[0].conversion
    assert conversions[0]
    assert conversions[1]
    for time in range(2000, 4000, 111):
        assert conversions[0].to_realtime_ns(time) == conversions[1].to_realtime_ns(time)
    names = {
        str(path.relative_to(segment.paths.directory))
        for path in segment.paths.directory.rglob("*")
        if path.is_file() and "index" not in path.parts
    }
    assert names == {
        "trace.json",
        "streams/metadata",
        "streams/fake_0",
        "streams/fake_1",
        "tracefs/commands",
        "tracefs/events/sched/sched_switch/format",
    }


def test_a_cut_leaves_out_segments_outside_its_window(tmp_path: Path) -> None:
    recorded(tmp_path / "t").finish()
    later = Made(tmp_path / "t", number=2)
    later.append([subbuffer(50), subbuffer(51)])
    later.finish()
    trace = Trace(tmp_path / "t")
    assert len(cut(trace, between(51_000, 52_000), tmp_path / "late").segments) == 1
    both = cut(trace, between(9000, 51_000), tmp_path / "both")
    assert [segment.paths.number for segment in both.segments] == [1, 2]
    assert_whole(tmp_path / "both")
    with pytest.raises(NotATraceError, match=r"nothing was recorded .* it has 0\.000001000 to"):
        cut(trace, between(20_000, 21_000), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_trace_that_is_being_written_can_be_cut(tmp_path: Path) -> None:
    recorded(tmp_path / "t").leave()
    made = cut(Trace(tmp_path / "t"), between(3000, 6000), tmp_path / "c")
    assert made.state == "closed"
    assert_whole(tmp_path / "c")


def test_a_cut_does_not_overwrite_an_existing_file(trace: Trace, tmp_path: Path) -> None:
    out = tmp_path / "c"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        cut(trace, EVERYTHING, out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="no such directory"):
        cut(trace, EVERYTHING, tmp_path / "nowhere" / "c")


def test_a_full_disk_leaves_no_partial_cut(trace: Trace, tmp_path: Path) -> None:
    for files in range(8):
        with pytest.raises(StorageError, match="no space left"):
            cut(trace, EVERYTHING, tmp_path / "c", FailingDisk(opens=files))
        assert os.listdir(tmp_path) == ["t"]
    cut(trace, EVERYTHING, tmp_path / "c", FailingDisk(opens=20))


def test_a_cut_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "c", []
    fsync = os.fsync  # noqa: TID251  (observed, not used)

    class NotingDisk(Disk):
        def sync_file_system(self, path: Path) -> None:
            super().sync_file_system(path)
            synced.append(("everything", out.exists()))

    def noting_fsync(fd: int) -> None:
        fsync(fd)
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), out.exists()))

    monkeypatch.setattr(os, "fsync", noting_fsync)
    cut(trace, EVERYTHING, out, NotingDisk())
    assert synced[-2:] == [("everything", False), (str(tmp_path), True)]


def test_an_index_beyond_its_data_is_reported_as_damage(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    os.truncate(made.stream().paths.data, 100)
    with pytest.raises(TraceDamagedError, match="lttv check"):
        cut(Trace(made.trace), EVERYTHING, tmp_path / "c")
    made.stream().paths.index.unlink()
    with pytest.raises(TraceDamagedError, match="no index"):
        cut(Trace(made.trace), EVERYTHING, tmp_path / "c")
    assert os.listdir(tmp_path) == ["t"]


def test_a_copy_keeps_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for at in (0, 1 << 20, 3 << 20):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(4 << 20)
    copy = Disk(tmp_path).open(target)
    with source.open("rb") as opened:
        copy.copy_from(opened.fileno(), 4096, (4 << 20) - 4096, 0)
        with pytest.raises(StorageError, match="too early"):
            copy.copy_from(opened.fileno(), 4096, 4 << 20, 0)
    copy.close()
    assert target.read_bytes() == source.read_bytes()[4096:]
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_a_copy_works_between_two_file_systems(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    source = shm / f"lttd-test-{os.getpid()}"
    source.write_bytes(bytes(range(256)) * 10_000)
    copy = Disk(tmp_path).open(tmp_path / "target")
    try:
        with source.open("rb") as opened:
            copy.copy_from(opened.fileno(), 7, 2_000_000, 3)
        assert (tmp_path / "target").read_bytes()[3:] == source.read_bytes()[7:2_000_007]
    finally:
        copy.close()
        source.unlink()


def test_lttv_cut_accepts_every_form_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "t").finish()
    trace, out = str(tmp_path / "t"), str(tmp_path / "c")
    assert main(["cut", trace, "--begin", "-3us", "--end", "22:13:20.0001", "-o", out]) == 0
    assert "closed, 1 segment" in capsys.readouterr().out
    begin = SeekIndex(segments(Path(out))[0].stream("fake_0").index).entries()["begin"][0]
    assert begin == 7000
    assert main(["cut", trace, "-o", out]) == 2
    assert main(["cut", trace, "--begin", "noon", "-o", out + "2"]) == 2
    assert Manifest.read(segments(Path(out))[0].manifest).state == "closed"

"""``lttv export --to ctf`` of CTF traces: babeltrace2 prints what lttv shows of the window."""

import random
from pathlib import Path

import pytest

import lttd
from lttd.abi.ctf_classes import Trace as Metadata
from lttd.abi.ctf_metadata import read_metadata
from lttd.errors import NotATraceError, TraceDamagedError, UsageError
from lttd.view.cli import main as lttv_main
from lttd.view.ctf import context
from lttd.view.export import export
from lttd.view.times import EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from tests.ctf_writer import CtfChannel, CtfTracer, write_ctf
from tests.data import FTRACE, SHARED_CTF, needs
from tests.lttng_events import Told, lttng_trace
from tests.test_ctf_view import REAL, assert_as_babeltrace2, kinds, lines_of
from tests.test_sources_replay_ctf import TRACERS, needs_babeltrace, printed, record

OTHER = "ff010203-0405-0607-0809-0a0b0c0d0e0f"


def calls(begin: int, count: int, step: int = 10) -> list[Told]:
    """Return events of different sizes."""
    return [
        (begin + step * at, "syscall_entry_openat", {"dfd": at, "filename": b"x" * (at % 7)})
        for at in range(count)
    ]


def between(begin: int, end: int) -> Window:
    return Window(Moment(begin, wall=False), Moment(end, wall=False))


def assert_export_is_the_window(
    trace: Path, out: Path, capfd: pytest.CaptureFixture[str], begin: int, end: int
) -> int:
    """Compare what babeltrace2 prints of the export with what lttv does; return the events."""
    words = [str(trace), "--begin", _seconds(begin), "--end", _seconds(end)]
    ours, _ = lines_of(capfd, "--style", "babeltrace", *words)
    if not ours:
        return 0
    export(Trace(trace), between(begin, end), "ctf", out)
    assert_as_babeltrace2(ours, out)
    return len(ours)


def _seconds(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09}"


@needs_babeltrace
@needs(SHARED_CTF)
@pytest.mark.parametrize("name", REAL, ids=str)
def test_babeltrace2_reads_of_the_export_the_events_of_the_window(
    name: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(SHARED_CTF / name, tmp_path / "t")
    times = [int(at) for batch in lttd.open(tmp_path / "t").window() for at in batch.time]
    some, more = sorted(random.Random(name.name).choices(times, k=2))
    for number, (begin, end) in enumerate([(some, more), (some, some)]):
        out = tmp_path / f"out{number}"
        assert assert_export_is_the_window(tmp_path / "t", out, capfd, begin, end)


@needs_babeltrace
@needs(SHARED_CTF)
@pytest.mark.parametrize("name", REAL, ids=str)
def test_a_whole_export_has_the_packets_and_losses_of_the_tracer(
    name: Path, tmp_path: Path
) -> None:
    segment = record(SHARED_CTF / name, tmp_path / "t")
    export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    stored = {path.name: path.read_bytes() for path in (segment / "streams").glob("*_*")}
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made.pop("metadata") == (segment / "streams/metadata").read_bytes()
    assert made == {name: data for name, data in stored.items() if data}
    assert printed(tmp_path / "out") == printed(SHARED_CTF / name)


@needs_babeltrace
@pytest.mark.parametrize("name", TRACERS)
def test_packets_of_any_machine_are_cut_at_their_events(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    channels = [CtfChannel(TRACERS[name], cpu).packet(5).packet(4, lost=3) for cpu in (0, 1)]
    write_ctf(tmp_path / "ctf", *channels)
    record(tmp_path / "ctf", tmp_path / "t")
    times = sorted(event.time for event in lttd.open(tmp_path / "t").events())
    assert len(times) == 18
    for first, last in [(3, 5), (1, 16), (9, 12)]:
        out = tmp_path / f"{first}-{last}"
        span = times[first], times[last]
        assert assert_export_is_the_window(tmp_path / "t", out, capfd, *span)


@needs_babeltrace
@pytest.mark.parametrize("order", ["le", "be"])
def test_an_event_that_ends_within_a_byte_ends_the_content_there(
    order: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(kinds(order, tmp_path / "ctf"), tmp_path / "t")
    times = [event.time for event in lttd.open(tmp_path / "t").events()]
    for at, behind in [(0, 0), (0, 4), (2, 3), (5, 6), (6, 6)]:
        out = tmp_path / f"{at}-{behind}"
        span = times[at], times[behind]
        found = assert_export_is_the_window(tmp_path / "t", out, capfd, *span)
        assert found == behind - at + 1


@needs_babeltrace
def test_low_bits_of_times_count_from_the_new_begin_of_a_packet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packets = [calls(1000, 30, 1 << 26), calls((1 << 31) + 7, 30, 1 << 25)]
    lttng_trace(tmp_path / "ctf", {0: packets})
    record(tmp_path / "ctf", tmp_path / "t")
    times = [told[0] for packet in packets for told in packet]
    for first, last in [(1, 40), (9, 28), (31, 59)]:
        out = tmp_path / f"{first}-{last}"
        span = times[first], times[last]
        found = assert_export_is_the_window(tmp_path / "t", out, capfd, *span)
        assert found == last - first + 1


@needs_babeltrace
def test_segments_of_one_recording_are_one_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lttng_trace(tmp_path / "a", {0: [calls(1000, 9)], 1: [calls(1005, 9)]}, lost=(2,))
    lttng_trace(tmp_path / "b", {0: [calls(2000, 9)]}, lost=(5,), sequence=1)
    record(tmp_path / "a", tmp_path / "t")
    record(tmp_path / "b", tmp_path / "t", "--append")
    export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "channel0_0", "channel0_1", "metadata",
    ]  # fmt: skip
    assert assert_export_is_the_window(tmp_path / "t", tmp_path / "some", capfd, 1030, 2040) == 17
    (loss,) = printed(tmp_path / "out")[1]
    assert "3 events" in loss


def test_segments_with_the_same_metadata_share_one_reading_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, words in enumerate([(), ("--append",), ("--append",)]):
        made = lttng_trace(tmp_path / f"{number}", {0: [calls(1000 * (number + 1), 9)]})
        record(made, tmp_path / "t", *words)
    read = list[bytes]()

    def reads(data: bytes) -> Metadata:
        read.append(data)
        return read_metadata(data)

    monkeypatch.setattr(context, "read_metadata", reads)
    context.read_known.cache_clear()
    export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    assert read == [(tmp_path / "out" / "metadata").read_bytes()]


@needs_babeltrace
def test_several_recordings_have_a_directory_each(tmp_path: Path) -> None:
    lttng_trace(tmp_path / "a", {0: [calls(1000, 9)]})
    lttng_trace(tmp_path / "b", {0: [calls(2000, 9)]}, uuid=OTHER)
    record(tmp_path / "a", tmp_path / "t")
    record(tmp_path / "b", tmp_path / "t", "--append")
    record(tmp_path / "a", tmp_path / "t", "--append")  # the same once more: time goes back
    export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    segments = sorted(path.name for path in (tmp_path / "t").glob("*-replay"))
    assert len(segments) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == segments
    assert len(printed(tmp_path / "out")[0].splitlines()) == 27


@needs_babeltrace
@pytest.mark.parametrize("form", ["sparse", "compressed"])
def test_the_export_is_the_same_from_any_form_of_storage(form: str, tmp_path: Path) -> None:
    lttng_trace(tmp_path / "ctf", {0: [calls(1000, 9), calls(2000, 9)]})
    words = ["--layout", "sparse"] if form == "sparse" else []
    record(tmp_path / "ctf", tmp_path / "t", *words)
    if form == "compressed":
        assert lttv_main(["compress", str(tmp_path / "t")]) == 0
    export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    assert printed(tmp_path / "out") == printed(tmp_path / "ctf")
    assert (tmp_path / "out/channel0_0").stat().st_size < 2048


@needs_babeltrace
def test_damage_ends_a_packet_of_the_export(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lttng_trace(tmp_path / "ctf", {0: [calls(1000, 9), calls(2000, 9), calls(3000, 9)]})
    segment = record(tmp_path / "ctf", tmp_path / "t")
    data = segment / "streams/channel0_0"
    raw = bytearray(data.read_bytes())
    entry = len(raw) // 3
    at = raw.index(b"xxxxxx\0", entry)
    raw[at + 7] = 30  # an event of an id that is not declared
    data.write_bytes(raw)
    ours, err = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    assert len(ours) == 25
    assert "no event of id 30" in err or "the rest of the packet is left out" in err
    told = export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    assert any("the rest of the packet is left out" in line for line in told)
    assert_as_babeltrace2(ours, tmp_path / "out")


def test_a_packet_whose_events_cannot_move_is_refused_in_one_line(tmp_path: Path) -> None:
    lttng_trace(tmp_path / "ctf", {0: [calls(1000, 9)]}, align_bits=64)
    record(tmp_path / "ctf", tmp_path / "t")
    told = r"aligned to 8 bytes: begin at 0\.000001000, or use lttv cut"
    with pytest.raises(UsageError, match=told):
        export(Trace(tmp_path / "t"), between(1020, 1080), "ctf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(Trace(tmp_path / "t"), between(1000, 1030), "ctf", tmp_path / "out")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    segment = record(write_ctf(tmp_path / "ctf", CtfChannel(CtfTracer()).packet(3)), tmp_path / "t")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="single events of a CTF trace; --to parquet can"):
        export(Trace(tmp_path / "t").without_own_threads(), EVERYTHING, "ctf", out)
    with pytest.raises(NotATraceError, match="nothing was recorded"):
        export(Trace(tmp_path / "t"), between(10**12, 10**12), "ctf", out)
    for to in ("trace.dat", "ltt", "blktrace"):
        with pytest.raises(UsageError, match="formats for it: ctf, parquet, systrace"):
            export(Trace(tmp_path / "t"), EVERYTHING, to, out)
    (segment / "streams/metadata").write_text("/* CTF 1.8 */ trace { major = ")
    with pytest.raises(TraceDamagedError, match="streams/metadata"):
        export(Trace(tmp_path / "t"), EVERYTHING, "ctf", out)
    (segment / "streams/metadata").unlink()
    with pytest.raises(TraceDamagedError, match=r"streams/metadata.*No such file"):
        export(Trace(tmp_path / "t"), EVERYTHING, "ctf", out)
    assert not out.exists()


@needs_babeltrace
def test_a_trace_of_ftrace_and_lttng_becomes_a_directory_of_each(tmp_path: Path) -> None:
    record(FTRACE, tmp_path / "t")
    lttng_trace(tmp_path / "ctf", {0: [calls(1000, 9)]})
    record(tmp_path / "ctf", tmp_path / "t", "--append")
    lines = export(Trace(tmp_path / "t"), EVERYTHING, "ctf", tmp_path / "out")
    assert [line.partition(" of ")[0] for line in lines][::2] or lines
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ctf", "ftrace"]
    assert len(printed(tmp_path / "out/ctf")[0].splitlines()) == 9
    with pytest.raises(UsageError, match="holds ctf or ftrace, not both: export one segment"):
        export(Trace(tmp_path / "t"), EVERYTHING, "systrace", tmp_path / "text")
    export(Trace(tmp_path / "t"), between(1000, 1030), "ctf", tmp_path / "some")
    assert (tmp_path / "some/metadata").exists()

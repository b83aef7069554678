"""Store, check, cut, repair and restore traces of LTTng 0.x in both layouts."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from lttd.abi import ltt_walk
from lttd.config import SourceSpec
from lttd.errors import NotATraceError, UsageError
from lttd.files import Disk
from lttd.readfile import ReadFile
from lttd.recorder import Recorder
from lttd.recording import Recording
from lttd.sources.registry import open_source
from lttd.stored import StoredStream
from lttd.subbuffer import Batch, BufferPool
from lttd.tracedir import segments
from lttd.view.commands.cut import cut
from lttd.view.export import export
from lttd.view.times import EVERYTHING, Moment, Window, window_of
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.data import SHARED_LTT, needs
from tests.running import lttv, until
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe, write_trace
from tests.tools import replayed

LAYOUTS = ("packed", "sparse")
NAMES = ("metadata_0", "kernel_0", "kernel_1")


def written(directory: Path, tracer: Tracer, *, subbuffer_bytes: int = 16384) -> None:
    """Write a trace whose sub-buffers are full, nearly empty, flushed and header-only."""
    metadata = LttBuffer(tracer)
    describe(metadata, Marker("kernel", "tick", 3, "n %u"), tracer.start_tsc + 1)
    buffers = {"metadata_0": metadata}
    for cpu in (0, 1):
        buffer = LttBuffer(tracer, subbuffer_bytes=subbuffer_bytes, count=64)
        tsc = tracer.start_tsc
        for burst in range(20):
            for number in range(burst * burst * 5 + 1):
                buffer.log(3, tracer.pack(("u4", number)), tsc := tsc + 900 + cpu, 4)
            buffer.lose(burst % 3)
            buffer.flush(tsc := tsc + 900)
        buffers[f"kernel_{cpu}"] = buffer
    write_trace(directory, buffers)


def record(directory: Path, trace: Path, layout: str, number: int = 1) -> Trace:
    """Replay into segment *number* of *trace* within this process."""
    source = open_source(SourceSpec("replay", str(directory), {}), BufferPool())
    recorder = Recorder()
    recorder.start()
    try:
        trace.mkdir(mode=0o750, exist_ok=True)
        recording = Recording.begin(recorder, trace, number, source, layout, Disk())
        for stream, lane in recording.streams_and_lanes():
            while isinstance(batch := stream.take(flush=True), Batch):
                recorder.offer(lane, batch)
        recording.close()
    finally:
        recorder.close()
        source.close()
    return Trace(trace)


def without_padding(path: Path) -> bytes:
    """Return a file whose unused bytes of sub-buffers are zeros."""
    data = bytearray(path.read_bytes())
    found = ltt_walk.survey(bytes(data))
    columns = zip(found.offsets_bytes, found.used_bytes, found.sizes_bytes, strict=True)
    for at, used, size in columns:
        data[at + used : at + size] = bytes(size - used)
    return bytes(data)


def stream(trace: Trace, name: str) -> StoredStream:
    return next(one for one in trace.segments[0].streams if one.name == name)


def files_below(directory: Path) -> dict[str, Path]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path for path in paths}


def assert_whole(trace: Path, *, events: bool = True) -> None:
    for segment in segments(trace):
        report = check(segment, events=events)
        assert report.findings == []


@pytest.fixture(scope="module", params=LAYOUTS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The real trace as a replay by ``lttd`` stores it."""
    out = tmp_path_factory.mktemp("real") / request.param
    return replayed(out, "--layout", request.param, directory=SHARED_LTT)


@needs(SHARED_LTT)
def test_packed_data_are_the_used_bytes_and_sparse_data_are_in_slots(real: Trace) -> None:
    packed = real.segments[0].manifest.layout == "packed"
    for one in real.segments[0].streams:
        original = (SHARED_LTT / one.name).read_bytes()
        found = ltt_walk.survey(original)
        entries = one.index.entries()
        slot_bytes = int(found.sizes_bytes.max())
        assert one.info.subbuffer_bytes == slot_bytes
        assert (entries["content_bits"] == found.used_bytes * 8).all()
        if packed:
            assert one.data_bytes == found.used_bytes.sum()
            continue
        assert one.data_bytes == len(entries) * slot_bytes
        assert (entries["offset_bytes"] == np.arange(len(entries)) * slot_bytes).all()
        for number, (at, used) in enumerate(
            zip(found.offsets_bytes, found.used_bytes, strict=True)
        ):
            slot = number * slot_bytes
            assert one.read(slot, slot + used) == original[at : at + used]
    assert_whole(real.path)


@needs(SHARED_LTT)
def test_the_times_of_the_real_trace_convert_to_the_wall_clock(real: Trace) -> None:
    told = json.loads(lttv("info", "--json", real.path).stdout)
    assert told["begin_utc"] == "2010-01-05T18:16:06.408819000Z"
    assert told["end"] == 13589907059242
    assert told["padding_bytes"] == 466_944 - told["payload_bytes"]
    window = window_of(real, "2010-01-05T18:16:06.5688410Z", "+0.17s")
    assert window.bounds(real.segments[0]) == (13589852353524, 13589862331524)
    entries = stream(real, "vm_state_0").index
    assert entries.between(*window.bounds(real.segments[0])) == (1, 2)


@needs(SHARED_LTT)
def test_the_real_trace_is_restored_byte_for_byte(real: Trace, tmp_path: Path) -> None:
    done = lttv("export", "--to", "ltt", "-o", tmp_path / "out", real.path)
    assert done.returncode == 0, done.stderr
    assert "23 sub-buffers, 466944 bytes, in 22 files" in done.stderr
    made, originals = files_below(tmp_path / "out"), files_below(SHARED_LTT)
    assert made.keys() == originals.keys()
    for name, path in originals.items():
        assert made[name].read_bytes() == path.read_bytes(), name


@needs(SHARED_LTT)
def test_a_cut_of_the_real_trace_has_the_same_lines(real: Trace, tmp_path: Path) -> None:
    window = ("--begin", "13589.86", "--end", "13589.87")
    done = lttv("cut", real.path, *window, "-o", tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    lines = [
        re.sub(r"\(\S*/", "(", lttv("text", trace, *window).stdout).splitlines()
        for trace in (real.path, tmp_path / "cut")
    ]
    assert len(lines[0]) > 100
    assert lines[0] == lines[1]
    again = replayed(tmp_path / "again", directory=SHARED_LTT)
    assert len(lttv("text", again.path).stdout.splitlines()) == 15_316


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seek_finds_the_same_sub_buffer_in_few_steps(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer()
    buffer = LttBuffer(tracer, count=8192)
    for number in range(5000):
        buffer.log(1, tracer.pack(("u4", number)), tracer.start_tsc + 1000 * number, 4)
        buffer.flush(tracer.start_tsc + 1000 * number + 500)
    write_trace(tmp_path / "from", {"metadata_0": LttBuffer(tracer), "kernel_0": buffer})
    trace = record(tmp_path / "from", tmp_path / "t", layout)
    one = stream(trace, "kernel_0")
    reads: list[int] = []
    read = ReadFile.read_all_of

    def counted(file: ReadFile, begin: int, end: int) -> memoryview:
        reads.append(begin)
        return read(file, begin, end)

    monkeypatch.setattr(ReadFile, "read_all_of", counted)
    for number in (0, 1, 2500, 4998, 4999):
        reads.clear()
        found = one.index.first_at_or_after(tracer.ns(tracer.start_tsc + 1000 * number - 400))
        assert len(reads) <= 13
        at = int(one.index.entries()["offset_bytes"][found])
        header_bytes = 68 + (16 if number == 0 else 4)  # the first event has its whole time
        at += header_bytes
        assert int.from_bytes(one.read(at, at + 4), "little") == number
    past = tracer.ns(tracer.start_tsc + 1000 * 5000)
    assert one.index.first_at_or_after(past) == len(one.index)


def test_padding_becomes_holes(tmp_path: Path) -> None:
    tracer = Tracer(minor=4)
    written(tmp_path / "from", tracer, subbuffer_bytes=1 << 18)
    trace = record(tmp_path / "from", tmp_path / "t", "sparse")
    for cpu in (0, 1):
        one = stream(trace, f"kernel_{cpu}")
        apparent = one.paths.data.stat().st_size
        assert apparent == (tmp_path / "from" / one.name).stat().st_size
        used = one.index.entries()["content_bits"].astype(np.int64) // 8
        blocks_bytes = int((-(-used // 4096) * 4096).sum())
        # The file system needs more blocks for the map of so many extents.
        allocated_bytes = one.paths.data.stat().st_blocks * 512
        assert blocks_bytes <= allocated_bytes <= blocks_bytes + (64 << 10) < apparent // 4
    assert_whole(trace.path)


TRACERS = [
    Tracer(minor=minor, order=order, pointer_bytes=pointer, alignment=pointer)
    for minor, (order, pointer) in product(range(7), [("<", 8), (">", 4)])
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tracer", TRACERS, ids=str)
def test_every_format_is_kept_whole_and_restored(
    tmp_path: Path, tracer: Tracer, layout: str
) -> None:
    written(tmp_path / "from", tracer)
    trace = record(tmp_path / "from", tmp_path / "t", layout)
    assert_whole(trace.path)
    lost = {one.name: one.events_lost for one in trace.summaries()}
    assert lost["kernel_0"] == (sum(burst % 3 for burst in range(20)) if tracer.minor >= 2 else 0)
    export(trace, EVERYTHING, "ltt", tmp_path / "out")
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == without_padding(tmp_path / "from" / name)


def test_segments_of_one_trace_are_joined(tmp_path: Path) -> None:
    written(tmp_path / "whole", Tracer())
    for part in (1, 2):
        (tmp_path / f"part{part}").mkdir()
    for name in NAMES:
        original = (tmp_path / "whole" / name).read_bytes()
        starts = ltt_walk.survey(original).offsets_bytes
        middle = int(starts[len(starts) // 2])
        (tmp_path / "part1" / name).write_bytes(original[: middle or None])
        (tmp_path / "part2" / name).write_bytes(original[middle:] if middle else b"")
    for number in (1, 2):
        record(tmp_path / f"part{number}", tmp_path / "t", "packed", number)
    export(Trace(tmp_path / "t"), EVERYTHING, "ltt", tmp_path / "out")
    for name in NAMES:
        restored = (tmp_path / "out" / name).read_bytes()
        assert restored == without_padding(tmp_path / "whole" / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_puts_channels_back_into_their_folders(tmp_path: Path, layout: str) -> None:
    tracer = Tracer(minor=2)
    metadata, cpu = LttBuffer(tracer), LttBuffer(tracer, overwrite=True)
    write_trace(tmp_path / "from", {"control/metadata_0": metadata, "flight-cpu_0": cpu})
    trace = record(tmp_path / "from", tmp_path / "t", layout)
    export(trace, EVERYTHING, "ltt", tmp_path / "out")
    assert files_below(tmp_path / "out").keys() == {"control/metadata_0", "flight-cpu_0"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("minor", [4, 6])
def test_an_ltt_window_holds_whole_sub_buffers_and_all_metadata(
    tmp_path: Path, layout: str, minor: int
) -> None:
    written(tmp_path / "from", Tracer(minor=minor))
    trace = record(tmp_path / "from", tmp_path / "t", layout)
    entries = stream(trace, "kernel_0").index.entries()
    begin, end = int(entries["begin"][5]) + 1, int(entries["end"][9]) - 1
    window = Window(Moment(begin, wall=False), Moment(end, wall=False))
    made = cut(trace, window, tmp_path / "cut")
    assert_whole(made.path)
    kept = stream(made, "kernel_0").index.entries()
    assert kept["begin"].tolist() == entries["begin"][5:10].tolist()
    assert len(stream(made, "metadata_0").index) == len(stream(trace, "metadata_0").index)
    for number, (source, through) in enumerate([(trace, window), (made, EVERYTHING)]):
        export(source, through, "ltt", tmp_path / f"out{number}")
    for name in NAMES:
        one, other = (tmp_path / f"out{number}" / name for number in (0, 1))
        assert one.read_bytes() == other.read_bytes()
    original = without_padding(tmp_path / "from" / "kernel_0")
    assert (tmp_path / "out0" / "kernel_0").read_bytes() in original
    late = Window(Moment(1 << 62, wall=False), None)
    with pytest.raises(NotATraceError):
        cut(trace, late, tmp_path / "nothing")
    with pytest.raises(NotATraceError):
        export(trace, late, "ltt", tmp_path / "nothing")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("minor", [0, 4, 5])
def test_a_missing_ltt_index_is_made_again_from_the_data(
    tmp_path: Path, layout: str, minor: int
) -> None:
    written(tmp_path / "from", Tracer(minor=minor))
    trace = record(tmp_path / "from", tmp_path / "t", layout)
    before = {one.name: one.index.entries().copy() for one in trace.segments[0].streams}
    summaries = trace.summaries()
    for one in trace.segments[0].streams:
        one.paths.index.unlink()
    done = lttv("check", "--repair", trace.path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Trace(trace.path)
    for one in again.segments[0].streams:
        entries = one.index.entries()
        assert (entries == before[one.name]).all()
    assert again.summaries() == summaries


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_leaves_a_prefix_of_every_channel(tmp_path: Path, layout: str) -> None:
    tracer = Tracer()
    block = LttBuffer(tracer, subbuffer_bytes=32768)
    while not block.readable:
        block.log(1, b"content!" * 39 + b"content\0", tracer.start_tsc + 10 * len(block.logged))
    (tmp_path / "from").mkdir()
    metadata = LttBuffer(tracer)
    describe(metadata, Marker("kernel", "content", 1, "text %s"), tracer.start_tsc)
    write_trace(tmp_path / "from", {"metadata_0": metadata})
    for cpu in (0, 1):
        (tmp_path / "from" / f"kernel_{cpu}").write_bytes(block.peek() * 6000)
    words = [sys.executable, "-m", "lttd", "-t", tmp_path / "t", "--layout", layout]
    words += ["--source", f"replay:{tmp_path / 'from'}", "--backlog", "8M"]
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def is_written() -> bool:
        # Without the markers no event could be decoded.
        sizes = {path.name: path.stat().st_size for path in tmp_path.glob("t/*/streams/*_*")}
        return bool(sizes.pop("metadata_0", 0)) and any(sizes.values())

    until(is_written, "data")
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = lttv("check", "--repair", tmp_path / "t")
    assert done.returncode == 0, done.stdout + done.stderr
    # The declarations of the events may not have been written yet.
    assert_whole(tmp_path / "t", events=False)
    export(Trace(tmp_path / "t"), EVERYTHING, "ltt", tmp_path / "out")
    kept = files_below(tmp_path / "out")
    assert kept
    for name in {"kernel_0", "kernel_1"} & kept.keys():
        restored = kept[name].read_bytes()
        with (tmp_path / "from" / name).open("rb") as file:
            original = file.read(len(restored))
        used = ltt_walk.survey(block.peek()).used_bytes[0]
        for at in range(0, len(restored), 32768):
            assert restored[at : at + used] == original[at : at + used]


def test_damage_is_reported_at_once_and_kept_in_the_trace(tmp_path: Path) -> None:
    written(tmp_path / "from", Tracer())
    path = tmp_path / "from" / "kernel_1"
    data = bytearray(path.read_bytes())
    second = ltt_walk.survey(bytes(data)).offsets_bytes[1]
    data[second + 16] ^= 0xFF
    path.write_bytes(data)
    words = [sys.executable, "-m", "lttd", "-t", tmp_path / "t", "--summary", "none"]
    run = subprocess.run(
        [*words, "--source", f"replay:{tmp_path / 'from'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"kernel_1: byte {second}: magic" in run.stderr
    (line,) = [one for one in Trace(tmp_path / "t").summaries() if one.name == "kernel_1"]
    assert line.lost["damaged_bytes"] == 4096
    assert_whole(tmp_path / "t")
    lines = export(Trace(tmp_path / "t"), EVERYTHING, "ltt", tmp_path / "out")
    assert "1 losses cannot be stated" in lines[-1]


def test_a_directory_without_channels_has_its_own_exit_status(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lttd", "-t", tmp_path / "t"]
    run = subprocess.run(
        [*words, "--source", f"replay:{tmp_path},abi=ltt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 77
    assert "holds no channel of LTTng 0.x" in run.stderr
    assert not (tmp_path / "t").exists()


def test_foreign_kinds_and_several_traces_are_not_exported_as_ltt(tmp_path: Path) -> None:
    ftrace = replayed(tmp_path / "ftrace")
    with pytest.raises(UsageError, match="holds ftrace, and --to ltt takes only ltt"):
        export(ftrace, EVERYTHING, "ltt", tmp_path / "out")
    for number in (1, 2):
        written(tmp_path / f"from{number}", Tracer(start_s=number))
        record(tmp_path / f"from{number}", tmp_path / f"t{number}", "packed")
    (one,) = segments(tmp_path / "t1")
    one.directory.rename(tmp_path / "t2" / one.directory.name.replace("000001", "000002"))
    with pytest.raises(UsageError, match="different traces"):
        export(Trace(tmp_path / "t2"), EVERYTHING, "ltt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_channel_name_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    written(tmp_path / "from", Tracer())
    trace = record(tmp_path / "from", tmp_path / "t", "packed")
    manifest = trace.segments[0].paths.manifest
    told = json.loads(manifest.read_text())
    told["streams"][0]["channel"] = "../../kernel"
    data, index = (trace.segments[0].paths.streams / part for part in ("kernel_0", "index"))
    os.rename(data, data.with_name("%2E%2E%2F%2E%2E%2Fkernel_0"))
    os.rename(index / "kernel_0.idx", index / "%2E%2E%2F%2E%2E%2Fkernel_0.idx")
    manifest.write_text(json.dumps(told))
    with pytest.raises(Exception, match="cannot be called"):
        export(Trace(tmp_path / "t"), EVERYTHING, "ltt", tmp_path / "out")

"""Limits refuse files at once that are far larger than their content can be."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lttd import limits
from lttd.cli import main as lttd
from lttd.errors import TraceDamagedError
from lttd.files import Disk
from lttd.index import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    GAPS_HEADER,
    INDEX_HEADER,
    UNKNOWN,
    SeekIndex,
    encode_gaps,
    read_gaps,
)
from lttd.limits import AT_ONE_TIME, COMMAND_LINES, COMMANDS, GAPS, KALLSYMS, Limit
from lttd.manifest import Manifest, StreamRecord
from lttd.readfile import read_limited
from lttd.recover import recover
from lttd.sources.blktrace.rows import ProcessNotes, RecordRows
from lttd.stored import StoredStream
from lttd.subbuffer import Batch, Gap, Reason, StreamId, StreamInfo, Unit
from lttd.tracedir import SegmentPaths, segments
from lttd.view.addresses import Symbols
from lttd.view.cli import main as view
from lttd.view.notes import Notes
from lttd.view.task_names import Names
from lttd.view.verify import MOST_FINDINGS, check
from tests.blk import record
from tests.confined import confined
from tests.fuzz_traces import blktrace_files, blocks, ftrace_files, ltt_files, small

TERABYTE = 1 << 40
ROWS = [value for value in vars(limits).values() if isinstance(value, Limit)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return small(tmp_path / "t")


@pytest.fixture
def segment(trace: Path) -> SegmentPaths:
    return segments(trace)[0]


def stream_of(segment: SegmentPaths) -> StoredStream:
    manifest = Manifest.read(segment.manifest)
    return StoredStream(segment, manifest, manifest.streams[0])


def quickly(act: Callable[[], object]) -> str:
    """Run *act* in a process with 1 GiB and 10 s of CPU time; return its result as text."""
    ended = confined(act)
    assert ended.well, ended.told
    return ended.told


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_every_limit_has_a_reason(row: Limit) -> None:
    assert row.most > 0
    assert row.unit
    assert len(row.why) > 20


def test_the_table_in_the_docs_matches_the_table_in_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs/SECURITY.md").read_text()
    table = [f"| {row.what} | {row.told} | {row.why} |" for row in ROWS]
    assert "\n".join(table) in page
    assert page.count("| at most |") == 1


def test_a_file_beyond_its_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.touch()
    os.truncate(path, TERABYTE)
    with pytest.raises(TraceDamagedError) as raised:
        read_limited(path, limits.MANIFEST)
    assert str(raised.value) == (
        f"{path}: byte 25165824: 1,099,511,627,776 bytes;"
        " at most 24 MiB of a manifest (trace.json) are read"
    )


@pytest.mark.parametrize("arguments", [["info"], ["text"], ["check"], ["check", "--repair"]])
@pytest.mark.parametrize(
    "name",
    ["trace.json", "streams/index/fake_0.idx", "streams/fake_0", "streams/index/fake_0.gaps"],
)
def test_a_sparse_terabyte_in_place_of_a_file_takes_little_time_and_memory(
    trace: Path, segment: SegmentPaths, name: str, arguments: list[str]
) -> None:
    os.truncate(segment.directory / name, TERABYTE)
    command, *options = arguments
    quickly(lambda: view([command, *options, str(trace)]))


def test_an_index_of_more_entries_than_the_data_can_hold_is_refused(segment: SegmentPaths) -> None:
    path = segment.stream("fake_0").index
    data_bytes = segment.stream("fake_0").data.stat().st_size
    os.truncate(path, 1 << 30)
    with pytest.raises(TraceDamagedError, match="14,913,080 entries for") as raised:
        _ = stream_of(segment).index
    assert raised.value.offset_bytes == 16 + data_bytes // 16 * ENTRY_BYTES
    assert [one.reason for one in check(segment).findings] == [raised.value.reason]
    recover(segment, Disk())
    assert check(segment).whole


def test_an_index_that_ends_with_zeros_is_refused_though_the_data_are_as_large(
    segment: SegmentPaths,
) -> None:
    paths = segment.stream("fake_0")
    os.truncate(paths.index, 1 << 30)
    os.truncate(paths.data, TERABYTE)
    with pytest.raises(TraceDamagedError, match="the last entry is all zeros"):
        _ = stream_of(segment).index
    quickly(lambda: recover(segment, Disk()))
    assert check(segment).whole


def test_entries_that_all_begin_at_one_time_are_read_in_pieces(
    trace: Path, segment: SegmentPaths
) -> None:
    paths = segment.stream("fake_0")
    whole = paths.index.read_bytes()
    with paths.index.open("r+b") as index:
        index.seek(16 + 12_000_000 * ENTRY_BYTES)
        index.write(whole[-ENTRY_BYTES:])
    os.truncate(paths.data, TERABYTE)

    def text() -> str:
        status = view(["text", str(trace)])
        return f"status {status}"

    assert quickly(text) == "status 1"
    count = len(SeekIndex(paths.index))
    assert count == 12_000_001 > AT_ONE_TIME.most


def test_check_describes_a_few_of_many_bad_entries(segment: SegmentPaths) -> None:
    paths = segment.stream("fake_0")
    with paths.index.open("ab") as index:
        index.write(struct.pack(">9Q", *[7] * 9) * 400_000)
    os.truncate(paths.data, TERABYTE)
    begun = time.process_time()
    found = check(segment)
    assert time.process_time() - begun < 5
    assert 1 <= len(found.findings) <= 10 * MOST_FINDINGS


def test_a_gaps_file_beyond_its_limit_is_refused(segment: SegmentPaths) -> None:
    path = segment.stream("fake_0").gaps
    with path.open("wb") as gaps:
        gaps.write(GAPS_HEADER)
        os.truncate(gaps.fileno(), 16 + 40 * (GAPS.most + 1))
    with pytest.raises(TraceDamagedError, match="2,000,001 gaps; at most 2,000,000 gaps of a str"):
        read_gaps(path)
    with pytest.raises(TraceDamagedError, match="2,000,001 gaps"):
        recover(segment, Disk())


@pytest.mark.parametrize("count", [(1 << 63), UNKNOWN - 1])
def test_a_loss_beyond_63_bits_has_an_unknown_number(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.gaps"
    path.write_bytes(GAPS_HEADER + encode_gaps([Gap(0, Reason.TORN, Unit.EVENTS, count, 1, 1)], 0))
    assert [gap.count for gap in read_gaps(path)] == [None]


def test_repair_keeps_the_data_before_a_hole_of_a_terabyte(segment: SegmentPaths) -> None:
    manifest = json.loads(segment.manifest.read_bytes())
    segment.manifest.write_text(json.dumps(manifest | {"state": "open"}))
    path = segment.stream("fake_0").data
    before = path.read_bytes()
    os.truncate(path, TERABYTE)
    quickly(lambda: recover(segment, Disk()))
    assert path.read_bytes() == before


def test_sparse_slots_are_walked_to_the_first_that_was_never_written(
    segment: SegmentPaths,
) -> None:
    manifest = replace(Manifest.read(segment.manifest), layout="sparse")
    stream = StoredStream(
        segment, manifest, StreamRecord(StreamInfo(StreamId("hole", 0), "ftrace", 4096, 16))
    )
    stream.paths.data.write_bytes((struct.pack("<QQ", 5, 100) + bytes(4080)) * 3)
    os.truncate(stream.paths.data, TERABYTE)
    assert quickly(lambda: len(stream.walk().begin)) == "3"


def test_many_missing_segments_are_counted_and_not_listed(
    trace: Path, segment: SegmentPaths
) -> None:
    name = segment.directory.name.replace("000001", "1000000000000")
    shutil.copytree(segment.directory, trace / name)
    assert quickly(lambda: view(["text", str(trace)])) == "0"


def test_names_beyond_the_limit_of_the_commands_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "commands"
    path.write_bytes(b"5\t7\t7\tbash\n")
    os.truncate(path, TERABYTE)
    notes = Notes()
    names = Names([path], notes)
    assert names.noted == {7: [(5, b"bash")]}
    assert notes.told() == [f"{path}: {COMMANDS}; later names come from the events alone"]


def test_names_beyond_the_limit_of_lines_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "commands"
    path.write_bytes(b"5\t7\t7\ta\n" * COMMAND_LINES.most + b"6\t8\t8\tb\n")
    notes = Notes()
    assert list(Names([path], notes).noted) == [7]
    assert notes.told() == [f"{path}: {COMMAND_LINES}; later names come from the events alone"]


@pytest.mark.parametrize(
    "line",
    [b"%s\t7\t7\ta" % (b"9" * 5000), b"1\t%s\t7\ta" % (b"9" * 5000), b"1\t-7\t7\ta", b"1\t7"],
)
def test_an_invalid_line_of_commands_is_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "commands"
    path.write_bytes(line + b"\n5\t7\t7\tbash\n")
    assert Names([path]).noted == {7: [(5, b"bash")]}


def test_kallsyms_beyond_its_limit_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(b"ff t start\n")
    assert Symbols(tmp_path).told(0xFF, offset=False) == b"start"
    os.truncate(path, TERABYTE)
    notes = Notes()
    assert Symbols(tmp_path, notes).told(0xFF, offset=False) == b"0xff"
    assert notes.told() == [f"{path}: byte {KALLSYMS.most}: {KALLSYMS}; addresses stay numbers"]


def test_lines_of_kallsyms_without_a_function_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_bytes(b"zz t a\n" + b"f" * 5000 + b" t b\nff t " + b"x" * 10_000 + b"\nff\n")
    assert Symbols(tmp_path).told(0xFF, offset=True) == b"x" * 512 + b"+0x0"


def test_the_place_of_marks_has_a_name_without_kallsyms_and_no_other_address_has(
    tmp_path: Path,
) -> None:
    (tmp_path / "mark_symbols").write_bytes(
        b"ffffffff81498b1a ffffffff81498b1b tracing_mark_write\n"
    )
    symbols = Symbols(tmp_path)
    assert symbols.told(0xFFFFFFFF81498B1A, offset=False) == b"tracing_mark_write"
    for address in (0xFFFFFFFF81498B1B, 0xFFFFFFFF81498B19):
        assert symbols.told(address, offset=False) == b"0x%x" % address
    # Whoever may not see addresses gets zeros.
    (tmp_path / "kallsyms").write_bytes(b"0000000000000000 t tracing_mark_write\n")
    assert Symbols(tmp_path).name(0xFFFFFFFF81498B1A) == b"tracing_mark_write"
    (tmp_path / "kallsyms").write_bytes(b"ffffffff81498a90 t its_name\n")
    assert Symbols(tmp_path).name(0xFFFFFFFF81498B1A) == b"its_name"


def test_a_file_of_marks_that_is_not_one_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "mark_symbols").write_bytes(b"x" * 9000)
    assert Symbols(tmp_path).told(0xFF, offset=False) == b"0xff"


EVENT_FILES = ["events/files/opened/format", "events/header_page", "commands", "kallsyms"]


@pytest.mark.parametrize("name", EVENT_FILES)
@pytest.mark.parametrize(
    "arguments", [["text"], ["text", "--json"], ["formats"], ["export", "--to", "trace.dat"]]
)
def test_a_sparse_terabyte_among_the_files_of_tracefs_leaves_the_rest_readable(
    tmp_path: Path, trace: Path, segment: SegmentPaths, name: str, arguments: list[str]
) -> None:
    path = segment.directory / "tracefs" / name
    path.touch()
    os.truncate(path, TERABYTE)
    command, *options = arguments
    out = ["-o", str(tmp_path / "out")] if command == "export" else []
    status = quickly(lambda: view([command, *options, *out, str(trace)]))
    assert status == ("1" if command == "export" and name != "commands" else "0")


REPLAYED = [
    (ftrace_files, "ftrace", "per_cpu/cpu0/trace_pipe_raw"),
    (blktrace_files, "blktrace", "made.blktrace.0"),
    (ltt_files, "ltt", "kernel_0"),
]


@pytest.mark.parametrize(("make", "abi", "name"), REPLAYED, ids=["ftrace", "blktrace", "ltt"])
def test_a_hole_too_large_for_a_sub_buffer_ends_a_replay_with_a_remedy(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    abi: str,
    name: str,
) -> None:
    path = make(tmp_path / "from") / name
    size_bytes = -(-path.stat().st_size // 4096) * 4096
    os.truncate(path, TERABYTE)
    capfd.readouterr()
    arguments = ["-t", str(tmp_path / "t"), "--source", f"replay:{tmp_path / 'from'},abi={abi}"]
    assert quickly(lambda: lttd(arguments)) == "1"
    hole = TERABYTE - size_bytes
    assert capfd.readouterr().err == (
        f"lttd: {path}: byte {size_bytes}: a hole of {hole:,} bytes; at most 2 MiB of a hole in"
        f" a replayed file are read; truncate -s {size_bytes} cuts it\n"
    )


def test_repair_of_a_block_trace_keeps_the_data_before_a_hole(tmp_path: Path) -> None:
    (segment,) = segments(blocks(tmp_path / "t"))
    path = segment.streams / "made.blktrace.0"
    before = path.read_bytes()
    os.truncate(path, TERABYTE)
    segment.stream("made.blktrace.0").index.unlink()
    quickly(lambda: recover(segment, Disk()))
    assert path.read_bytes() == before
    assert check(segment, events=True).whole


SMALL_FILES = ["events/header_page", "kallsyms", "saved_cmdlines", "saved_tgids", "trace_clock"]


@pytest.mark.parametrize("name", [*SMALL_FILES, "events/sched/sched_switch/format"])
def test_a_sparse_terabyte_beside_replayed_files_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    path = ftrace_files(tmp_path / "from") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, TERABYTE)
    arguments = ["-t", str(tmp_path / "t"), "--source", f"replay:{tmp_path / 'from'}"]
    assert quickly(lambda: lttd(arguments)) == "0"
    told = capfd.readouterr().err
    assert name == "trace_clock" or f"{path}: byte " in told


def test_damage_after_every_block_record_takes_linear_time() -> None:
    one = record(30, 1, b"") + b"....."
    book, noted = RecordRows(), ProcessNotes()
    begun = time.process_time()
    data = memoryview(one * 40_000)
    taken = book.take(data, final=True)
    batch = Batch(StreamId("made", 0), data, taken.rows, taken.gaps)
    assert noted.add(batch) == len(taken.rows) == 40_000
    assert len(taken.gaps) == 40_000
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("arguments", [["text"], ["check", "--events"], ["info"], ["plot"]])
def test_an_index_that_names_one_page_over_and_over_is_read_once(
    tmp_path: Path, trace: Path, segment: SegmentPaths, arguments: list[str]
) -> None:
    paths = segment.stream("fake_0")
    whole = np.frombuffer(paths.index.read_bytes(), ENTRY_DTYPE, offset=16)
    first = np.repeat(whole[:1], 150_000)
    first["begin"] = first["end"] = np.arange(len(first)) + int(whole["begin"][0])
    paths.index.write_bytes(INDEX_HEADER + first.tobytes() + whole[-1:].tobytes())
    os.truncate(paths.data, TERABYTE)
    command, *options = arguments
    out = ["-o", str(tmp_path / "p.svg")] if command == "plot" else []
    status = quickly(lambda: view([command, *options, *out, str(trace)]))
    assert status == ("1" if command == "check" else "0")

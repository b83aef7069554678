"""The occurrence table: less is read, and nothing else changes; what does not fit is not used."""

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from errno import ENOSPC, EROFS
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lttd
from lttd import occurrence_maker
from lttd.abi import declared
from lttd.compress import INDEX_FRAME_BYTES, compress, decompress
from lttd.errors import LttdError, TraceDamagedError, storage_error
from lttd.files import Disk
from lttd.held import held_alone
from lttd.index import ENTRY_BYTES, HEADER
from lttd.lockfile import Lock
from lttd.manifest import Manifest
from lttd.occurrence_maker import LEAST_RATIO, MOST_GROUP, Made, note_occurrences
from lttd.occurrences import (
    CHUNK_ENTRIES,
    DAMAGED,
    RECORD_DTYPE,
    OccurrenceFile,
    Occurrences,
    chunks_of,
    encode_content,
    parse_content,
    row_bytes,
)
from lttd.tracedir import SegmentPaths, segments
from lttd.view import window
from lttd.view.commands import text
from lttd.view.filters import Filter
from lttd.view.possible import can_be_wanted
from lttd.view.trace import Trace
from lttd.zstd import ZstdDecompressor
from tests.ftraced import OPENED, SWITCH, TICK, Traced, common, opened, pages_of, switch, tick
from tests.segment_builder import page, segment_at
from tests.viewer import run

PAGES = 400
RARE = (57, 58, 311)
UNKNOWN = 900


def make(trace: Path, layout: str = "packed", *, pages: int = PAGES) -> SegmentPaths:
    """Make two streams of ticks, with a few opened files and losses among them."""
    made = Traced(trace, cpus=2, layout=layout)
    rng = random.Random(5)
    for cpu in (0, 1):
        for number in range(pages):
            events = [tick(rng.getrandbits(20), pid=9) for _ in range(rng.randint(20, 80))]
            if number in RARE and cpu == 1:
                events[3] = opened(f"/etc/{number}", number)
            lost = 3 if number in (100, 101, 250) else 0
            made.append([pages_of(1000 * number, events, delta=5)], cpu=cpu, trailing_loss=lost)
    made.finish()
    return made.paths


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a trace in each form, which tests only copy."""
    made = {}
    for form in ("packed", "sparse", "compressed"):
        made[form] = tmp_path_factory.mktemp(form) / "t"
        paths = make(made[form], "sparse" if form == "sparse" else "packed")
        if form == "compressed":
            compress(paths, Disk())
            paths.occurrences.unlink()
    return made


def copied(template: Path, to: Path) -> SegmentPaths:
    shutil.copytree(template, to)
    return segments(to)[0]


@pytest.fixture(params=["packed", "sparse", "compressed"])
def segment(
    tmp_path: Path, templates: dict[str, Path], request: pytest.FixtureRequest
) -> SegmentPaths:
    return copied(templates[request.param], tmp_path / "t")


@pytest.fixture
def packed(tmp_path: Path, templates: dict[str, Path]) -> SegmentPaths:
    return copied(templates["packed"], tmp_path / "t")


def trace_of(segment: SegmentPaths) -> Path:
    return segment.directory.parent


def noted(segment: SegmentPaths) -> Made:
    made = note_occurrences(segment, Disk())
    assert made is not None
    return made


def tables(segment: SegmentPaths) -> dict[str, Occurrences]:
    (one,) = Trace(trace_of(segment)).segments
    file = OccurrenceFile(segment.place(segment.occurrences))
    found = {s.name: file.table(s.name, len(s.index), s.data_bytes) for s in one.streams}
    return {name: table for name, table in found.items() if table is not None}


# -- what a table says


def test_a_table_names_the_sub_buffers_of_each_id(segment: SegmentPaths) -> None:
    noted(segment)
    found = tables(segment)["fake_1"]
    assert found.ids == (TICK, OPENED)
    assert found.group == 1
    rare = found.entries_of(found.of({OPENED}), 0, PAGES)
    assert np.flatnonzero(rare).tolist() == list(RARE)
    assert found.entries_of(found.of({TICK}), 0, PAGES).all()
    assert not found.entries_of(found.of({SWITCH}), 0, PAGES).any()


def test_the_layout_is_the_declared_one(shared: SegmentPaths) -> None:
    raw = shared.occurrences.read_bytes()
    head = declared.OccurrenceHeader.parse(raw)
    at = declared.OccurrenceHeader.sizeof()
    assert declared.OccurrenceRecord.sizeof() == RECORD_DTYPE.itemsize
    records = declared.OccurrenceRecord[head.records].parse(raw[at:])
    at += head.records * RECORD_DTYPE.itemsize
    for record, (name, table) in zip(records, tables(shared).items(), strict=True):
        assert record.name == zlib.crc32(name.encode())
        content = ZstdDecompressor().decompress(raw[at : at + record.frame_bytes])
        found = declared.OccurrenceContent.parse(content, entries=record.entries)
        assert (found.group, tuple(found.id)) == (table.group, table.ids)
        assert list(found.checksum) == table.checksums.tolist()
        assert [list(row) for row in found.row] == table.bits.tolist()
        at += record.frame_bytes
    assert at == len(raw)


@given(
    bits=st.lists(st.booleans(), min_size=1, max_size=200),
    group=st.integers(1, 9),
    data=st.data(),
)
def test_any_range_of_entries_has_the_bits_of_its_groups(
    bits: list[bool], group: int, data: st.DataObject
) -> None:
    entries = len(bits)
    marked = {at // group for at, bit in enumerate(bits) if bit}
    row = np.packbits([number in marked for number in range(-(-entries // group))])
    checksums = np.arange(chunks_of(entries), dtype=np.uint32)
    made = Occurrences(entries, 5, group, (7,), checksums, row.reshape(1, -1))
    table = parse_content(encode_content(made), entries, 5)
    first = data.draw(st.integers(0, entries))
    behind = data.draw(st.integers(first, entries))
    found = table.entries_of(table.of({7}), first, behind)
    assert found.tolist() == [at // group in marked for at in range(first, behind)]


@given(content=st.binary(max_size=80), entries=st.integers(0, 3000))
def test_no_content_makes_the_parser_fail_otherwise_than_it_says(
    content: bytes, entries: int
) -> None:
    try:
        table = parse_content(content, entries, 1)
    except ValueError:
        return
    assert table.bits.shape == (len(table.ids), row_bytes(entries, table.group))


def test_a_table_costs_little_however_small_the_sub_buffers_are(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    rng = random.Random(1)
    for number in range(0, 8000, 8):
        few = [
            pages_of(100 * at, [common(rng.choice((TICK, OPENED, SWITCH)), 1) + b"12345678"])
            for at in range(number, number + 8)
        ]
        made.append(few)
    made.finish()
    paths = segment_at(made.paths.directory)
    assert noted(paths).table_bytes * LEAST_RATIO <= 1.2 * noted_data_bytes(paths)
    (table,) = tables(paths).values()
    assert 1 < table.group <= MOST_GROUP


def noted_data_bytes(segment: SegmentPaths) -> int:
    (one,) = Trace(trace_of(segment)).segments
    return sum(stream.data_bytes for stream in one.streams)


def test_a_stream_of_few_bytes_gets_no_table(tmp_path: Path) -> None:
    paths = segment_at(make(tmp_path / "t", pages=4).directory)
    assert noted(paths).table_bytes == 0
    assert not paths.occurrences.exists()


# -- what it is for


def outputs(
    segment: SegmentPaths, capfd: pytest.CaptureFixture[bytes], *words: object
) -> tuple[tuple[int, bytes, str], tuple[int, bytes, str]]:
    """Run ``lttv text`` without the table, and with it."""
    aside = segment.directory.with_name("aside")
    shutil.move(segment.occurrences, aside)
    without = run(capfd, "text", trace_of(segment), "--jobs", 1, *words)
    shutil.move(aside, segment.occurrences)
    return without, run(capfd, "text", trace_of(segment), "--jobs", 1, *words)


@pytest.mark.parametrize("words", [
    ("--event", "opened"), ("--event", "files:*"), ("--event", "sched_switch"),
    ("--where", "ret > 0"), ("--where", "event == 'opened'"), ("--where", "count == 3"),
    ("--event", "opened", "--begin", "+200us", "--end", "+320us"), ("--event", "opned"),
    ("--event", "opened", "-n", "2"), ("--where", "path == 1"), ("--event", "opened", "--cpu", 0),
    ("--event", "opened", "--json"), ("--where", "event == 'opened' and pid == 'x'"),
    ("--where", "event == 'opened' and -next_comm == 1"),
])  # fmt: skip
def test_the_text_of_a_question_is_the_same_with_the_table(
    segment: SegmentPaths,
    capfdbinary: pytest.CaptureFixture[bytes],
    words: tuple[object, ...],
    small_pieces: None,
) -> None:
    noted(segment)
    without, with_table = outputs(segment, capfdbinary, *words)
    assert with_table == without


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", 12_000)
    monkeypatch.setattr(window, "STREAM_BYTES", 5000)
    monkeypatch.setattr(window, "_LOOK_AHEAD", 16)
    monkeypatch.setattr(occurrence_maker, "LEAST_RATIO", 0)


def test_a_rare_event_is_found_without_reading_other_sub_buffers(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = packed
    noted(paths)
    whole = run(capfdbinary, "text", tmp_path / "t", "--event", "opened")
    (one,) = Trace(tmp_path / "t").segments
    for stream in one.streams:
        data = bytearray(stream.paths.data.read_bytes())
        for number, entry in enumerate(stream.index.entries()):
            if not (number in RARE and stream.name == "fake_1"):
                at, size = int(entry["offset_bytes"]), int(entry["packet_bits"]) >> 3
                data[at : at + size] = bytes(size)
        stream.paths.data.write_bytes(data)
    assert whole[1].count(b"opened") == len(RARE)
    assert whole[1].count(b"LOST") == 6
    assert run(capfdbinary, "text", tmp_path / "t", "--event", "opened") == whole
    paths.occurrences.unlink()
    assert "no sub-buffer begins here" in run(capfdbinary, "text", tmp_path / "t")[2]


def test_the_library_skips_by_the_table_too(segment: SegmentPaths) -> None:
    def found() -> list[tuple[int, int]]:
        batches = lttd.open(trace_of(segment)).window(events=["opened"])
        return [
            (int(t), int(r))
            for b in batches
            for t, r in zip(b.time, b["opened"]["ret"], strict=True)
        ]

    without = found()
    noted(segment)
    assert found() == without
    assert [ret for _, ret in without] == list(RARE)


KINDS: dict[str, Callable[[int], bytes]] = {
    "tick": lambda n: tick(n, pid=n % 5),
    "opened": lambda n: opened(f"/{n}", n),
    "switch": lambda n: switch(("a", n % 3), (f"b{n % 2}", n % 4)),
    "short": lambda n: common(SWITCH, 3) + bytes(8),
    "unknown": lambda n: common(UNKNOWN, 4) + bytes(8),
}
pages_strategy = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4),
        st.sampled_from(["", "", "", "", "loss", "damage"]),
    ),
    min_size=60,
    max_size=120,
)
questions = st.sampled_from([
    ("--event", "opened"), ("--event", "unknown-*"), ("--event", "s*"), ("--where", "ret == 5"),
    ("--where", "next_pid == 1"), ("--where", "not (next_pid == 1)"), ("--where", "pid == 2"),
    ("--where", "event in ('opened', 'x') or prev_pid == 1"), ("--where", "system == 'clock'"),
    ("--where", "event != 'tick' and flags + 1 > 0"), ("--event", "opened", "--where", "ret > 9"),
])  # fmt: skip


@given(pages=pages_strategy, question=questions)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_trace_answers_any_question_as_without_the_table(
    pages: list[tuple[int, list[str], str]],
    question: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    capfdbinary: pytest.CaptureFixture[bytes],
    small_pieces: None,
) -> None:
    made = Traced(tmp_path_factory.mktemp("any") / "t", cpus=2)
    for number, (cpu, names, trouble) in enumerate(pages):
        events = [KINDS[name](number) for name in names for _ in range(9)]
        one = pages_of(1000 * number, events, delta=3)
        if trouble == "damage":
            content = struct.pack("<I", 5 << 5 | 28) + bytes(8)  # runs past the content
            one = page(1000 * number, content)
        made.append([one], cpu=cpu, trailing_loss=2 if trouble == "loss" else 0)
    made.finish()
    paths = segment_at(made.paths.directory)
    noted(paths)
    without, with_table = outputs(paths, capfdbinary, *question)
    assert with_table[:2] == without[:2]
    assert sorted(with_table[2].splitlines()) == sorted(without[2].splitlines())


# -- which types an expression can be true for


@pytest.mark.parametrize(("where", "names"), [
    ("ret == 3", {"opened"}),
    ("prev_pid == 3 or ret == 3", {"opened", "sched_switch"}),
    ("event == 'tick'", {"tick"}),
    ("event == 'tick' and ret == 3", set()),
    ("event != 'tick'", {"opened", "sched_switch"}),
    ("system in ('clock', 'sched')", {"tick", "sched_switch"}),
    ("not ret", {"opened", "tick", "sched_switch"}),
    ("pid == 3", {"opened", "tick", "sched_switch"}),
    ("common_pid == 3 and count", {"tick"}),
    ("flags == 0", {"opened", "tick", "sched_switch"}),
    ("prev_comm == 3", {"sched_switch"}),
    ("event == 'opened' and count == 'x'", {"tick"}),  # an error, which is reported
    ("ret + 1 > 0", {"opened"}),
    ("-ret < 0", {"opened"}),
    ("0 == 1", set()),
    ("next_comm[0] == 'x'", {"sched_switch"}),
    ("ret in (count, 4)", {"opened"}),
    ("'a' in prev_comm", {"sched_switch"}),
])  # fmt: skip
def test_a_condition_bounds_the_types_that_it_can_be_true_for(
    tmp_path: Path, where: str, names: set[str]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(0, [tick(1), opened("a", 1), switch(("a", 1), ("b", 2))])])
    made.finish()
    (batch,) = lttd.open(tmp_path / "t").window()
    chosen = Filter(where=where)
    assert {one.name for one in batch.types if can_be_wanted(chosen, one)} == names


# -- tables that do not fit


def rare_lines(trace: Path, capfd: pytest.CaptureFixture[bytes]) -> tuple[int, str]:
    status, out, err = run(capfd, "text", trace, "--event", "opened", "--jobs", 1)
    assert status == 0
    return out.count(b"opened"), err


def test_an_index_that_changed_is_noticed_and_all_is_read(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = packed
    noted(paths)
    index = paths.stream("fake_1").index
    raw = bytearray(index.read_bytes())
    raw[HEADER.size + 200 * ENTRY_BYTES - 1] ^= 1  # a sequence number
    index.write_bytes(raw)
    count, err = rare_lines(tmp_path / "t", capfdbinary)
    assert count == len(RARE)
    assert err == (
        f"lttv: {paths.occurrences}: byte 0: of other data: fake_1 has another index, from entry 0"
        " on; not used; lttv index makes it again\n"
    )
    status, out, _ = run(capfdbinary, "check", tmp_path / "t")
    assert status == 1
    assert b"occurrences: byte 0: of other data" in out


@given(at=st.integers(0, 4000), value=st.integers(1, 255))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_flipped_byte_of_a_table_hides_an_event(
    at: int,
    value: int,
    shared: SegmentPaths,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    held = shared.occurrences.read_bytes()
    place = at % len(held)
    changed = bytearray(held)
    changed[place] ^= value
    shared.occurrences.write_bytes(changed)
    try:
        count, _ = rare_lines(trace_of(shared), capfdbinary)
    finally:
        shared.occurrences.write_bytes(held)
    assert count == len(RARE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, templates: dict[str, Path]) -> SegmentPaths:
    paths = copied(templates["packed"], tmp_path_factory.mktemp("shared") / "t")
    noted(paths)
    return paths


@pytest.mark.parametrize("content", [
    b"", b"locc", struct.pack(">4I", 1, 1, 0, 0), struct.pack(">4I", 0x6C6F6363, 2, 0, 0),
    struct.pack(">4I", 0x6C6F6363, 1, 0, 1 << 31), struct.pack(">4I", 0x6C6F6363, 1, 0, 100),
    struct.pack(">4I", 0x6C6F6363, 1, 0, 0) + b"more",
])  # fmt: skip
def test_a_file_that_is_no_table_is_noted_and_not_used(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes], content: bytes
) -> None:
    paths = packed
    paths.occurrences.write_bytes(content)
    count, err = rare_lines(tmp_path / "t", capfdbinary)
    assert count == len(RARE)
    assert err.endswith("; not used; lttv index makes it again\n")


def test_a_symlink_in_place_of_a_table_is_refused_and_replaced(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = packed
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    paths.occurrences.symlink_to(other)
    assert "symbolic link" in rare_lines(tmp_path / "t", capfdbinary)[1]
    noted(paths)
    assert other.read_bytes() == b"theirs"
    assert not paths.occurrences.is_symlink()


def test_a_table_that_denies_an_event_is_found_by_check(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = packed
    noted(paths)
    for number in RARE:
        _rename_in_data(paths, number)
    status, out, _ = run(capfdbinary, "check", "--events", tmp_path / "t")
    assert status == 1
    assert b"event id 3 is in sub-buffer 57, which the table denies" in out
    status, out, _ = run(capfdbinary, "check", "--events", "--repair", tmp_path / "t")
    assert status == 0
    assert b"occurrences removed; lttv index makes them again" in out
    assert not paths.occurrences.exists()


def _rename_in_data(segment: SegmentPaths, number: int) -> None:
    """Give the opened file in a sub-buffer the id of another event."""
    (one,) = Trace(trace_of(segment)).segments
    stream = one.streams[1]
    data = bytearray(stream.paths.data.read_bytes())
    begin = int(stream.index[number]["offset_bytes"])
    data_at = data.index(struct.pack("<HBBi", OPENED, 0, 0, 7), begin)
    struct.pack_into("<H", data, data_at, SWITCH)
    stream.paths.data.write_bytes(data)


# -- when it is made, kept and removed


@pytest.mark.usefixtures("packed")
def test_index_makes_tables_once_and_leaves_out_open_segments(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    opened_now = Traced(tmp_path / "t", number=2)
    opened_now.append([pages_of(0, [tick(1)])])
    status, out, err = run(capfdbinary, "index", tmp_path / "t")
    assert (status, err) == (0, f"lttv: {opened_now.paths.directory}: is not closed; left out\n")
    assert out.startswith(b"1 segment of 1 indexed: ")
    assert (
        run(capfdbinary, "index", tmp_path / "t")[1] == b"0 segments of 1 indexed; 1 had a table\n"
    )
    with pytest.raises(LttdError, match="not closed"):
        note_occurrences(opened_now.paths, Disk())
    status, out, _ = run(capfdbinary, "check", "--events", tmp_path / "t")
    assert b"occurrences" not in out


@pytest.mark.parametrize("words", ["index", "compress"])
def test_a_segment_that_is_deleted_meanwhile_is_no_failure(
    words: str,
    packed: SegmentPaths,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def locked(*held: Any) -> Any:  # noqa: ANN401
        shutil.rmtree(packed.directory)
        return Lock(*held)

    monkeypatch.setattr("lttd.held.Lock", locked)
    status, out, err = run(capfdbinary, words, trace_of(packed))
    assert (status, out.split()[:4]) == (0, b"0 segments of 0".split())
    assert "deleted" in err
    assert len(err.splitlines()) == 1


def test_a_segment_that_another_process_holds_is_left_out_without_a_failure(
    packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with held_alone(packed, Disk()):
        status, out, err = run(capfdbinary, "index", trace_of(packed))
    assert (status, out) == (0, b"0 segments of 0 indexed\n")
    assert err.endswith("; left out: run lttv index again later\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("number", "remedy"), [(ENOSPC, "free some, then run"), (EROFS, "a copy")])
def test_a_disk_that_takes_no_table_ends_index_with_one_line(
    number: int,
    remedy: str,
    tmp_path: Path,
    packed: SegmentPaths,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_words: Any, **_options: Any) -> None:  # noqa: ANN401
        raise storage_error(packed.occurrences, OSError(number, os.strerror(number)))

    shutil.copytree(packed.directory, packed.directory.with_name("20000101T000000Z-000009-fake"))
    monkeypatch.setattr(Disk, "replace", refused)
    status, out, err = run(capfdbinary, "index", trace_of(packed))
    assert (status, out) == (1, b"0 segments of 2 indexed\n")
    assert len(err.splitlines()) == 1
    assert remedy in err


def test_a_failure_to_make_a_table_is_counted(
    packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    packed.occurrences.mkdir()
    status, out, err = run(capfdbinary, "index", trace_of(packed))
    assert (status, out) == (1, b"0 segments of 1 indexed\n")
    assert len(err.splitlines()) == 1


def test_a_table_is_of_both_forms_of_a_segment(packed: SegmentPaths) -> None:
    paths = packed
    compress(paths, Disk())
    made = paths.occurrences.read_bytes()
    assert set(tables(paths)) == {"fake_0", "fake_1"}
    assert note_occurrences(paths, Disk()) is None
    decompress(paths, Disk())
    assert paths.occurrences.read_bytes() == made
    assert note_occurrences(paths, Disk()) is None


def test_a_cut_has_no_table_of_the_whole(
    tmp_path: Path, packed: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    noted(packed)
    run(capfdbinary, "cut", tmp_path / "t", "--end", "+200us", "-o", tmp_path / "cut")
    (cut,) = segments(tmp_path / "cut")
    assert not cut.occurrences.exists()


def damage_data(paths: SegmentPaths) -> None:
    with paths.stream("fake_1").data.open("ab") as data:
        data.write(b"torn")


def damage_index(paths: SegmentPaths) -> None:
    index = paths.stream("fake_1").index
    index.write_bytes(index.read_bytes()[:-ENTRY_BYTES])


def damage_frame(paths: SegmentPaths) -> None:
    compress(paths, Disk())
    (file,) = paths.compressed.glob("fake_1.zst")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    file.write_bytes(raw)


@pytest.mark.parametrize("damage", [damage_data, damage_index, damage_frame])
def test_a_repair_that_changes_a_file_removes_the_table(
    tmp_path: Path,
    packed: SegmentPaths,
    capfdbinary: pytest.CaptureFixture[bytes],
    damage: Callable[[SegmentPaths], None],
) -> None:
    paths = packed
    noted(paths)
    damage(paths)
    run(capfdbinary, "check", "--repair", tmp_path / "t")
    assert not paths.occurrences.exists()


def test_a_damaged_stream_gets_no_table_and_the_others_do(packed: SegmentPaths) -> None:
    paths = packed
    data = bytearray(paths.stream("fake_1").data.read_bytes())
    data[:16] = bytes(16)
    paths.stream("fake_1").data.write_bytes(data)
    noted(paths)
    assert set(tables(paths)) == {"fake_0"}


def test_sub_buffers_that_do_not_parse_are_marked(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    for number in range(PAGES):
        made.append([pages_of(1000 * number, [tick(number)] * 60)])
    made.append([page(1000 * PAGES, struct.pack("<I", 5 << 5 | 28) + bytes(8))])
    made.finish()
    paths = segment_at(made.paths.directory)
    noted(paths)
    (table,) = tables(paths).values()
    assert table.ids == (TICK, DAMAGED)
    bad = table.entries_of(table.of({DAMAGED}), 0, PAGES + 1)
    assert np.flatnonzero(bad).tolist() == [PAGES]


def test_a_chunk_is_a_frame_of_a_compressed_index() -> None:
    assert CHUNK_ENTRIES * ENTRY_BYTES == INDEX_FRAME_BYTES


def unfit(segment: SegmentPaths) -> Iterator[str]:
    (one,) = Trace(trace_of(segment)).segments
    file = OccurrenceFile(segment.place(segment.occurrences))
    for stream in one.streams:
        try:
            file.table(stream.name, len(stream.index) + 1, stream.data_bytes)
        except TraceDamagedError as error:
            yield error.reason


def test_a_table_of_a_stream_of_another_length_is_refused(shared: SegmentPaths) -> None:
    assert list(unfit(shared)) == [
        f"of other data: {name} has another length" for name in ("fake_0", "fake_1")
    ]
    assert Manifest.read(shared.place(shared.manifest)).state == "closed"

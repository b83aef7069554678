"""Replay files of whole sub-buffers: our fixtures, files of other tools, and damaged ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.config import SourceSpec
from lttd.errors import NothingToRecordError, SourceError, UsageError
from lttd.sources.base import When
from lttd.sources.registry import open_source
from lttd.sources.replay.ftrace import ReplaySource, open_replay
from lttd.sources.tracefs import parse_stats
from lttd.subbuffer import Batch, BufferPool, Reason, StreamId, Unit
from tests.batches import take_to_end
from tests.data import FTRACE, SHARED_FTRACE, needs
from tests.fakes import event, page


def taken(source: ReplaySource, cpu: int) -> list[Batch]:
    (stream,) = [one for one in source.streams if one.info.id.cpu == cpu]
    return take_to_end(stream)


def refused_bytes(batches: list[Batch]) -> int:
    gaps = [gap for batch in batches for gap in batch.gaps]
    return sum(gap.count or 0 for gap in gaps if gap.unit is Unit.BYTES)


@pytest.mark.parametrize("cpu", [0, 1])
def test_a_replay_of_the_fixture_has_its_loss_in_place(cpu: int) -> None:
    source = open_replay(FTRACE, BufferPool())
    assert source.info.clock == "mono"
    (batch,) = taken(source, cpu)
    directory = FTRACE / "per_cpu" / f"cpu{cpu}"
    stats = parse_stats((directory / "stats").read_bytes())
    assert batch.kernel_bytes == (directory / "trace_pipe_raw").stat().st_size
    assert batch.payload_bytes < batch.kernel_bytes
    (gap,) = batch.gaps
    assert (gap.reason, gap.unit, gap.count) == (
        Reason.OVERWRITTEN,
        Unit.EVENTS,
        stats["overrun"],
    )
    assert 0 < gap.row < len(batch.rows)
    totals = batch.rows["discarded_total"].tolist()
    assert totals == [0] * gap.row + [gap.count] * (len(batch.rows) - gap.row)
    assert batch.rows["sequence"].tolist() == list(range(len(batch.rows)))
    # stats shows a time a little after the last event, cut to microseconds.
    assert stats["oldest event ts"] <= batch.rows["end"][-1] <= stats["now ts"] + 999
    source.close()


def test_the_clock_of_a_replay_shows_the_latest_event_taken() -> None:
    source = open_replay(FTRACE, BufferPool())
    ends = [int(batch.rows["end"][-1]) for cpu in (0, 1) for batch in taken(source, cpu)]
    assert source.now() == max(ends)


def test_format_files_keep_their_tracefs_names() -> None:
    source = open_replay(FTRACE, BufferPool())
    names = {one.name: one.data for one in source.attachments()(When.OPEN)}
    name = "events/sched/sched_switch/format"
    assert names[f"tracefs/{name}"] == (FTRACE / name).read_bytes()
    assert {"tracefs/events/header_page", "tracefs/events/header_event"} <= names.keys()
    assert re.match(rb"0\t\d+\t\d*\t\S", names["tracefs/commands"])
    assert list(source.attachments()(When.CLOSE)) == []


def test_the_settings_of_a_replay_are_json() -> None:
    source = open_replay(FTRACE, BufferPool())
    assert json.loads(json.dumps(source.info.settings))["subbuffer_bytes"] == 4096


@needs(SHARED_FTRACE)
def test_pages_side_by_side_with_their_formats_replay_too() -> None:
    source = open_replay(SHARED_FTRACE / "raw", BufferPool())
    for cpu in (0, 1):
        size = (SHARED_FTRACE / "raw" / f"cpu{cpu}.pages").stat().st_size
        assert sum(batch.kernel_bytes for batch in taken(source, cpu)) == size
    names = {one.name for one in source.attachments()(When.OPEN)}
    assert "tracefs/events/syscalls/sys_enter_openat/format" in names


def test_files_named_channel_and_cpu_are_streams_of_that_channel(tmp_path: Path) -> None:
    (tmp_path / "sched_10").write_bytes(page(5, event(b"abcd")))
    (tmp_path / "sched_2").write_bytes(page(6, event(b"abcd")))
    (tmp_path / "README").write_text("not a stream")
    source = open_replay(tmp_path, BufferPool())
    assert [stream.info.id for stream in source.streams] == [
        StreamId("sched", 2),
        StreamId("sched", 10),
    ]


def test_a_file_longer_than_a_buffer_comes_in_several_batches(tmp_path: Path) -> None:
    pages = [page(1000 + k, event(b"abcd")) for k in range(5)]
    (tmp_path / "cpu0.pages").write_bytes(b"".join(pages))
    batches = taken(open_replay(tmp_path, BufferPool(take_bytes=8192)), 0)
    assert [len(batch.rows) for batch in batches] == [2, 2, 1]
    sequence = [number for batch in batches for number in batch.rows["sequence"].tolist()]
    assert sequence == [0, 1, 2, 3, 4]
    assert b"".join(bytes(p) for batch in batches for p in batch.pieces()) == b"".join(
        one[: 16 + 8] for one in pages
    )


def test_the_last_row_ends_with_its_last_event(tmp_path: Path) -> None:
    def record(type_len: int, delta: int, words: int) -> bytes:
        return (type_len | delta << 5).to_bytes(4, "little") + b"\1\0\0\0" * words

    content = record(1, 7, 1) + record(30, 3, 1) + record(2, 5, 2)
    (tmp_path / "cpu0").write_bytes(page(100, content))
    (batch,) = taken(open_replay(tmp_path, BufferPool()), 0)
    assert int(batch.rows["end"][0]) == 100 + 7 + (1 << 27) + 3 + 5


def test_a_torn_tail_is_a_gap_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "cpu0.pages").write_bytes(page(5, event(b"abcd")) + b"x" * 17)
    source = open_replay(tmp_path, BufferPool())
    (note,) = source.notes()
    assert "17 bytes" in note
    assert source.notes() == []
    (batch,) = taken(source, 0)
    (gap,) = batch.gaps
    assert (gap.row, gap.reason, gap.unit, gap.count) == (1, Reason.TORN, Unit.BYTES, 17)


def test_a_file_that_is_only_a_torn_tail_gives_a_gap_without_rows(tmp_path: Path) -> None:
    (tmp_path / "cpu0.pages").write_bytes(b"x" * 17)
    (batch,) = taken(open_replay(tmp_path, BufferPool()), 0)
    assert (len(batch.rows), [gap.count for gap in batch.gaps]) == (0, [17])


def test_a_damaged_sub_buffer_is_a_gap_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    pages = [page(5, event(b"abcd")), b"\xff" * 4096, page(9, event(b"efgh"))]
    (tmp_path / "cpu0.pages").write_bytes(b"".join(pages))
    (batch,) = taken(open_replay(tmp_path, BufferPool()), 0)
    assert batch.rows["begin"].tolist() == [5, 9]
    (gap,) = batch.gaps
    assert (gap.row, gap.reason, gap.count) == (1, Reason.DAMAGED, 4096)
    assert (gap.begin, gap.end) == (5, 9)


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.binary(min_size=16, max_size=16).map(lambda head: head.ljust(4096, b"\x7f")),
            st.integers(0, 1 << 63).map(lambda begin: page(begin, event(b"abcd"))),
        ),
        max_size=8,
    )
)
def test_a_replay_of_any_bytes_accounts_for_every_byte(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("garbage")
    data = b"".join(parts)
    (directory / "cpu0.pages").write_bytes(data)
    batches = taken(open_replay(directory, BufferPool(take_bytes=8192)), 0)
    delivered = sum(batch.kernel_bytes for batch in batches)
    assert delivered + refused_bytes(batches) == len(data)
    for batch in batches:
        assert (batch.rows["end"] >= batch.rows["begin"]).all()
        assert all(gap.begin <= gap.end and gap.row <= len(batch.rows) for gap in batch.gaps)


def test_header_page_overrides_the_sub_buffer_size_option(tmp_path: Path) -> None:
    text = (FTRACE / "events" / "header_page").read_text()
    (tmp_path / "header_page").write_text(text.replace("size:4080", "size:8176"))
    (tmp_path / "cpu0.pages").write_bytes(page(5, event(b"abcd")) + bytes(4096))
    source = open_replay(tmp_path, BufferPool(), subbuffer_bytes=4096)
    assert source.streams[0].info.subbuffer_bytes == 8192
    (note,) = source.notes()
    assert "8192" in note
    (batch,) = taken(source, 0)
    assert (len(batch.rows), batch.kernel_bytes) == (1, 8192)


def test_the_option_gives_the_sub_buffer_size_without_header_page(tmp_path: Path) -> None:
    (tmp_path / "cpu0.pages").write_bytes(b"\1".ljust(16384, b"\0"))
    source = open_replay(tmp_path, BufferPool(), subbuffer_bytes=16384)
    assert [len(batch.rows) for batch in taken(source, 0)] == [1]


def test_no_symbolic_link_below_a_replayed_directory_is_followed(tmp_path: Path) -> None:
    elsewhere, replayed = tmp_path / "elsewhere", tmp_path / "replayed"
    shutil.copytree(FTRACE, elsewhere)
    for name in ("per_cpu", "per_cpu/cpu1"):
        shutil.copytree(FTRACE, replayed)
        shutil.rmtree(replayed / name)
        (replayed / name).symlink_to(elsewhere / name)
        with pytest.raises(SourceError, match="trace_pipe_raw: a symbolic link, and none is follo"):
            open_replay(replayed, BufferPool())
        shutil.rmtree(replayed)


def test_formats_reached_by_a_symbolic_link_are_left_out_in_few_lines(tmp_path: Path) -> None:
    shutil.copytree(FTRACE / "per_cpu", tmp_path / "replayed" / "per_cpu")
    for number in range(20):
        path = tmp_path / "secret" / f"event{number}"
        path.mkdir(parents=True)
        (path / "format").write_text("secret")
    (tmp_path / "replayed" / "events").mkdir()
    (tmp_path / "replayed" / "events" / "system").symlink_to(tmp_path / "secret")
    source = open_replay(tmp_path / "replayed", BufferPool())
    found = [each.data for each in source.attachments()(When.OPEN)]
    assert found
    assert b"secret" not in b"".join(found)
    notes = list(source.notes())
    assert "event0/format: a symbolic link, and none is followed here; left out" in notes[0]
    assert notes[-1] == f"{tmp_path}/replayed: 12 more files are left out"
    assert len(notes) == 9


def test_a_replayed_directory_may_be_named_by_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(FTRACE)
    source = open_replay(tmp_path / "link", BufferPool())
    assert len(source.streams) == 2
    source.close()


def test_an_impossible_replay_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NothingToRecordError, match="holds no stream"):
        open_replay(tmp_path, BufferPool())
    with pytest.raises(UsageError, match="not a directory"):
        open_replay(tmp_path / "none", BufferPool())
    (tmp_path / "cpu0.a").write_bytes(b"")
    with pytest.raises(UsageError, match="a replay reads ftrace, ltt, blktrace"):
        open_source(SourceSpec("replay", str(tmp_path), {"abi": "vhs"}), BufferPool())
    with pytest.raises(UsageError, match="at most"):
        open_replay(tmp_path, BufferPool(take_bytes=4096), subbuffer_bytes=8192)
    (tmp_path / "cpu0.b").write_bytes(b"")
    with pytest.raises(UsageError, match="both are"):
        open_replay(tmp_path, BufferPool())

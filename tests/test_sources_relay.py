"""Relay files become rows, gaps and times; other files are refused with the reason."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.config import SourceSpec, parse_spec
from lttd.errors import NothingToRecordError, UsageError
from lttd.sources.base import Nothing
from lttd.sources.registry import open_source
from lttd.sources.relay import file as relay_file
from lttd.sources.relay import find as relay_find
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, Unit
from tests.relay_model import RelayModel
from tests.relay_streams import ModelStream, record


def numbers_of(batch: Batch) -> list[int]:
    found = []
    for piece in batch.pieces():
        at = 0
        while at < len(piece):
            length, number = struct.unpack_from("<II", piece, at)
            found.append(number)
            at += 4 + length
    return found


def gap(batch: Batch) -> tuple[int, Reason, Unit, int | None]:
    (only,) = batch.gaps
    return only.row, only.reason, only.unit, only.count


def test_sub_buffers_closed_between_two_takes_are_one_row() -> None:
    made = ModelStream(None)
    assert made.stream.take(flush=True) is Nothing.YET
    looked = made.clock.time
    made.write(*range(25))
    batch = made.take()
    (row,) = batch.rows
    assert row["payload_bytes"] == row["kernel_bytes"] == made.model.st_size
    assert 1000 == row["begin"] < looked < row["end"] <= made.clock.time
    made.stream.take(flush=True)
    made.write(*range(25, 40))
    made.model.flush()
    (later,) = made.take().rows
    assert 1000 < later["begin"] <= looked, (
        "it was open when we looked before the one before it closed"
    )
    assert later["sequence"] == row["sequence"] + 1


def test_framed_records_have_their_own_times() -> None:
    made = ModelStream(time=8)
    made.write(0, 1, time=900)
    made.write(2, time=880)
    made.model.flush()
    batch = made.take()
    assert [(int(r["begin"]), int(r["end"])) for r in batch.rows] == [(880, 900)]
    made.stream.take(flush=True)
    made.write(3, time=890)
    made.write(4, time=1 << 60)
    made.model.flush()
    (row,) = made.take().rows
    assert 890 == row["begin"] < row["end"] <= made.clock.time, "no time is later than now"


def test_an_incomplete_record_is_joined_with_the_next_bytes() -> None:
    made = ModelStream("fixed:16", sequence=None)
    made.model.write(bytes(range(10)))
    made.model.flush()
    # As if a take ended in the middle of a large sub-buffer.
    made.stream._kept = b"123456"
    (row,) = made.take().rows
    assert row["payload_bytes"] == 16


def test_damaged_bytes_are_a_gap_and_not_in_the_rows() -> None:
    made = ModelStream()
    made.write(0, 1)
    made.model.write(bytes(30))
    made.model.flush()
    batch = made.take()
    assert numbers_of(batch) == [0, 1]
    assert gap(batch) == (1, Reason.DAMAGED, Unit.BYTES, 30)


def test_a_sub_buffer_that_comes_twice_costs_no_record_of_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_file, "PATIENCE_NS", 1 << 60)
    monkeypatch.setattr(relay_file, "MOST_EMPTY", 1)  # however slow the machine is
    made, found, damaged = ModelStream(), list[int](), set[Reason]()

    def take() -> None:
        for _ in range(9):
            if isinstance(batch := made.stream.take(flush=True), Batch):
                found.extend(numbers_of(batch))
                damaged.update(gap.reason for gap in batch.gaps)

    def write(number: int, payload: int, *, empty: int = 0) -> None:
        for _ in range(empty):
            made.model.flush()
        made.model.write(record(number, payload))
        made.model.flush()

    write(0, 20)
    write(1, 20, empty=2)  # the kernel delivers it twice,
    take()
    write(2, 20)
    take()
    write(3, 9, empty=3)  # and this one from its begin at each read
    write(4, 30)
    for number in (5, 6):
        take()
        write(number, 20)
    take()
    assert found == [*range(7)]
    assert damaged == {Reason.DAMAGED}


def test_missing_numbers_are_lost_events_before_the_next_row() -> None:
    made = ModelStream()
    made.write(5, 6, 10, 11)
    made.model.flush()
    batch = made.take()
    assert gap(batch) == (1, Reason.DROPPED, Unit.EVENTS, 3)
    assert batch.rows["discarded_total"].tolist() == [0, 3]
    made.stream.take(flush=True)
    made.write(13)
    made.model.flush()
    batch = made.take()
    assert gap(batch) == (0, Reason.DROPPED, Unit.EVENTS, 1)
    assert batch.rows["discarded_total"].tolist() == [4]


def test_an_overwriting_ring_does_not_trust_the_record_before_a_loss() -> None:
    made = ModelStream(overwrite=True)
    made.write(5, 6, 10, 11)
    made.model.flush()
    batch = made.take()
    assert numbers_of(batch) == [5, 10, 11]
    assert [(each.reason, each.unit) for each in batch.gaps] == [
        (Reason.DAMAGED, Unit.BYTES),
        (Reason.OVERWRITTEN, Unit.EVENTS),
    ]


def test_bytes_that_were_announced_and_never_came_are_counted_as_refused() -> None:
    made = ModelStream(model=RelayModel(100, 2))

    def look() -> None:
        if made.model.produced == 2 and made.model.offset == 0:
            assert made.stream.take(flush=True) is Nothing.YET, "caught in the middle"

    taken: list[Batch] = []
    made.model.between = look
    made.write(*range(11))
    made.model.between = lambda: None
    made.model.flush()
    taken += made.takes()
    gaps = [each for batch in taken for each in batch.gaps]
    refused = [each for each in gaps if each.reason is Reason.REFUSED]
    assert [(each.unit, each.count) for each in refused] == [(Unit.BYTES, 100)]
    assert sum(len(numbers_of(batch)) for batch in taken) == 11 - 5 - made.model.refused


def test_an_open_sub_buffer_is_read_at_the_end_only_if_asked_for() -> None:
    for unfinished, expected in ((False, [*range(10)]), (True, [*range(12)])):
        made = ModelStream(unfinished=unfinished)
        made.write(*range(12))
        assert [n for batch in made.takes() for n in numbers_of(batch)] == expected


def test_an_offline_cpu_is_read_completely_at_the_end() -> None:
    made = ModelStream()
    made.shared.is_offline = lambda cpu: cpu == 0
    made.write(*range(12))
    assert [n for batch in made.takes() for n in numbers_of(batch)] == [*range(12)]


def test_a_busy_producer_does_not_delay_the_end() -> None:
    made = ModelStream(model=RelayModel(200, 4))
    made.write(*range(12))
    made.shared.stopped = True
    taken = 0
    for number in range(12, 2000, 12):
        if not isinstance(made.stream.take(flush=True), Batch):
            break
        taken += 1
        made.write(*range(number, number + 12))
    assert taken == 2


def test_data_left_by_an_aborted_relay_drain_are_counted_once() -> None:
    made = ModelStream()
    made.write(*range(12))
    made.shared.stopped = True
    batch = made.stream.losses()
    assert batch is not None
    assert gap(batch) == (0, Reason.ABANDONED, Unit.BYTES, 200)
    assert made.stream.losses() is None


def test_data_written_after_the_relay_drain_are_not_a_loss() -> None:
    made = ModelStream()
    made.write(*range(12))
    made.takes()
    made.write(*range(12, 24))
    assert made.stream.losses() is None


def test_a_removed_channel_ends_and_its_unread_bytes_are_lost() -> None:
    made = ModelStream()
    made.write(*range(12))
    made.model.removed = True
    assert gap(made.take()) == (0, Reason.REFUSED, Unit.BYTES, 200)
    assert made.stream.take(flush=True) is Nothing.EVER


def test_a_stream_that_returns_has_rising_times() -> None:
    book = RowBook()
    first = ModelStream(book=book)
    first.write(3, 5)
    first.model.flush()
    last = first.take().rows[-1]
    again = ModelStream(book=book)
    again.write(0)
    again.model.flush()
    (row,) = again.take().rows
    assert row["sequence"] == last["sequence"] + 1
    assert row["begin"] >= last["begin"]
    assert row["discarded_total"] == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 60)), max_size=60), st.booleans())
def test_every_byte_is_in_a_row_or_a_gap_or_the_ring(
    steps: list[tuple[int, int]], framed: bool
) -> None:
    made = ModelStream("u32le-length" if framed else None, sequence=None)
    stored = damaged = 0
    batches = []
    for what, size in steps:
        if what < 70:
            made.model.write(record(what, size))
        elif what < 80:
            made.model.write(bytes(size + 1))
        elif what < 85:
            made.model.flush()
        elif isinstance(some := made.stream.take(flush=True), Batch):
            batches.append(some)
    batches += made.takes()
    for batch in batches:
        stored += batch.payload_bytes
        damaged += sum(g.count or 0 for g in batch.gaps if g.reason is Reason.DAMAGED)
        batch.release()
    assert stored + damaged == made.stream.file.bytes_read
    assert made.stream._kept == b""
    rows = [row for batch in batches for row in batch.rows]
    for column in ("begin", "end", "sequence"):
        values = [int(row[column]) for row in rows]
        assert values == sorted(values)


# --- finding them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cpus", "split"),
    [
        ("trace0", 2, ("trace", 0)),
        ("chan11", 64, ("chan", 11)),
        ("chan11", 2, ("chan1", 1)),
        ("chan01", 64, ("chan0", 1)),
        ("dropped", 2, ("dropped", -1)),
        ("chan9", 2, ("chan9", -1)),
        ("7", 64, ("7", -1)),
    ],
)
def test_a_file_name_is_split_by_the_number_of_cpus(
    name: str, cpus: int, split: tuple[str, int]
) -> None:
    assert relay_find.split_cpu(name, cpus) == split


def test_relay_files_are_found_at_any_depth_by_channel_name(tmp_path: Path) -> None:
    for name in ("top0", "block/nullb0/trace0", "block/nullb0/trace1", "block/nullb0/dropped"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        streams = [each.stream for each in relay_find.candidates(str(tmp_path), pattern, 2)]
        return [f"{each.channel}:{each.cpu}" for each in streams]

    assert found("*") == ["top:0", "block/nullb0/trace:0", "block/nullb0/trace:1"]
    assert found("trace") == found("block/*") == found("*")[1:]


def test_a_channel_name_that_no_manifest_can_hold_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "good0").touch()
    (tmp_path / os.fsdecode(b"\xff0")).touch()
    found = [each.stream.channel for each in relay_find.candidates(str(tmp_path), "*", 2)]
    assert found == ["good"]


def test_a_seekable_file_is_not_a_relay_file(tmp_path: Path) -> None:
    (tmp_path / "trace0").touch()
    fd = os.open(tmp_path / "trace0", os.O_RDONLY)
    try:
        assert relay_find.why_no_relay_file(fd) == "a file that can seek"
    finally:
        os.close(fd)


def test_an_unknown_cpu_is_not_considered_offline(tmp_path: Path) -> None:
    online = tmp_path / "online"
    assert not relay_find.is_offline(1, online)
    online.write_text("0,2-3\n")
    assert [relay_find.is_offline(cpu, online) for cpu in range(4)] == [False, True, False, False]


def test_the_file_system_is_found_beside_mount_points_of_any_bytes(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(
        b"30 1 0:40 / /mnt/\xff rw - tmpfs none rw\n31 1 0:7 / /d rw - debugfs none rw\n"
    )
    assert relay_find.file_system_of(os.makedev(0, 7), mountinfo) == "debugfs"


def test_cpu_lists_of_the_kernel_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("0-2,5\n")
    assert relay_find.cpus_in(tmp_path / "online") == {0, 1, 2, 5}
    assert relay_find.cpus_in(tmp_path / "absent") == set()
    assert relay_find.count_of_cpus(tmp_path / "online") == 6


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("relay", "relay:DIR"),
        ("relay:/x,framing=fixed", "framing"),
        ("relay:/x,time=8", "name its framing"),
        ("relay:/x,framing=fixed:8,sequence=x", "sequence 'x' is not a valid number"),
        ("relay:/x,overwrite=yes", "only numbers in the records show it"),
        ("relay:/x,size=8", "is not a key of relay"),
    ],
)
def test_impossible_relay_options_are_refused(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_source(parse_spec(spec), BufferPool())


def test_a_directory_without_channels_gives_the_status_for_nothing_to_record(
    tmp_path: Path,
) -> None:
    spec = SourceSpec("relay", str(tmp_path))
    with pytest.raises(NothingToRecordError, match="no file <channel><cpu>"):
        open_source(spec, BufferPool())
    (tmp_path / "trace0").touch()
    with pytest.raises(NothingToRecordError, match=r"trace0 is a regular file on .* replay:DIR"):
        open_source(spec, BufferPool())
    with pytest.raises(NothingToRecordError, match="not a directory"):
        open_source(SourceSpec("relay", str(tmp_path / "absent")), BufferPool())


def test_each_gap_lies_between_its_rows() -> None:
    made = ModelStream(time=8)
    made.write(0, time=100)
    made.write(5, time=500)
    made.model.flush()
    batch = made.take()
    (only,) = batch.gaps
    assert isinstance(only, Gap)
    assert (only.begin, only.end) == (100, 500)

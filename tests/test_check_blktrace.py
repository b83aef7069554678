"""Check block traces record by record, and rebuild their index from the records."""

from pathlib import Path

import pytest

from lttd.files import Disk
from lttd.recover import recover
from lttd.tracedir import SegmentPaths
from lttd.view.verify import check
from tests.blk import process, record
from tests.blkparse import replayed, shown, written
from tests.segment_builder import segment_at

RECORDS = 3000


@pytest.fixture
def segment(tmp_path: Path) -> SegmentPaths:
    data = process(1, 10, "sh") + b"".join(
        record(at, pdu=bytes(8 * (at % 3)), sequence=at) for at in range(10, 10 + RECORDS - 1)
    )
    streams = replayed(written(tmp_path / "raw", data), tmp_path / "trace")
    return segment_at(streams.parent)


def data_of(segment: SegmentPaths) -> Path:
    return segment.streams / "made.blktrace.0"


def test_check_counts_every_block_record(segment: SegmentPaths) -> None:
    report = check(segment, events=True)
    assert report.whole
    assert [stream.events for stream in report.streams] == [RECORDS]
    assert report.streams[0].subbuffers == 3


def test_check_finds_a_record_whose_magic_is_damaged(segment: SegmentPaths) -> None:
    data = bytearray(data_of(segment).read_bytes())
    at = data.index(record(100, pdu=bytes(8), sequence=100))
    data[at] ^= 1
    data_of(segment).write_bytes(data)
    report = check(segment, events=True)
    (finding,) = report.findings
    assert (finding.offset_bytes, finding.reason) == (at, "no whole record begins here")


def test_a_block_trace_without_its_index_is_shown_and_repaired(
    segment: SegmentPaths,
) -> None:
    trace = segment.directory.parent
    expected = shown(trace)
    index = segment.index / "made.blktrace.0.idx"
    before = index.read_bytes()
    index.unlink()
    (one,) = recover(segment, Disk())
    assert one.rebuilt_entries == 3
    assert one.torn_bytes == 0
    assert index.read_bytes() == before
    assert check(segment, events=True).whole
    assert shown(trace) == expected


def test_recovery_indexes_whole_records_after_a_kill_and_cuts_half_a_record(
    segment: SegmentPaths,
) -> None:
    more = record(5000, sequence=5000)
    with data_of(segment).open("ab") as file:
        file.write(more + more[:20])
    (one,) = recover(segment, Disk())
    assert (one.rebuilt_entries, one.torn_bytes) == (1, 20)
    report = check(segment, events=True)
    assert report.whole
    assert report.streams[0].events == RECORDS + 1

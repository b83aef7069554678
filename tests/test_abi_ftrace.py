"""Ftrace sub-buffers and the events in them, against a walker of plain Python and trace-cmd."""

import re
import shutil
import struct
import subprocess
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lttd.abi.ftrace import PageLayout, last_event_time, parse_header_page, rows_of_pages
from lttd.abi.ftrace_abi import FtraceAbi
from lttd.abi.ftrace_events import BATCH_ROWS, Walked, count, walk
from lttd.subbuffer import StreamId, StreamInfo
from lttd.view.window import PIECE_BYTES
from tests.data import SHARED_FTRACE, needs
from tests.tracedat import cpu_data

LAYOUTS = [
    PageLayout(subbuffer_bytes=256, long_bytes=long_bytes, byteorder=order)
    for long_bytes in (4, 8)
    for order in "<>"
]
BAD = "damaged"


class Seen(NamedTuple):
    events: list[tuple[int, int, int]]
    end: int
    damaged_at: int | None


def word(layout: PageLayout, type_len: int, delta: int) -> bytes:
    value = delta << 5 | type_len if layout.byteorder == "<" else type_len << 27 | delta
    return struct.pack(f"{layout.byteorder}I", value)


def plain_walk(  # noqa: C901  (one branch for each kind of record)
    buffer: bytes, offset: int, end: int, layout: PageLayout
) -> Seen:
    """Walk record by record; return (time, payload at, payload bytes) of each event."""
    order = layout.byteorder
    (time,) = struct.unpack_from(f"{order}Q", buffer, offset)
    at = offset + layout.header_bytes
    events = []
    while at < end:
        if at + 4 > end:
            return Seen(events, time, at)
        (head,) = struct.unpack_from(f"{order}I", buffer, at)
        type_len, delta = (
            (head & 31, head >> 5) if order == "<" else (head >> 27, head & (1 << 27) - 1)
        )
        if type_len == 29 and not delta:
            odd = (end - at) & 3
            return Seen(events, time, end - odd if odd else None)
        if 1 <= type_len <= 28:
            length, payload = 4 + 4 * type_len, at + 4
        elif at + 8 > end:
            return Seen(events, time, at)
        else:
            (second,) = struct.unpack_from(f"{order}I", buffer, at + 4)
            length, payload = 8, at + 8
            if type_len in (0, 29):
                length = 4 + (second + 3) // 4 * 4
                if second < 4:
                    return Seen(events, time, at)
        if at + length > end:
            return Seen(events, time, at)
        if type_len == 30:
            time += (second << 27) + delta
        elif type_len == 31:
            time = (second << 27) + delta & (1 << 59) - 1 | time & 31 << 59
        else:
            time += delta
        time &= (1 << 64) - 1
        if type_len < 29:
            events.append((time, payload, second - 4 if type_len == 0 else 4 * type_len))
        at += length
    return Seen(events, time, None)


def record(layout: PageLayout, type_len: int, delta: int, length: int) -> bytes:
    long = struct.pack(f"{layout.byteorder}I", length)
    if 1 <= type_len <= 28:
        return word(layout, type_len, delta) + b"p" * (4 * type_len)
    body = b"q" * (max(length - 4, 0) + 3 & ~3) if type_len in (0, 29) and length < 256 else b""
    return word(layout, type_len, delta) + long + body


RECORDS = st.tuples(
    st.integers(0, 31) | st.sampled_from([0, 29, 30, 31]),
    st.integers(0, (1 << 27) - 1) | st.just(0),
    st.integers(0, 40) | st.sampled_from([(1 << 32) - 1, 1 << 31]),
)


@st.composite
def buffers(draw: st.DrawFn) -> tuple[PageLayout, bytes, list[int], list[int]]:
    layout = draw(st.sampled_from(LAYOUTS))
    data, offsets, ends = bytearray(), [], []
    size = "Q" if layout.long_bytes == 8 else "I"
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            content = b"".join(record(layout, *k) for k in draw(st.lists(RECORDS, max_size=8)))
        else:
            content = draw(st.binary(max_size=64))
        content = content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content
        offsets.append(len(data))
        begin = draw(st.integers(0, (1 << 64) - 1))
        data += struct.pack(f"{layout.byteorder}Q{size}", begin, len(content)) + content
        ends.append(len(data))
        data += bytes(draw(st.integers(0, 9)))
    for _ in range(draw(st.sampled_from([0, 60]))):  # rows that may wait for the others
        content = record(layout, 1, 5, 0) * 4
        offsets.append(len(data))
        data += struct.pack(f"{layout.byteorder}Q{size}", 7, len(content)) + content
        ends.append(len(data))
    return layout, bytes(data), offsets, ends


@pytest.mark.parametrize("pages", [1, 60])
def test_one_sub_buffer_with_time_extensions_changes_no_event_of_the_others(pages: int) -> None:
    extended = (word(L, 30, 9) + struct.pack("<I", 4)) * 3 + record(L, 1, 5, 0)
    contents = [extended, *[record(L, 2, 3, 0) * 3] * pages]
    found = [struct.pack("<QQ", 1000, len(content)) + content for content in contents]
    ends = np.cumsum([len(page) for page in found])
    offsets = ends - np.array([len(page) for page in found])
    (walked_pages,) = walk(b"".join(found), offsets, ends, L)
    assert walked_pages.row_events.tolist() == [1, *[3] * pages]
    assert walked_pages.time.tolist() == [
        1000 + 3 * ((4 << 27) + 9) + 5,
        *[1003, 1006, 1009] * pages,
    ]


def walked(
    data: bytes, offsets: list[int], ends: list[int], layout: PageLayout
) -> tuple[Walked, Walked]:
    arrays = np.array(offsets, np.int64), np.array(ends, np.int64)
    (one,) = walk(data, *arrays, layout)
    (other,) = count(data, *arrays, layout)
    return one, other


@given(buffers())
def test_the_array_walk_finds_the_same_events_as_a_plain_walk(
    given_buffer: tuple[PageLayout, bytes, list[int], list[int]],
) -> None:
    layout, data, offsets, ends = given_buffer
    found, counted = walked(data, offsets, ends, layout)
    damage = {d.row: d.offset_bytes for d in found.damage}
    assert counted.damage == found.damage
    assert (counted.row_events == found.row_events).all()
    for row, (offset, end) in enumerate(zip(offsets, ends, strict=True)):
        wanted = plain_walk(data, offset, end, layout)
        mine = found.row == row
        columns = (found.time[mine], found.payload_at[mine], found.payload_bytes[mine])
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == wanted.events
        assert int(found.row_events[row]) == len(wanted.events)
        assert int(found.row_end[row]) == int(counted.row_end[row]) == wanted.end
        assert damage.get(row) == wanted.damaged_at
    assert (np.diff(found.row) >= 0).all()


@given(buffers())
def test_the_last_event_time_equals_that_of_a_plain_walk(
    made: tuple[PageLayout, bytes, list[int], list[int]],
) -> None:
    layout, buffer, offsets, ends = made
    for offset, end in zip(offsets, ends, strict=True):
        content = end - offset - layout.header_bytes
        page = bytearray(buffer[offset:end])
        commit = content if layout.long_bytes == 4 else content | 1 << 63
        code = "I" if layout.long_bytes == 4 else "Q"
        struct.pack_into(f"{layout.byteorder}{code}", page, 8, commit)
        expected = plain_walk(bytes(page), 0, len(page), layout)
        if expected.damaged_at is None:
            assert last_event_time(bytes(page) + b"\xff" * 8, layout) == expected.end


def one_page(*records: bytes, begin: int = 1000) -> tuple[Walked, PageLayout]:
    layout = PageLayout()
    content = b"".join(records)
    data = struct.pack("<QQ", begin, len(content)) + content
    return walked(data, [0], [len(data)], layout)[0], layout


L = PageLayout()


@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("type_len", [0, 29])
def test_a_record_without_a_length_ends_the_walk_and_is_reported(
    type_len: int, length: int
) -> None:
    no_length = word(L, type_len, 1) + struct.pack("<I", length)
    found, _ = one_page(record(L, 1, 5, 0), no_length, record(L, 1, 5, 0))
    assert found.time.tolist() == [1005]
    assert [(d.offset_bytes, d.reason) for d in found.damage] == [(24, "record states no length")]


@pytest.mark.parametrize("type_len", [1, 28])
def test_a_record_past_the_content_ends_the_walk_and_is_reported(type_len: int) -> None:
    found, _ = one_page(record(L, 2, 5, 0), word(L, type_len, 5))
    assert found.time.tolist() == [1005]
    assert [(d.row, d.offset_bytes) for d in found.damage] == [(0, 28)]


def test_discarded_events_advance_the_time_and_are_not_returned() -> None:
    found, _ = one_page(record(L, 29, 7, 8), record(L, 1, 5, 0))
    assert (found.time.tolist(), found.row_events.tolist()) == ([1012], [1])


def test_the_walk_ignores_the_unused_rest_of_a_page() -> None:
    found, _ = one_page(record(L, 1, 5, 0), word(L, 29, 0), b"any thing here..")
    assert (found.time.tolist(), found.damage) == ([1005], [])


def test_an_absolute_time_stamp_keeps_the_top_five_bits() -> None:
    begin = 3 << 59 | 77
    stamp = word(L, 31, 9) + struct.pack("<I", 4)
    found, _ = one_page(stamp, record(L, 1, 5, 0), begin=begin)
    assert found.time.tolist() == [3 << 59 | (4 << 27) + 14]


def test_a_time_extension_shifts_by_27_bits() -> None:
    found, _ = one_page(word(L, 30, 9) + struct.pack("<I", 4), record(L, 1, 5, 0))
    assert found.time.tolist() == [1000 + (4 << 27) + 14]


def test_the_largest_piece_of_a_window_is_walked_in_one_batch() -> None:
    pages = np.zeros((3 * PIECE_BYTES // 2 // 4096, 1024), np.uint32)
    pages[:, 4] = 29  # the rest is unused
    offsets = np.arange(len(pages)) * 4096
    (found,) = walk(pages.tobytes(), offsets, offsets + 4096, PageLayout())
    assert len(found.row_events) == len(pages)


def test_many_rows_come_in_ordered_batches() -> None:
    rows = BATCH_ROWS + 100
    page = struct.pack("<QQ", 5, 8) + record(L, 1, 3, 0)
    offsets = np.arange(rows, dtype=np.int64) * len(page)
    batches = list(walk(page * rows, offsets, offsets + len(page), L))
    assert [len(batch.row_events) for batch in batches] == [BATCH_ROWS, 100]
    assert np.concatenate([b.row for b in batches]).tolist() == list(range(rows))
    assert list(walk(b"", offsets[:0], offsets[:0], L)) == []


# -- headers


@given(st.binary(min_size=256 * 3, max_size=256 * 3), st.sampled_from(LAYOUTS))
@example(b"\xff" * 768, LAYOUTS[0])
@example(bytes(768), LAYOUTS[1])
def test_every_page_becomes_a_row_or_is_marked_damaged(data: bytes, layout: PageLayout) -> None:
    pages = rows_of_pages(data, len(data), layout)
    rows = pages.rows
    assert len(rows) + len(pages.damaged) == 3
    padding = rows["kernel_bytes"] - rows["payload_bytes"]
    refused = len(pages.damaged) * layout.subbuffer_bytes
    assert int(rows["payload_bytes"].sum() + padding.sum()) + refused == len(data)
    assert (rows["payload_bytes"] <= 256).all()
    assert (rows["content_bits"] <= rows["payload_bytes"] * np.uint64(8)).all()
    assert all(0 <= row < len(rows) for row, _ in pages.missed)


@given(st.lists(st.integers(0, 240), min_size=1, max_size=6), st.sampled_from(LAYOUTS), st.data())
def test_packed_sub_buffers_are_found_by_their_own_sizes(
    sizes: list[int], layout: PageLayout, data: st.DataObject
) -> None:
    size = "Q" if layout.long_bytes == 8 else "I"
    stored, packed = [], bytearray()
    for content in sizes:
        counted = content + layout.header_bytes + layout.long_bytes <= 256 and data.draw(
            st.booleans()
        )
        commit = content | (3 << 30 if counted else 0)
        packed += struct.pack(f"{layout.byteorder}Q{size}", 7, commit)
        packed += bytes(content + layout.long_bytes * counted)
        stored.append(layout.header_bytes + content + layout.long_bytes * counted)
    info = StreamInfo(StreamId("x", 0), "ftrace", 256, layout.header_bytes)
    abi = FtraceAbi(info, "little" if layout.byteorder == "<" else "big")
    tail = data.draw(st.integers(0, layout.header_bytes - 1))
    found = abi.walk(bytes(packed) + bytes(tail), 0)
    assert found.payload_bytes.tolist() == stored
    assert found.content_bytes.tolist() == [n + layout.header_bytes for n in sizes]
    again = abi.headers_at(bytes(packed), found.offset_bytes)
    assert again.payload_bytes.tolist() == stored


@given(st.binary(max_size=300), st.integers(0, 300))
def test_walking_any_bytes_for_sub_buffers_raises_nothing(data: bytes, start: int) -> None:
    abi = FtraceAbi(StreamInfo(StreamId("x", 0), "ftrace", 256, 16), "little")
    for slot in (0, 64):
        found = abi.walk(data, start, slot)
        assert (found.payload_bytes > 0).all()
        abi.decode(data, found)


# -- traces of other programs


@needs(SHARED_FTRACE)
@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not here")
def test_trace_cmd_reports_the_same_events_at_the_same_times() -> None:
    path = SHARED_FTRACE / "nocomp.dat"
    command = ["trace-cmd", "report", "-t", "-i", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    reported: dict[int, list[int]] = defaultdict(list)
    for found in re.finditer(r"\[(\d{3})\]\s+(?:\S+\s+)?(\d+)\.(\d{9}): ", text):
        reported[int(found[1])].append(int(found[2]) * 1_000_000_000 + int(found[3]))
    page_bytes, cpus = cpu_data(path)
    layout = PageLayout(subbuffer_bytes=page_bytes)
    total = 0
    for cpu, data in cpus.items():
        rows = rows_of_pages(data, len(data), layout).rows
        offsets = rows["offset_bytes"].astype(np.int64)
        ends = offsets + (rows["content_bits"] >> np.uint64(3)).astype(np.int64)
        batches = list(walk(data, offsets, ends, layout))
        assert not any(batch.damage for batch in batches)
        times = [time for batch in batches for time in batch.time.tolist()]
        assert times == reported[cpu]
        total += len(times)
    assert total > 1000


@needs(SHARED_FTRACE)
@pytest.mark.parametrize("cpu", [0, 1])
def test_the_array_walk_of_real_pages_equals_a_plain_walk(cpu: int) -> None:
    layout = parse_header_page((SHARED_FTRACE / "raw/header_page").read_bytes())
    data = (SHARED_FTRACE / f"raw/cpu{cpu}.pages").read_bytes()
    rows = rows_of_pages(data, len(data), layout).rows
    offsets = rows["offset_bytes"].astype(np.int64).tolist()
    ends = (rows["offset_bytes"] + (rows["content_bits"] >> np.uint64(3))).tolist()
    found, _ = walked(data, offsets, ends, layout)
    plain = [event for o, e in zip(offsets, ends, strict=True) for event in
             plain_walk(data, o, e, layout).events]  # fmt: skip
    mine = zip(found.time.tolist(), found.payload_at.tolist(), found.payload_bytes.tolist(),
               strict=True)  # fmt: skip
    assert list(mine) == plain
    assert found.damage == []

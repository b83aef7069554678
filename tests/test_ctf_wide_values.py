"""Values at 2^63 and above in whatever computes with CTF: ordinary addresses, ids and times."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lttd.abi import ctf
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_choices import NONE, Choices
from lttd.abi.ctf_classes import ByteOrder, Integer, Struct, Variant
from lttd.abi.ctf_events import walk
from lttd.abi.ctf_fields import within
from lttd.abi.ctf_heads import Packets
from lttd.abi.ctf_plan import Plan
from lttd.subbuffer import Reason, Unit
from lttd.view.cli import main as lttv_main
from tests.batches import gaps_of, take_to_end
from tests.ctf_model import Bits as Written
from tests.ctf_writer import CtfChannel, CtfTracer, write_ctf
from tests.test_ctf_bad_input import BABELTRACE, HEAD, MAGIC, event, read, shown, sized
from tests.test_ctf_view import assert_as_babeltrace2, lines_of
from tests.test_sources_replay_ctf import needs_babeltrace, opened, record

TOP = (1 << 64) - 1
EDGES = [
    0,
    1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 53) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 1,
    TOP - 1,
    TOP,
]
WIDE = st.sampled_from(EDGES) | st.integers(0, TOP)
ORDERS = st.sampled_from(["little", "big"])


@given(st.lists(WIDE, min_size=1, max_size=9), st.integers(1, 64), st.integers(0, 63), ORDERS)
@example([TOP], 64, 7, "big")
@example([1 << 63], 64, 1, "little")
def test_a_number_is_read_as_it_was_written_at_any_bit(
    values: list[int], size: int, at: int, order: ByteOrder
) -> None:
    written, places, expected = Written(), [], []
    written.at = at
    for value in values:
        places.append(written.at)
        expected.append(value & ((1 << size) - 1))
        written.put(expected[-1], size, order)
    bits = Bits(bytes(written.raw))
    found = bits.unsigned(np.array(places, np.int64), size, order)
    assert found.dtype == np.uint64
    assert found.tolist() == expected
    signed = bits.integers(np.array(places, np.int64), Integer(size, 1, True, order))
    assert signed.tolist() == [one - (1 << size) * (one >> (size - 1)) for one in expected]


@given(st.lists(WIDE, min_size=1), WIDE, st.integers(-(1 << 70), 1 << 70), st.booleans())
def test_a_range_holds_the_values_that_it_holds_in_arithmetic(
    values: list[int], low: int, high: int, signed: bool
) -> None:
    column = np.array(values, np.uint64)
    if signed:
        column = column.view(np.int64)
    for bounds in ((low, high), (high, low), (-low, TOP), (low, low)):
        expected = [bounds[0] <= value <= bounds[1] for value in column.tolist()]
        assert within(column, *bounds).tolist() == expected


RANGE = st.tuples(st.sampled_from("abc"), st.integers(-(1 << 65), 1 << 65), WIDE)


@given(st.lists(WIDE, min_size=1), st.lists(RANGE, max_size=6), st.booleans())
@example([TOP, 0], [("a", 0, TOP), ("b", TOP, TOP)], False)
@example([TOP, 0], [("b", -(1 << 65), -1), ("a", -1, 0)], True)
def test_a_tag_chooses_the_first_option_whose_range_holds_it(
    values: list[int], ranges: list[tuple[str, int, int]], signed: bool
) -> None:
    labels = tuple((name, low, max(low, high)) for name, low, high in ranges)
    options = tuple((name, Struct(())) for name in "acb")
    column = np.array(values, np.uint64)
    if signed:
        column = column.view(np.int64)
    expected = [
        next(
            (
                number
                for number, (name, _) in enumerate(options)
                if any(name == one and low <= value <= high for one, low, high in labels)
            ),
            NONE,
        )
        for value in column.tolist()
    ]
    for of, told in ((Variant((), options), labels), (Variant((), options, labels), ())):
        assert Choices(of, told).of(column).tolist() == expected


LAYOUT = ctf.PacketLayout.parse(
    "packet_size 0 8 little; content_size 8 8 little; timestamp_begin 16 8 little; header 24;"
    " clock 1000000000"
)


@given(WIDE, WIDE, WIDE)
def test_sizes_in_a_packet_s_header_are_possible_or_not_sound(
    packet: int, content: int, begin: int
) -> None:
    data = struct.pack("<QQQ", packet, content, begin) + bytes(40)
    found = ctf.headers_at(data, np.array([0, 60, -1, 1 << 62]), LAYOUT, 0)
    possible = content <= packet and packet % 8 == 0 and 24 * 8 <= content <= len(data) * 8
    assert found.sound.tolist() == [possible, False, False, False]
    if possible:
        assert found.begin[0] == begin
    assert next(ctf.adjoining(data, 0, LAYOUT)) == 0


@given(WIDE, st.sampled_from([1, 3, 1000, 999_999_999, 10**9, 3_000_000_000, (1 << 54) - 1]))
def test_times_are_whole_ns_or_the_largest_number(cycles: int, frequency: int) -> None:
    layout = ctf.PacketLayout({}, 0, frequency)
    expected = min(cycles * 10**9 // frequency, TOP)
    assert layout.ns_of(np.array([cycles], np.uint64)).tolist() == [expected]


@given(WIDE, st.lists(st.integers(0, (1 << 27) - 1), max_size=5), st.lists(WIDE, max_size=2))
def test_times_of_27_and_64_bits_go_on_from_any_begin(
    begin: int, low: list[int], whole: list[int]
) -> None:
    trace = read(
        "clock { name = c; }; stream { event.header := struct {"
        " enum : integer { size = 5; align = 1; } { compact = 0 ... 30, extended = 31 } id;"
        " variant <id> { struct { integer { size = 27; align = 1; map = clock.c.value; }"
        " timestamp; } compact; struct { u32 id; integer { size = 64; align = 8;"
        " map = clock.c.value; } timestamp; } extended; } v; } align(8); };" + event("")
    )
    data = b"".join(struct.pack("<I", 1 | value << 5) for value in low)
    data += b"".join(struct.pack("<BIQ", 31, 1, value) for value in whole)
    data += b"".join(struct.pack("<I", 1 | value << 5) for value in low)
    expected, now = [], begin
    for value in (*low, None, *low):
        for each in whole if value is None else ():
            now = each
            expected.append(now)
        if value is not None:
            now += (value - now) % (1 << 27)
            now &= TOP
            expected.append(now)
    zero = np.zeros(1, np.int64)
    packets = Packets(zero, zero, zero + 8 * len(data), np.array([begin], np.uint64))
    (found,) = walk(Bits(data), packets, Plan(trace, trace.streams[0]))
    assert found.time.tolist() == expected
    assert found.row_end.tolist() == [expected[-1] if expected else begin]


@pytest.mark.parametrize("first", [1 << 63, TOP - 3])
def test_numbers_of_packets_and_totals_of_losses_may_be_of_64_bits(
    tmp_path: Path, first: int
) -> None:
    channel = CtfChannel(CtfTracer(), sequence=first, discarded=first)
    channel.packet().packet(lost=2, skip=1).packet()
    (stream,) = opened(write_ctf(tmp_path, channel)).streams
    batches = take_to_end(stream)
    assert gaps_of(batches) == [
        (Reason.OVERWRITTEN, Unit.SUBBUFFERS, 1), (Reason.DISCARDED, Unit.EVENTS, 2)
    ]  # fmt: skip
    numbers = [number for batch in batches for number in batch.rows["sequence"].tolist()]
    assert numbers == [first, first + 2, first + 3]


FIELDS = """u64 dec; integer { size = 64; align = 8; base = 16; } hex;
    integer { size = 64; align = 8; base = 8; } oct;
    integer { size = 64; align = 8; base = 2; } bin;
    integer { size = 64; align = 8; signed = true; } neg;
    integer { size = 63; align = 1; } odd; integer { size = 1; align = 1; } bit;
    enum : u64 { low = 0 ... 9223372036854775807, top = 18446744073709551615,
        high = 9223372036854775808 ... 18446744073709551615 } label;
    u64 list[2]; u8 n; u64 some[n]; integer { size = 64; base = 16; } more[n];
    variant <label> { string low; u64 high; } choice;"""


def encoded(value: int) -> bytes:
    signed = value - (1 << 64) * (value >> 63)
    odd = struct.pack("<Q", value & ((1 << 63) - 1) | (value & 1) << 63)
    raw = b"\1" + struct.pack("<QQQQq", value, value, value, value, signed) + odd
    raw += struct.pack("<QQQBQQ", value, value, TOP, 1, value, value)
    return raw + (struct.pack("<Q", value) if value >> 63 else b"s\0")


@needs_babeltrace
def test_wide_values_are_printed_as_babeltrace2_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = b"".join(map(encoded, EDGES))
    _, err = shown(tmp_path, capfd, event(FIELDS), raw, *BABELTRACE)
    assert not err
    ours, _ = lines_of(capfd, *BABELTRACE, str(tmp_path / "t"))
    assert len(ours) == len(EDGES)
    assert_as_babeltrace2(ours, tmp_path / "ctf")


def test_wide_values_are_the_same_in_lines_json_conditions_and_columns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import lttd  # noqa: PLC0415

    lines, err = shown(tmp_path, capfd, event(FIELDS), b"".join(map(encoded, EDGES)))
    assert not err
    for pattern in (r"dec=(\d+)", r"hex=(\w+)"):
        told = [re.search(pattern, line) for line in lines]
        assert [int(one[1], 0) for one in told if one] == EDGES
    trace = str(tmp_path / "t")
    for word in (f"dec == {1 << 63}", f"hex == {1 << 63:#x}"):
        (line,), _ = lines_of(capfd, trace, "--json", "--where", word)
        fields: dict[str, Any] = json.loads(line)["fields"]
        assert fields["dec"] == fields["oct"] == fields["label"] == 1 << 63
        assert fields["neg"] == -(1 << 63)
        assert fields["list"] == [1 << 63, TOP]
    found, _ = lines_of(capfd, trace, "--where", f"dec >= {1 << 63}")
    assert len(found) == 4
    (batch,) = lttd.open(tmp_path / "t").window()
    rows = batch["chan:e"]
    assert rows["dec"].tolist() == EDGES
    assert rows["list"].tolist() == [[value, TOP] for value in EDGES]


@pytest.mark.parametrize("begin", [(1 << 63) - 20, TOP - 40])
def test_times_of_the_clock_s_last_half_are_shown_and_stay_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], begin: int
) -> None:
    write_ctf(tmp_path / "ctf", CtfChannel(CtfTracer(), now=begin).packet(3))
    record(tmp_path / "ctf", tmp_path / "t")
    lines, err = lines_of(capfd, "--ns", str(tmp_path / "t"))
    assert not err
    told = [re.search(r" (\d+)\.(\d{9}): ", line) for line in lines]
    times = [int(found[1] + found[2]) for found in told if found]
    assert times == [begin + 10, begin + 20, begin + 30]
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0
    lines, _ = lines_of(capfd, *BABELTRACE, str(tmp_path / "t"))
    assert len(lines) == 3


def test_a_task_s_id_of_64_bits_is_no_obstacle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = (
        "stream { packet.context := struct { u64 content_size; u64 packet_size; };"
        " event.header := struct { u8 id; }; event.context := struct { u64 vtid; }; };"
    )
    (tmp_path / "ctf").mkdir()
    (tmp_path / "ctf/metadata").write_text(HEAD + stream + event("u8 y;"))
    raw = b"".join(struct.pack("<BQB", 1, value, 7) for value in EDGES)
    (tmp_path / "ctf/chan_0").write_bytes(sized(MAGIC + bytes(16) + raw))
    record(tmp_path / "ctf", tmp_path / "t")
    lines, err = lines_of(capfd, str(tmp_path / "t"))
    assert not err
    assert [int(line.partition("vtid=")[2].split()[0]) for line in lines] == EDGES

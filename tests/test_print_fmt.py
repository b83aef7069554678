"""Parse print fmts, and print columns by them."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi.print_fmt import parse_print_fmt
from lttd.abi.print_fmt_nodes import PrintFmt, Unparsable
from lttd.view.addresses import Symbols
from lttd.view.conversions import Buffer
from lttd.view.ftrace.render import Renderer, why_inexpressible
from lttd.view.glyphs import decimal, distinct_rows, hexadecimal
from lttd.view.strips import right_aligned
from tests.print_fmts import FIXED, event, lines, lines_of, rows_of


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ('"%d %u %lld", REC->i, REC->u, REC->q', "-5 4000000000 -1234567890123"),
        ('"%x %X %#x %08lx %o", REC->i, REC->u, 255, (unsigned long)REC->i, 8',
         "fffffffb EE6B2800 0xff fffffffffffffffb 10"),
        ('"%#x|%#X|%#o|%#o|%#8x|%#x", 0, 0, 0, 8, 0, REC->i + 5', "0x0|0X0|0|010|     0x0|0x0"),
        ('"%5d|%-5d|%05d|%+d|%3u", 42, 42, 42, 42, 1234', "   42|42   |00042|+42|1234"),
        ('"%s|%8s|%-6s|%.2s|%c", REC->comm, REC->comm, REC->comm, REC->comm, 65',
         "bash|    bash|bash  |ba|A"),
        ('"100%% %s", "a" "b"', "100% ab"),
        ('"%d %d %d", 7 / 2, -7 / 2, -7 % 3', "3 -3 -1"),
        ('"%u %u", 1 << 4 | 3, (5 & 6) ^ 1', "19 5"),
        ('"%d", REC->i < 0 ? REC->u > 1 && !0 : 9', "1"),
        ('"%s", REC->i ? "yes" : "no"', "yes"),
        ('"%u %d %lu", (u8)REC->i, (s16)70000, sizeof(REC->raw)', "251 4464 16"),
        ('"%u", ((unsigned int)(REC->u >> 20))', "3814"),
        ('"%s", __print_flags(REC->u & 0xffff, "|", { 0x2000, "X" }, { 0x0800UL, "Y" })', "X|Y"),
        ('"%s", __print_flags(5, "+", { 1, "A" }, { 2, "B" })', "A+0x4"),
        ('"%s", __print_symbolic(REC->i, { -5, "MINUS" }, { 1, "ONE" })', "MINUS"),
        ('"%s", __print_symbolic(77, { ENUM_NOT_TOLD, "X" })', "0x4d"),
        ('"%s %s", __get_str(s), __get_rel_str(rel)', "dyn dyn"),
        ('"%d %c", __get_dynamic_array_len(list), __get_str(s)[1]', "3 y"),
        ('"%s %s", __print_hex(__get_dynamic_array(list), 3), __print_hex_str(REC->raw, 2)',
         "64 79 6e 0102"),
        ('"%s", __print_array(__get_dynamic_array(list), 3, 1)', "{0x64,0x79,0x6e}"),
        ('"%s", __get_bitmask(cpus)', "00000000,0000000b"),
        ('"%*pbl", 8, __get_dynamic_array(list)', "2,5-6"),
        ('"%.*s", 2, REC->comm', "ba"),
        ('"%pI4 %pM %pU", REC->raw, REC->raw, REC->raw',
         "1.2.3.4 01:02:03:04:05:06 01020304-0506-0708-090a-0b0c0d0e0f10"),
        ('"%*phD|%3phC|%ph|%*phN", 4, REC->raw, REC->raw, REC->raw, 2, __get_dynamic_array(list)',
         "01-02-03-04|01:02:03|01|6479"),
        ('"%*ph|%*ph", 9, __get_dynamic_array(list), 0, REC->raw', "64 79 6e|"),
        ('"%pa %pad", &REC->q, &REC->u', "0xfffffee08e04fb35 0xee6b2800"),
        ('"(%s)", __print_dynamic_array(list, 1)', "({0x64,0x79,0x6e})"),
        ('"%lld %d", (long long)(((ktime_t) { .tv64 = REC->q }).tv64), REC->i',
         "-1234567890123 -5"),
        ('"%pI6c", REC->raw', "102:304:506:708:90a:b0c:d0e:f10"),
        ('"%p %ps", (void *)REC->q, 0x10', "fffffee08e04fb35 0x10"),
        ('"%hhu %hd", 257, 65535', "1 -1"),
        ('"%d", (REC)->i', "-5"),
        ('"%d %d", REC->ent.pid == REC->common_pid, REC->i', "1 -5"),
        ('"%d", REC->raw[2]', "3"),
        ('"%d", __builtin_expect(!!(REC->i), 0)', "1"),
        ("\"%d\\t%d\", '\\n', 'a'", "10\t97"),
    ],
)  # fmt: skip
def test_print_fmts_print_their_conversions(printed: str, told: str) -> None:
    made = event(-5, 4_000_000_000, -1_234_567_890_123, b"bash", bytes(range(1, 17)))
    assert lines(printed, made) == [told]
    # Constants are not columns: several rows must print the same.
    other = event(1, 2, 3, b"a-much", bytes(16), b"a longer string")
    assert lines(printed, made, other, made)[::2] == [told, told]


def test_strings_end_at_their_first_nul_byte() -> None:
    assert lines('"<%s>", REC->comm', event(comm=b"ab\0cd"), event(comm=b"12345678")) == [
        "<ab>",
        "<12345678>",
    ]


@pytest.mark.parametrize(
    "printed",
    [
        '"%d", jiffies_to_msecs(REC->i)',
        '"%d", REC->nothing',
        '"%d", unknown_name',
        '"%p", (((struct page *)vmemmap_base) + (REC->i))',
        '"%d %d", 1',
        '"%d", ({ int x = 1; x; })',
        '"%d", REC->i +',
        "REC->i",
        '"%q", 1',
        '"%d", ' + "(" * 500 + "1" + ")" * 500,
    ],
)
def test_an_unsupported_print_fmt_prints_all_fields_by_name(printed: str) -> None:
    rows = rows_of(printed, [event(-5, 6, 7, b"bash")])
    renderer = Renderer(rows.event_type.format, Symbols())
    assert renderer.reason
    (told,) = lines_of(renderer.strip(rows), 1)
    assert told.startswith("i=-5 u=6 q=7 comm=bash raw={0,")
    assert "s=dyn" in told
    assert rows.event_type.format is not None
    assert why_inexpressible(rows.event_type.format) == renderer.reason


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ('"page=%p pfn=0x%lx order=%d", ((struct page *)vmemmap_base) + REC->q, REC->q, REC->i',
         "pfn=0x7 order=-5"),
        ('"i=%d age=%lu u=%u", REC->i, (jiffies - REC->q) / 250, REC->u', "i=-5 u=6 q=7"),
        ('"i=%d age=%lu", REC->i, jiffies - REC->u', "i=-5 u=6"),
        ('"%s/%d, %s", mc_error_type(REC->u), REC->i, __get_str(s)', "?/-5, dyn u=6"),
        ('"%s %s", ({ const char *ret = trace_seq(REC->u, 1); ret; }), REC->comm', "? bash u=6"),
        ('"n=%d, m=%d (%d)", nobody, REC->i, REC->i', "m=-5 (-5)"),
        ('"%d %s", REC->i, REC->u == 6 ? 0 : "text"', "-5 (null)"),
        ('"%s", REC->u == 7 ? "text" : REC->q', "0x7"),
        ('"%d%%", REC->i', "-5%"),
        ('"%d %d", ((ktime_t) { .tv64 = REC->q }).other, REC->i', "? -5 q=7"),
    ],
)  # fmt: skip
def test_only_unsupported_conversions_are_left_out(printed: str, told: str) -> None:
    rows = rows_of(printed, [event(-5, 6, 7, b"bash")] * 3)
    strip = Renderer(rows.event_type.format, Symbols()).strip(rows)
    assert lines_of(strip, 3) == [told] * 3


def test_a_text_wider_than_the_limit_is_cut_and_keeps_its_type() -> None:
    """A wide value in the middle of a trace does not change the form of later lines."""
    long = b"x" * 9000
    made = [event(i=5000, text=long), event(i=2, text=long), event(i=-3, text=long), event(i=1)]
    told = lines('"%.*s|%d", REC->i, __get_str(s), REC->i', *made)
    assert [len(line) for line in told] == [5005, 4, 3, 3]
    assert [line.rpartition("|")[2] for line in told] == ["5000", "2", "-3", "1"]
    wide = lines('"%*s|", REC->i, __get_str(s)', event(i=1 << 30, text=b"ab"))
    assert wide == [f"{'ab':>4096}|"]


def test_a_dynamic_field_beyond_its_event_is_cut_off() -> None:
    made = bytearray(event(text=b"dyn"))
    struct.pack_into("<I", made, 48, 0xFFFF << 16 | FIXED + 1)
    told = lines('"%s", __get_str(s)', bytes(made), event())
    assert told[0] == "yn"


@given(st.text(max_size=60))
def test_a_garbage_print_fmt_raises_only_its_own_error(garbage: str) -> None:
    for text in (garbage, f'"%d", {garbage}', f'"{garbage}", REC->i'):
        try:
            assert isinstance(parse_print_fmt(text), PrintFmt)
        except Unparsable:
            continue


@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=9),
    st.integers(0, 20),
    st.integers(1, 22),
)
def test_printed_digits_equal_those_of_python(values: list[int], zeros: int, width: int) -> None:
    def told(strip: list[bytes | np.ndarray]) -> list[str]:  # type: ignore[type-arg]
        return lines_of(strip, len(values))

    column = np.array(values, np.int64)
    assert told(decimal(column)) == [str(value) for value in values]
    assert told(right_aligned(decimal(column), len(values), width)) == [
        f"{value:{width}d}" for value in values
    ]
    unsigned = [value & (1 << 64) - 1 for value in values]
    zeros = min(zeros, 16)
    assert told(hexadecimal(column, zeros)) == [f"{value:0{zeros or 1}x}" for value in unsigned]
    assert told(decimal(column.view(np.uint64), zeros)) == [
        f"{value:0{zeros or 1}d}" for value in unsigned
    ]
    small = column.astype(np.int16)
    assert told(hexadecimal(small)) == [f"{value & 0xFFFF:x}" for value in small.tolist()]


@given(st.integers(1, 20), st.data())
def test_equal_rows_of_bytes_have_equal_numbers(width: int, data: st.DataObject) -> None:
    some = st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=9)
    rows = data.draw(st.lists(st.sampled_from(data.draw(some)), max_size=200))
    matrix = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, width)
    first, which = distinct_rows(matrix)
    assert [rows[first[one]] for one in which] == rows
    assert len(first) == len(set(rows))


@given(st.lists(st.sampled_from([b"", b"a", b"ab\0", b"ab", b"\0\0\0", b"x" * 70]), max_size=20))
def test_equal_bytes_are_described_once_for_all_rows(pieces: list[bytes]) -> None:
    end = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    begin = end - np.array([len(piece) for piece in pieces], np.int64)
    buffer = Buffer(memoryview(b"".join(pieces)), begin, end, 1, False, "<")
    assert buffer.told(lambda one: one.hex().encode()).tolist() == [
        piece.hex().encode() for piece in pieces
    ]

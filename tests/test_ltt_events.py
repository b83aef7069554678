"""Decode markers and events of LTTng 0.x: every logged event comes back."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lttd.abi import ltt, ltt_walk
from lttd.abi.declared import LttEventHeader
from lttd.abi.ltt_events import Channel, SubBuffers, Walked, walk
from lttd.abi.ltt_markers import Marker as Declared
from lttd.abi.ltt_markers import Markers, Sizes, Stored, core_markers, parse_fields
from lttd.abi.ltt_shape import Shape
from lttd.limits import MARKERS
from tests.logging_ltt import Program, logged_marker, programs
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer

LONG32 = Sizes(4, 4, 4, 4)


def subbuffers(data: bytes) -> tuple[ltt.Layout, SubBuffers]:
    found, layout = ltt_walk.survey(data), ltt.layout_of(data)
    assert not found.damage
    offset = found.offsets_bytes
    begin = np.array([int.from_bytes(data[at : at + 8], _endian(layout)) for at in offset], "u8")
    return layout, SubBuffers(
        offset, offset + layout.header_bytes, offset + found.used_bytes, begin
    )


def _endian(layout: ltt.Layout) -> str:
    return "little" if layout.order == "<" else "big"


def markers_of(metadata: bytes) -> Markers:
    layout, rows = subbuffers(metadata)
    markers = Markers()
    channel = Channel(core_markers(layout.minor, layout.alignment), layout)
    for walked in walk(metadata, rows, channel):
        assert not walked.damage + walked.undeclared
        for one, payload in zip(walked.id.tolist(), payloads(metadata, walked), strict=True):
            assert markers.add_event(one, payload, minor=layout.minor, byteorder=layout.order)
    return markers


def payloads(data: bytes, walked: Walked) -> list[bytes]:
    places = zip(walked.payload_at.tolist(), walked.payload_bytes.tolist(), strict=True)
    return [data[at : at + size] for at, size in places]


def walked_of(program: Program, data: bytes) -> list[Walked]:
    layout, rows = subbuffers(data)
    markers = markers_of(program.metadata().drain())
    assert not markers.conflicts
    return list(walk(data, rows, Channel(markers.of("kernel"), layout)))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(programs())
@example(Program(Tracer(minor=2), []))
def test_every_sequence_of_logged_events_is_decoded(program: Program) -> None:
    buffer = program.channel()
    data = buffer.drain()
    found = []
    for walked in walked_of(program, data):
        assert not walked.damage + walked.undeclared
        found += zip(walked.id.tolist(), walked.time.tolist(), payloads(data, walked), strict=True)
    assert found == [tuple(one) for one in buffer.logged]


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("sized", [False, True])
def test_sizes_that_do_not_fit_16_bits_are_read(size: int, sized: bool) -> None:
    tracer = Tracer(sized=sized, alignment=8)
    logged = logged_marker(tracer, Marker("kernel", "long", 40, "text %s end %llu"), ["%s", "%llu"])
    # The number after the string is aligned to 8 bytes.
    values = (b"y" * (size - 16), 7)
    start = tracer.start_tsc + (1 << 40)
    events = [(logged, values, start), (logged, values, start + 1)]
    program = Program(tracer, [logged], events, 1 << 18)
    (walked,) = walked_of(program, program.channel().drain())
    assert not walked.damage
    assert walked.time.tolist() == [start, start + 1]
    assert walked.payload_bytes.tolist() == [(size - 16 + 1 + 7) // 8 * 8 + 8] * 2


@pytest.mark.parametrize("sized", [False, True])
def test_the_event_headers_match_their_declarations(sized: bool) -> None:
    tracer = Tracer(sized=sized)
    markers = [
        logged_marker(tracer, Marker("kernel", f"m{at}", at, "s %s"), ["%s"]) for at in (2, 28, 40)
    ]
    events, tsc = [], tracer.start_tsc
    for number, step in enumerate([0, 5, 9, 1 << 28] * 3):
        tsc += step
        text = b"z" * (70_000 if number == 7 else number)
        events.append((markers[number % 3], (text,), tsc))
    program = Program(tracer, markers, events, 1 << 18)
    data = program.channel().drain()
    (walked,) = walked_of(program, data)
    at = 68
    ends = walked.payload_at + walked.payload_bytes
    places = zip(walked.payload_at.tolist(), ends.tolist(), strict=True)
    for number, (payload, end) in enumerate(places):
        head = LttEventHeader.parse(data[at:payload])
        assert head.id == walked.id[number]
        assert head.time_low == int(walked.time[number]) & ((1 << 27) - 1)
        assert head.time in (None, walked.time[number])
        assert (head.large_size or head.size) in (None, end - payload)
        at = end
    assert at == subbuffers(data)[1].end_bytes[-1]


def test_times_may_wrap_many_times_within_a_sub_buffer() -> None:
    tracer = Tracer(start_tsc=(1 << 40) + (1 << 27) - 5)
    logged = logged_marker(tracer, Marker("kernel", "tick", 3, ""), [])
    steps = np.cumsum([0, 4, 1, (1 << 27) - 1, (1 << 27) - 1, 1 << 27, 3, (1 << 27) - 1])
    times = [tracer.start_tsc + int(step) for step in steps]
    program = Program(tracer, [logged], [(logged, (), time) for time in times])
    (walked,) = walked_of(program, program.channel().drain())
    assert walked.time.tolist() == times
    assert walked.row_end.tolist() == [times[-1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pid %d", [("pid", Stored(4, True), False, "", "d")]),
        ("state #2d%ld", [("state", Stored(2, True), False, "", "d")]),
        ("ip 0x%lX", [("ip", Stored(4), False, "0x", "X")]),
        ("p #n2u%hu name %s", [("p", Stored(2), True, "", "u"),
                               ("name", Stored(0), False, "", "s")]),
        ("a #p%lu b %p", [("a", Stored(4, pointer=True), False, "", "u"),
                          ("b", Stored(4, pointer=True), False, "", "p")]),
        ("a15 #1x%c", [("a15", Stored(1), False, "", "c")]),
        ("rw(A,B) %lX not #1u%d", [("rw(A,B)", Stored(4), False, "", "X"),
                                   ("not", Stored(1), False, "", "d")]),
        ("count %zu pos %lld", [("count", Stored(4), False, "", "u"),
                                ("pos", Stored(8, True), False, "", "d")]),
        ("irqstate #1%d", []),  # the size hint includes the conversion
        ("irqstate #1%d fd %u", [("irqstate", Stored(4), False, "", "u")]),
        ("j #8u%lu", [("j", Stored(4), False, "", "u")]),  # the tracer has no size 8
        ("j #8u%llu", [("j", Stored(8), False, "", "u")]),
        ("s #1u%s", [("s", Stored(0), False, "", "s")]),
        ("100%% of ## a %d", [("100", Stored(4, True), False, "", "d")]),
        ("%d%d", [("field 1", Stored(4, True), False, "", "d"),
                  ("field 2", Stored(4, True), False, "", "d")]),
        ("f %f g %5d h %i", [("d", Stored(4, True), False, "", "i")]),
        ("", []), ("no fields at all", []), ("end %", []), ("end #", []), ("end %l", []),
    ],
)  # fmt: skip
def test_format_strings_are_parsed_as_the_tracer_parses_them(
    text: str, told: list[tuple[str, Stored, bool, str, str]]
) -> None:
    found = [
        (one.name, one.stored, one.network, one.literal, one.letter)
        for one in parse_fields(text, LONG32)
    ]
    assert found == told


@given(st.text() | st.text("%#nld12848sp cuxhzXZt0-+"))
def test_any_text_parses_as_fields_without_an_exception(text: str) -> None:
    fields = parse_fields(text, LONG32)
    assert len(fields) <= text.count("%")


def test_declarations_may_come_in_any_order_and_repeatedly() -> None:
    tracer, marker = Tracer(), Marker("fs", "read", 1, "fd %u")
    program = Program(tracer, [logged_marker(tracer, marker, ["%u"])])
    events = [(one.id, one.payload) for one in program.metadata().logged]
    markers = Markers()
    for number, payload in [*events[::-1], *events]:
        assert markers.add_event(number, payload, minor=6, byteorder="<")
    assert not markers.conflicts
    assert [field.name for field in markers.of("fs")[1].fields] == ["fd"]
    assert not markers.of("kernel")


def test_of_contradicting_declarations_the_first_one_is_used_and_a_note_says_so() -> None:
    tracer, markers = Tracer(), Markers()
    for name, one, text in [("read", 1, "fd %u"), ("read", 1, "fd %d"), ("write", 1, "fd %u")]:
        logged = logged_marker(tracer, Marker("fs", name, one, text), [])
        for event in Program(tracer, [logged]).metadata().logged:
            assert markers.add_event(event.id, event.payload, minor=6, byteorder="<")
    assert markers.conflicts == [
        "fs.read: declared as 'fd %u' and 'fd %d'; the first counts",
        "fs.write: id 1 is declared with the id of fs.read; the first counts",
    ]
    assert markers.of("fs")[1].name == "read"
    assert not markers.of("fs")[1].fields[0].stored.signed


def test_an_id_without_a_format_ends_the_subbuffer() -> None:
    tracer = Tracer()
    markers = [
        logged_marker(tracer, Marker("kernel", f"m{at}", at, "a %u"), ["%u"]) for at in (2, 3)
    ]
    events = [(markers[at], (at,), tracer.start_tsc + n) for n, at in enumerate((0, 0, 1, 0))]
    program = Program(tracer, markers, events)
    data = program.channel().drain()
    layout, rows = subbuffers(data)
    program.markers = markers[:1]
    markers = markers_of(program.metadata().drain())
    (walked,) = walk(data, rows, Channel(markers.of("kernel"), layout))
    assert walked.row_events.tolist() == [2]
    (damage,) = walked.undeclared
    assert not walked.damage
    assert (damage.row, damage.reason) == (0, "no marker is known for event id 3")
    # The header, an event with its whole TSC, and one without.
    assert damage.offset_bytes == 68 + (4 + 4 + 8 + 4) + (4 + 4)


def test_a_size_that_is_not_the_markers_ends_the_subbuffer() -> None:
    tracer = Tracer(sized=True)
    logged = logged_marker(tracer, Marker("kernel", "m", 2, "a %u"), ["%u"])
    program = Program(tracer, [logged])
    buffer = LttBuffer(tracer)
    buffer.log(2, b"12345678", tracer.start_tsc)
    buffer.finalize(tracer.start_tsc)
    (walked,) = walked_of(program, buffer.drain())
    assert [one.reason for one in walked.damage] == ["m has 4 bytes, its header says 8"]


@pytest.mark.slow
@settings(deadline=None)
@given(programs(20), st.data())
def test_decoding_mutated_data_raises_no_exception(program: Program, data: st.DataObject) -> None:
    raw = bytearray(program.channel().drain())
    layout, rows = subbuffers(bytes(raw))
    channel = Channel(markers_of(program.metadata().drain()).of("kernel"), layout)
    end = int(rows.end_bytes[-1])
    for at in data.draw(st.lists(st.integers(layout.header_bytes, end), max_size=8)):
        raw[min(at, end - 1)] = data.draw(st.integers(0, 255))
    # The last sub-buffer ends with the buffer, so a read beyond it would fail.
    for walked in walk(bytes(raw[:end]), rows, channel):
        assert (walked.payload_at + walked.payload_bytes <= rows.end_bytes[walked.row]).all()
        assert (walked.payload_at >= rows.events_bytes[walked.row]).all()
        assert (walked.payload_bytes >= 0).all()
        assert len(walked.time) == walked.row_events.sum()
        assert len(walked.damage) <= len(rows.offset_bytes)


def test_a_payload_of_many_strings_and_integers_keeps_its_alignment() -> None:
    layout = ltt.Layout("<", 6, 4, 4, 1, 1, 0)
    fields = parse_fields("a %s b %llu c %s d #1u%u e %hu f %s", LONG32)
    shape = Shape(Declared("k", "m", 0, "", LONG32._replace(alignment=4), fields), layout)
    assert (shape.alignment, shape.strings, shape.fixed_bytes) == (4, 3, None)
    #        a          b aligned to 4 on 32 bits   c      d    e          f
    data = b"xy\0" + b"\0" + bytes(8) + b"z\0" + b"\1" + b"\0" + b"\2\0" + b"\0"
    assert shape.behind(data, 0, len(data)) == len(data)
    assert shape.behind(data, 0, len(data) - 1) == -1


@pytest.mark.slow
def test_each_empty_event_uses_bounded_memory() -> None:
    layout = ltt.Layout("<", 6, 8, 0, 1_000_000_000, 1, 0)
    size = 1 << 20
    rows = SubBuffers(*(np.array([value]) for value in (0, 0, size)), np.zeros(1, np.uint64))
    channel = Channel({0: Declared("k", "tick", 0, "", LONG32, ())}, layout)
    tracemalloc.start()
    (walked,) = walk(bytes(size), rows, channel)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(walked.time) == size // 4
    assert most < 160 * size // 4


def test_impossible_declarations_are_refused_quickly() -> None:
    markers = Markers()

    def declare(one: int, sizes: bytes) -> None:
        payload = b"fs\0m%d\0" % one + one.to_bytes(2, "little") + sizes
        assert markers.add_event(0, payload, minor=6, byteorder="<")

    long = b"a %d " * 10_000
    assert markers.add_event(1, b"fs\0long\0" + long + b"\0", minor=6, byteorder="<")
    declare(1, bytes((4, 3, 8, 8, 0)))
    for one in range(2, 300):
        declare(one, bytes((4, 8, 8, 8, 0)) if one % 2 else bytes((1, 1, 1, one % 4 + 1, 0)))
    assert markers.conflicts[:2] == [
        "fs.long: a format of 50000 bytes; not read",
        "fs.m1: types of (4, 3, 8, 8, 0) bytes; not read",
    ]
    assert len(markers.conflicts) < 110


def test_declarations_beyond_their_limit_are_left_out_and_reported_once() -> None:
    markers = Markers()
    text = b"x %d" + b" " * 10_000
    for number in range(2000):
        payload = b"kernel\0name%d\0%b\0" % (number, text)
        assert markers.add_event(1, payload, minor=6, byteorder="<")
    assert markers.conflicts == [f"{MARKERS}; later ones are left out"]

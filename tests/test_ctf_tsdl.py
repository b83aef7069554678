"""Hold the reader of CTF 1.8's metadata to what tracers write, and to one line for an error."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi.ctf_classes import (
    Array,
    Clock,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    MetadataError,
    Sequence,
    String,
    Struct,
    Trace,
    Variant,
)
from lttd.abi.ctf_metadata import MAGIC, is_metadata, read_metadata
from lttd.limits import CTF_METADATA
from tests.data import SHARED_CTF

HEAD = """/* CTF 1.8 */
typealias integer { size = 8; } := uint8_t;
typealias integer { size = 32; align = 8; } := uint32_t;
typealias integer { size = 32; signed = true; } := int;
typealias integer { size = 5; align = 1; } := uint5_t;
trace { major = 1; minor = 8; byte_order = le; };
"""


def read(text: str) -> Trace:
    return read_metadata((HEAD + text).encode())


def payload(members: str, before: str = "") -> dict[str, FieldClass]:
    trace = read(f"{before} stream {{ }}; event {{ fields := struct {{ {members} }}; }};")
    found = trace.streams[0].events[0].payload
    assert found is not None
    return dict(found.members)


def field(declaration: str, before: str = "") -> FieldClass:
    return payload(f"{declaration};", before)["x"]


BYTE = Integer(8, 8, signed=False, byteorder="little")
INT = Integer(32, 8, signed=True, byteorder="little")
FIVE = Integer(5, 1, signed=False, byteorder="little")


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("uint8_t x", BYTE),
        ("const uint8_t x", BYTE),
        ("int const x", INT),
        ("uint5_t x", FIVE),
        ("integer { size = 3; } x", Integer(3, 1, signed=False, byteorder="little")),
        (
            "integer { size = 0x10; align = 020; signed = 1; byte_order = network; base = hex; } x",
            Integer(16, 16, signed=True, byteorder="big", base=16),
        ),
        (
            "integer { size = 8; encoding = UTF8; /* } */ base = 2; byte_order = native; } x",
            Integer(8, 8, signed=False, byteorder="little", base=2, encoding="UTF8"),
        ),
        (
            "integer { size = 64; map = clock.c.value; } x",
            Integer(64, 8, signed=False, byteorder="little", clock="c"),
        ),
        ("string x", String()),
        ("string { encoding = ASCII; } x", String("ASCII")),
        (
            "floating_point { exp_dig = 8; mant_dig = 24; byte_order = be; } x",
            Float(8, 24, 8, "big"),
        ),
        ("uint8_t x[4]", Array(BYTE, 4)),
        ("uint8_t x[2][3]", Array(Array(BYTE, 3), 2)),
        ("struct { } x", Struct((), 1)),
        (
            "struct { uint8_t a, b[2]; } align(64) x",
            Struct((("a", BYTE), ("b", Array(BYTE, 2))), 64),
        ),
        (
            "enum : uint8_t { A, B = 3, C, \"d e\" = 7 ... 9, F = -1 ... 'a', } x",
            Enumeration(
                BYTE, (("A", 0, 0), ("B", 3, 3), ("C", 4, 4), ("d e", 7, 9), ("F", -1, 97))
            ),
        ),
        ("enum { A } x", Enumeration(INT, (("A", 0, 0),))),
        ("uint8_t stream", None),
        ("uint8_t event_id", None),
        ("uint8_t integer_", None),
    ],
)
def test_a_declaration_becomes_its_class(declaration: str, expected: FieldClass | None) -> None:
    if expected is None:
        name = declaration.rsplit(maxsplit=1)[-1]
        assert payload(f"{declaration};") == {name: BYTE}
    else:
        assert field(declaration) == expected


@pytest.mark.parametrize(
    ("before", "use"),
    [
        ("typedef uint8_t a, t;", "t x"),
        ("typealias uint8_t := unsigned long;", "unsigned long x"),
        ("typealias uint8_t := int *;", "int *x"),
    ],
)
def test_a_name_means_its_class(before: str, use: str) -> None:
    assert field(use, before) == BYTE


def test_names_of_structures_variants_and_enumerations_are_apart() -> None:
    before = "struct n { uint8_t a; }; enum n : uint8_t { A }; variant n { uint8_t A; };"
    found = payload("enum n t; struct n s; variant n <t> x;", before)
    assert isinstance(found["s"], Struct)
    assert found["x"] == Variant(("event", "fields", "t"), (("A", BYTE),))


def test_a_name_is_known_only_within_its_block() -> None:
    with pytest.raises(MetadataError, match="line 7: 'inner' is not declared"):
        read("stream { typealias uint8_t := inner; };event { fields := struct { inner x; }; };")


def test_a_length_is_found_from_the_inside_to_the_outside() -> None:
    found = dict(_context_trace().members)
    inner = found["x"]
    assert isinstance(inner, Array)
    assert isinstance(inner.element, Struct)
    lengths = {name: of.length for name, of in inner.element.members if isinstance(of, Sequence)}
    assert lengths == {
        "a": ("event", "fields", "x", "m"),
        "b": ("event", "fields", "n"),
        "c": ("event", "fields", "n"),
        "d": ("stream", "packet", "context", "k"),
        "e": ("stream", "packet", "context", "k"),
    }


def _context_trace() -> Struct:
    trace = read(
        "stream { packet.context := struct { uint8_t k; }; };"
        "event { fields := struct { uint8_t n; struct { uint8_t m; uint8_t a[m]; uint8_t b[n];"
        " uint8_t c[event.fields.n]; uint8_t d[stream.packet.context.k]; uint8_t e[k]; } x[2]; };};"
    )
    found = trace.streams[0].events[0].payload
    assert found is not None
    return found


def test_a_tag_may_be_a_keyword_s_path() -> None:
    trace = read(
        "stream { event.header := struct { enum : uint8_t { a, b } id;"
        " variant <stream.event.header.id> { uint8_t a; int b; } v; }; };"
    )
    header = trace.streams[0].event_header
    assert header is not None
    variant = dict(header.members)["v"]
    assert variant == Variant(("stream", "event", "header", "id"), (("a", BYTE), ("b", INT)))
    assert header.align_bits == 8


def test_fields_of_headers_have_their_roles_and_the_only_clock() -> None:
    trace = read(
        "clock { name = mono; freq = 1000; offset_s = 5; offset = -7; absolute = TRUE;"
        ' uuid = "2031989d-1ac1-43a9-b47e-3bad03d92fd5"; description = "a \\"b\\"\\n\\x41\\101"; };'
        "stream { packet.context := struct { uint32_t timestamp_begin; uint32_t packet_size; };"
        " event.header := struct { uint8_t id; uint32_t timestamp; }; };"
    )
    assert trace.clocks["mono"] == Clock(
        "mono",
        bytes.fromhex("2031989d1ac143a9b47e3bad03d92fd5"),
        'a "b"\nAA',
        1000,
        offset_s=5,
        offset=-7,
        absolute=True,
    )
    stream = trace.streams[0]
    assert stream.packet_context is not None
    assert stream.event_header is not None
    assert [(of.roles, of.clock) for _, of in stream.packet_context.members] == [  # type: ignore[union-attr]
        (("default-clock-timestamp",), "mono"),
        (("packet-total-length",), None),
    ]
    assert [(of.roles, of.clock) for _, of in stream.event_header.members] == [  # type: ignore[union-attr]
        (("event-record-class-id",), None),
        (("default-clock-timestamp",), "mono"),
    ]
    assert stream.clock == "mono"


def test_a_trace_without_a_clock_gets_the_one_of_babeltrace() -> None:
    trace = read("stream { event.header := struct { uint32_t timestamp; }; };")
    assert list(trace.clocks) == ["default"]
    assert trace.streams[0].clock == "default"


def test_an_unsupported_class_costs_only_its_event() -> None:
    trace = read(
        "stream { }; event { id = 1; fields := struct { integer { size = 128; } x; }; };"
        'event { id = 2; name = "b"; loglevel = 13; model.emf.uri = "u"; };'
        "callsite { whatever = 1; };"
    )
    first, second = trace.streams[0].events.values()
    assert first.unsupported == "line 7: an integer of 128 bits"
    assert first.payload is None
    assert (second.name, second.unsupported) == ("b", "")
    assert second.attributes == {"loglevel": 13, "model.emf.uri": "u"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stream {", "line 7: the text ends inside a declaration"),
        ("\n\nfoo;", "line 9: 'foo' is not expected here"),
        ("stream { id = ; };", "line 7: ';' is not expected here"),
        ('stream { id = "a"; };', "line 7: id = a: it is a number"),
        ("stream { id = 1 @ };", "line 7: '@ };' cannot be read"),
        ('clock { name = "a; };', "line 7: "),
        ("/* no end", "line 7: '/* no end' cannot be read"),
        ("stream { }; stream { };", "line 7: a second stream of id 0"),
        ("event { }; event { };", "line 7: a second event of id 0 in stream 0"),
        ("trace { };", "line 7: a second block 'trace'"),
        ("clock { };", "line 7: a clock has no name"),
        ("clock { name = a; freq = 0; };", "line 7: clock a has a frequency of 0"),
        ("typealias integer { size = 8; align = 3; } := a;", "line 7: align = 3: it is a power"),
        ("typealias integer { align = 8; } := a;", "line 7: an integer has no size"),
        ("typealias integer { size = 8; signed = maybe; } := a;", "line 7: signed = maybe"),
        ("typealias integer { size = 0; } := a;", "line 7: size = 0"),
        ("typealias integer { size = 8; base } := a;", "line 7: 'base' is not an attribute"),
        ("typealias integer { size = 8; byte_order = up; } := a;", "line 7: byte_order = up"),
        ("struct a { uint8_t b; uint8_t b; };", "line 7: two members are named 'b'"),
        ("struct a { unknown b; };", "line 7: 'unknown' is not declared"),
        ("event { fields := uint8_t; };", "line 7: a header, context or payload has to be"),
        ("event { fields := struct { uint8_t a[n]; }; };", "refers to n, which is not there"),
        ("event { fields := struct { string n; uint8_t a[n]; }; };", "is not an unsigned integer"),
        ("event { fields := struct { int n; uint8_t a[n]; }; };", "is not an unsigned integer"),
        ("event { fields := struct { variant { int a; } x; }; };", "has no tag"),
        (
            "event { fields := struct { uint8_t n; variant <n> { int a; } x; }; };",
            "is not an enumeration",
        ),
        ("event { fields := struct { uint8_t a[event.fields.a]; }; };", "which is not there"),
        ("enum e : uint8_t { A = 3 ... 1 };", "ends before it begins"),
        ("typealias string := s; enum e : s { A };", "not of integers"),
        ("struct s { uint8_t a[99999999999]; };", "an array of 99999999999 elements"),
        ("typealias uint8_t := enum { a };", "a typealias needs a name"),
        ("struct s {" * 40 + "} a;" * 39 + "};", "at most 32 levels"),
        ("struct s { uint8_t a" + "[2]" * 40 + "; };", "at most 32 levels"),
    ],
)
def test_a_wrong_text_is_refused_in_one_line_that_says_where(text: str, reason: str) -> None:
    with pytest.raises(MetadataError) as caught:
        read(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no block 'trace' states a byte_order"),
        ("trace { byte_order = native; };", "a trace's byte_order is le or be"),
        ("trace { major = 1; minor = 9; byte_order = le; };", "CTF 1.9; TSDL is of CTF 1.8"),
        ('trace { major = 1; minor = 8; byte_order = le; uuid = "x"; };', "'x' is not a UUID"),
    ],
)
def test_a_trace_block_is_needed(text: str, reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        read_metadata(text.encode())


def test_a_few_lines_that_mean_endless_fields_are_refused() -> None:
    lines = ["struct s0 { uint8_t a; };"]
    lines += [f"struct s{number + 1} {{ struct s{number} a, b, c, d; }};" for number in range(12)]
    with pytest.raises(MetadataError, match="at most 200,000 fields"):
        read("".join(lines) + "event { fields := struct s12; };")


def packet(text: bytes, order: str, padding: int = 0, **other: int) -> bytes:
    size = 37 + len(text)
    content, whole = other.get("content", size), other.get("whole", size + padding)
    head = struct.pack(
        f"{order}I16sIIIBBBBB", MAGIC, bytes(16), 0, content * 8, whole * 8, 0, 0, 0, 1, 8
    )
    return head + text + bytes(padding)


@pytest.mark.parametrize("order", ["<", ">"])
def test_packets_of_both_byte_orders_hold_one_text(order: str) -> None:
    whole = HEAD.encode()
    data = packet(whole[:50], order, padding=13) + packet(whole[50:], order)
    assert read_metadata(data) == read_metadata(whole)
    assert is_metadata(data[:8])
    assert is_metadata(whole[:8])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packet(b"x" * 50, "<")[:60], "byte 0: a metadata packet of 87 bytes, of which 60"),
        (packet(b"x", "<") + b"garbage", "byte 38: no metadata packet begins here"),
        (packet(b"", "<", content=12), "byte 0: the sizes of a metadata packet are impossible"),
        (packet(b"x", "<", whole=0), "byte 0: the sizes of a metadata packet are impossible"),
        (packet(b"\xff\xfe", "<"), "line 1: it is not text"),
    ],
)
def test_a_damaged_packet_is_refused_with_its_place(data: bytes, reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        read_metadata(data)


def test_a_metadata_is_not_read_beyond_the_limit() -> None:
    with pytest.raises(MetadataError, match="at most 6 MiB"):
        read_metadata(b" " * (CTF_METADATA.most + 1))


WORDS = (
    "trace stream event clock env callsite struct variant enum integer floating_point string a b",
    "typealias typedef const int := = { } ; , < > [ ] ( ) . ... * - 1 0x1F align size id fields",
    'packet.context event.header byte_order le uint8_t /* */ // "t"',
)


@given(st.lists(st.sampled_from(" ".join(WORDS).split()), max_size=60).map(" ".join))
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(MetadataError):
        assert read(text).version == (1, 8)


@given(st.integers(0, 2000), st.integers(0, 255))
def test_no_changed_byte_of_a_packet_raises_anything_else(at: int, value: int) -> None:
    data = bytearray(packet(HEAD.encode(), "<", padding=10))
    data[at % len(data)] = value
    with suppress(MetadataError):
        read_metadata(bytes(data))


@pytest.mark.skipif(not SHARED_CTF.is_dir(), reason="the real traces are not here")
def test_the_metadata_of_real_traces_is_read() -> None:
    found = {
        path.parent.relative_to(SHARED_CTF): read_metadata(path.read_bytes())
        for path in SHARED_CTF.rglob("metadata")
    }
    assert {
        name: sum(len(stream.events) for stream in trace.streams.values())
        for name, trace in found.items()
        if "packet_seq_num" not in name.parts
    } == {
        Path("2packets"): 1,
        Path("kernel61-s_disc/kernel"): 40,
        Path("kernel61-s_over/kernel"): 40,
        Path("kernel61-s_timer/kernel"): 40,
        Path("multi-domains-kernel"): 1,
        Path("tracefile-rotation-kernel"): 19,
    }
    assert all(stream.clock for trace in found.values() for stream in trace.streams.values())

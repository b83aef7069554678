"""Hold the reader of CTF 2's metadata to CTF 1.8's: what both declare is the same."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi.ctf import PacketLayout
from lttd.abi.ctf_classes import (
    Array,
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
from lttd.abi.ctf_metadata import read_metadata
from lttd.config import SourceSpec
from lttd.sources.base import When
from lttd.sources.registry import open_source
from lttd.subbuffer import BufferPool
from tests.batches import take_to_end
from tests.ctf_writer import UUID, CtfChannel, CtfTracer, write_ctf

Json = dict[str, Any]
PREAMBLE = {"type": "preamble", "version": 2, "uuid": list(UUID)}
CLOCK = {
    "type": "clock-class", "id": "c", "frequency": 10**9, "origin": "unix-epoch",
    "offset-from-origin": {"seconds": 1_700_000_000, "cycles": 5}, "description": "d",
}  # fmt: skip


def unsigned(bits: int, *roles: str, order: str = "little", **more: object) -> Json:
    """Return the class of an unsigned integer."""
    known = {
        "length": bits,
        "byte-order": f"{order}-endian",
        "alignment": 8 if bits % 8 == 0 else 1,
    }
    return {"type": "fixed-length-unsigned-integer", **known, "roles": list(roles), **more}


def structure(*members: tuple[str, Any]) -> Json:
    named = [{"name": name, "field-class": of} for name, of in members]
    return {"type": "structure", "member-classes": named}


def text(*fragments: Json) -> bytes:
    return b"".join(b"\x1e" + json.dumps(each).encode() + b"\n" for each in fragments)


def read(*fragments: Json) -> Trace:
    return read_metadata(text(PREAMBLE, CLOCK, *fragments))


def field(of: Json, *others: tuple[str, Json]) -> FieldClass:
    """Return what a field class becomes as the last member of a payload."""
    payload = structure(*others, ("x", of))
    trace = read(
        {"type": "data-stream-class"},
        {"type": "event-record-class", "payload-field-class": payload},
    )
    found = trace.streams[0].events[0]
    assert found.payload is not None, found.unsupported
    return found.payload.members[-1][1]


def as_ctf_2(tracer: CtfTracer) -> bytes:
    """Return the same metadata as CTF 2."""
    order = "little" if tracer.order == "<" else "big"
    sizes = "little" if tracer.sizes_order == "<" else "big"
    uuid = {"type": "static-length-blob", "length": 16, "roles": ["metadata-stream-uuid"]}
    header = structure(
        ("magic", unsigned(32, "packet-magic-number", order=order)),
        ("uuid", uuid),
        ("stream_id", unsigned(32, "data-stream-class-id", order=order)),
        ("stream_instance_id", unsigned(64, "data-stream-id", order=order)),
    )
    context = structure(
        ("timestamp_begin", unsigned(64, "default-clock-timestamp", order=order)),
        ("timestamp_end", unsigned(64, "packet-end-default-clock-timestamp", order=order)),
        ("content_size", unsigned(64, "packet-content-length", order=sizes)),
        ("packet_size", unsigned(64, "packet-total-length", order=sizes)),
        ("packet_seq_num", unsigned(64, "packet-sequence-number", order=order)),
        ("events_discarded", unsigned(
            8 * tracer.long_bytes, "discarded-event-record-counter-snapshot", order=order)),
        ("cpu_id", unsigned(32, order=order)),
    )  # fmt: skip
    event_header = structure(
        ("id", unsigned(16, "event-record-class-id", order=order)),
        ("timestamp", unsigned(64, "default-clock-timestamp", order=order)),
    )
    payload = structure(("n", unsigned(32, order=order)), ("s", {"type": "null-terminated-string"}))
    environment = {"hostname": "far", "kernel_release": "6.1.0", "tracer_major": 2}
    return text(
        PREAMBLE,
        CLOCK,
        {"type": "field-class-alias", "name": "context", "field-class": context},
        {"type": "trace-class", "environment": environment, "packet-header-field-class": header},
        {
            "type": "data-stream-class", "id": 3, "default-clock-class-id": "c",
            "packet-context-field-class": "context",
            "event-record-header-field-class": event_header,
        },
        {
            "type": "event-record-class", "id": 7, "data-stream-class-id": 3, "name": "tick",
            "payload-field-class": payload,
        },
    )  # fmt: skip


TRACERS = [
    CtfTracer(), CtfTracer(order=">", long_bytes=4), CtfTracer(mixed=True)
]  # fmt: skip


@pytest.mark.parametrize("tracer", TRACERS)
def test_the_same_trace_in_both_versions_has_the_same_streams_and_packets(
    tracer: CtfTracer,
) -> None:
    old, new = read_metadata(tracer.metadata().encode()), read_metadata(as_ctf_2(tracer))
    assert new.version == (2, 0)
    assert (new.uuid, new.byteorder) == (old.uuid, old.byteorder)
    assert new.environment == old.environment
    assert PacketLayout.of(new, 3) == PacketLayout.of(old, 3)
    assert new.streams == old.streams
    assert new.clocks["c"] == replace(old.clocks["c"], description="d", absolute=True)


def test_a_trace_of_ctf_2_is_replayed_as_one_of_ctf_1(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet(20, lost=3, skip=1)
    rows = []
    for name, metadata in (("old", b""), ("new", as_ctf_2(CtfTracer()))):
        directory = write_ctf(tmp_path / name, channel, metadata=metadata)
        source = open_source(SourceSpec("replay", str(directory), {}), BufferPool())
        rows.append([(batch.rows.tolist(), batch.gaps) for batch in take_to_end(source.streams[0])])
        (attachment,) = source.attachments()(When.OPEN)
        assert attachment.data == (directory / "metadata").read_bytes()
    assert rows[0] == rows[1]


BYTE = Integer(8, 8, signed=False, byteorder="little")
LENGTH = ("n", unsigned(8))
N = ("event", "fields", "n")


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (unsigned(8), BYTE),
        (
            unsigned(8, mappings={"a": [[1, 2], [4, 4]], "b": [[0, 9]]}),
            Enumeration(BYTE, (("a", 1, 2), ("a", 4, 4), ("b", 0, 9))),
        ),
        (
            {"type": "fixed-length-signed-integer", "length": 3, "byte-order": "big-endian"},
            Integer(3, 1, signed=True, byteorder="big"),
        ),
        (
            {"type": "fixed-length-boolean", "length": 8, "byte-order": "little-endian"},
            Integer(8, 1, signed=False, byteorder="little"),
        ),
        (
            {"type": "fixed-length-floating-point-number", "length": 32, "alignment": 32,
             "byte-order": "big-endian"},
            Float(8, 24, 32, "big"),
        ),
        ({"type": "null-terminated-string"}, String()),
        ({"type": "static-length-string", "length": 4}, Array(replace(BYTE, encoding="UTF8"), 4)),
        (
            {"type": "static-length-array", "length": 2, "element-field-class": unsigned(8)},
            Array(BYTE, 2),
        ),
        (
            {"type": "dynamic-length-array", "element-field-class": unsigned(8),
             "length-field-location": {"path": ["n"]}},
            Sequence(BYTE, N),
        ),
        (
            {"type": "dynamic-length-string",
             "length-field-location": {"origin": "event-record-payload", "path": ["n"]}},
            Sequence(replace(BYTE, encoding="UTF8"), N),
        ),
        (
            {"type": "variant", "selector-field-location": {"path": ["n"]}, "options": [
                {"name": "a", "field-class": unsigned(8), "selector-field-ranges": [[0, 3]]},
                {"field-class": structure(), "selector-field-ranges": [[4, 4], [7, 9]]}]},
            Variant(N, (("a", BYTE), ("option1", Struct(()))),
                    (("a", 0, 3), ("option1", 4, 4), ("option1", 7, 9))),
        ),
    ],
)  # fmt: skip
def test_a_field_class_becomes_its_class(of: Json, expected: FieldClass) -> None:
    assert field(of, LENGTH) == expected


def test_an_unsupported_class_costs_only_its_event() -> None:
    unknown = structure(("x", {"type": "variable-length-unsigned-integer"}))
    trace = read(
        {"type": "data-stream-class"},
        {"type": "event-record-class", "id": 1, "payload-field-class": unknown},
        {"type": "event-record-class", "id": 2, "name": "b", "attributes": {"a": {"b": 1}}},
    )
    first, second = trace.streams[0].events.values()
    assert first.unsupported == "a field of class variable-length-unsigned-integer"
    assert (second.name, second.attributes) == ("b", {"a": {"b": 1}})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1e{", "line 1: "),
        (b"\x1e\n\n{ 1 }", "line 3: "),
        (text(CLOCK), "line 1: the first fragment is not a preamble"),
        (text({"type": "preamble", "version": 3}), "line 1: CTF 3"),
        (text(PREAMBLE, {"type": 5}), "line 2: type is not a text"),
        (text(PREAMBLE) + b"\x1e[]", "line 2: a fragment is not an object"),
        (text({**PREAMBLE, "uuid": [1]}), "line 1: uuid is not 16 numbers"),
        (text({**PREAMBLE, "uuid": 16}), "line 1: uuid is not 16 numbers"),
        (text({**PREAMBLE, "uuid": 1 << 62}), "line 1: uuid is not 16 numbers"),
        (text({**PREAMBLE, "uuid": [256] * 16}), "line 1: uuid is not 16 numbers"),
        (text(PREAMBLE, {"type": "clock-class", "frequency": 0}), "frequency is not a number"),
        (
            text(PREAMBLE, {"type": "data-stream-class", "default-clock-class-id": "z"}),
            "line 2: stream 0 has the unknown clock 'z'",
        ),
        (text(PREAMBLE, {"type": "event-record-class"}), "is of the unknown stream 0"),
        (text(PREAMBLE, {"type": "field-class-alias", "name": "a", "field-class": "b"}), "'b'"),
        (
            text(PREAMBLE, {"type": "field-class-alias", "name": "a", "field-class": {
                "type": "fixed-length-unsigned-integer", "length": 0}}),
            "length is not a number from 1",
        ),
        (b"\x1e" + b'{"a":' * 5000, "line 1: "),
        (text(PREAMBLE) + b'\x1e{"type": "x", "n": ' + b"9" * 5000 + b"}", "line 2: "),
    ],
)  # fmt: skip
def test_a_wrong_text_is_refused_in_one_line_that_says_where(data: bytes, reason: str) -> None:
    with pytest.raises(MetadataError) as caught:
        read_metadata(data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_alias_hides_is_limited_too() -> None:
    deep: Json = unsigned(8)
    for _ in range(40):
        deep = {"type": "static-length-array", "length": 2, "element-field-class": deep}
    with pytest.raises(MetadataError, match="at most 32 levels"):
        field(deep)
    aliases = [{"type": "field-class-alias", "name": "a0", "field-class": structure()}]
    aliases += [
        {"type": "field-class-alias", "name": f"a{number + 1}",
         "field-class": structure(*((f"m{each}", f"a{number}") for each in range(4)))}
        for number in range(12)
    ]  # fmt: skip
    with pytest.raises(MetadataError, match="at most 200,000 fields"):
        read(*aliases, {"type": "data-stream-class", "packet-context-field-class": "a12"})


VALUES = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 8, 64, 1 << 70, 0.5, "", "c", "little-endian", "structure", "variant"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*unsigned(8), "member-classes", "options", "path", "origin", "name"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    st.integers(0, 5),
    st.sampled_from(sorted(json.loads(as_ctf_2(CtfTracer()).split(b"\x1e")[5]))),
    VALUES,
)
def test_no_value_in_place_of_another_raises_anything_else(
    number: int, key: str, value: object
) -> None:
    fragments = [json.loads(each) for each in as_ctf_2(CtfTracer()).split(b"\x1e")[1:]]
    fragments[number][key] = value
    with suppress(MetadataError):
        read_metadata(text(*fragments))

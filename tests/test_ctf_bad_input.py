"""What no tracer writes, in metadata and packets of CTF: one line, little memory, an end."""

import json
import os
import re
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import lttd
from lttd.abi import ctf_places
from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.abi.ctf_metadata import read_metadata
from lttd.cli import main as lttd_main
from lttd.limits import CTF_FIELDS, CTF_WORDS
from lttd.view.cli import main as lttv_main
from tests.confined import confined
from tests.test_ctf_json import PREAMBLE, field, structure, text, unsigned
from tests.test_ctf_view import lines_of
from tests.test_escaping import NASTY, SHOWN
from tests.test_sources_replay_ctf import needs_babeltrace, printed, record

HEAD = """/* CTF 1.8 */
typealias integer { size = 8; align = 8; } := u8;
typealias integer { size = 16; align = 8; } := u16;
typealias integer { size = 32; align = 8; } := u32;
typealias integer { size = 64; align = 8; } := u64;
trace { major = 1; minor = 8; byte_order = le; packet.header := struct { u32 magic; }; };
"""
STREAM = """stream { packet.context := struct { u64 content_size; u64 packet_size; };
    event.header := struct { u8 id; }; };
"""
MAGIC = struct.pack("<I", 0xC1FC1FC1)


def event(fields: str, number: int = 1, name: str = "e") -> str:
    return f'event {{ name = "{name}"; id = {number}; fields := struct {{ {fields} }}; }};\n'


def sized(content: bytes, sizes_at: int = 4) -> bytes:
    """Return a packet with its sizes filled in."""
    bits = 8 * len(content)
    return content[:sizes_at] + struct.pack("<QQ", bits, bits) + content[sizes_at + 16 :]


def written(directory: Path, tsdl: str, events: bytes, stream: str = STREAM) -> Path:
    """Write a trace of one packet."""
    directory.mkdir()
    (directory / "metadata").write_text(HEAD + stream + tsdl)
    (directory / "chan_0").write_bytes(sized(MAGIC + bytes(16) + events))
    return directory


def read(tsdl: str) -> Trace:
    return read_metadata((HEAD + tsdl).encode())


def shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tsdl: str, events: bytes, *words: str
) -> tuple[list[str], str]:
    """Replay a packet; return what lttv prints of its events, without the times, and its notes."""
    record(written(tmp_path / "ctf", tsdl, events), tmp_path / "t")
    lines, err = lines_of(capfd, *words, str(tmp_path / "t"))
    return [line.split(") ", 1)[-1] if words else line.split(": ", 1)[1] for line in lines], err


BABELTRACE = ("--style", "babeltrace")


@pytest.mark.parametrize(
    ("tsdl", "reason"),
    [
        ("typealias integer { size = 0; } := a;", "size = 0: it is a number from 1"),
        ("typealias integer { size = -8; } := a;", "size = -8: it is a number from 1"),
        ("typealias integer { size = 8; align = 0; } := a;", "align = 0: it is a number from 1"),
        ("typealias integer { size = 8; align = -8; } := a;", "align = -8: it is a number from 1"),
        (f"typealias integer {{ size = 0x{'f' * 5000}; }} := a;", "is too long a number"),
        (f"typealias integer {{ size = {'9' * 5000}; }} := a;", "is too long a number"),
        ("typealias struct { a x; } := a;", "'a' is not declared"),
        ("struct a { struct b x; }; struct b { struct a x; };", "'struct b' is not declared"),
        ("typealias b := a; typealias a := b;", "'b' is not declared"),
        ("typealias nothing_known x := a;", "is not expected here"),
        ("clock { name = c; freq = 0; };", "clock c has a frequency of 0"),
        ("clock { name = c; freq = 18446744073709551616; };", "it is a number from 0"),
        ("event { id = 18446744073709551616; };", "it is a number from 0"),
        (
            "stream { packet.context := struct { integer { size = 64; map = clock.c.value; }"
            " timestamp_begin; }; };",
            "a stream has the unknown clock 'c'",
        ),
        ("enum e : u8 { " + "a," * 65_537 + "};", "at most 65,536 labels of an enumeration"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_in_one_line(tsdl: str, reason: str) -> None:
    with pytest.raises(MetadataError) as caught:
        read(tsdl)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("integer { size = 65; } x;", "an integer of 65 bits"),
        ("wide x;", "an integer of 65 bits"),
        ("struct wider x;", "an integer of 65 bits"),
        ("struct { } x[4294967295];", "an array of elements without a size"),
        ("u16 n; struct { } x[n];", "an array of elements without a size"),
        ("u8 x[4294967295];", "a field of 4,294,967,295 bytes: at most 256 MiB"),
        ("u8 x[4294967295][4294967295][4294967295];", "a field of 4,294,967,295 bytes"),
    ],
)
def test_a_field_that_no_reader_can_hold_costs_its_event_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], declared: str, reason: str
) -> None:
    wide = "typealias integer { size = 65; } := wide; struct wider { integer { size = 65; } y; };\n"
    tsdl = wide + event(declared) + event("u8 y;", 2, "good")
    assert reason in read(STREAM + tsdl).streams[0].events[1].unsupported
    lines, err = shown(tmp_path, capfd, tsdl, b"\2\7\1\0")
    assert lines == ["good: y=7"]
    assert err.count("the rest of the packet is left out") == 1
    assert re.search(f"byte 22: e: (line [0-9]+: )?{reason}", err)


def test_structures_that_are_nested_by_their_names_have_a_limit_too() -> None:
    deep = ["struct s0 { u8 a; };"]
    deep += [f"struct s{number} {{ struct s{number - 1} a; }};" for number in range(1, 2000)]
    with pytest.raises(MetadataError, match="at most 32 levels"):
        read("".join(deep))
    arrays = ["typealias u8 := t0;", *(f"typedef t{at - 1} t{at}[1];" for at in range(1, 2000))]
    with pytest.raises(MetadataError, match="at most 32 levels"):
        read("".join(arrays))
    aliases = [{"type": "field-class-alias", "name": "a0", "field-class": unsigned(8)}]
    aliases += [
        {"type": "field-class-alias", "name": f"a{at}",
         "field-class": structure(("x", f"a{at - 1}"))}
        for at in range(1, 2000)
    ]  # fmt: skip
    with pytest.raises(MetadataError, match="at most 32 levels"):
        read_metadata(text(PREAMBLE, *aliases))


@pytest.mark.parametrize(
    "statement", [";", "a=1;", "typedef u8 t;", "'-',", "{", "[1]", "/* ", "int ", "integer{"]
)
def test_a_metadata_of_megabytes_that_needs_the_grammar_is_refused_at_once(statement: str) -> None:
    text = statement * ((4 << 20) // len(statement))

    def refused() -> str:
        with pytest.raises(MetadataError) as error:
            read(text)
        return error.value.reason

    assert confined(refused) == (True, str(CTF_WORDS))


def test_the_events_of_lttng_do_not_count_as_words_of_a_metadata() -> None:
    fields = "integer { size = 32; align = 8; signed = 1; encoding = none; base = 10; } _a;" * 12
    declared = (
        f'event {{ name = "e"; id = {number}; stream_id = 0; fields := struct {{ {fields} }}; }};\n'
        for number in range(5000)
    )
    with pytest.raises(MetadataError, match="two members are named"):
        read(STREAM + "".join(declared))


def test_events_without_fields_are_limited_as_fields_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctf_places, "CTF_FIELDS", CTF_FIELDS._replace(most=100))
    events = "".join(f"event{{id={number};}};" for number in range(101))
    with pytest.raises(MetadataError, match="at most 100 fields"):
        read(events)


@pytest.mark.parametrize("frequency", [(1 << 54), (1 << 64) - 1])
def test_a_clock_that_is_too_fast_leaves_its_stream_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], frequency: int
) -> None:
    stream = (
        f"clock {{ name = c; freq = {frequency}; }};"
        "stream { packet.context := struct { u64 content_size; u64 packet_size;"
        " integer { size = 64; map = clock.c.value; } timestamp_begin; }; };"
    )
    directory = written(tmp_path / "ctf", event(""), bytes(8), stream)
    words = ["-t", str(tmp_path / "t"), "--source", f"replay:{directory}"]
    assert lttd_main(words) == 77
    assert f"a clock of {frequency} Hz is not possible; left out" in capfd.readouterr().err


@pytest.mark.parametrize("seconds", [9_223_372_037, (1 << 63) - 1, -(1 << 63)])
def test_a_clock_s_origin_beyond_64_bits_of_ns_counts_as_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seconds: int
) -> None:
    stream = (
        f"clock {{ name = c; offset_s = {seconds}; precision = 18446744073709551615; }};"
        "stream { packet.context := struct { u64 content_size; u64 packet_size;"
        " integer { size = 64; map = clock.c.value; } timestamp_begin; };"
        " event.header := struct { u8 id; }; };"
    )
    directory = written(tmp_path / "ctf", event("u8 y;"), struct.pack("<Q", 5) + b"\1\7", stream)
    record(directory, tmp_path / "t")
    (line,), err = lines_of(capfd, *BABELTRACE, str(tmp_path / "t"))
    assert line.endswith("e: { y = 7 }")
    assert not err
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0


@pytest.mark.parametrize("number", [1 << 16, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_an_event_s_id_may_have_64_bits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    stream = STREAM.replace("u8 id", "u64 id")
    tsdl = event("u8 y;", number) + event("u8 z;", 1, "f")
    raw = struct.pack("<QBQB", number, 7, 1, 8) + struct.pack("<Q", number ^ 1)
    record(written(tmp_path / "ctf", tsdl, raw, stream), tmp_path / "t")
    lines, err = lines_of(capfd, str(tmp_path / "t"))
    assert [line.split(": ", 1)[1] for line in lines] == ["e: y=7", "f: z=8"]
    assert f"no event has the id {number ^ 1}" in err


def test_a_stream_s_id_above_2_63_leaves_its_file_out(tmp_path: Path) -> None:
    tsdl = HEAD.replace("u32 magic;", "u32 magic; u64 stream_id;")
    tsdl += f"stream {{ id = {1 << 63}; packet.context := struct {{ u64 packet_size; }}; }};"
    tsdl += "stream { id = 1; packet.context := struct { u64 packet_size; }; };"
    (tmp_path / "metadata").write_text(tsdl)
    (tmp_path / "a").write_bytes(MAGIC + struct.pack("<QQ", 1 << 63, 160))
    (tmp_path / "b").write_bytes(MAGIC + struct.pack("<QQ", 1, 160))
    segment = record(tmp_path, tmp_path / "t")
    assert [one["name"] for one in json.loads((segment / "trace.json").read_text())["streams"]] == [
        "b_0"
    ]


@pytest.mark.parametrize(
    ("declared", "raw", "reason"),
    [
        ("u32 n; u8 x[n];", struct.pack("<I", (1 << 32) - 1), "a sequence is longer than the"),
        ("u64 n; u8 x[n];", struct.pack("<Q", (1 << 64) - 1), "a sequence is longer than the"),
        ("u64 n; u64 x[n];", struct.pack("<Q", 1 << 63), "a sequence is longer than the content"),
        ("u64 n; string x[n];", struct.pack("<Q", 1 << 61), "a sequence is longer than the"),
        ("u16 n; u16 m; u8 x[n][m];", b"\2\0\0\0\0\0", "an element of an array has no size"),
        ("u8 x[1000000];", b"", "a field runs past the content"),
        ("string x;", b"no end", "a string does not end"),
        ("string x[5000];", bytes(5000), "an array has more than 4096 elements"),
        ("enum : u8 { a } t; variant <t> { u8 a; } x;", b"\1", "a variant has no option for its"),
    ],
)
def test_a_field_that_is_not_in_its_packet_is_damage_with_a_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], declared: str, raw: bytes, reason: str
) -> None:
    tsdl = event(declared) + event("u8 y;", 2, "good")
    lines, err = shown(tmp_path, capfd, tsdl, b"\2\7\1" + raw)
    assert lines == ["good: y=7"]
    assert f"byte 22: e: {reason}" in err
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 1
    assert f"e: {reason}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        (HEAD + "stream {", "the text ends inside a declaration"),
        (HEAD + STREAM.replace("{", "{ id = 7;", 1), "it declares no stream 0"),
    ],
    ids=["missing", "wrong", "undeclared"],
)
def test_check_finds_metadata_that_does_not_declare_the_packets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    directory = written(tmp_path / "ctf", event("u8 y;"), b"\1\7")
    (directory / "chan_1").write_bytes((directory / "chan_0").read_bytes())
    segment = record(directory, tmp_path / "t")
    capfd.readouterr()
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0
    whole = "whole: 1 segment, 2 streams, 2 sub-buffers, 2 events\n"
    assert capfd.readouterr().out == whole  # also of packets that do not state when they end
    metadata = segment / "streams" / "metadata"
    metadata.unlink()
    if text is not None:
        metadata.write_text(text)
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 1
    found = capfd.readouterr()
    finding, verdict = found.out.splitlines()
    assert finding.startswith(f"{metadata}: byte 0: ")
    assert reason in finding
    assert verdict == "damaged, 1 finding: 1 segment, 2 streams, 2 sub-buffers"
    assert found.err == ""


def test_events_of_no_size_end_their_packet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = STREAM.replace("u8 id;", "")
    directory = written(tmp_path / "ctf", 'event { name = "e"; };', bytes(100), stream)
    record(directory, tmp_path / "t")
    lines, err = lines_of(capfd, str(tmp_path / "t"))
    assert not lines
    assert "an event has no size" in err


def test_a_packet_of_short_events_that_look_alike_at_every_byte_ends_soon(tmp_path: Path) -> None:
    """No guess of a chunk meets the true chain, so the packet is walked from end to end."""
    directory = written(tmp_path / "ctf", event("u16 y;", 0), bytes(3 * 200_000))
    record(directory, tmp_path / "t")
    ended = confined(lambda: sum(len(batch) for batch in lttd.open(tmp_path / "t").window()))
    assert ended == (True, "200000")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ("u8 common_pid; u8 common_x;", "e: field_common_pid=2 field_common_x=3"),
        ("u8 _; u8 context_a;", "e: field_=2 context_a=3"),
        ("struct { u8 b; } a; u8 a_b;", "e: a_b=2 context_a_b=3"),
    ],
)
def test_names_that_mean_something_to_the_viewer_are_shown_as_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fields: str, line: str
) -> None:
    assert shown(tmp_path, capfd, event(fields), b"\1\2\3") == ([line], "")


@pytest.mark.parametrize("of", ["u8 procname[4];", "u32 procname;", "string procname;"])
def test_a_context_procname_of_any_class_is_no_obstacle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], of: str
) -> None:
    stream = STREAM.replace("u8 id; };", f"u8 id; }}; event.context := struct {{ {of} }};")
    directory = written(tmp_path / "ctf", event("u8 y;"), b"\1abc\0\7", stream)
    record(directory, tmp_path / "t")
    (line,), err = lines_of(capfd, str(tmp_path / "t"))
    assert not err
    assert line.split("-")[0].strip() == ("abc" if "string" in of else "")
    assert " e: y=7 procname=" in line


def test_names_and_strings_cannot_control_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = [
        {**PREAMBLE, "uuid": list(range(16))},
        {"type": "trace-class", "environment": {"hostname": NASTY, "procname": NASTY},
         "packet-header-field-class": structure(("magic", unsigned(32, "packet-magic-number")))},
        {"type": "data-stream-class",
         "packet-context-field-class": structure(
             ("content_size", unsigned(64, "packet-content-length")),
             ("packet_size", unsigned(64, "packet-total-length"))),
         "event-record-header-field-class": structure(("id", unsigned(8, "event-record-class-id"))),
         "event-record-common-context-field-class":
             structure(("procname", {"type": "null-terminated-string"}))},
        {"type": "event-record-class", "id": 1, "name": NASTY, "payload-field-class": structure(
            (NASTY, unsigned(8, mappings={NASTY: [[7, 7]]})),
            ("s", {"type": "null-terminated-string"}))},
    ]  # fmt: skip
    directory = tmp_path / "ctf"
    directory.mkdir()
    (directory / "metadata").write_bytes(text(*metadata))
    raw = b"\1" + NASTY[:9].encode() + b"\0\7" + NASTY.encode() + b"\0"
    (directory / "chan_0").write_bytes(sized(MAGIC + bytes(16) + raw))
    record(directory, tmp_path / "t")
    for words in ((), BABELTRACE, ("--json",)):
        capfd.readouterr()
        assert lttv_main(["text", *words, str(tmp_path / "t")]) == 0
        out, err = capfd.readouterr()
        assert not err
        assert out.count("\n") == 1
        assert len(out.splitlines()) == 1
        assert not [one for one in out[:-1] if not one.isprintable()]
        if words != ("--json",):
            # babeltrace2 has other escapes for strings and labels; the command is cut.
            assert out.count(SHOWN) == (4 if words else 3)
    for words in ("info", "check --events", "formats"):
        lttv_main([*words.split(), str(tmp_path / "t")])
        out, err = capfd.readouterr()
        assert not [one for one in out + err if not one.isprintable() and one not in "\n\t"]


def test_half_a_character_in_json_is_refused() -> None:
    for broken in ({"name": "\ud800"}, {"\udfff": 1}, {"path": ["\ud800"]}):
        data = text(PREAMBLE, {"type": "data-stream-class"}) + b"\x1e" + json.dumps(
            {"type": "event-record-class", "attributes": broken, **broken}).encode()  # fmt: skip
        if "path" in broken:
            data = data.replace(b'"type": "event-record-class"', b'"type": "field-class-alias"')
            of = {"type": "dynamic-length-blob", "length-field-location": broken}
            data = text(PREAMBLE) + b"\x1e" + json.dumps(
                {"type": "field-class-alias", "name": "a", "field-class": of}).encode()  # fmt: skip
        with pytest.raises(MetadataError, match="half a surrogate pair"):
            read_metadata(data)


def test_a_variant_of_ctf_2_goes_by_the_ranges_of_its_own() -> None:
    of = {"type": "variant", "selector-field-location": {"path": ["n"]}, "options": [
        {"field-class": unsigned(8), "selector-field-ranges": [[0, 0]]},
        {"field-class": unsigned(8), "selector-field-ranges": [[1, 1]], "name": "option0"},
    ]}  # fmt: skip
    with pytest.raises(MetadataError, match="two options are named 'option0'"):
        field(of, ("n", unsigned(8)))


def test_a_header_of_a_packet_that_is_too_large_leaves_its_stream_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = STREAM.replace("u64 packet_size;", "u64 packet_size; u8 pad[100000];")
    directory = written(tmp_path / "ctf", "", bytes(100_000), stream)
    assert lttd_main(["-t", str(tmp_path / "t"), "--source", f"replay:{directory}"]) == 77
    assert "the header of a packet has 100,020 bytes; at most 65,535" in capfd.readouterr().err


@needs_babeltrace
def test_a_packet_s_context_may_vary_in_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = STREAM.replace("u64 packet_size;", "u64 packet_size; string a; u8 n; u16 b[n];")
    directory = written(tmp_path / "ctf", event("u8 y;"), b"", stream)
    packets = []
    for number in range(3):
        context = b"x" * number + b"\0" + bytes((number,)) + b"ab" * number
        packets.append(sized(MAGIC + bytes(16) + context + b"\1\7\1\10"))
    (directory / "chan_0").write_bytes(b"".join(packets))
    record(directory, tmp_path / "t")
    ours, err = lines_of(capfd, *BABELTRACE, str(tmp_path / "t"))
    assert not err
    assert len(ours) == 6
    assert (
        ours[1:]
        == [
            line.replace('a = "x"', 'a = ""') if at == 0 else line
            for at, line in enumerate(printed(directory)[0].splitlines())
        ][1:]
    )


def test_a_large_environment_is_cut(tmp_path: Path) -> None:
    many = "".join(f'v{number} = "{"x" * 2000}"; ' for number in range(300))
    directory = written(tmp_path / "ctf", f"env {{ {many} }};" + event("u8 y;"), b"\1\7")
    segment = record(directory, tmp_path / "t")
    assert (segment / "trace.json").stat().st_size < 400_000
    assert lttv_main(["info", str(tmp_path / "t")]) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("words", [(), BABELTRACE, ("--json",)], ids=["own", "babeltrace", "json"])
@pytest.mark.parametrize(
    ("element", "count", "size_bytes"),
    [("u8", 3 << 20, 3 << 20), ("integer { size = 1; align = 1; }", 1 << 22, 1 << 19)],
    ids=["bytes", "bits"],
)
def test_long_sequences_are_printed_in_bounded_memory(
    tmp_path: Path, element: str, count: int, size_bytes: int, words: tuple[str, ...]
) -> None:
    tsdl = event(f"u32 n; {element} x[n];") + event("u32 n; u8 x[n];", 2, "short")
    short = b"\2" + struct.pack("<I", 3) + b"abc"
    raw = short * 1000 + b"\1" + struct.pack("<I", count) + bytes(size_bytes)
    directory = written(tmp_path / "ctf", tsdl, raw)
    packet = (directory / "chan_0").read_bytes()
    (directory / "chan_0").write_bytes(packet * 3)
    record(directory, tmp_path / "t")
    out = tmp_path / "out"

    def shown_lines() -> int:
        with out.open("w") as lines, redirect_stdout(lines):
            return lttv_main(["text", "--jobs", "1", *words, str(tmp_path / "t")])

    assert confined(shown_lines, most_seconds=60) == (True, "0")
    with out.open() as lines:
        assert sum(1 for _ in lines) == 3003


def test_a_sequence_of_more_elements_than_memory_holds_as_text_is_damage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tsdl = event("u32 n; u8 x[n];")
    count = (1 << 22) + 1
    lines, err = shown(tmp_path, capfd, tsdl, b"\1" + struct.pack("<I", count) + bytes(count))
    assert not lines
    assert "an array has more than 4194304 elements" in err


def test_padding_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    directory = written(tmp_path / "ctf", event("u8 y;"), b"\1\7")
    path = directory / "chan_0"
    packet = path.read_bytes()
    with path.open("wb") as file:
        for whole in (2 << 30, 1 << 60):  # the end of the last one is missing
            at = file.tell()
            file.write(packet[:12] + struct.pack("<Q", whole * 8) + packet[20:])
            file.truncate(at + min(whole, 2 << 30))
            file.seek(0, os.SEEK_END)
            for block in range(at + (1 << 20), file.tell(), 1 << 20):  # no hole is that large
                file.seek(block)
                file.write(b"\0")
            file.seek(0, os.SEEK_END)
    ended = confined(lambda: record(directory, tmp_path / "t"))
    assert ended.well, ended.told
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a garbage byte after each packet": lambda one: (one + b"\xff") * 1000,
    "packets of a header alone": lambda one: sized(one[:20]) * 20_000,
    "magic numbers alone": lambda one: one + MAGIC * 200_000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_of_many_small_or_damaged_packets_takes_seconds(tmp_path: Path, name: str) -> None:
    directory = written(tmp_path / "ctf", event("u8 y;"), b"\1\7")
    path = directory / "chan_0"
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    ended = confined(lambda: record(directory, tmp_path / "t"))
    assert ended.well, ended.told

"""The viewer on CTF: beside babeltrace2 on real and generated traces, and its other outputs."""

import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

import lttd
from lttd.abi.ctf_classes import Trace
from lttd.abi.ctf_metadata import read_metadata
from lttd.view.cli import main as lttv_main
from lttd.view.commands import text as text_command
from lttd.view.ctf import context
from lttd.view.window import PIECE_BYTES, STREAM_BYTES, WindowStream, content_of
from tests.ctf_model import Bits, encode
from tests.ctf_writer import CtfChannel, CtfTracer, write_ctf
from tests.data import SHARED_CTF, needs
from tests.test_sources_replay_ctf import TRACERS, needs_babeltrace, printed, record

REAL = sorted(path.parent.relative_to(SHARED_CTF) for path in SHARED_CTF.rglob("metadata"))
EMPTY = re.escape('""')

KINDS = """/* CTF 1.8 */
typealias integer { size = 8; align = 8; } := u8;
typealias integer { size = 64; align = 8; map = clock.c.value; } := time_t;
trace { major = 1; minor = 8; byte_order = ORDER; packet.header := struct {
    integer { size = 32; align = 8; } magic; integer { size = 32; align = 8; } stream_id; }; };
env { hostname = "far"; procname = "p"; vpid = 42; };
clock { name = "c"; freq = 1000000000; offset_s = 1700000000; offset = 5; };
stream { id = 0;
    packet.context := struct { time_t timestamp_begin; time_t timestamp_end;
        integer { size = 64; align = 8; } content_size;
        integer { size = 64; align = 8; } packet_size; u8 cpu_id; };
    event.header := struct { enum : integer { size = 5; align = 1; } { compact = 0 ... 30,
        extended = 31 } id; variant <id> { struct { integer { size = 27; align = 1;
        map = clock.c.value; } timestamp; } compact; struct { integer { size = 32; align = 8; } id;
        time_t timestamp; } extended; } v; } align(8);
    event.context := struct { integer { size = 32; align = 8; } _vtid; }; };
event { name = "my:kinds"; id = 1; stream_id = 0; fields := struct {
    integer { size = 12; align = 1; signed = true; base = 16; } _hex;
    integer { size = 7; align = 1; base = 8; } _octal;
    integer { size = 5; align = 1; base = 2; } _binary;
    enum : u8 { A = 1, B = 1 ... 4, "a \\"q\\"" = 9 } e;
    floating_point { exp_dig = 8; mant_dig = 24; align = 8; } f;
    floating_point { exp_dig = 11; mant_dig = 53; align = 8; } d;
    u8 n; string names[n]; struct { u8 a; integer { size = 3; align = 1; } b; } pairs[2];
    enum : u8 { one = 0, two = 1 } tag;
    variant <tag> { string one; struct { u8 x; } two; } choice;
    integer { size = 8; align = 8; encoding = UTF8; } text[6];
    struct { } nothing; u8 none[0];
}; };
event { name = "plain"; id = 70000; stream_id = 0; };
"""
NAN = struct.unpack("<f", struct.pack("<I", 0xFFC00000))[0]


def kinds(order: str, directory: Path) -> Path:
    """Write a trace with fields of all kinds."""
    text = KINDS.replace("ORDER", order)
    trace = read_metadata(text.encode())
    stream = trace.streams[0]
    assert trace.packet_header
    assert stream.packet_context
    assert stream.event_header
    assert stream.event_context
    assert stream.events[1].payload
    bits = Bits()
    encode(trace.packet_header, {"magic": 0xC1FC1FC1, "stream_id": 0}, bits)
    context = bits.at // 8
    head = {"timestamp_begin": 0, "timestamp_end": 0, "content_size": 0, "packet_size": 0}
    encode(stream.packet_context, head | {"cpu_id": 3}, bits)
    for number in range(6):
        time = 1000 + (number << 26)
        header = {"id": 1, "v": ("compact", {"timestamp": time & (1 << 27) - 1})}
        encode(stream.event_header, header, bits)
        encode(stream.event_context, {"_vtid": 40 + number}, bits)
        value = {
            "_hex": -number, "_octal": 77 + number, "_binary": number,
            "e": number + 4 * (number > 4),
            "f": NAN if number == 3 else -1.5 * number, "d": 1e300 * number, "n": number % 3,
            "names": [b"x" * 9, b"a\tb\"?\\'\x7f"][: number % 3],
            "pairs": [{"a": number, "b": 5}, {"a": 255, "b": 7}],
            "tag": number % 2, "choice": ("two", {"x": 7}) if number % 2 else ("one", b"o\xc3\xa9"),
            "text": list(b"ab\0cde"), "nothing": {}, "none": [],
        }  # fmt: skip
        encode(stream.events[1].payload, value, bits)
    last = 1000 + (9 << 30)
    encode(
        stream.event_header, {"id": 31, "v": ("extended", {"id": 70000, "timestamp": last})}, bits
    )
    encode(stream.event_context, {"_vtid": 7}, bits)
    content = bits.at
    bits.align(8)
    again = Bits()
    encode(stream.packet_context, {"timestamp_begin": 900, "timestamp_end": last + 5,
        "content_size": content, "packet_size": bits.at, "cpu_id": 3}, again)  # fmt: skip
    bits.raw[context : context + len(again.raw)] = again.raw
    directory.mkdir()
    (directory / "metadata").write_text(text)
    (directory / "chan_0").write_bytes(bits.raw)
    return directory


def lines_of(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], str]:
    """Return what lttv prints."""
    capfd.readouterr()
    assert lttv_main(["text", *words]) == 0
    out, err = capfd.readouterr()
    return out.splitlines(), err


def assert_as_babeltrace2(ours: list[str], original: Path) -> None:
    """Compare lines with babeltrace2's.

    Version 2.0 prints an older event's string for an empty one: its bt_field_string_clear() does
    not write a NUL.  So an empty string of ours may be any one there.
    """
    theirs = printed(original)[0].splitlines()
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            assert '""' in mine, f"{mine}\n{other}"
            assert re.fullmatch(re.escape(mine).replace(EMPTY, '".*?"'), other), f"{mine}\n{other}"


@needs_babeltrace
@needs(SHARED_CTF)
@pytest.mark.parametrize("name", REAL, ids=str)
def test_lines_in_babeltrace_style_are_those_of_babeltrace2(
    name: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(SHARED_CTF / name, tmp_path / "t")
    ours, _ = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    assert_as_babeltrace2(ours, SHARED_CTF / name)


@needs_babeltrace
@pytest.mark.parametrize("name", TRACERS)
def test_traces_of_any_machine_are_printed_as_babeltrace2_does(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracer = TRACERS[name]
    channels = [CtfChannel(tracer, cpu).packet(5).packet(2, lost=3) for cpu in (0, 1)]
    write_ctf(tmp_path / "ctf", *channels)
    record(tmp_path / "ctf", tmp_path / "t")
    ours, err = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    assert len(ours) == 14
    assert_as_babeltrace2(ours, tmp_path / "ctf")
    assert "lost 3 events" in err.lower()


@needs_babeltrace
@pytest.mark.parametrize("order", ["le", "be"])
def test_fields_of_all_kinds_are_printed_as_babeltrace2_does(
    order: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = kinds(order, tmp_path / "ctf")
    record(original, tmp_path / "t")
    ours, err = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    assert not err
    assert_as_babeltrace2(ours, original)
    assert ours[1].endswith(
        ' (+0.067108864) far:p:(42) my:kinds: { cpu_id = 3 }, { vtid = 41 }, { hex = 0xFFF,'
        ' octal = 0116, binary = 0b00001, e = ( "A", "B" : container = 1 ), f = -1.5, d = 1e+300,'
        ' n = 1, names = [ [0] = "xxxxxxxxx" ], pairs = [ [0] = { a = 1, b = 5 }, [1] = { a = 255,'
        ' b = 7 } ], tag = ( "two" : container = 1 ), choice = { { x = 7 } }, text = "ab",'
        " nothing = { }, none = [ ] }"
    )  # fmt: skip


def test_differences_of_time_go_on_over_pieces_and_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = CtfTracer()
    channel = CtfChannel(tracer)
    for _ in range(40):
        channel.packet(300)
    write_ctf(tmp_path / "ctf", channel)
    record(tmp_path / "ctf", tmp_path / "t")
    words = ("--style", "babeltrace", str(tmp_path / "t"), "--jobs")
    whole, _ = lines_of(capfd, *words, "1")
    monkeypatch.setattr(text_command, "PIECE_BYTES", 1 << 16)
    for jobs in ("1", "2", "3"):
        assert lines_of(capfd, *words, jobs)[0] == whole
    assert sum("+?" in line for line in whole) == 1


def test_processes_that_print_together_read_the_metadata_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(kinds("le", tmp_path / "ctf"), tmp_path / "t")

    def read(data: bytes) -> Trace:
        with (tmp_path / "read").open("ab") as file:
            file.write(b".")
        return read_metadata(data)

    monkeypatch.setattr(context, "read_metadata", read)
    context.read_known.cache_clear()
    lines_of(capfd, str(tmp_path / "t"), "--jobs", "3")
    assert (tmp_path / "read").read_bytes() == b"."


def test_pieces_hold_several_large_packets_of_each_stream() -> None:
    def sources(size: int) -> list[WindowStream]:
        def stream(cpu: int) -> SimpleNamespace:
            return SimpleNamespace(
                source_name="lttng", name=f"c_{cpu}", info=SimpleNamespace(subbuffer_bytes=size)
            )

        return [SimpleNamespace(stream=stream(cpu)) for cpu in range(4)]  # type: ignore[misc]

    assert content_of(sources(65_536), PIECE_BYTES) == PIECE_BYTES
    assert content_of(sources(1 << 18), PIECE_BYTES) == 4 * 8 << 18
    assert content_of(sources(1 << 24), PIECE_BYTES) == 12 << 20
    assert content_of(sources(1 << 18), 4096) == 4 * STREAM_BYTES  # for a few lines


def test_fields_are_columns_for_filters_json_and_the_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(kinds("le", tmp_path / "ctf"), tmp_path / "t")
    where = 'vtid in (41, 43) and "b" in text and pairs != "" and f < 0'
    (line,), _ = lines_of(capfd, str(tmp_path / "t"), "--where", where)
    assert line.split(": ", 1)[1].startswith("kinds: hex=0xffff octal=78 binary=1 e=1 f=-1.5 ")
    assert line.split()[:2] == ["--41", "[000]"]
    (line,), _ = lines_of(capfd, str(tmp_path / "t"), "--json", "--where", "vtid == 42")
    fields = json.loads(line)["fields"]
    assert fields["d"] == 2e300
    assert (fields["text"], fields["vtid"]) == ("ab", 42)
    assert fields["names"] == '[ [0] = "xxxxxxxxx", [1] = "a\\tb\\"\\?\\\\\\\'\\x7f" ]'
    (batch,) = lttd.open(tmp_path / "t").window(events=["my:kinds"])
    rows = batch["my:kinds"]
    assert rows["hex"].tolist() == [0, -1, -2, -3, -4, -5]
    assert rows["octal"].tolist() == [77, 78, 79, 80, 81, 82]
    assert batch.pid.tolist() == [40, 41, 42, 43, 44, 45]


def test_another_style_is_refused_for_other_traces(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.data import FTRACE  # noqa: PLC0415

    record(FTRACE, tmp_path / "t")
    assert lttv_main(["text", "--style", "babeltrace", str(tmp_path / "t")]) == 2
    assert "--style babeltrace: there is no such form for ftrace" in capfd.readouterr()[1]


@needs_babeltrace
def test_every_segment_has_the_packet_contexts_of_its_own_metadata(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, cpu in (("a", 1), ("b", 2)):
        channel = CtfChannel(CtfTracer(), cpu)
        channel.now = 1000 * cpu
        write_ctf(tmp_path / name, channel.packet(3))
        record(tmp_path / name, tmp_path / "t", "--append")
    ours, _ = lines_of(capfd, "--style", "babeltrace", str(tmp_path / "t"))
    theirs = [printed(tmp_path / name)[0] for name in ("a", "b")]
    fields = [line.partition("tick: ")[2] for text in theirs for line in text.splitlines()]
    assert [line.partition("tick: ")[2] for line in ours] == fields


def test_a_plot_has_the_events_and_losses_of_a_ctf_trace(tmp_path: Path) -> None:
    channels = [CtfChannel(CtfTracer(), cpu).packet(5).packet(2, lost=3) for cpu in (0, 1)]
    write_ctf(tmp_path / "ctf", *channels)
    record(tmp_path / "ctf", tmp_path / "t")
    assert lttv_main(["plot", str(tmp_path / "t"), "-o", str(tmp_path / "t.svg")]) == 0
    told = (tmp_path / "t.svg").read_text()
    assert "14 events of 1 type on 2 CPUs" in told
    assert "lost: 6 events, in 2 places" in told
    assert "chan:tick" in told
    words = ["plot", str(tmp_path / "t"), "-o", str(tmp_path / "some.svg"), "--where", "n > 3"]
    assert lttv_main(words) == 0
    assert "2 events of 1 type" in (tmp_path / "some.svg").read_text()


@pytest.mark.parametrize("words", [["--json"], ["--ns"], ["--fields", "hex"]])
@pytest.mark.parametrize("command", ["text", "follow"])
def test_a_style_is_refused_with_options_of_other_forms(
    words: list[str], command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lttv_main([command, str(tmp_path), "--style", "babeltrace", *words]) == 2
    assert f"--style babeltrace is without {words[0]}" in capfd.readouterr()[1]


def test_metadata_that_cannot_be_read_is_one_note(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    segment = record(kinds("le", tmp_path / "ctf"), tmp_path / "t")
    (segment / "streams/metadata").write_text("/* CTF 1.8 */ trace { major = ")
    lines, err = lines_of(capfd, str(tmp_path / "t"))
    assert not lines
    assert "no event can be shown without it" in err

"""``lttv text`` of relay channels: a line per record with a framing, else per entry."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lttd
from lttd.manifest import Manifest
from lttd.tracedir import segments
from lttd.view.cli import main
from lttd.view.relay.texts import text_spans
from tests.relay_streams import ModelStream, record
from tests.segment_builder import Made, Ring

NS = 10**9
Lines = Callable[..., list[str]]


def segment(
    trace: Path,
    takes: Sequence[bytes],
    framing: str | None = None,
    time: int | None = None,
    sequence: int | None = None,
) -> Path:
    """Make a segment of one CPU; each take is at 10 s, 20 s and so on."""
    stream = ModelStream(framing, time=time, sequence=sequence)
    made = Made(trace, make_ring=lambda cpu: Ring(stream.stream.info))
    for number, data in enumerate(takes):
        stream.clock.time = (number + 1) * 10 * NS
        for at in range(0, len(data), 200):
            stream.model.write(data[at : at + 200])
        stream.model.flush()
        made.files[0].append(stream.take())
        stream.stream.take(flush=True)
    told = {"framing": framing, "time": time, "sequence": sequence}
    made.manifest.source |= {key: value for key, value in told.items() if value is not None}
    made.finish()
    return trace


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    def run(trace: Path, *words: str) -> list[str]:
        assert main(["text", str(trace), *words]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out.splitlines()

    return run


def test_each_entry_of_an_unknown_format_is_a_line(tmp_path: Path, lines: Lines) -> None:
    trace = segment(tmp_path / "t", [b"make: done\n\0\0", bytes(range(150)), b"\xe2\x82\xac 7"])
    assert lines(trace) == [
        '[000]    10.000000: chan: entry=0 begin=0.000001 offset=0 size=13 "make: done\\n"',
        "[000]    20.000000: chan: entry=1 begin=0.000001 offset=13 size=150"
        f" {bytes(range(64)).hex()}... 86 more bytes",
        '[000]    30.000000: chan: entry=2 begin=10.000000 offset=163 size=5 "\u20ac 7"',
    ]


def test_json_has_all_bytes_of_an_entry(tmp_path: Path, lines: Lines) -> None:
    trace = segment(tmp_path / "t", [b"a line\n" * 40, bytes(range(150))])
    first, second = map(json.loads, lines(trace, "--json"))
    assert (first["channel"], first["event"], first["cpu"]) == ("chan", "entry", 0)
    assert first["fields"]["text"] == "a line\n" * 40
    assert bytes.fromhex(first["fields"]["data"]) == b"a line\n" * 40
    assert second["fields"]["text"] == ""
    assert bytes.fromhex(second["fields"]["data"]) == bytes(range(150))
    assert (second["fields"]["offset"], second["fields"]["size"]) == (280, 150)


def test_a_long_text_is_cut_between_characters(tmp_path: Path, lines: Lines) -> None:
    trace = segment(tmp_path / "t", ["\u20ac".encode() * 30])
    (line,) = lines(trace)
    assert line.endswith(f' "{chr(0x20AC) * 21}"... 27 more bytes')
    (line,) = lines(trace, "--fields", "text")
    assert line.endswith(f' text="{chr(0x20AC) * 30}"')


def test_each_record_of_a_framing_is_a_line_with_its_own_time(tmp_path: Path, lines: Lines) -> None:
    data = b"".join(record(number, 2, time=number * NS + 1000) for number in (3, 4, 5))
    trace = segment(tmp_path / "t", [data], framing="u32le-length", time=8, sequence=4)
    assert lines(trace)[1:] == [
        f"[000]     {number}.000001: chan: sequence={number} entry=0 offset={at} size=18"
        f" {record(number, 2, time=number * NS + 1000).hex()}"
        for number, at in ((4, 18), (5, 36))
    ]
    assert len(lines(trace, "--begin", "3.5", "--end", "4.5")) == 1
    assert len(lines(trace, "--where", "sequence >= 4 and size == 18")) == 2


def test_records_without_times_have_that_of_their_entry(tmp_path: Path, lines: Lines) -> None:
    trace = segment(tmp_path / "t", [b"one.two."], framing="fixed:4")
    assert lines(trace) == [
        f'[000]    10.000000: chan: entry=0 begin=0.000001 offset={at} size=4 "{text}"'
        for at, text in ((0, "one."), (4, "two."))
    ]


def test_a_loss_of_a_relay_channel_is_a_line_in_its_place(tmp_path: Path, lines: Lines) -> None:
    numbers = [0, 1, 5]
    data = b"".join(record(number, time=number + 1) for number in numbers)
    trace = segment(tmp_path / "t", [data], framing="u32le-length", time=8, sequence=4)
    assert lines(trace)[2] == "CPU:0 [LOST 3 EVENTS] (chan_0)"
    (lost, *_) = [one for one in map(json.loads, lines(trace, "--json")) if "lost" in one]
    assert (lost["channel"], lost["lost"], lost["unit"]) == ("chan", 3, "events")


def test_the_fields_of_relay_records_are_columns(tmp_path: Path) -> None:
    takes = [b"one.two.", b"six."]
    trace = segment(tmp_path / "t", takes, framing="fixed:4")
    found: dict[str, list[Any]] = {"entry": [], "offset": [], "text": [], "data": []}
    for batch in lttd.open(trace).window(piece_bytes=1):
        for name in found:
            found[name] += batch["chan:record"][name].tolist()
    assert found["entry"] == [0, 0, 1]
    assert found["offset"] == [0, 4, 8]
    assert found["text"] == found["data"] == [b"one.", b"two.", b"six."]


def test_an_impossible_framing_in_a_manifest_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = segment(tmp_path / "t", [b"one.two."])
    (paths,) = segments(trace)
    manifest = Manifest.read(paths.manifest)
    for framing in ("fixed:0", 7, "blktrace"):
        manifest.source["framing"] = framing
        paths.manifest.write_bytes(manifest.encode())
        assert main(["text", str(trace)]) == 0
        shown = capsys.readouterr()
        assert "each entry is shown as a whole" in shown.err
        assert shown.out.endswith('"one.two."\n')


def test_bytes_that_are_no_record_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = segment(tmp_path / "t", [record(1, time=1) + b"\0\0\0\0rest"])
    (paths,) = segments(trace)
    manifest = Manifest.read(paths.manifest)
    manifest.source["framing"] = "u32le-length"
    paths.manifest.write_bytes(manifest.encode())
    assert main(["text", str(trace)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "chan_0: byte 20: no record begins here" in shown.err


def test_info_says_how_to_read_relay_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = segment(tmp_path / "plain", [b"one."])
    framed = segment(tmp_path / "framed", [b"one."], framing="fixed:4")
    assert main(["info", str(plain)]) == 0
    assert "which lttv text shows by entry" in capsys.readouterr().out
    assert main(["info", str(framed)]) == 0
    assert "fixed:4: lttv text prints a line per record" in capsys.readouterr().out


@given(st.lists(st.binary(max_size=8) | st.text(max_size=4).map(str.encode), max_size=6))
def test_text_is_utf8_without_control_characters(pieces: list[bytes]) -> None:
    size = np.array([len(piece) for piece in pieces], np.int64)
    data = memoryview(b"".join(pieces) + b"?")
    spans = text_spans(data, np.cumsum(size) - size, size)
    for piece, (begin, end) in zip(pieces, spans.tolist(), strict=True):
        text = piece.rstrip(b"\0")
        try:
            is_text = text.decode().translate(dict.fromkeys(b"\t\r\n", " ")).isprintable()
        except UnicodeDecodeError:
            is_text = False
        assert piece[begin:end] == (text if is_text else b"")

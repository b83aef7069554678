"""Packets that are larger than a piece: they are walked in parts, and memory is bounded."""

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lttd
from lttd.abi import ctf_events
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_events import walk, walk_parts
from lttd.view.cli import main as lttv_main
from lttd.view.ctf import babeltrace
from tests.test_ctf_walk import COMPACT, LARGE, Stream
from tests.test_sources_replay_ctf import record

TINY = """/* CTF 1.8 */
typealias integer { size = 32; align = 8; } := u32;
typealias integer { size = 64; align = 8; } := u64;
trace { major = 1; minor = 8; byte_order = le;
    packet.header := struct { u32 magic; u32 stream_id; }; };
clock { name = "c"; freq = 1000000000; };
typealias integer { size = 64; align = 8; map = clock.c.value; } := time_t;
stream { id = 0;
    packet.context := struct { time_t timestamp_begin; time_t timestamp_end; u64 content_size;
        u64 packet_size; };
    event.header := struct { integer { size = 5; align = 1; } id;
        integer { size = 27; align = 1; map = clock.c.value; } timestamp; } align(8); };
event { name = "tick"; id = 3; stream_id = 0; };
"""
BEGIN_NS = 1000


def tiny(directory: Path, events: int, steps_ns: tuple[int, ...] = (100,)) -> np.ndarray:
    """Write a trace of one packet whose events are a header of 4 bytes; return their times."""
    directory.mkdir()
    (directory / "metadata").write_text(TINY)
    time = BEGIN_NS + np.cumsum(np.resize(np.array(steps_ns, np.uint64), events))
    words = (time & np.uint64((1 << 27) - 1)) << np.uint64(5) | np.uint64(3)
    bits = 8 * (8 + 32 + 4 * events)
    head = struct.pack("<IIQQQQ", 0xC1FC1FC1, 0, BEGIN_NS, int(time[-1]), bits, bits)
    (directory / "chan_0").write_bytes(head + words.astype("<u4").tobytes())
    return time


@pytest.mark.parametrize("header", [COMPACT, LARGE], ids=["compact", "large"])
@pytest.mark.parametrize("part_events", [1, 5, 40])
def test_parts_of_a_packet_have_the_events_of_the_whole(
    header: str, part_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(4, header, "le", events=300)
    monkeypatch.setattr(ctf_events, "_PART_EVENTS", part_events)
    bits, packets = Bits(stream.data), stream.packets(len(stream.data))
    parts = list(walk_parts(bits, packets, stream.plan))
    assert len(parts) > 3
    assert np.concatenate([part.at for part in parts]).tolist() == stream.at
    assert np.concatenate([part.time for part in parts]).tolist() == stream.times
    (whole,) = walk(bits, packets, stream.plan)
    assert parts[-1].row_behind.tolist() == whole.row_behind.tolist()
    assert parts[-1].row_end.tolist() == whole.row_end.tolist()
    known = [part.part for part in parts[1::2] if part.part]
    again = list(walk_parts(bits, packets, stream.plan, {0: known}))
    assert [part.at.tolist() for part in again] == [part.at.tolist() for part in parts[1::2]]
    assert [part.time.tolist() for part in again] == [part.time.tolist() for part in parts[1::2]]


def test_damage_in_a_part_ends_the_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(4, LARGE, "le", events=300)
    data = bytearray(stream.data)
    data[stream.at[200]] = 200  # no event has this id
    monkeypatch.setattr(ctf_events, "_PART_EVENTS", 20)
    parts = list(walk_parts(Bits(bytes(data)), stream.packets(len(data)), stream.plan))
    assert np.concatenate([part.at for part in parts]).tolist() == stream.at[:200]
    assert [each.offset_bytes for part in parts for each in part.damage] == [stream.at[200]]


def test_a_packet_larger_than_a_piece_is_in_several_pieces_with_each_event_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = tiny(tmp_path / "ctf", 300_000, (100, 1, 7000))
    trace = record(tmp_path / "ctf", tmp_path / "t")
    monkeypatch.setattr(ctf_events, "_PART_EVENTS", 1 << 14)
    batches = [batch.time for batch in lttd.open(trace).window(piece_bytes=1 << 17)]
    assert len(batches) >= 8
    assert max(map(len, batches)) < len(time) // 4
    assert np.concatenate(batches).tolist() == time.tolist()


def test_text_of_many_events_is_cut_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny(tmp_path / "ctf", 3000, (100, 1, 7000))
    trace = record(tmp_path / "ctf", tmp_path / "t")
    texts = []
    for at_once in (1 << 19, 1000, 1):
        monkeypatch.setattr(babeltrace, "_AT_ONCE", at_once)
        assert lttv_main(["text", str(trace), "--style", "babeltrace", "--jobs", "1"]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0].count("\n") == 3000
    assert texts[1] == texts[2] == texts[0]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "command", [("check", "--events"), ("text", "--style", "babeltrace", "--jobs", "1")]
)
def test_the_largest_packet_of_tiny_events_takes_bounded_memory(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    events = (256 << 20) // 4 - 10
    tiny(tmp_path / "ctf", events)
    trace = record(tmp_path / "ctf", tmp_path / "t")
    words = [sys.executable, "-m", "lttd.view", command[0], str(trace), *command[1:]]
    with open(os.devnull, "wb") as nothing:
        subprocess.run(words, stdout=nothing, check=True)
    most_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    assert most_bytes < 1536 << 20  # without parts: more than 8 GiB

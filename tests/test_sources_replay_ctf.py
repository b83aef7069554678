"""Replay CTF traces: real ones, generated ones of every kind of machine, and damaged ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.cli import main as lttd_main
from lttd.config import SourceSpec
from lttd.errors import LttdError, NothingToRecordError, SourceError, UsageError
from lttd.index import ENTRY_DTYPE, INDEX_HEADER, read_gaps
from lttd.sources.base import Attachment, When
from lttd.sources.registry import open_source
from lttd.sources.replay.ctf import CtfReplaySource
from lttd.subbuffer import BufferPool, Reason, StreamId, Unit
from lttd.view.cli import main as lttv_main
from tests.batches import gaps_of, take_to_end
from tests.ctf_writer import CtfChannel, CtfTracer, metadata_packets, write_ctf
from tests.data import SHARED_CTF, needs

BABELTRACE = shutil.which("babeltrace2")
needs_babeltrace = pytest.mark.skipif(BABELTRACE is None, reason="babeltrace2 is not installed")

TRACERS = {
    "64-bit": CtfTracer(),
    "32-bit": CtfTracer(long_bytes=4),
    "big-endian": CtfTracer(order=">"),
    "32-bit, big-endian": CtfTracer(order=">", long_bytes=4),
    "mixed": CtfTracer(mixed=True),
    "mixed, big-endian": CtfTracer(order=">", mixed=True),
    "before 2.8": CtfTracer(instance=False),
    "slow clock": CtfTracer(frequency=1_000_000),
}


def opened(directory: Path, **options: str) -> CtfReplaySource:
    source = open_source(SourceSpec("replay", str(directory), options), BufferPool())
    assert isinstance(source, CtfReplaySource)
    return source


def record(directory: Path, trace: Path, *words: str) -> Path:
    """Replay a directory into a trace; return its segment."""
    words = ("-t", str(trace), "--source", f"replay:{directory}", "--summary", "none", *words)
    assert lttd_main(list(words)) == 0
    return next(trace.glob("*-replay"))


def printed(directory: Path, *words: str) -> tuple[str, list[str]]:
    """Return what babeltrace2 prints of a trace, and the losses that it warns of."""
    assert BABELTRACE is not None
    done = subprocess.run(
        [BABELTRACE, *words, str(directory)], capture_output=True, text=True, timeout=60, check=True
    )
    losses = [
        line[line.index("Tracer discarded") :].partition(" in trace")[0]
        for line in done.stderr.splitlines()
        if "Tracer discarded" in line
    ]
    return done.stdout, sorted(losses)


def assert_reads_the_same(original: Path, segment: Path, copy: Path) -> str:
    """Compare babeltrace2's output of a segment, with and without the index; return it."""
    whole = printed(original)
    assert printed(segment / "streams") == whole
    shutil.copytree(segment / "streams", copy, ignore=shutil.ignore_patterns("index"))
    assert printed(copy) == whole
    return whole[0]


def entries_of(segment: Path, name: str) -> np.ndarray:
    data = (segment / f"streams/index/{name}.idx").read_bytes()
    return np.frombuffer(data[len(INDEX_HEADER) :], ENTRY_DTYPE)


def assert_packed(segment: Path) -> None:
    """Check that the packets adjoin, state their own sizes, and are what the index says."""
    for record_ in json.loads((segment / "trace.json").read_text())["streams"]:
        entries = entries_of(segment, record_["name"])
        sizes = entries["packet_bits"] // 8
        assert (entries["packet_bits"] == (entries["content_bits"] + 7) // 8 * 8).all()
        assert (np.cumsum(sizes) - sizes == entries["offset_bytes"]).all()
        assert (segment / "streams" / record_["name"]).stat().st_size == sizes.sum()


def test_the_kernel_of_another_host_is_not_that_of_this_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = CtfTracer().metadata().replace('kernel_release = "6.1.0"; ', "")
    made = write_ctf(tmp_path / "ctf", CtfChannel(CtfTracer()).packet(3), metadata=text.encode())
    record(made, tmp_path / "t")
    assert lttv_main(["info", str(tmp_path / "t")]) == 0
    assert "\nreplayed on far\n" in capfd.readouterr()[0]


@pytest.mark.parametrize("metadata", [None, b"", b"no TSDL {"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packets_without_their_metadata_are_refused(
    metadata: bytes | None, order: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = write_ctf(tmp_path / "ctf", CtfChannel(CtfTracer(order=order)).packet(3))
    (made / "metadata").unlink()
    if metadata is not None:
        (made / "metadata").write_bytes(metadata)
    assert lttd_main(["-t", str(tmp_path / "t"), "--source", f"replay:{made}"]) == 77
    told = f"chan_0 has packets of CTF, but {made}/metadata is missing or not of CTF"
    assert told in capfd.readouterr()[1]
    assert not list(tmp_path.glob("t/*"))


@needs_babeltrace
@needs(SHARED_CTF)
@pytest.mark.parametrize(
    ("name", "events", "lost"),
    [
        ("2packets", 2, 0),
        ("multi-domains-kernel", 272, 728),
        ("tracefile-rotation-kernel", 12305, 0),
        ("kernel61-s_disc/kernel", 14021, 4048),
        ("kernel61-s_over/kernel", 7815, 0),
        ("kernel61-s_timer/kernel", 4969, 0),
        ("packet_seq_num/2_lost_before_last", 3, 0),
        ("packet_seq_num/2_streams_lost_in_1", 8, 0),
        ("packet_seq_num/2_streams_lost_in_2", 8, 0),
        ("packet_seq_num/no_lost", 3, 0),
        ("packet_seq_num/no_lost_not_starting_at_0", 3, 0),
    ],
)
def test_babeltrace_prints_the_same_of_a_real_trace(
    tmp_path: Path, name: str, events: int, lost: int
) -> None:
    segment = record(SHARED_CTF / name, tmp_path / "t")
    text = assert_reads_the_same(SHARED_CTF / name, segment, tmp_path / "copy")
    assert text.count("\n") == events
    assert_packed(segment)
    streams = json.loads((segment / "trace.json").read_text())["streams"]
    assert sum(one["summary"]["events_lost"] for one in streams) == lost
    assert lttv_main(["check", str(tmp_path / "t")]) == 0


@needs_babeltrace
@pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)
@pytest.mark.parametrize("packets", [False, True], ids=["text", "packets"])
def test_babeltrace_prints_the_same_of_every_kind_of_machine(
    tmp_path: Path, tracer: CtfTracer, packets: bool
) -> None:
    channels = [CtfChannel(tracer, cpu=cpu) for cpu in (0, 1)]
    channels[0].packet().packet(0, lost=9).packet(200).packet(1, lost=3)
    channels[1].packet(2, padding=0).packet(1, padding=13)
    metadata = metadata_packets(tracer) if packets else b""
    original = write_ctf(tmp_path / "original", *channels, metadata=metadata)
    segment = record(original, tmp_path / "t")
    text = assert_reads_the_same(original, segment, tmp_path / "copy")
    assert text.count("\n") == 207
    assert_packed(segment)
    if packets:
        stored = (segment / "streams/metadata").stat().st_size
        assert stored == len(tracer.metadata()) + 37 * -(-len(tracer.metadata()) // 300)
    assert lttv_main(["check", str(tmp_path / "t")]) == 0


@needs_babeltrace
@needs(SHARED_CTF)
@pytest.mark.parametrize("name", ["multi-domains-kernel", "kernel61-s_over/kernel"])
def test_what_babeltrace_writes_is_replayed(tmp_path: Path, name: str) -> None:
    original = tmp_path / "o"
    words = [BABELTRACE, SHARED_CTF / name, "-o", "ctf", "-w", original]
    subprocess.run(words, capture_output=True, timeout=60, check=True)
    (metadata,) = original.rglob("metadata")
    segment = record(metadata.parent, tmp_path / "t")
    assert_reads_the_same(metadata.parent, segment, tmp_path / "copy")
    assert_packed(segment)


def test_an_index_that_is_made_again_is_the_same(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet(50).packet(0, lost=4).packet()
    segment = record(write_ctf(tmp_path / "o", channel), tmp_path / "t")
    index = segment / "streams/index/chan_0.idx"
    before = index.read_bytes()
    index.unlink()
    assert lttv_main(["check", "--repair", str(tmp_path / "t")]) == 0
    assert index.read_bytes() == before


@needs_babeltrace
def test_a_segment_that_was_compressed_and_made_plain_reads_the_same(tmp_path: Path) -> None:
    original = write_ctf(tmp_path / "o", CtfChannel(CtfTracer()).packet().packet(50))
    segment = record(original, tmp_path / "t")
    assert lttv_main(["compress", str(tmp_path / "t")]) == 0
    assert not (segment / "streams/chan_0").exists()
    assert lttv_main(["decompress", str(tmp_path / "t")]) == 0
    assert_reads_the_same(original, segment, tmp_path / "copy")


@needs_babeltrace
def test_a_cut_is_a_trace_that_babeltrace_opens(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet().packet().packet()
    record(write_ctf(tmp_path / "o", channel), tmp_path / "t")
    words = ["cut", str(tmp_path / "t"), "-o", str(tmp_path / "c"), "--begin", "0.000001040"]
    assert lttv_main([*words, "--end", "0.000001060"]) == 0
    (segment,) = (tmp_path / "c").glob("*-replay")
    assert printed(segment / "streams")[0].count("\n") == 3
    assert_packed(segment)


def test_every_segment_of_a_run_gets_the_metadata_once(tmp_path: Path) -> None:
    source = opened(write_ctf(tmp_path, CtfChannel(CtfTracer()).packet()))
    text = (tmp_path / "metadata").read_bytes()
    for segment in (source.attachments(), source.attachments()):
        assert list(segment(When.OPEN)) == [Attachment("streams/metadata", text)]
        assert list(segment(When.ROLLED)) == []


@pytest.mark.parametrize("long_bytes", [4, 8])
def test_losses_become_gaps_with_their_counts(tmp_path: Path, long_bytes: int) -> None:
    tracer = CtfTracer(long_bytes=long_bytes)
    channel = CtfChannel(tracer).packet(lost=5).packet().packet(lost=7, skip=2)
    if long_bytes == 4:  # it wraps
        channel.packet(lost=(1 << 32) - 20).packet(lost=15, skip=1)
    segment = record(write_ctf(tmp_path / "o", channel), tmp_path / "t")
    gaps = [
        (gap.row, gap.reason, gap.unit, gap.count)
        for gap in read_gaps(segment / "streams/index/chan_0.gaps")
    ]
    expected = [
        (0, Reason.DISCARDED, Unit.EVENTS, 5),
        (2, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 2),
        (2, Reason.DISCARDED, Unit.EVENTS, 7),
    ]
    if long_bytes == 4:
        expected += [
            (3, Reason.DISCARDED, Unit.EVENTS, (1 << 32) - 20),
            (4, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 1),
            (4, Reason.DISCARDED, Unit.EVENTS, 15),
        ]
    assert gaps == expected
    assert entries_of(segment, "chan_0")["sequence"].tolist()[:3] == [0, 1, 4]


def test_losses_before_a_snapshot_are_not_of_it(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer(), sequence=40, discarded=99).packet().packet(lost=2)
    (stream,) = opened(write_ctf(tmp_path, channel)).streams
    assert gaps_of(take_to_end(stream)) == [(Reason.DISCARDED, Unit.EVENTS, 2)]


def test_times_are_ns_of_the_clock_and_the_wall_clock_is_its_origin_s(tmp_path: Path) -> None:
    tracer = CtfTracer(frequency=3_000_000)
    source = opened(write_ctf(tmp_path, CtfChannel(tracer, now=3_000_001).packet(1)))
    (batch,) = take_to_end(source.streams[0])
    assert batch.rows["begin"].tolist() == [1_000_000_333]
    assert batch.rows["end"].tolist() == [1_000_005_333]
    assert source.info.snapshot is not None
    assert source.info.snapshot.trace == 1_000_000_333
    assert source.info.snapshot.realtime_ns == 1_700_000_001_000_001_999
    assert source.info.machine == {"host": "far", "kernel": "6.1.0", "byteorder": "little"}
    assert source.info.clock == "c"


@needs_babeltrace
def test_files_of_rotated_archives_are_one_trace(tmp_path: Path) -> None:
    original = tmp_path / "o"
    channel = CtfChannel(CtfTracer()).packet().packet(lost=3)
    write_ctf(original / "archives/1/kernel", channel)
    channel.packets.clear()
    write_ctf(original / "archives/2/kernel", channel.packet(lost=1).packet())
    channel.packets.clear()
    write_ctf(original / "kernel", channel.packet(4))
    (original / "kernel/index").mkdir()
    (original / "kernel/index/chan_0.idx").write_bytes(b"not used")
    segment = record(original, tmp_path / "t")
    assert [one["name"] for one in json.loads((segment / "trace.json").read_text())["streams"]] == [
        "chan_0"
    ]
    shutil.rmtree(original / "kernel/index")
    assert assert_reads_the_same(original, segment, tmp_path / "copy").count("\n") == 16


def test_packets_that_two_snapshots_share_are_stored_once(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet()
    write_ctf(tmp_path / "snapshot-1", channel)
    write_ctf(tmp_path / "snapshot-2", channel.packet())
    (stream,) = opened(tmp_path).streams
    assert [row for batch in take_to_end(stream) for row in batch.rows["sequence"]] == [0, 1, 2]


def test_damage_between_packets_that_two_snapshots_share_is_counted(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer(instance=False)).packet().packet()
    write_ctf(tmp_path / "snapshot-1", channel)
    channel.packet().packet()
    shared, damaged, last = channel.packets[1:]
    channel.packets = [shared, bytes(len(damaged)), last]
    write_ctf(tmp_path / "snapshot-2", channel)
    source = opened(tmp_path)
    batches = take_to_end(source.streams[0])
    assert gaps_of(batches) == [(Reason.DAMAGED, Unit.BYTES, len(damaged))]
    assert [int(batch.rows["begin"][gap.row]) for batch in batches for gap in batch.gaps] == [1105]
    (note,) = (one for one in source.notes() if "left out" in one)
    assert "snapshot-2/chan_0: byte 4096: zeros instead of a packet" in note


def test_damage_in_a_snapshot_whose_packets_are_known_is_reported(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet()
    write_ctf(tmp_path / "snapshot-1", channel)
    channel.packets[1] = bytes(len(channel.packets[1]))
    write_ctf(tmp_path / "snapshot-2", channel)
    (note,) = (one for one in opened(tmp_path).notes() if "left out" in one)
    assert "snapshot-2/chan_0: earlier files have its packets; no packet is in 4096 other" in note


@needs_babeltrace
def test_snapshots_that_overlap_read_as_the_whole_trace(tmp_path: Path) -> None:
    channels = [CtfChannel(CtfTracer(order=">", long_bytes=4), cpu=cpu) for cpu in (0, 1)]
    for number in range(3):
        for channel in channels:
            channel.packet(20, lost=number)
            del channel.packets[:-2]
        write_ctf(tmp_path / f"o/snapshot-{number}", *channels)
    for channel in channels:
        whole = CtfChannel(channel.tracer, channel.cpu)
        channel.packets = whole.packet(20).packet(20, lost=1).packet(20, lost=2).packets
    whole_trace = write_ctf(tmp_path / "whole", *channels)
    segment = record(tmp_path / "o", tmp_path / "t")
    assert assert_reads_the_same(whole_trace, segment, tmp_path / "copy").count("\n") == 120


@needs_babeltrace
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["32-bit, big-endian", "64-bit"])
def test_rotated_archives_of_240_000_events_with_sequences_read_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    tracer = TRACERS[name]._replace(sequences=True, page_bytes=1 << 16)
    channels = [CtfChannel(tracer, cpu=cpu) for cpu in (0, 1)]
    for chunk in range(4):
        for channel in channels:
            channel.packets.clear()
            for _ in range(30):
                channel.packet(1000)
        write_ctf(tmp_path / f"o/archives/{chunk}/kernel", *channels)
    segment = record(tmp_path / "o", tmp_path / "t")
    text = assert_reads_the_same(tmp_path / "o", segment, tmp_path / "copy")
    assert text.count("\n") == 240_000
    capfd.readouterr()
    assert lttv_main(["text", "--style", "babeltrace", str(tmp_path / "t")]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(text.splitlines())
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0
    assert "whole: 1 segment, 2 streams, 240 sub-buffers, 240,000 events" in capfd.readouterr().out


def test_a_stream_that_was_divided_by_size_is_one(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer(), cpu=1).packet().packet().packet()
    write_ctf(tmp_path, channel)
    (tmp_path / "chan_1").unlink()
    for number, file in enumerate((2, 0, 1)):  # the oldest file was overwritten
        (tmp_path / f"chan_1_{file}").write_bytes(channel.packets[number])
    (stream,) = opened(tmp_path).streams
    assert stream.info.id == StreamId("chan", 1)
    assert [row for batch in take_to_end(stream) for row in batch.rows["sequence"]] == [0, 1, 2]


def rotated(directory: Path) -> dict[str, int]:
    """Write rotated archives of three traces; return their names and numbers of packets."""
    traces = {
        "kernel": (CtfTracer(), 3),
        "uid/0/64-bit": (CtfTracer(uuid=bytes(16)), 2),
        "uid/1000/64-bit": (CtfTracer(uuid=b"\1" * 16), 1),
    }
    for name, (tracer, packets) in traces.items():
        channel = CtfChannel(tracer)
        for chunk in range(packets):
            channel.packets.clear()
            path = "kernel" if name == "kernel" else f"ust/{name}"
            write_ctf(
                directory / f"archives/2026010{chunk}T000000-{chunk}/{path}", channel.packet()
            )
    return {name: packets for name, (_, packets) in traces.items()}


def test_several_traces_are_refused_with_their_names(tmp_path: Path) -> None:
    rotated(tmp_path)
    told = "trace=kernel or trace=0/64-bit or trace=1000/64-bit"
    with pytest.raises(UsageError, match=f"holds 3 traces: name one with {told}; --source may be"):
        opened(tmp_path)
    with pytest.raises(UsageError, match=r"holds no trace of the name 0; its traces are kernel, "):
        opened(tmp_path, trace="0")
    with pytest.raises(UsageError, match="holds 2 traces of the name 64-bit; its traces are kern"):
        opened(tmp_path, trace="64-bit")
    with pytest.raises(UsageError, match="trace=: files of ftrace are of one trace"):
        opened(tmp_path, trace="kernel", abi="ftrace")


def test_a_named_trace_is_all_chunks_of_its_uuid(tmp_path: Path) -> None:
    for name, packets in rotated(tmp_path).items():
        source = opened(tmp_path, trace=name)
        (stream,) = source.streams
        assert sum(len(batch.rows) for batch in take_to_end(stream)) == packets
        assert source.info.spec == f"replay:{tmp_path},trace={name}"
        source.close()


def test_traces_side_by_side_become_segments_of_one_run(tmp_path: Path) -> None:
    names = rotated(tmp_path / "o")
    words = [
        word for name in names for word in ("--source", f"replay:{tmp_path / 'o'},trace={name}")
    ]
    assert lttd_main(["-t", str(tmp_path / "t"), *words, "--summary", "none"]) == 0
    found = {}
    for path in (tmp_path / "t").glob("*-replay/trace.json"):
        manifest = json.loads(path.read_text())
        (stream,) = manifest["streams"]
        found[manifest["source"]["spec"].partition("trace=")[2]] = stream["summary"]["subbuffers"]
    assert found == names
    assert lttv_main(["check", "--events", str(tmp_path / "t")]) == 0


def test_traces_without_a_uuid_are_each_its_own(tmp_path: Path) -> None:
    text = CtfTracer().metadata()
    start = text.index('uuid = "')
    anonymous = (text[:start] + text[text.index(";", start) + 1 :]).encode()
    for name in ("a", "b"):
        write_ctf(tmp_path / name, CtfChannel(CtfTracer()).packet(), metadata=anonymous)
    with pytest.raises(UsageError, match="holds 2 traces: name one with trace=a or trace=b;"):
        opened(tmp_path)
    assert opened(tmp_path, trace="b").streams[0].info.id == StreamId("chan", 0)


@pytest.mark.parametrize(
    ("damage", "reason", "rows"),
    [
        (lambda data: data[:8192] + bytes(4096) + data[8192:], "zeros instead of a packet", 4),
        (lambda data: data + bytes(4096), "zeros instead of a packet", 4),
        (lambda data: data[:4096] + b"\xff" * 5000 + data[8192:], "no packet begins here", 3),
        (lambda data: data[:-3996], "a packet of 147 bytes of content, of which 100 are", 3),
        (lambda data: data[:-3800], None, 4),  # padding alone
        (lambda data: data + data[:40], "40 bytes, which are less than a packet's header", 4),
        (lambda data: data[:12288] + data[:48] + b"\xff" * 40, "did not finish", 3),
        (lambda data: data[:12288] + data[:48] + bytes(4048), "the sizes or the stream", 3),
    ],
)
def test_damage_is_left_out_with_a_note_and_counted(
    tmp_path: Path, damage: object, reason: str | None, rows: int
) -> None:
    channel = CtfChannel(CtfTracer()).packet().packet().packet().packet()
    assert len(channel.data) == 16384
    assert callable(damage)
    write_ctf(tmp_path, channel)
    data = damage(channel.data)
    (tmp_path / "chan_0").write_bytes(data)
    source = opened(tmp_path)
    batches = take_to_end(source.streams[0])
    taken = np.concatenate([batch.rows for batch in batches])
    assert len(taken) == rows
    lost = [count for _, unit, count in gaps_of(batches) if unit is Unit.BYTES]
    notes = [note for note in source.notes() if "left out" in note]
    if reason is None:
        assert (lost, notes) == ([], [])
        return
    assert reason in notes[0]
    assert len(data) == taken["kernel_bytes"].sum() + sum(count or 0 for count in lost)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is not a CTF trace"),
        (b"/* CTF 1.8 */ trace {", "line 1: the text ends inside a declaration"),
        (b"\x57\x1d\xd1\x75" + b"\xff" * 60, "byte 0: "),
    ],
)
def test_a_metadata_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    write_ctf(tmp_path, CtfChannel(CtfTracer()).packet(), metadata=text or b" ")
    if not text:
        (tmp_path / "metadata").write_bytes(b"")
        with pytest.raises(LttdError, match="metadata: no block 'trace'"):
            opened(tmp_path, abi="ctf")
        return
    with pytest.raises(SourceError, match=reason) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_metadata_cut_in_its_last_packet_is_stored_without_it(tmp_path: Path) -> None:
    tracer = CtfTracer()
    whole = metadata_packets(tracer, most_bytes=len(tracer.metadata()))
    extra = metadata_packets(tracer)[:60]
    write_ctf(tmp_path, CtfChannel(tracer).packet(), metadata=whole + extra)
    source = opened(tmp_path)
    assert any("the last 60 bytes are not a whole packet" in note for note in source.notes())


def test_a_trace_without_packets_is_nothing_to_record(tmp_path: Path) -> None:
    write_ctf(tmp_path, CtfChannel(CtfTracer()))
    with pytest.raises(NothingToRecordError, match="holds no packet of its trace"):
        opened(tmp_path)
    (tmp_path / "chan_0").unlink()
    with pytest.raises(NothingToRecordError, match="holds no packet of its trace"):
        opened(tmp_path)


@needs_babeltrace
def test_a_stream_without_sizes_is_one_packet(tmp_path: Path) -> None:
    text = """/* CTF 1.8 */
    trace { major = 1; minor = 8; byte_order = be; };
    stream { event.header := struct { integer { size = 8; } id; }; };
    event { name = "e"; id = 0; fields := struct { integer { size = 16; align = 8; } n; }; };
    """
    original = tmp_path / "o"
    original.mkdir()
    (original / "metadata").write_text(text)
    (original / "stream").write_bytes(b"\0\0\1\0\0\2")
    segment = record(original, tmp_path / "t")
    assert assert_reads_the_same(original, segment, tmp_path / "copy").count("\n") == 2
    assert lttv_main(["check", str(tmp_path / "t")]) == 0


def test_a_sparse_copy_is_refused_where_packets_vary_in_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = write_ctf(tmp_path / "o", CtfChannel(CtfTracer()).packet().packet(300))
    words = ["-t", str(tmp_path / "t"), "--source", f"replay:{original}", "--layout", "sparse"]
    assert lttd_main(words) == 2
    assert "chan_0: sub-buffers of varying size cannot be sparse" in capfd.readouterr().err


@needs_babeltrace
def test_a_sparse_copy_keeps_the_padding_as_holes(tmp_path: Path) -> None:
    channel = CtfChannel(CtfTracer(page_bytes=1 << 16)).packet().packet(30)
    original = write_ctf(tmp_path / "o", channel)
    segment = record(original, tmp_path / "t", "--layout", "sparse")
    assert_reads_the_same(original, segment, tmp_path / "copy")
    status = (segment / "streams/chan_0").stat()
    assert status.st_size == 1 << 17
    assert lttv_main(["check", str(tmp_path / "t")]) == 0


CHANNEL = CtfChannel(CtfTracer(page_bytes=512)).packet().packet(0).packet().packet()


@given(
    st.lists(
        st.tuples(st.integers(0, len(CHANNEL.data) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, len(CHANNEL.data)),
)
def test_every_byte_of_a_damaged_file_is_a_row_or_a_gap(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(CHANNEL.data)
    for at, value in changes:
        data[at] = value
    directory = write_ctf(tmp_path_factory.mktemp("d"), CHANNEL)
    (directory / "chan_0").write_bytes(data[:end])
    try:
        source = opened(directory)
    except NothingToRecordError:
        return
    batches = take_to_end(source.streams[0])
    kernel_bytes = sum(batch.kernel_bytes for batch in batches)
    lost = sum(count or 0 for _, unit, count in gaps_of(batches) if unit is Unit.BYTES)
    assert kernel_bytes + lost == end
    source.close()


def test_a_replay_of_ftrace_loads_no_parser_of_metadata() -> None:
    code = (
        "import sys, lttd.sources.replay.source, lttd.sources.replay.ctf as m; "
        "assert 'lark' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

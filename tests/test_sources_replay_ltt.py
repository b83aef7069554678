"""Replay traces of LTTng 0.x: a real one, generated ones of every format, and damaged ones."""

import json
import struct
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi import ltt_walk
from lttd.config import SourceSpec
from lttd.errors import LttdError, NothingToRecordError, SourceError, UsageError
from lttd.sources.registry import open_source
from lttd.sources.replay.ltt import LttReplaySource, open_ltt_replay
from lttd.sources.replay.source import detect
from lttd.sources.table import SOURCES
from lttd.subbuffer import Batch, BufferPool, Reason, StreamId, Unit
from tests.batches import gaps_of, take_to_end
from tests.data import SHARED_LTT, needs
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe, write_trace

TRACERS = [
    Tracer(minor=minor, order=order, pointer_bytes=pointer, alignment=pointer)
    for minor, (order, pointer) in product(range(7), [("<", 4), (">", 8)])
]

REPLAYS = SOURCES["replay"].replays


def taken(source: LttReplaySource, name: str) -> list[Batch]:
    (stream,) = [one for one in source.streams if one.info.id.name == name]
    return take_to_end(stream)


def busy(tracer: Tracer, *, events: int = 900, count: int = 64) -> LttBuffer:
    """Return an unfinalized buffer of many sub-buffers, some of them flushed."""
    buffer = LttBuffer(tracer, count=count)
    for number in range(events):
        tsc = tracer.start_tsc + 1000 * (number + 1)
        buffer.log(number % 3, tracer.pack(("u4", number), ("s", b"y" * (number % 90))), tsc, 4)
        if number % 100 == 99:
            buffer.flush(tsc + 5)
    return buffer


def made(directory: Path, tracer: Tracer) -> dict[str, LttBuffer]:
    """Write a trace of two CPUs with the file names of that version."""
    inside = "control/" if tracer.minor <= 2 else ""
    buffers = {f"{inside}metadata_{cpu}": LttBuffer(tracer) for cpu in (0, 1)}
    described = buffers[f"{inside}metadata_0"]
    describe(described, Marker("kernel", "tick", 0, "n %u s %s"), tracer.start_tsc + 10)
    buffers |= {f"kernel_{cpu}": busy(tracer) for cpu in (0, 1)}
    write_trace(directory, buffers)
    return buffers


def opened(directory: Path, **options: str) -> LttReplaySource:
    source = open_source(SourceSpec("replay", str(directory), options), BufferPool())
    assert isinstance(source, LttReplaySource)
    return source


def data_sizes(data: bytes) -> list[int]:
    """Walk the blocks of a little-endian 2.5 file; return the data_size of each."""
    found, at = [], 0
    while at < len(data):
        used, size = struct.unpack_from("<II", data, at + 52)
        found.append(used)
        at += size
    return found


@needs(SHARED_LTT)
def test_a_replay_of_the_real_trace_keeps_only_its_used_bytes() -> None:
    source = opened(SHARED_LTT)
    assert source.info.clock == "ltt-tsc"
    assert source.info.settings["format"] == "2.5"
    assert len(source.streams) == 22
    for stream in source.streams:
        batches = taken(source, stream.info.id.name)
        assert sum(batch.kernel_bytes for batch in batches) == stream.path.stat().st_size
        assert gaps_of(batches) == []
        data = stream.path.read_bytes()
        assert sum(batch.payload_bytes for batch in batches) == sum(data_sizes(data))
        packed = b"".join(bytes(piece) for batch in batches for piece in batch.pieces())
        used, size = struct.unpack_from("<II", packed, 52)
        assert used == size == struct.unpack_from("<I", data, 52)[0]
    snapshot = source.info.snapshot
    assert snapshot is not None
    assert (snapshot.trace, snapshot.realtime_ns) == (13589692331524, 1262715366408819000)


@pytest.mark.parametrize("tracer", TRACERS, ids=str)
def test_every_format_is_replayed_as_it_was_written(tmp_path: Path, tracer: Tracer) -> None:
    buffers = made(tmp_path, tracer)
    source = opened(tmp_path)
    assert [f"{stream.info.id.name}" for stream in source.streams] == sorted(buffers)
    for name in buffers:
        (batch,) = taken(source, name)
        original = (tmp_path / name).read_bytes()
        assert batch.kernel_bytes == len(original)
        assert bytes(batch.buffer[: len(original)]) == original
        info = next(one.info for one in source.streams if one.info.id.name == name)
        assert info.header_bytes == tracer.header_bytes
        assert info.page_bytes == (4096 if tracer.minor >= 5 else 0)
        assert info.subbuffer_bytes == 4096
    source.close()


def test_losses_are_gaps_before_the_sub_buffer_that_counts_them(tmp_path: Path) -> None:
    tracer = Tracer()
    metadata, kernel = LttBuffer(tracer), LttBuffer(tracer, count=64)
    tsc = tracer.start_tsc
    for lost, corrupted in [(0, 0), (7, 0), (0, 2), (1, 1)]:
        kernel.log(1, b"event", tsc := tsc + 100)
        kernel.lose(lost, corrupted)
        kernel.flush(tsc := tsc + 100)
    write_trace(tmp_path, {"metadata_0": metadata, "kernel_0": kernel})
    (batch,) = taken(opened(tmp_path), "kernel_0")
    told = [(gap.row, gap.reason, gap.unit, gap.count) for gap in batch.gaps]
    assert told == [
        (1, Reason.DISCARDED, Unit.EVENTS, 7),
        (2, Reason.COMMIT_OVERRUN, Unit.SUBBUFFERS, 2),
        (3, Reason.DISCARDED, Unit.EVENTS, 1),
        (3, Reason.COMMIT_OVERRUN, Unit.SUBBUFFERS, 1),
    ]
    assert batch.rows["discarded_total"].tolist() == [0, 7, 7, 8, 8]
    ends = [int(end) for end in batch.rows["end"]]
    assert (batch.gaps[0].begin, batch.gaps[0].end) == (ends[0], ends[1])


def test_a_counter_may_wrap(tmp_path: Path) -> None:
    tracer = Tracer()
    kernel = LttBuffer(tracer, count=64, events_lost=(1 << 32) - 2)
    kernel.log(1, b"event", tracer.start_tsc + 100)
    kernel.flush(tracer.start_tsc + 200)
    kernel.lose(5)
    write_trace(tmp_path, {"metadata_0": LttBuffer(tracer), "kernel_0": kernel})
    (batch,) = taken(opened(tmp_path), "kernel_0")
    assert [gap.count for gap in batch.gaps] == [(1 << 32) - 2, 5]


def test_an_appended_run_restarts_its_counters_and_is_kept(tmp_path: Path) -> None:
    one = Tracer()
    other = Tracer(start_tsc=5_000, start_s=one.start_s + 100, frequency=3 * 10**9)
    lossy = [busy(tracer, events=50) for tracer in (one, other)]
    for buffer in lossy:
        buffer.lose(4)
        buffer.finalize(buffer.tracer.start_tsc + 10**6)
    write_trace(tmp_path, {"metadata_0": LttBuffer(one)})
    (tmp_path / "kernel_0").write_bytes(lossy[0].drain() + lossy[1].drain())
    source = opened(tmp_path)
    (batch,) = taken(source, "kernel_0")
    assert gaps_of([batch]) == [(Reason.DISCARDED, Unit.EVENTS, 4)] * 2
    assert (batch.rows["begin"][1:] >= batch.rows["begin"][:-1]).all()
    assert any("appended" in note for note in source.notes())


def test_a_channel_with_overwritten_sub_buffers_replays(tmp_path: Path) -> None:
    tracer = Tracer()
    flight = LttBuffer(tracer, overwrite=True)
    for number in range(2000):
        assert flight.log(2, b"z" * 40, tracer.start_tsc + 1000 * number)
    write_trace(tmp_path, {"metadata_0": LttBuffer(tracer), "flight-kernel_0": flight})
    source = opened(tmp_path)
    batches = taken(source, "flight-kernel_0")
    assert flight.pushed > 10
    assert sum(len(batch.rows) for batch in batches) + flight.pushed == flight.closed


def test_a_large_file_comes_in_several_consecutive_batches(tmp_path: Path) -> None:
    tracer = Tracer()
    kernel = busy(tracer, events=3000, count=512)
    write_trace(tmp_path, {"metadata_0": LttBuffer(tracer), "kernel_0": kernel})
    source = open_ltt_replay(tmp_path, BufferPool(take_bytes=1 << 14))
    batches = taken(source, "kernel_0")
    assert len(batches) > 5
    sequence = [int(n) for batch in batches for n in batch.rows["sequence"]]
    assert sequence == list(range(kernel.closed))
    begins = [int(n) for batch in batches for n in batch.rows["begin"]]
    assert begins == sorted(begins)


def test_a_sub_buffer_may_be_larger_than_the_memory_of_a_take(tmp_path: Path) -> None:
    tracer = Tracer()
    kernel = LttBuffer(tracer, subbuffer_bytes=1 << 16)
    for number in range(3000):
        kernel.log(1, b"q" * 50, tracer.start_tsc + number)
    write_trace(tmp_path, {"metadata_0": LttBuffer(tracer), "kernel_0": kernel})
    source = open_ltt_replay(tmp_path, BufferPool(take_bytes=1 << 12))
    batches = taken(source, "kernel_0")
    assert sum(batch.kernel_bytes for batch in batches) == (tmp_path / "kernel_0").stat().st_size


@pytest.mark.parametrize("minor", [3, 6])
def test_damage_and_torn_tails_are_gaps_and_later_data_are_kept(tmp_path: Path, minor: int) -> None:
    tracer = Tracer(minor=minor)
    made(tmp_path, tracer)
    path = tmp_path / "kernel_0"
    data = bytearray(path.read_bytes())
    (whole,) = taken(opened(tmp_path), "kernel_0")
    third = whole.rows[2]
    data[int(third["offset_bytes"]) + 16] ^= 1
    path.write_bytes(bytes(data[:-100]))
    source = opened(tmp_path)
    batches = taken(source, "kernel_0")
    lost_bytes = int(third["kernel_bytes"])
    torn_bytes = int(whole.rows["kernel_bytes"][-1]) - 100
    assert gaps_of(batches) == [
        (Reason.DAMAGED, Unit.BYTES, lost_bytes),
        (Reason.TORN, Unit.BYTES, torn_bytes),
    ]
    rows = sum(len(batch.rows) for batch in batches)
    assert rows == len(whole.rows) - 2
    delivered = sum(batch.kernel_bytes for batch in batches)
    assert delivered + lost_bytes + torn_bytes == path.stat().st_size
    notes = source.notes()
    assert sum("left out" in note for note in notes) == 2
    assert source.notes() == []


@pytest.mark.parametrize(
    ("at", "form", "value", "word"),
    [(16, "<I", 1, "magic"), (20, "<H", 0x0003, "format 3.0"), (56, "<I", 0, "sizes")],
)
def test_a_file_without_a_sub_buffer_is_left_out_with_the_reason(
    tmp_path: Path, at: int, form: str, value: int, word: str
) -> None:
    tracer = Tracer()
    write_trace(tmp_path, {"metadata_0": LttBuffer(tracer), "kernel_0": LttBuffer(tracer)})
    data = bytearray((tmp_path / "kernel_0").read_bytes())
    struct.pack_into(form, data, at, value)
    (tmp_path / "kernel_0").write_bytes(data)
    (tmp_path / "empty_0").touch()
    source = opened(tmp_path)
    assert [stream.info.id for stream in source.streams] == [StreamId("metadata", 0)]
    notes = source.notes()
    assert any(word in note and "kernel_0" in note for note in notes)
    assert any("empty_0: it is empty; left out" in note for note in notes)


def test_a_directory_without_channels_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes_1").write_text("no channel")
    assert getattr(detect(tmp_path, REPLAYS), "abi", None) != "ltt"
    with pytest.raises(NothingToRecordError, match=r"no channel of LTTng 0\.x.*too few"):
        opened(tmp_path, abi="ltt")
    with pytest.raises(UsageError, match="not a directory"):
        opened(tmp_path / "absent", abi="ltt")


def test_two_traces_at_once_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        tracer = Tracer(start_s=number)
        write_trace(tmp_path / f"run{number}", {"metadata_0": LttBuffer(tracer)})
    with pytest.raises(UsageError, match="name the directory of one"):
        opened(tmp_path)
    assert len(opened(tmp_path / "run2").streams) == 1


def test_the_sub_buffer_size_option_is_refused_for_ltt(tmp_path: Path) -> None:
    made(tmp_path, Tracer())
    with pytest.raises(UsageError, match="state their size themselves"):
        opened(tmp_path, **{"subbuffer-size": "4096"})


def test_the_settings_of_an_ltt_replay_fit_a_manifest(tmp_path: Path) -> None:
    made(tmp_path, Tracer(order=">", minor=2))
    told = json.loads(json.dumps(dict(opened(tmp_path).info.settings)))
    assert (told["format"], told["byteorder"]) == ("2.2", "big")
    assert "control/metadata_0" in told["files"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 12287), st.integers(0, 12288))
def test_a_replay_of_any_file_ends_without_an_exception(
    tmp_path_factory: pytest.TempPathFactory, patch: bytes, at: int, keep: int
) -> None:
    directory = tmp_path_factory.mktemp("broken")
    data = bytearray(busy(Tracer()).drain()[:12288])
    data[at : at + len(patch)] = patch
    (directory / "kernel_0").write_bytes(bytes(data[:keep]))
    try:
        source = open_ltt_replay(directory, BufferPool())
    except LttdError:
        return
    batches = taken(source, "kernel_0")
    told = sum(gap.count or 0 for b in batches for gap in b.gaps if gap.unit is Unit.BYTES)
    delivered = sum(batch.kernel_bytes for batch in batches)
    assert delivered + told == (directory / "kernel_0").stat().st_size


class Shrinking:
    """A file that another process cuts while it is read."""

    def __init__(self, path: Path, reads: int, left_bytes: int) -> None:
        self._path, self._reads, self._left = path, reads, left_bytes
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        self._reads -= 1
        if not self._reads:
            with self._path.open("r+b") as file:
                file.truncate(self._left)
        with self._path.open("rb") as file:
            file.seek(part.start)
            return file.read(part.stop - part.start)


@pytest.mark.parametrize("reads", [1, 2, 10])
def test_a_file_that_is_cut_while_it_is_walked_ends_in_damage(tmp_path: Path, reads: int) -> None:
    made(tmp_path, Tracer())
    path = tmp_path / "kernel_0"
    size = path.stat().st_size
    found = ltt_walk.survey(Shrinking(path, reads, 5000))
    covered = int(found.sizes_bytes.sum()) + sum(one.length_bytes for one in found.damage)
    assert covered == size
    assert found.damage


def test_a_file_that_is_cut_after_the_walk_is_reported(tmp_path: Path) -> None:
    made(tmp_path, Tracer())
    source = opened(tmp_path)
    path = tmp_path / "kernel_0"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(SourceError, match="kernel_0: became shorter while it was read"):
        taken(source, "kernel_0")

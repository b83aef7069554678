"""The source of block traces without a kernel: requests, ownership of a trace, losses."""

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from lttd.abi import declared
from lttd.abi.blktrace import CATEGORIES
from lttd.abi.framing import more_of, parse_framing
from lttd.cli import main
from lttd.errors import LockedError, NothingToRecordError, SourceError, UsageError
from lttd.parsers import parse_sectors
from lttd.sources.base import Nothing, When
from lttd.sources.blktrace.device import (
    SETUP_STRUCT,
    BlktraceSettings,
    BlockTrace,
    Claim,
    missing_cpus,
)
from lttd.sources.blktrace.rows import ProcessNotes, RecordRows
from lttd.sources.blktrace.stream import AbsentStream, BlktraceStream, Dropped
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.stream import Shared
from lttd.subbuffer import ROW_DTYPE, Batch, BufferPool, Reason, StreamId, Unit, make_batch
from lttd.tracedir import file_name
from tests.batches import gaps_of
from tests.blk import message, process, record, timestamp
from tests.relay_model import RelayModel

NUMBER = os.makedev(8, 1)


def test_the_setup_structure_matches_its_declaration() -> None:
    settings = BlktraceSettings(
        "/dev/x", ("read", "Issue"), 1 << 20, 1 << 16, sectors=(2048, 4095), pid=7
    )
    packed = settings.packed()
    assert len(packed) == declared.BlkUserTraceSetup.sizeof() == SETUP_STRUCT.size == 72
    parsed = declared.BlkUserTraceSetup.parse(packed)
    assert (parsed.act_mask, parsed.buf_size, parsed.buf_nr) == (0b100_0001, 65536, 16)
    assert (parsed.start_lba, parsed.end_lba, parsed.pid) == (2048, 4095, 7)


def test_actions_have_the_names_of_blktrace() -> None:
    assert BlktraceSettings("x").act_mask == 0
    assert BlktraceSettings("x", CATEGORIES).act_mask == 0xFFFF
    with pytest.raises(UsageError, match="'reads' is not an action; write read, write"):
        BlktraceSettings("x", ("reads",)).packed()


@pytest.mark.parametrize("text", ["", "5", "9-3", "a-b", "-1-2"])
def test_a_sector_range_is_parsed(text: str) -> None:
    assert parse_sectors("0-7") == (0, 7)
    with pytest.raises(UsageError, match="FIRST-LAST"):
        parse_sectors(text)


@pytest.mark.parametrize("size", [0, 47, 64 << 20])
def test_unusable_sub_buffer_sizes_are_refused_before_the_kernel_is_asked(size: int) -> None:
    with pytest.raises(UsageError, match="write 4K to 16M"):
        BlktraceSettings("/dev/x", subbuffer_bytes=size).packed()


@pytest.mark.parametrize(
    ("spec", "status", "words"),
    [
        ("blktrace", 2, "name the device"),
        ("blktrace:/dev/null", 2, "/dev/null is not a block device"),
        ("blktrace:/dev/none", 77, "/dev/none: No such file"),
        ("blktrace:/dev/null,events=x", 2, "'events' is not a key of blktrace"),
        ("blktrace:/dev/null,actions=reads", 2, "is not an action; write"),
        ("blktrace:/dev/null,pid=me", 2, "pid 'me' is not a valid number"),
        ("blktrace:/dev/null,sectors=x", 2, "lttd: sectors 'x': write FIRST-LAST"),
    ],
)
def test_an_impossible_block_option_is_refused_in_one_line(
    tmp_path: Path, spec: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-t", str(tmp_path / "t"), "--source", spec]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "t").exists()


def test_an_untraceable_device_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError):
        BlockTrace(BlktraceSettings("/dev/null"), debugfs=str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.kernel
def test_a_kernel_that_bars_relay_files_is_reported_and_left_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, directory = Path("/dev/loop0"), Path("/sys/kernel/debug/block/loop0")
    if os.geteuid() or not device.is_block_device() or not directory.is_dir():
        pytest.skip("not root, or no loop device, or no debugfs")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    arguments = ["-t", str(tmp_path / "t"), "--source", f"blktrace:{device}", "--duration", "0.1s"]
    status = main(arguments)
    assert not list(directory.glob("trace*")), "it was torn down"
    if status == 0:
        pytest.skip("this kernel bars nothing")
    assert status == 77
    (line,) = capsys.readouterr().err.splitlines()
    assert "trace0: Operation not permitted" in line
    assert "lockdown" in line
    assert not (tmp_path / "t").exists()


class Debugfs:
    """The files of debugfs that identify a trace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dropped = root / "block" / "sda1" / "dropped"

    def set_up(self) -> None:
        self.dropped.parent.mkdir(parents=True, exist_ok=True)
        # debugfs does not reuse inode numbers, so keep the old file.
        if self.dropped.exists():
            self.dropped.rename(self.root / f"gone{time.monotonic_ns()}")
        self.dropped.write_text("0\n")

    def claim(self) -> Claim:
        return Claim("/dev/sda1", NUMBER, str(self.root))


def test_a_block_trace_is_ours_after_a_kill_until_another_setup(
    tmp_path: Path,
) -> None:
    debugfs = Debugfs(tmp_path)
    debugfs.set_up()
    claim = debugfs.claim()
    assert not claim.is_there()
    claim.mark("sda1")
    claim.release(clear=False)  # killed
    claim = debugfs.claim()
    assert claim.is_there()
    debugfs.set_up()
    assert not claim.is_there(), "that is somebody else's"
    claim.mark("sda1")
    claim.release(clear=True)  # torn down
    assert not debugfs.claim().is_there()


def test_a_block_trace_of_another_boot_is_not_ours(tmp_path: Path) -> None:
    debugfs = Debugfs(tmp_path)
    debugfs.set_up()
    claim = debugfs.claim()
    claim.mark("sda1")
    path = Path(claim.path)
    path.write_text(path.read_text().replace('"boot_id": "', '"boot_id": "another'))
    assert not claim.is_there()
    path.write_text("torn {")
    assert not claim.is_there()


def test_a_block_trace_without_kernel_files_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="block/sda1/dropped: No such file"):
        Debugfs(tmp_path).claim().mark("sda1")


def test_two_lttds_cannot_trace_the_same_device(tmp_path: Path) -> None:
    debugfs = Debugfs(tmp_path)
    first = debugfs.claim()
    with pytest.raises(LockedError, match=rf"/dev/sda1 is being traced by .* \(pid {os.getpid()}"):
        debugfs.claim()
    first.release(clear=False)
    debugfs.claim().release(clear=False)


def test_a_runtime_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runtime").write_text("a file")
    with pytest.raises(NothingToRecordError, match="RUNTIME_DIRECTORY"):
        Debugfs(tmp_path).claim()


def rows_at(*begins: int) -> np.ndarray:  # type: ignore[type-arg]
    rows = np.zeros(len(begins), ROW_DTYPE)
    rows["begin"] = begins
    return rows


def test_the_gap_of_dropped_records_precedes_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "dropped"
    path.write_text("0\n")
    dropped = Dropped(str(path))
    dropped.look()
    path.write_text("70\n")
    before = time.monotonic_ns()
    dropped.look()
    after = time.monotonic_ns()
    assert dropped.place(rows_at(before - 2, before - 1), all_of_it=False) == []
    (gap,) = dropped.place(rows_at(before - 1, after + 5, after + 9), all_of_it=False)
    assert (gap.row, gap.reason, gap.unit, gap.count) == (1, Reason.DROPPED, Unit.EVENTS, 70)
    assert gap.begin <= before
    assert before <= gap.end <= after
    path.write_text("75\n")
    dropped.look()
    (last,) = dropped.place(rows_at(), all_of_it=True)
    assert (last.row, last.count) == (0, 5)
    assert dropped.told == dropped.total == 75
    dropped.close()


def test_a_dropped_counter_that_is_gone_keeps_its_last_value(tmp_path: Path) -> None:
    path = tmp_path / "dropped"
    path.write_text("3\n")
    dropped = Dropped(str(path))
    dropped.look()
    path.write_text("")
    dropped.look()
    assert dropped.total == 3
    dropped.close()
    dropped.look()


def test_each_note_is_kept_once_per_segment() -> None:
    noted = ProcessNotes()
    due = noted.attachments()
    data = process(1, 5, "sh") + record(2) + timestamp(3, 9) + message(4, b"x")
    taken = RecordRows().take(memoryview(data), final=True)
    buffer = memoryview(bytearray(data))
    batch = make_batch(StreamId("sda", 0), taken.rows, pool=BufferPool(), buffer=buffer)
    assert noted.add(batch) == 4
    (attachment,) = due(When.PERIODIC)
    assert attachment.name == "blktrace/notes"
    assert attachment.append
    assert attachment.data == process(1, 5, "sh") + timestamp(3, 9)
    assert list(due(When.PERIODIC)) == []
    later = noted.attachments()
    (attachment,) = later(When.OPEN)
    assert attachment.data == process(1, 5, "sh") + timestamp(3, 9), "all of them go on"
    again = noted.attachments()  # the segment that was prepared is made anew
    noted.add(batch)
    assert list(due(When.PERIODIC)), "until the roll, the present segment gets them, too"
    noted.roll()
    noted.add(batch)
    assert list(due(When.CLOSE)) == []
    assert list(again(When.PERIODIC))


def test_rows_end_between_records_and_other_bytes_are_a_gap() -> None:
    data = b"".join(record(at, sequence=at) for at in range(1, 4001)) + b"junk" + record(5000)
    book = RecordRows()
    taken = book.take(memoryview(data), final=False)
    assert taken.whole_bytes == len(data)
    sizes = taken.rows["payload_bytes"]
    assert (sizes % 48 == 0).all()
    assert sizes.max() <= 64 << 10
    assert sizes.sum() == 4001 * 48
    (gap,) = taken.gaps
    assert (gap.row, gap.reason, gap.count) == (len(taken.rows) - 1, Reason.DAMAGED, 4)
    assert taken.rows["begin"].tolist()[0] == 1
    assert (np.diff(taken.rows["end"].astype(np.int64)) > 0).all()


def test_an_incomplete_record_is_left_for_the_next_take_or_torn() -> None:
    whole = record(1, pdu=bytes(16))
    book = RecordRows()
    taken = book.take(memoryview(whole + whole[:-1]), final=False)
    assert (len(taken.rows), taken.whole_bytes, taken.gaps) == (1, len(whole), ())
    last = book.take(memoryview(whole[:-1]), final=True)
    (gap,) = last.gaps
    assert (gap.reason, gap.count) == (Reason.TORN, len(whole) - 1)


class Ring:
    """The ring of one CPU in the kernel, and the stream that reads it."""

    def __init__(self, directory: Path) -> None:
        framing = parse_framing("blktrace")
        self.model = RelayModel(480, 4)
        self.shared = Shared(BufferPool(), framing, abi="blktrace", count_missing=False)
        self.noted = ProcessNotes()
        self.dropped_path = directory / "dropped"
        self.dropped_path.write_text("0\n")
        file = RelayFile("trace0", self.model, lambda begun: more_of(framing, begun))
        dropped = Dropped(str(self.dropped_path))
        stream = StreamId("sda", 0)
        self.stream = BlktraceStream(stream, file, self.shared, self.noted, dropped, 4 * 480)
        self.written = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            time_ns = time.monotonic_ns()
            if self.model.write(record(time_ns, sequence=self.written)):
                self.written += 1
        self.dropped_path.write_text(f"{self.model.refused}\n")

    def taken(self) -> list[Batch]:
        """Return the batches of a flush and of the final count of losses."""
        batches = []
        while isinstance(batch := self.stream.take(flush=True), Batch):
            batches.append(batch)
        lost = self.stream.losses()
        return [*batches, lost] if lost is not None else batches


def test_the_records_made_are_the_stored_and_the_dropped_ones(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.write(45)
    first = ring.taken()
    assert (ring.written, ring.model.refused) == (40, 5)
    assert sum(batch.payload_bytes for batch in first) == 40 * 48
    assert gaps_of(first) == [(Reason.DROPPED, Unit.EVENTS, 5)]
    assert ring.stream.counters()["records"] == 40
    assert ring.stream.counters()["dropped"] == 5
    # Later rows continue from there: the index counts all earlier losses.
    ring.write(12)
    ring.model.flush()
    (second,) = ring.taken()
    assert second.rows["discarded_total"].tolist() == [5]
    assert second.rows["sequence"][0] > 0
    assert ring.taken() == []


def test_a_ring_more_than_half_full_is_served_first(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.write(25)
    assert not ring.stream.urgent()
    ring.write(10)
    assert ring.stream.urgent()
    ring.taken()
    assert not ring.stream.urgent()


def test_data_left_by_an_aborted_drain_are_counted(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.write(25)
    ring.shared.stopped = True
    lost = ring.stream.losses()
    assert lost is not None
    assert gaps_of([lost]) == [(Reason.ABANDONED, Unit.BYTES, 2 * 480)]
    assert ring.stream.take(flush=True) is Nothing.EVER
    assert ring.stream.losses() is None


def test_a_complete_drain_leaves_nothing(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.write(25)
    ring.model.flush()  # as BLKTRACESTOP flushes it
    ring.shared.stopped = True
    batches = ring.taken()
    assert sum(batch.payload_bytes for batch in batches) == 25 * 48
    assert gaps_of(batches) == []


def test_cpus_without_a_file_get_an_empty_stream_up_to_the_highest() -> None:
    assert missing_cpus([0, 3, 5]) == [1, 2, 4]
    assert missing_cpus([]) == []
    absent = AbsentStream(StreamId("dm-0", 1))
    assert file_name(absent.info) == "dm-0.blktrace.1"
    assert absent.take(flush=True) is Nothing.EVER


def test_a_foreign_byte_order_is_found_by_its_magic() -> None:
    data = record(7, order=">", version=8) * 3
    book = RecordRows()
    taken = book.take(memoryview(data), final=True)
    assert book.layout is not None
    assert (book.layout.version, book.layout.byteorder) == (8, ">")
    assert taken.rows["begin"].tolist() == [7]
    assert struct.unpack(">I", data[:4])[0] & 0xFF == 8

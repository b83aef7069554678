"""The source ``ltt:DIR`` on an emulated kernel: each answer of ioctl, splice and poll."""

import errno
import os
import resource
import select
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lttd.errors import LockedError, NothingToRecordError, SourceError, UsageError
from lttd.sources.base import Nothing
from lttd.sources.ltt.channel import Channel
from lttd.sources.ltt.source import LttSource, open_ltt
from lttd.sources.ltt.stream import LttStream
from lttd.subbuffer import Batch, BufferPool, Reason, StreamId, Unit
from tests.ltt_kernel import Kernel, running_kernel, stripped
from tests.running import until

pytestmark = pytest.mark.slow


class Opened:
    """A source on an emulated kernel, and the batches taken from it."""

    def __init__(self, kernel: Kernel, pool: BufferPool | None = None, **how: object) -> None:
        self.kernel = kernel
        # Rescan at every call: the files of the emulated kernel make no inotify events.
        how = {"rescan_s": 0.0, **how}
        self.source: LttSource = open_ltt(kernel.root, pool or BufferPool(), **how)

    @property
    def names(self) -> list[str]:
        return sorted(stream.info.id.name for stream in self.source.streams)

    def stream(self, name: str) -> LttStream:
        (found,) = [one for one in self.source.streams if one.info.id.name == name]
        return found

    def drain(self, name: str) -> tuple[list[Batch], Nothing]:
        """Take until nothing is left; return the last answer."""
        batches = []
        while isinstance(taken := self.stream(name).take(flush=False), Batch):
            batches.append(taken)
        return batches, taken


@pytest.fixture
def opened(ltt_kernel: Kernel) -> Iterator[Opened]:
    """A source on channels kernel_0 and kernel_1."""
    ltt_kernel.add("kernel_0")
    ltt_kernel.add("kernel_1")
    source = Opened(ltt_kernel)
    yield source
    source.source.close()


def packed(batches: list[Batch]) -> list[bytes]:
    """Return the sub-buffers as a packed file stores them."""
    found = []
    for batch in batches:
        whole = b"".join(batch.pieces())
        ends = np.cumsum(batch.rows["payload_bytes"]).tolist()
        found += [whole[end - int(size) : end]
                  for end, size in zip(ends, batch.rows["payload_bytes"], strict=True)]  # fmt: skip
    return found


def losses(batches: list[Batch]) -> list[tuple[int, Reason, Unit, int | None]]:
    return [(g.row, g.reason, g.unit, g.count) for batch in batches for g in batch.gaps]


def is_readable(stream: LttStream) -> bool:
    waiting = select.epoll()
    waiting.register(stream.fileno(), select.EPOLLIN)
    found = waiting.poll(0.2)
    waiting.close()
    return bool(found)


# -- one channel


@pytest.mark.parametrize("minor", [0, 1, 2, 3, 4, 5, 6])
def test_closed_sub_buffers_come_in_order_without_padding(ltt_kernel: Kernel, minor: int) -> None:
    ltt_kernel.add("kernel_0", minor=minor, subbuffer_bytes=16384)
    opened = Opened(ltt_kernel)
    stream = opened.stream("kernel_0")
    assert stream.take(flush=False) is Nothing.YET
    ltt_kernel.fill("kernel_0", 3)
    batches, why = opened.drain("kernel_0")
    assert why is Nothing.YET
    assert packed(batches) == [stripped(one) for one in ltt_kernel.report("kernel_0").written]
    # Before 2.5 splice delivers a whole sub-buffer; later its used bytes, rounded up to a page.
    assert {int(size) for size in batches[0].rows["kernel_bytes"]} == {4096 if minor > 4 else 16384}
    assert stream.info.subbuffer_bytes == 16384
    assert stream.info.page_bytes == (4096 if minor > 4 else 0)
    opened.source.close()


def test_several_sub_buffers_come_in_one_batch_with_consecutive_numbers(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 3)
    (first,), _ = opened.drain("kernel_0")
    opened.kernel.fill("kernel_0", 2)
    (second,), _ = opened.drain("kernel_0")
    assert first.rows["sequence"].tolist() == [0, 1, 2]
    assert second.rows["sequence"].tolist() == [3, 4]
    assert first.rows["end"][-1] <= second.rows["begin"][0]
    assert not losses([first, second])


def test_a_stream_is_readable_for_either_poll_event_of_the_kernel(
    ltt_kernel: Kernel,
) -> None:
    ltt_kernel.add("kernel_0", urgent_from=2)
    opened = Opened(ltt_kernel)
    stream = opened.stream("kernel_0")
    assert (is_readable(stream), stream.urgent()) == (False, False)
    ltt_kernel.fill("kernel_0", 1)  # POLLIN
    assert (is_readable(stream), stream.urgent()) == (True, False)
    ltt_kernel.fill("kernel_0", 1)  # POLLPRI and not POLLIN
    assert (is_readable(stream), stream.urgent()) == (True, True)
    opened.drain("kernel_0")
    assert (is_readable(stream), stream.urgent()) == (False, False)
    opened.source.close()


def test_a_channel_that_hung_up_ends_and_closes_once_it_is_drained(
    opened: Opened,
) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.finalize("kernel_0")
    assert is_readable(opened.stream("kernel_0"))
    batches, why = opened.drain("kernel_0")
    assert (len(batches[0].rows), why) == (2, Nothing.EVER)
    # Destroying a trace waits for the close.
    until(lambda: not opened.kernel.is_open("kernel_0"), "the close")
    assert opened.kernel.is_open("kernel_1")
    assert opened.stream("kernel_0").take(flush=True) is Nothing.EVER
    # It does not wake the reader while other channels continue.
    assert not is_readable(opened.stream("kernel_0"))
    assert opened.stream("kernel_0").losses() is None


def test_a_poll_may_announce_data_that_are_not_committed_yet(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.fault("kernel_0", uncommitted=3)
    batches, _ = opened.drain("kernel_0")
    assert len(batches[0].rows) == 1
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.fault("kernel_0", uncommitted=1000)  # not ready for long: tried again at the tick
    assert opened.drain("kernel_0") == ([], Nothing.YET)


def test_the_empty_sub_buffer_of_a_destroyed_trace_is_kept(opened: Opened) -> None:
    opened.kernel.finalize()
    (batch,), why = opened.drain("kernel_1")
    assert (batch.rows["payload_bytes"].tolist(), why) == ([68], Nothing.EVER)


def test_a_sub_buffer_larger_than_a_take_gets_its_own_memory(
    ltt_kernel: Kernel,
) -> None:
    ltt_kernel.add("kernel_0", minor=4, subbuffer_bytes=1 << 21, count=2)
    opened = Opened(ltt_kernel, BufferPool(1 << 21, take_bytes=1 << 20))
    ltt_kernel.fill("kernel_0", 2)
    batches, _ = opened.drain("kernel_0")
    assert [len(batch.rows) for batch in batches] == [1]
    assert packed(batches) == [stripped(one) for one in ltt_kernel.report("kernel_0").written]
    opened.source.close()


# -- losses


def test_refused_events_belong_to_the_sub_buffer_that_counts_them(
    opened: Opened,
) -> None:
    opened.kernel.fill("kernel_0", 2)
    opened.kernel.lose("kernel_0", events=7, subbuffers=1)
    opened.kernel.fill("kernel_0", 1)
    (batch,), _ = opened.drain("kernel_0")
    assert losses([batch]) == [
        (2, Reason.DISCARDED, Unit.EVENTS, 7),
        (2, Reason.COMMIT_OVERRUN, Unit.SUBBUFFERS, 1),
    ]
    assert batch.rows["discarded_total"].tolist() == [0, 0, 7]
    assert opened.stream("kernel_0").counters() == {"events_lost": 7, "subbuf_corrupt": 1}


def test_the_loss_totals_in_headers_may_wrap(opened: Opened) -> None:
    opened.kernel.lose("kernel_0", events=(1 << 32) - 2)
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.lose("kernel_0", events=5)
    opened.kernel.fill("kernel_0", 1)
    (batch,), _ = opened.drain("kernel_0")
    assert [count for *_, count in losses([batch])] == [(1 << 32) - 2, 5]


def test_losses_before_another_reader_have_an_unknown_number(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("kernel_0")
    before = Opened(ltt_kernel)
    ltt_kernel.lose("kernel_0", events=7)
    ltt_kernel.fill("kernel_0", 1)
    before.drain("kernel_0")
    before.source.close()
    after = Opened(ltt_kernel)
    ltt_kernel.fill("kernel_0", 1)
    ltt_kernel.lose("kernel_0", events=2)
    ltt_kernel.fill("kernel_0", 1)
    (batch,), _ = after.drain("kernel_0")
    assert losses([batch]) == [
        (0, Reason.DISCARDED, Unit.EVENTS, None),
        (1, Reason.DISCARDED, Unit.EVENTS, 2),
    ]
    after.source.close()


@pytest.mark.parametrize("minor", [4, 6])
def test_overwritten_sub_buffers_are_counted_by_their_positions(
    ltt_kernel: Kernel, minor: int
) -> None:
    ltt_kernel.add("flight-kernel_0", minor=minor, overwrite=True)
    opened = Opened(ltt_kernel)
    ltt_kernel.fill("flight-kernel_0", 1)
    first, _ = opened.drain("flight-kernel_0")
    ltt_kernel.fill("flight-kernel_0", 9)
    second, _ = opened.drain("flight-kernel_0")
    report = ltt_kernel.report("flight-kernel_0")
    assert len(report.overwritten) == 6
    assert losses(first + second) == [(0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 6)]
    (gap,) = second[0].gaps
    assert (gap.begin, gap.end) == (first[0].rows["end"][0], second[0].rows["begin"][0])
    assert packed(first + second) == [stripped(one) for one in report.delivered]
    opened.source.close()


def test_a_sub_buffer_overwritten_during_a_read_is_refused_and_counted(
    opened: Opened,
) -> None:
    opened.kernel.fill("kernel_0", 3)
    opened.kernel.fault("kernel_0", put_errno=errno.EIO)
    batches, _ = opened.drain("kernel_0")
    report = opened.kernel.report("kernel_0")
    assert report.refused == [0]
    assert packed(batches) == [stripped(one) for one in report.delivered]
    assert losses(batches) == [(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)]
    (note,) = opened.source.notes()
    assert "kernel_0: refused, counted: pushed by the writer" in note
    assert opened.source.notes() == []


def test_a_final_refusal_is_reported_at_the_end(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.fault("kernel_0", put_errno=errno.EIO)
    batches, _ = opened.drain("kernel_0")
    stream = opened.stream("kernel_0")
    assert (packed(batches), losses(batches), stream.losses()) == ([], [], None)
    opened.source.stop()
    told = stream.losses()
    assert told is not None
    assert losses([told]) == [(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)]
    assert stream.losses() is None


def test_a_sub_buffer_that_cannot_be_spliced_is_put_back_and_refused(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 2)
    opened.kernel.fault("kernel_0", splice_errors=2)  # the page cache reads twice
    batches, _ = opened.drain("kernel_0")
    assert packed(batches) == [stripped(opened.kernel.report("kernel_0").written[1])]
    assert losses(batches) == [(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)]
    (note,) = opened.source.notes()
    assert "splice: Input/output error" in note


@pytest.mark.parametrize("size", [0, 4096])
def test_a_short_splice_is_an_error_and_stores_no_half_sub_buffer(
    ltt_kernel: Kernel, size: int
) -> None:
    ltt_kernel.add("kernel_0", minor=4, subbuffer_bytes=8192)
    opened = Opened(ltt_kernel)
    ltt_kernel.fill("kernel_0", 2)
    ltt_kernel.resize("kernel_0", size)
    os.stat(ltt_kernel.root / "kernel_0")
    assert packed(opened.drain("kernel_0")[0]) == []
    (note,) = opened.source.notes()
    assert "splice: No data available" in note
    opened.source.stop()
    told = opened.stream("kernel_0").losses()
    assert told is not None
    assert sum(count or 0 for *_, count in losses([told])) == 2
    opened.source.close()


def test_an_unparsable_sub_buffer_is_a_gap_of_its_bytes(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 3)
    opened.kernel.damage("kernel_0", 1, at=16)  # the magic
    (batch,), _ = opened.drain("kernel_0")
    assert batch.rows["sequence"].tolist() == [0, 1]
    assert losses([batch]) == [(1, Reason.DAMAGED, Unit.BYTES, 4096)]


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_an_impossible_size_is_refused_without_a_loop(opened: Opened, size: int) -> None:
    opened.kernel.fill("kernel_0", 3)
    opened.kernel.damage("kernel_0", 1, at=56, value=size.to_bytes(4, "little"))
    batches, _ = opened.drain("kernel_0")
    assert sum(len(batch.rows) for batch in batches) == 2
    assert losses(batches) == [(1, Reason.REFUSED, Unit.SUBBUFFERS, 1)]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"put_errno": errno.EFAULT}, "PUT: Bad address"),
        ({"get_errno": errno.EBUSY}, "another process reads"),
    ],
)
def test_a_channel_that_breaks_raises_after_its_whole_sub_buffers(
    opened: Opened, fault: dict[str, int], says: str
) -> None:
    opened.kernel.fill("kernel_0", 1)
    assert len(opened.drain("kernel_0")[0]) == 1
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.fault("kernel_0", **fault)
    for _ in range(2):
        with pytest.raises(SourceError, match=says):
            opened.stream("kernel_0").take(flush=False)
    assert not opened.stream("kernel_0").urgent()
    told = opened.stream("kernel_0").losses()
    # The sub-buffer that was reserved at the failure is lost.
    assert bool(told) == ("put_errno" in fault)
    assert told is None or losses([told]) == [(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)]


def test_a_channel_resumes_once_it_can_be_read_again(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 2)
    opened.kernel.fault("kernel_0", get_errno=errno.EIO)
    stream = opened.stream("kernel_0")
    with pytest.raises(SourceError, match="Input/output error"):
        stream.take(flush=False)
    opened.kernel.fault("kernel_0", get_errno=0)
    assert [len(batch.rows) for batch in opened.drain("kernel_0")[0]] == [2]
    assert stream.losses() is None


# -- several channels


def test_a_take_is_one_sub_buffer_while_another_channel_is_urgent(ltt_kernel: Kernel) -> None:
    for cpu in (0, 1):
        ltt_kernel.add(f"kernel_{cpu}", count=8, urgent_from=6)
    opened = Opened(ltt_kernel)
    ltt_kernel.fill("kernel_0", 5)
    ltt_kernel.fill("kernel_1", 6)
    assert [stream.urgent() for stream in opened.source.streams] == [False, True]
    for _ in range(2):
        batch = opened.stream("kernel_0").take(flush=False)
        assert isinstance(batch, Batch)
        assert len(batch.rows) == 1
    assert [len(batch.rows) for batch in opened.drain("kernel_1")[0]] == [6]
    assert [len(batch.rows) for batch in opened.drain("kernel_0")[0]] == [3]
    opened.source.close()


def test_two_urgent_channels_do_not_block_each_other(ltt_kernel: Kernel) -> None:
    for cpu in (0, 1):
        ltt_kernel.add(f"kernel_{cpu}", urgent_from=2)
        ltt_kernel.fill(f"kernel_{cpu}", 3)
    opened = Opened(ltt_kernel)
    # Two takes until it is no longer urgent; the other channel still is.
    assert [len(batch.rows) for batch in opened.drain("kernel_0")[0]] == [2, 1]
    opened.source.close()


def test_a_broken_urgent_channel_does_not_delay_the_others(ltt_kernel: Kernel) -> None:
    for cpu in (0, 1):
        ltt_kernel.add(f"kernel_{cpu}", urgent_from=3)
        ltt_kernel.fill(f"kernel_{cpu}", 3 - cpu)
    opened = Opened(ltt_kernel)
    ltt_kernel.fault("kernel_0", get_errno=errno.EBUSY)
    with pytest.raises(SourceError):
        opened.stream("kernel_0").take(flush=False)
    assert [len(batch.rows) for batch in opened.drain("kernel_1")[0]] == [2]
    opened.source.close()


def test_a_drain_ends_although_the_tracer_keeps_writing(
    opened: Opened,
) -> None:
    opened.kernel.fill("kernel_0", 3)
    opened.source.stop()
    stream, taken = opened.stream("kernel_0"), 0
    while isinstance(batch := stream.take(flush=True), Batch):
        taken += len(batch.rows)
        opened.kernel.fill("kernel_0", 3)
        assert taken < 20
    assert (taken, batch) == (5, Nothing.EVER)


@pytest.mark.parametrize("faults", [{}, {"uncommitted": 1000}])
def test_data_left_in_the_ring_are_reported_once_with_unknown_number(
    opened: Opened, faults: dict[str, int]
) -> None:
    opened.kernel.fill("kernel_0", 3)
    opened.kernel.fault("kernel_0", **faults)
    opened.source.stop()
    stream = opened.stream("kernel_0")
    if faults:  # otherwise the drain did not reach it
        assert stream.take(flush=True) is Nothing.YET
    told = stream.losses()
    assert told is not None
    assert losses([told]) == [(0, Reason.ABANDONED, Unit.SUBBUFFERS, None)]
    assert stream.losses() is None


def test_data_written_after_the_drain_are_not_counted_as_lost(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.source.stop()
    opened.drain("kernel_0")
    opened.kernel.fill("kernel_0", 1)
    assert opened.stream("kernel_0").losses() is None


# -- finding channels


def test_channels_are_found_in_folders_and_named_by_their_path(ltt_kernel: Kernel) -> None:
    for path in ("cpu_0", "control/metadata_0", "control/metadata_12", "control/cpu_0", ".x/y_0"):
        ltt_kernel.add(path, minor=2)
    ltt_kernel.add("control/enabled")
    opened = Opened(ltt_kernel)
    assert opened.names == ["control/cpu_0", "control/metadata_0", "control/metadata_12", "cpu_0"]
    assert [note.split(": ", 1)[1] for note in opened.source.notes()] == [
        "passed over: its name does not end in _CPU"
    ]
    opened.source.close()


def test_a_channel_name_that_no_manifest_can_hold_is_skipped(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("cpu_0", minor=2)
    ltt_kernel.add(f"{'x' * 200}/{'y' * 100}_0")
    opened = Opened(ltt_kernel)
    assert opened.names == ["cpu_0"]
    assert [note.split(": ", 1)[1] for note in opened.source.notes()] == [
        "passed over: its name is not UTF-8, or too long"
    ]
    opened.source.close()


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ("all", ["flight-fs_0", "kernel_0"]),
        ("flight", ["flight-fs_0"]),
        ("normal", ["kernel_0"]),
    ],
)
def test_only_channels_of_the_requested_kind_are_opened(
    ltt_kernel: Kernel, channels: str, names: list[str]
) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.add("flight-fs_0")
    opened = Opened(ltt_kernel, channels=channels)
    assert opened.names == names
    opened.source.close()
    for one in ("kernel_0", "flight-fs_0"):
        until(lambda one=one: not ltt_kernel.is_open(one), "the close")


def test_channels_that_appear_later_are_recorded_from_their_beginning(opened: Opened) -> None:
    opened.kernel.add("control/flight-fs_1", overwrite=True)
    opened.kernel.lose("control/flight-fs_1", events=3)
    opened.kernel.fill("control/flight-fs_1", 6)
    (stream,) = opened.source.discover()
    assert stream.info.id == StreamId("control/flight-fs", 1)
    assert opened.source.discover() == []
    batches, _ = opened.drain("control/flight-fs_1")
    assert losses(batches) == [
        (0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 3),
        (0, Reason.DISCARDED, Unit.EVENTS, 3),
    ]


def test_a_busy_channel_is_reported_once_and_opened_when_free(
    opened: Opened,
) -> None:
    opened.kernel.add("fs_0")
    other = Channel(f"{opened.kernel.root}/fs_0")
    assert [*opened.source.discover(), *opened.source.discover()] == []
    (note,) = opened.source.notes()
    assert "fs_0: has a reader" in note
    other.close()
    assert [stream.info.id.name for stream in opened.source.discover()] == ["fs_0"]


def test_a_recreated_channel_continues_its_stream(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.finalize("kernel_0")
    opened.drain("kernel_0")
    assert opened.source.discover() == []  # the same file is still there
    opened.kernel.remove("kernel_0")
    opened.kernel.add("kernel_0")
    assert len(opened.source.discover()) == 1
    opened.kernel.fill("kernel_0", 1)
    (batch,), _ = opened.drain("kernel_0")
    assert batch.rows["sequence"].tolist() == [2]
    assert opened.names == ["kernel_0", "kernel_1"]


def test_a_recreated_channel_of_another_size_is_reported_and_left_alone(
    opened: Opened,
) -> None:
    opened.kernel.finalize("kernel_0")
    opened.drain("kernel_0")
    opened.kernel.remove("kernel_0")
    opened.kernel.add("kernel_0", subbuffer_bytes=16384)
    assert [*opened.source.discover(), *opened.source.discover()] == []
    (note,) = opened.source.notes()
    assert "kernel_0: was recreated with sub-buffers of 16384 bytes, not" in note
    until(lambda: not opened.kernel.is_open("kernel_0"), "the close")


def test_a_channel_without_a_free_descriptor_is_reported(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lttd.sources.ltt.source._allow_descriptors", lambda channels: None)
    opened.kernel.add("fs_0")
    lowest_free = os.dup(0)
    os.close(lowest_free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, before[1]))
    try:
        assert opened.source.discover() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    (note,) = opened.source.notes()
    assert "fs_0: Too many open files; let lttd open more" in note
    assert [stream.info.id.name for stream in opened.source.discover()] == ["fs_0"]


def test_inotify_reports_new_channels_before_the_rescan(ltt_kernel: Kernel, tmp_path: Path) -> None:
    # The emulated files make no inotify events, but links to them in a real directory do.
    for path in ("kernel_0", "kernel_1", "fs_0"):
        ltt_kernel.add(path)
    root = tmp_path / "names"
    root.mkdir()
    (root / "kernel_0").symlink_to(ltt_kernel.root / "kernel_0")
    source = open_ltt(root, BufferPool(), rescan_s=3600)
    assert source.discover() == []
    (root / "kernel_1").symlink_to(ltt_kernel.root / "kernel_1")
    assert [stream.info.id.name for stream in source.discover()] == ["kernel_1"]
    (root / "folder").mkdir()
    assert source.discover() == []
    (root / "folder" / "fs_0").symlink_to(ltt_kernel.root / "fs_0")
    assert [stream.info.id.name for stream in source.discover()] == ["folder/fs_0"]
    source.close()


def test_folders_that_link_back_are_walked_once(ltt_kernel: Kernel, tmp_path: Path) -> None:
    ltt_kernel.add("kernel_0")
    root = tmp_path / "names"
    root.mkdir()
    (root / "kernel_0").symlink_to(ltt_kernel.root / "kernel_0")
    (root / "again").symlink_to(root)
    source = open_ltt(root, BufferPool())
    assert len(source.streams) == 1
    source.close()


def test_the_first_metadata_sub_buffer_gives_the_wall_clock(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("metadata_0")
    opened = Opened(ltt_kernel)
    assert opened.source.info.snapshot is None
    ltt_kernel.fill("metadata_0", 1)
    (batch,), _ = opened.drain("metadata_0")
    snapshot = opened.source.info.snapshot
    assert snapshot is not None
    assert snapshot.trace == batch.rows["begin"][0]
    assert snapshot.realtime_ns == 1_262_715_366_408_819_000
    assert opened.source.now() == batch.rows["end"][0]
    opened.source.close()


# -- impossible requests


def test_a_second_reader_is_refused_and_takes_nothing_from_the_first(opened: Opened) -> None:
    with pytest.raises(LockedError, match="kernel_0: has a reader, and can have only one"):
        open_ltt(opened.kernel.root, BufferPool())
    opened.kernel.fill("kernel_1", 1)
    assert len(opened.drain("kernel_1")[0]) == 1


def test_a_directory_without_channels_gives_the_status_for_nothing_to_record(
    ltt_kernel: Kernel, tmp_path: Path
) -> None:
    with pytest.raises(NothingToRecordError, match="no channel available for reading; name the"):
        open_ltt(tmp_path, BufferPool())
    ltt_kernel.add("kernel_0")
    with pytest.raises(NothingToRecordError, match="1 are there that are not asked for; -f takes"):
        open_ltt(ltt_kernel.root, BufferPool(), channels="flight")
    with pytest.raises(UsageError, match="all, flight, normal"):
        open_ltt(ltt_kernel.root, BufferPool(), channels="both")


def test_a_file_in_place_of_the_directory_is_nothing_to_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(NothingToRecordError, match="lttctl -c NAME"):
            open_ltt(path, BufferPool())


def test_a_file_that_is_not_a_channel_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernel_0").write_bytes(bytes(8192))
    with pytest.raises(NothingToRecordError, match=r"kernel_0: no LTTng 0\.x channel"):
        open_ltt(tmp_path, BufferPool())


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, r"kernel_0: Operation not permitted; .*\broot"),
        (errno.EACCES, r"kernel_0: Permission denied; .*\broot"),
    ],
)
def test_an_unopenable_channel_is_reported_with_its_reason(
    ltt_kernel: Kernel, number: int, says: str
) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.fault("kernel_0", open_errno=number)
    with pytest.raises(NothingToRecordError, match=says):
        open_ltt(ltt_kernel.root, BufferPool())


def test_impossible_channel_sizes_are_refused(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.fault("kernel_0", no_subbuffers=1)
    with pytest.raises(SourceError, match="impossible sizes: 0 sub-buffers"):
        Channel(f"{ltt_kernel.root}/kernel_0")
    until(lambda: not ltt_kernel.is_open("kernel_0"), "the close")


@pytest.mark.usefixtures("ltt_kernel")  # it shows whether /dev/fuse is usable
def test_a_kernel_that_dies_raises_an_error_and_does_not_hang_lttd(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        kernel.add("kernel_0")
        opened = Opened(kernel)
        kernel.die()
        with pytest.raises(SourceError, match="kernel_0"):
            opened.stream("kernel_0").take(flush=False)
        opened.source.close()


def test_no_file_is_left_open(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("kernel_0")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        Opened(ltt_kernel).source.close()
        until(lambda: not ltt_kernel.is_open("kernel_0"), "the close")
    assert os.listdir("/proc/self/fd") == before

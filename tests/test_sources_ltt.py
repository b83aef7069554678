"""The source ``ltt:DIR`` on an emulated kernel: each answer of ioctl, splice and poll."""

import errno
import os
from collections.abc import Iterator

import pytest

from lttd.errors import SourceError
from lttd.sources.base import Nothing
from lttd.subbuffer import Batch, BufferPool, Reason, Unit
from tests.ltt_kernel import Kernel, stripped
from tests.ltt_opened import Opened, is_readable, losses, packed
from tests.running import until

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(ltt_kernel: Kernel) -> Iterator[Opened]:
    """A source on channels kernel_0 and kernel_1."""
    ltt_kernel.add("kernel_0")
    ltt_kernel.add("kernel_1")
    source = Opened(ltt_kernel)
    yield source
    source.source.close()


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

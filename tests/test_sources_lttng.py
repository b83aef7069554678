"""Sub-buffers of lttng-modules become packed packets, and their losses gaps."""

import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi import declared
from lttd.abi.ctf import PacketLayout
from lttd.abi.ctf_metadata import read_metadata
from lttd.errors import SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.lttng import abi
from lttd.sources.lttng.metadata import Layouts
from lttd.sources.lttng.packets import PacketBook
from lttd.sources.lttng.ring import Taken
from lttd.stats import StreamStats
from lttd.subbuffer import Batch, Gap, Reason, Unit
from tests.data import SHARED_CTF, needs
from tests.lttng_model import PAGE_BYTES, LttngModel, ModelStream
from tests.segment_builder_lttng import HEADER, LAYOUT

EVENTS_OF_A_SUBBUFFER = (8192 - HEADER.size) // 8


def lost(batch: Batch) -> list[tuple[int, Reason, Unit, int | None]]:
    return [(gap.row, gap.reason, gap.unit, gap.count) for gap in batch.gaps]


@needs(SHARED_CTF)
def test_the_layout_of_packets_is_found_in_the_real_tracer_s_metadata() -> None:
    metadata = (SHARED_CTF / "kernel61-s_disc/kernel/metadata").read_bytes()
    assert Layouts(metadata).of(0) == PacketLayout.of(read_metadata(metadata), 0) == LAYOUT
    assert ModelStream().stream.info.packet_layout == str(LAYOUT)


def declarations(context: str) -> bytes:
    """Return a metadata, up to a first event that is not TSDL."""
    return f"""/* CTF 1.8 */
typealias integer {{ size = 32; align = 8; signed = false; }} := uint32_t;
typealias integer {{ size = 64; align = 8; signed = false; }} := uint64_t;
trace {{
    major = 1; minor = 8; byte_order = le;
    packet.header := struct {{ uint32_t magic; uint32_t stream_id; }};
}};
stream {{ id = 3; packet.context := struct {{ {context} }}; }};
event {{ :-) }};
""".encode()


TIMES = "uint64_t timestamp_begin; uint64_t timestamp_end;"
SIZES = "uint64_t content_size; uint64_t packet_size;"
NUMBER = "uint64_t packet_seq_num;"
OF_32_BITS = f"{TIMES} {SIZES} {NUMBER} uint32_t events_discarded; uint32_t cpu_id;"


def test_packets_of_another_layout_are_packed_and_counted_by_it() -> None:
    """A 32-bit kernel counts discarded events in an ``unsigned long`` of 4 bytes."""
    layout = Layouts(declarations(OF_32_BITS)).of(3)
    header = struct.Struct("<IIQQQQQII")
    assert layout.header_bytes == header.size
    sizes = (header.size * 8, 4096 * 8)
    packets = [
        header.pack(0xC1FC1FC1, 3, 100 * n, 100 * n + 99, *sizes, number, lost, 1)
        for n, (number, lost) in enumerate([(0, 0), (1, 7), (4, 0)])
    ]
    buffer = memoryview(bytearray(b"".join(packets)))
    book = PacketBook(layout, 3)
    rows, gaps = book.enter(buffer, [Taken(header.size, 4096)] * 3)
    assert rows["sequence"].tolist() == [0, 1, 4]
    assert [(gap.row, gap.reason, gap.count) for gap in gaps] == [
        (1, Reason.DISCARDED, 7),
        (2, Reason.OVERWRITTEN, 2),
    ]
    heads = book.resized(buffer, rows, 8192)
    assert heads is not None
    for head, made in zip(heads, packets, strict=True):
        stored = bytes(head) + made[len(head) :]
        assert header.unpack(stored)[4:6] == (sizes[0], sizes[0])
    third = header.unpack_from(buffer, 2 * header.size)
    assert third[5:8] == (8192 * 8, 4, 7), "the size of a slot, its number, the total of before"


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (f"{TIMES} {SIZES} uint64_t events_discarded;", "have no packet_seq_num"),
        (f"{TIMES} {NUMBER} uint64_t events_discarded;", "have no content_size"),
    ],
)
def test_packets_that_cannot_be_counted_or_packed_are_refused(context: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        Layouts(declarations(context)).of(3)


def test_a_metadata_that_cannot_be_parsed_is_an_error_in_one_line() -> None:
    with pytest.raises(SourceError, match=r"^lttng: the session's metadata: .*line 1"):
        Layouts(b"/* CTF 1.8 */ trace { what? }")
    with pytest.raises(SourceError, match="no stream of id 4"):
        Layouts(declarations(OF_32_BITS)).of(4)


def test_a_packet_states_its_size_without_padding() -> None:
    made = ModelStream()
    made.model.write(3)
    batch = made.take(flush=True)
    piece = b"".join(batch.pieces())
    assert len(piece) == HEADER.size + 3 * 8
    (row,) = batch.rows
    assert (row["payload_bytes"], row["kernel_bytes"]) == (len(piece), PAGE_BYTES)
    header = declared.LttngPacketHeader.parse(piece)
    assert header.packet_bits == header.content_bits == row["content_bits"] == len(piece) * 8
    # A sparse file has a slot for each sub-buffer.
    slot = declared.LttngPacketHeader.parse(batch.buffer)
    assert (slot.packet_bits, slot.content_bits) == (8192 * 8, len(piece) * 8)


def test_many_sub_buffers_are_one_batch() -> None:
    made = ModelStream(LttngModel(subbuffers=8))
    made.model.write(7 * EVENTS_OF_A_SUBBUFFER + 1)
    batch = made.take(flush=True)
    assert len(batch.rows) == 8
    assert batch.rows["sequence"].tolist() == list(range(8))
    data = b"".join(bytes(piece) for piece in batch.pieces())
    assert len(data) == 8 * HEADER.size + 8 * (7 * EVENTS_OF_A_SUBBUFFER + 1)
    assert not batch.gaps


def test_a_turn_flushes_once_although_events_keep_coming() -> None:
    made = ModelStream()
    made.model.write(1)
    assert len(made.take(flush=True).rows) == 1
    made.model.write(1)
    assert made.stream.take(flush=True) is Nothing.YET
    assert made.model.flushes == 1
    assert len(made.take(flush=True).rows) == 1


def test_without_a_flush_the_open_sub_buffer_stays() -> None:
    made = ModelStream()
    made.model.write(1)
    assert made.stream.take(flush=False) is Nothing.YET
    assert not made.model.flushes


def test_discarded_events_are_lost_before_the_packet_that_counts_them() -> None:
    made = ModelStream()
    made.model.write(4 * EVENTS_OF_A_SUBBUFFER + 17)
    assert not made.take().gaps
    made.model.write(1)
    batch = made.take(flush=True)
    assert lost(batch) == [(0, Reason.DISCARDED, Unit.EVENTS, 17)]
    assert batch.rows["discarded_total"].tolist() == [17]
    (gap,) = batch.gaps
    assert gap.begin == 1000 + 4 * EVENTS_OF_A_SUBBUFFER
    assert gap.end == made.model.time


def test_a_total_that_the_tracer_left_out_is_that_of_the_packet_before() -> None:
    """lttng-modules leaves 0 where an interrupt's event switched to the next sub-buffer."""
    made = ModelStream()
    made.model.write(4 * EVENTS_OF_A_SUBBUFFER + 17)
    made.take()
    found = []
    for forgets in (False, True, True, False):
        made.model.forgets_total = forgets
        made.model.write(2)
        found.append(made.take(flush=True))
        assert made.stream.take(flush=True) is Nothing.YET
    made.model.write(4 * EVENTS_OF_A_SUBBUFFER + 5)
    found += made.drain()
    totals = [17, 17, 17, 17, 17, 17, 17, 17, 22]
    headers = [
        declared.LttngPacketHeader.parse(b"".join(batch.pieces()[2 * n : 2 * n + 2]))
        for batch in found
        for n in range(len(batch.rows))
    ]
    assert [header.discarded for header in headers] == totals
    rows = [total for batch in found for total in batch.rows["discarded_total"].tolist()]
    assert rows == totals
    assert [loss[3] for batch in found for loss in lost(batch)] == [17, 5]


def test_overwritten_packets_are_counted_by_their_numbers() -> None:
    made = ModelStream(LttngModel(overwrite=True))
    made.model.write(6 * EVENTS_OF_A_SUBBUFFER)
    batch = made.take()
    assert lost(batch) == [(0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 2)]
    assert batch.rows["sequence"].tolist() == [2, 3, 4, 5]
    assert made.stream.counters()["packets overwritten"] == 2


def test_losses_after_the_last_event_appear_at_the_end() -> None:
    made = ModelStream()
    made.model.write(4 * EVENTS_OF_A_SUBBUFFER + 5)
    full, last = made.drain()
    assert len(full.rows) == 4
    assert not full.gaps
    assert lost(last) == [(0, Reason.DISCARDED, Unit.EVENTS, 5)]
    assert last.rows["payload_bytes"].tolist() == [HEADER.size]
    assert made.stream.losses() is None


def test_the_last_flush_comes_also_after_a_turn_that_was_cut_short() -> None:
    made = ModelStream()
    made.model.write(1)
    made.take(flush=True)  # recording ends before the next take of this turn
    made.model.write(4 * EVENTS_OF_A_SUBBUFFER + 5)
    *_, last = made.drain()
    assert lost(last) == [(0, Reason.DISCARDED, Unit.EVENTS, 5)]


def test_an_empty_last_packet_without_news_is_not_stored() -> None:
    made = ModelStream()
    made.model.write(2)
    made.model.finish()  # as STOP does
    (batch,) = made.drain()
    assert len(batch.rows) == 1
    assert made.model.flushes == 1


def test_a_ring_that_was_not_drained_is_counted_once() -> None:
    made = ModelStream()
    made.model.write(EVENTS_OF_A_SUBBUFFER)
    made.shared.stopped = True
    batch = made.stream.losses()
    assert batch is not None
    assert lost(batch) == [(0, Reason.ABANDONED, Unit.SUBBUFFERS, None)]
    assert made.stream.losses() is None


def test_a_stream_ends_when_its_session_is_gone() -> None:
    made = ModelStream()
    made.model.write(EVENTS_OF_A_SUBBUFFER)
    made.model.is_over = True
    assert len(made.take().rows) == 1
    assert made.stream.take(flush=True) is Nothing.EVER
    made.stream.close()
    assert made.model.is_closed


@pytest.mark.parametrize("stated", [(0, 4096 * 8), (HEADER.size * 8 + 64, 0)])
def test_packets_that_are_laid_out_otherwise_are_not_changed(stated: tuple[int, int]) -> None:
    made = ModelStream()
    made.model.stated_bits = stated
    made.model.write(1)
    for _ in range(2):
        with pytest.raises(StreamLostError, match="not laid out as the metadata says"):
            made.stream.take(flush=True)


class BreakingModel(LttngModel):
    """Fails after some sub-buffers."""

    def __init__(self, good: int, error: SourceError) -> None:
        super().__init__()
        self.good = good
        self.error = error

    def take(self, buffer: memoryview) -> Taken | Nothing:
        if not self.good:
            raise self.error
        self.good -= 1
        return super().take(buffer)


@pytest.mark.parametrize(
    ("error", "times"), [(SourceError("once"), 1), (StreamLostError("for good"), 3)]
)
def test_whole_sub_buffers_come_before_the_error_that_follows_them(
    error: SourceError, times: int
) -> None:
    model = BreakingModel(2, error)
    made = ModelStream(model)
    model.write(3 * EVENTS_OF_A_SUBBUFFER)
    assert len(made.take().rows) == 2
    for _ in range(times):
        with pytest.raises(type(error)):
            made.stream.take(flush=False)


def test_what_is_overwritten_while_nobody_wants_it_is_no_loss() -> None:
    made = ModelStream(LttngModel(overwrite=True))
    made.stream.pause()
    made.model.write(6 * EVENTS_OF_A_SUBBUFFER)
    made.stream.want(None)
    batch = made.take(flush=True)
    assert lost(batch) == [(0, Reason.UNWANTED, Unit.SUBBUFFERS, 2)]
    assert made.stream.complete_since == batch.rows["begin"][0] > 1000
    stats = StreamStats(made.stream.info.id)
    stats.took(batch)
    assert (stats.unwanted_events, stats.subbuffers_lost) == (0, Counter()), "packets are no events"
    assert made.stream.counters()["packets overwritten"] == 0
    assert made.stream.counters()["packets overwritten while idle"] == 2
    # Within the window it is a loss.
    made.model.write(5 * EVENTS_OF_A_SUBBUFFER)
    assert lost(made.take()) == [(0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 1)]


def test_a_window_reaches_back_to_the_one_before_if_nothing_was_overwritten() -> None:
    made = ModelStream(LttngModel(overwrite=True))
    made.stream.pause()
    made.model.write(2)
    made.stream.want(None)
    assert not made.take(flush=True).gaps
    assert made.stream.take(flush=True) is Nothing.YET
    made.stream.pause()
    made.model.write(3)
    assert not made.take(flush=True).gaps
    assert made.stream.complete_since == 1000


def test_a_ring_that_was_empty_at_the_trigger_loses_what_it_overwrites_afterwards() -> None:
    made = ModelStream(LttngModel(overwrite=True))
    made.stream.pause()
    made.stream.want(None)
    assert made.stream.take(flush=True) is Nothing.YET
    made.model.write(6 * EVENTS_OF_A_SUBBUFFER)
    assert lost(made.take()) == [(0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 2)]


def test_nothing_is_taken_after_the_end_of_a_window() -> None:
    made = ModelStream(LttngModel(overwrite=True))
    made.stream.pause()
    made.model.write(EVENTS_OF_A_SUBBUFFER)
    made.stream.want(made.model.time)
    assert len(made.take().rows) == 1
    made.model.write(2)  # a packet begins where the one before ends, and so does the window
    made.model.finish()
    made.model.write(EVENTS_OF_A_SUBBUFFER)
    assert len(made.take().rows) == 2
    assert made.stream.take(flush=True) is Nothing.YET
    made.model.write(5 * EVENTS_OF_A_SUBBUFFER)
    made.stream.want(None)
    assert lost(made.take()) == [(0, Reason.UNWANTED, Unit.SUBBUFFERS, 1)]


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3 * EVENTS_OF_A_SUBBUFFER), st.booleans()), max_size=12),
)
@settings(deadline=None)
def test_the_books_balance_for_any_loads(overwrite: bool, steps: list[tuple[int, bool]]) -> None:
    made = ModelStream(LttngModel(overwrite=overwrite), take_bytes=1 << 20)
    batches: list[Batch] = []
    for events, flush in steps:
        made.model.write(events)
        while isinstance(batch := made.stream.take(flush), Batch):
            batches.append(batch)
    batches += made.drain()
    gaps: list[Gap] = [gap for batch in batches for gap in batch.gaps]
    numbers = [number for batch in batches for number in batch.rows["sequence"].tolist()]
    discarded = sum(gap.count or 0 for gap in gaps if gap.reason is Reason.DISCARDED)
    missing = sum(gap.count or 0 for gap in gaps if gap.reason is Reason.OVERWRITTEN)
    assert discarded == made.model.discarded
    assert len(numbers) + missing == (numbers[-1] + 1 if numbers else 0)
    assert numbers == sorted(set(numbers))
    stored = sum(batch.payload_bytes for batch in batches) - HEADER.size * len(numbers)
    if not missing:
        assert stored // 8 + discarded == sum(events for events, _ in steps)


def test_structures_are_as_declared() -> None:
    for declaration, form, size_bytes in (
        (declared.LttngChannel, abi.CHANNEL, 320),
        (declared.LttngEvent, abi.EVENT, 564),
        (declared.LttngContext, abi.CONTEXT, 308),
    ):
        assert declaration.sizeof() == form.size == size_bytes
    channel = declared.LttngChannel.parse(abi.CHANNEL.pack(4096, 8, 100, 200, 1, 1, b""))
    assert (channel.subbuffer_bytes, channel.subbuffers) == (4096, 8)
    assert (channel.switch_timer_us, channel.read_timer_us) == (100, 200)
    assert (channel.output, channel.overwrite) == ("mmap", 1)
    probe = abi.KPROBE.pack(0, 16, b"do_sys_open")
    event = declared.LttngEvent.parse(abi.EVENT.pack(b"open", abi.KPROBE_EVENT, 0, b"", probe))
    assert (event.name, event.instrumentation) == ("open", "kprobe")
    detail = declared.LttngKprobe.parse(event.detail)
    assert (detail.offset, detail.symbol) == (16, "do_sys_open")
    call = abi.EVENT.pack(b"open*", abi.SYSCALL_EVENT, 0, b"", abi.SYSCALL.pack(0, 0, 0, 0, 0))
    detail = declared.LttngSyscall.parse(declared.LttngEvent.parse(call).detail)
    assert detail.entry_or_exit == "both"
    context = declared.LttngContext.parse(abi.CONTEXT.pack(abi.CONTEXTS["tid"], b"", b""))
    assert context.context == 6


def test_requests_have_the_numbers_of_the_kernel() -> None:
    """As lttng-consumerd makes them on x86 (strace)."""
    assert abi.NEW_METADATA == 0x4140F654
    assert abi.NEW_CHANNEL == 0x4140F655
    assert abi.NEW_EVENT == 0x4234F663
    assert abi.ADD_CONTEXT == 0x4134F671
    assert abi.SET_NAME == 0x4100F65D
    assert abi.SET_CREATION_TIME == 0x401AF65E
    assert (abi.GET_NEXT, abi.PUT_NEXT) == (0xF605, 0xF606)
    assert abi.GET_NEXT_METADATA == 0x8004F612
    assert abi.SUBBUFFER_BYTES & 0xFFFF == 0xF607
    assert abi.ABI_VERSION == 0x8008F64B
    assert (abi.CONTENT_BITS, abi.CPU) == (0x8008F623, 0x8008F628)


def test_the_header_is_as_declared() -> None:
    made = HEADER.pack(0xC1FC1FC1, bytes(16), 1, 2, 3, 4, 5, 6, 7, 8, 2)
    parsed = declared.LttngPacketHeader.parse(made)
    assert declared.LttngPacketHeader.sizeof() == LAYOUT.header_bytes == len(made)
    assert (parsed.packet_bits, parsed.sequence, parsed.discarded) == (6, 7, 8)
    assert struct.unpack_from("<Q", made, 56) == (6,)

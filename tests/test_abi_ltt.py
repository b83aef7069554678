"""Read the headers of LTT sub-buffers: every format, both byte orders, real and damaged ones."""

import struct
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi import declared, ltt, ltt_walk
from lttd.abi.table import abi_of
from lttd.subbuffer import StreamId, StreamInfo
from tests.data import SHARED_LTT, needs
from tests.segment_builder_ltt import LttBuffer, Tracer

TRACERS = [
    Tracer(minor=minor, order=order, pointer_bytes=pointer, alignment=aligned * pointer)
    for minor, order, pointer, aligned in product(range(7), "<>", (4, 8), (0, 1))
]


def filled(tracer: Tracer, *, events: int = 600, flush_every: int = 70) -> LttBuffer:
    """Return a buffer of many sub-buffers: full and flushed ones, and a last one with losses."""
    buffer = LttBuffer(tracer, count=64)
    tsc = tracer.start_tsc
    for number in range(events):
        tsc += 1000 + number * 7
        buffer.log(number % 40, tracer.pack(("u4", number), ("s", b"x" * (number % 50))), tsc, 4)
        if number % flush_every == flush_every - 1:
            buffer.flush(tsc + 10)
    buffer.lose(3, 1)
    buffer.finalize(tsc + 20)
    return buffer


@pytest.mark.parametrize("order", "<>")
def test_the_ltt_header_dtype_matches_its_declaration(order: str) -> None:
    declaration = declared.LttSubbufferHeader if order == "<" else declared.LttSubbufferHeaderBig
    tracer = Tracer(order=order)
    raw = filled(tracer).peek()
    said = declaration.parse(raw)
    found = np.frombuffer(raw, ltt.header_dtype(order), 1)
    for name in ltt.header_dtype(order).names or ():
        assert int(found[name][0]) == int(getattr(said, name))


@pytest.mark.parametrize(("minor", "pointer"), list(product(range(7), (4, 8))))
def test_the_header_length_matches_the_declaration_of_each_version(
    minor: int, pointer: int
) -> None:
    fields = dict.fromkeys(("begin", "end", "start_s", "start_us", "frequency", "scale", "used"), 1)
    fields |= {"size": 1, "events_lost": 1, "corrupted": 1, "alignment": 0}
    made = declared.LttSubbufferHeader.build(fields | {"minor": minor, "pointer_bytes": pointer})
    assert len(made) == ltt.header_bytes_of(minor, pointer)
    assert len(made) == Tracer(minor=minor, pointer_bytes=pointer).header_bytes


@pytest.mark.parametrize("tracer", TRACERS, ids=str)
def test_the_survey_finds_every_sub_buffer_that_the_tracer_wrote(tracer: Tracer) -> None:
    buffer = filled(tracer)
    blocks = list(iter(buffer.take, None))
    data = b"".join(blocks)
    found = ltt_walk.survey(data)
    assert found.sizes_bytes.tolist() == [len(block) for block in blocks]
    assert not found.damage
    taken = ltt.rows_of(data, found.offsets_bytes, found.sizes_bytes)
    assert not taken.damaged
    rows = taken.rows
    assert rows["begin"][0] == tracer.ns(tracer.start_tsc)
    last_tsc = buffer.logged[-1].tsc
    assert rows["end"][-1] == tracer.ns(last_tsc + 20)
    assert (rows["begin"][1:] >= rows["end"][:-1]).all()
    assert taken.headers.events_lost[-1] == (3 if tracer.minor >= 2 else 0)
    assert taken.headers.corrupted[-1] == (1 if tracer.minor >= 2 else 0)
    layout = ltt.layout_of(data)
    assert (layout.order, layout.minor, layout.header_bytes) == (
        tracer.order,
        tracer.minor,
        tracer.header_bytes,
    )
    assert layout.start_ns == tracer.start_s * 10**9 + tracer.start_us * 1000


@pytest.mark.parametrize("tracer", TRACERS[::5], ids=str)
def test_sub_buffers_without_padding_can_be_walked(tracer: Tracer) -> None:
    data = filled(tracer).drain()
    found = ltt_walk.survey(data)
    taken = ltt.rows_of(data, found.offsets_bytes, found.sizes_bytes)
    packed = b"".join(
        head.tobytes() + data[at + ltt.LEAST_HEADER_BYTES : at + used]
        for head, at, used in zip(taken.heads, found.offsets_bytes, found.used_bytes, strict=True)
    )
    stream = StreamInfo(StreamId("made", 0), "ltt", 4096, tracer.header_bytes)
    abi = abi_of(stream, "little")
    assert abi is not None
    walked = abi.walk(packed, 0)
    assert walked.payload_bytes.tolist() == found.used_bytes.tolist()
    assert walked.begin.tolist() == taken.rows["begin"].tolist()
    assert abi.decode(packed, walked).end.tolist() == taken.rows["end"].tolist()
    assert len(abi.walk(packed[:-1], 0).begin) == len(walked.begin) - 1
    again = ltt.headers_at(packed, walked.offset_bytes)
    assert again.size_bytes.tolist() == found.used_bytes.tolist()


@given(
    counts=st.lists(st.integers(0, (1 << 64) - 1), max_size=20),
    above=st.integers(1, (1 << 62) - 1),
    below=st.integers(1, (1 << 55) - 1),
)
def test_times_are_exact_for_any_clock_frequency(counts: list[int], above: int, below: int) -> None:
    made = ltt.scaled(np.array(counts, np.uint64), above, below)
    assert made.tolist() == [min(n * above // below, (1 << 64) - 1) for n in counts]


@pytest.mark.parametrize(("minor", "hz"), [(1, 1_987_809_000 * 3), (2, 1_987_809_000 // 3)])
def test_the_scale_divides_the_frequency_since_2_2_and_multiplied_it_before(
    minor: int, hz: int
) -> None:
    tracer = Tracer(minor=minor, frequency=1_987_809_000, scale=3, start_tsc=hz)
    rows = ltt.headers_at(LttBuffer(tracer, count=1).memory, np.array([0]))
    assert not rows.sound[0]  # the sub-buffer is still open
    data = filled(tracer).peek()
    assert ltt.headers_at(data, np.array([0])).begin.tolist() == [10**9]


@needs(SHARED_LTT)
def test_the_real_trace_has_the_values_of_its_published_tests() -> None:
    data = (SHARED_LTT / "vm_state_0").read_bytes()
    found = ltt_walk.survey(data)
    assert found.sizes_bytes.tolist() == [262144, 8192]
    assert found.used_bytes.tolist() == [262144, 5696]
    layout = ltt.layout_of(data)
    assert (layout.minor, layout.pointer_bytes, layout.alignment) == (5, 4, 0)
    assert layout.frequency == 1_987_809_000
    first_event = np.array([27013846067263], np.uint64)
    assert layout.ns_of(first_event).tolist() == [13589759412128]
    for path in sorted(SHARED_LTT.iterdir()):
        one = ltt_walk.survey(path.read_bytes())
        assert not one.damage
        assert one.sizes_bytes.sum() == path.stat().st_size


@pytest.mark.parametrize(
    ("at", "magic", "word"),
    [(40, 0x00D6B7ED, "a format before 2.0"), (0, 0xC1FC1FC1, "CTF"), (0, 0, "magic 0x00000000")],
)
@pytest.mark.parametrize("order", "<>")
def test_files_of_related_formats_are_refused_by_name(
    order: str, at: int, magic: int, word: str
) -> None:
    head = bytearray(68)
    struct.pack_into(f"{order}I", head, at, magic)
    with pytest.raises(ValueError, match=word):
        ltt.layout_of(head)


def damaged(data: bytes, at: int, form: str, value: int) -> bytes:
    made = bytearray(data)
    struct.pack_into(form, made, at, value)
    return bytes(made)


@pytest.mark.parametrize(
    ("at", "form", "value", "word"),
    [
        (16, "<I", 0xC1FC1FC1, "magic"),
        (20, "<B", 3, "format 3.6"),
        (21, "<B", 7, "format 2.7"),
        (22, "<B", 16, "pointers"),
        (40, "<Q", 0, "clock"),
        (52, "<I", 67, "sizes"),
        (52, "<I", 0xFFFFFFFF, "sizes"),
        (56, "<I", 0, "sizes"),
        (56, "<I", 1 << 31, "sizes"),
        (56, "<I", 65536, "are there"),
    ],
)
def test_a_damaged_header_loses_only_its_own_sub_buffer(
    at: int, form: str, value: int, word: str
) -> None:
    buffer = filled(Tracer())
    first, *others = iter(buffer.take, None)
    whole = ltt_walk.survey(first + b"".join(others))
    bad = ltt_walk.survey(damaged(first, at, form, value) + b"".join(others))
    assert bad.offsets_bytes.tolist() == whole.offsets_bytes.tolist()[1:]
    (gap,) = bad.damage
    assert (gap.number, gap.offset_bytes, gap.length_bytes, gap.torn) == (0, 0, len(first), False)
    assert word in gap.reason


def test_the_survey_distinguishes_a_torn_tail_from_garbage() -> None:
    data = filled(Tracer()).drain()
    whole = ltt_walk.survey(data)
    torn = ltt_walk.survey(data[:-5])
    assert torn.damage[-1].torn
    assert torn.damage[-1].length_bytes == int(whole.sizes_bytes[-1]) - 5
    few = ltt_walk.survey(data + b"abc").damage
    assert [(gap.length_bytes, gap.torn) for gap in few] == [(3, True)]
    garbage = ltt_walk.survey(data + bytes(5000)).damage
    assert [(gap.length_bytes, gap.torn) for gap in garbage] == [(5000, False)]


def test_appended_runs_keep_their_own_clocks() -> None:
    one, other = Tracer(frequency=10**9), Tracer(frequency=2 * 10**9, start_s=1_262_800_000)
    data = filled(one).drain() + filled(other).drain()
    found = ltt_walk.survey(data)
    taken = ltt.rows_of(data, found.offsets_bytes, found.sizes_bytes)
    assert not taken.damaged
    runs = np.flatnonzero(np.diff(taken.headers.run))
    assert len(runs) == 1
    assert taken.rows["begin"][0] == one.ns(one.start_tsc)
    assert taken.rows["begin"][runs[0] + 1] == other.ns(other.start_tsc)


HEAD = filled(Tracer()).peek()


@given(st.binary(max_size=9000), st.integers(0, 8191), st.binary(max_size=80))
def test_surveying_any_bytes_ends_without_an_exception(
    garbage: bytes, at: int, patch: bytes
) -> None:
    made = bytearray(HEAD + HEAD)
    made[at : at + len(patch)] = patch
    for data in (garbage, bytes(made), bytes(made)[: at + 1]):
        found = ltt_walk.survey(data)
        told = int(found.sizes_bytes.sum()) + sum(gap.length_bytes for gap in found.damage)
        assert told == len(data)
        ltt.rows_of(data, found.offsets_bytes, found.sizes_bytes)
        with suppress(ValueError):
            ltt.layout_of(data)
        list(ltt_walk.adjoining(data, 0))
        ltt.headers_at(data, np.array([-1, 0, 5, 1 << 40]))

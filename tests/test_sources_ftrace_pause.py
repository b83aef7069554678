"""Pauses of the running kernel's rings: nothing that is wanted is lost, nothing else is a loss."""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from lttd.sources.base import OVERWRITTEN_IDLE, Nothing, PausableStream
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource, open_ftrace
from lttd.sources.ftrace.stream import FtraceStream
from lttd.subbuffer import Batch, BufferPool, Reason
from tests.ftrace_sources import QUIET, content, instance_of, lost, turn
from tests.instances import mark, on_cpu_0
from tests.running import needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]

# More than a ring of 64 KiB holds; each mark is 100 bytes or so.
MANY = 1200


@pytest.fixture
def source() -> Iterator[FtraceSource]:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=64 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
        source.start()
        yield source


def marks(source: FtraceSource, *numbers: int) -> None:
    path = instance_of(source) / "trace_marker"
    with path.open("wb", buffering=0) as file:
        for number in numbers:
            file.write(b"<%d>" % number + b"." * 80)


def numbers_in(batches: list[Batch]) -> list[int]:
    return [int(number) for number in re.findall(rb"<(\d+)>", content(batches))]


def cpu_0(source: FtraceSource) -> FtraceStream:
    stream = source.streams[0]
    assert isinstance(stream, PausableStream)
    return stream


def test_a_pause_in_which_the_ring_does_not_wrap_makes_no_hole(source: FtraceSource) -> None:
    stream = cpu_0(source)
    since = stream.complete_since
    marks(source, *range(50))
    batches = turn(stream)[0]
    assert stream.pause() is None
    marks(source, *range(50, 150))
    batches += turn(stream)[0]
    assert numbers_in(batches) == list(range(150))
    assert (lost(batches), stream.losses(), stream.complete_since) == ({}, None, since)
    assert stream.counters()[OVERWRITTEN_IDLE] == 0


@pytest.mark.parametrize("ended_by", ["a pause", "its time", "a pause within a turn"])
def test_a_ring_that_wrapped_in_a_pause_begins_after_its_hole(
    source: FtraceSource, ended_by: str
) -> None:
    stream = cpu_0(source)
    marks(source, *range(10))
    if ended_by == "its time":
        stream.want(0)
    first = stream.take(True)  # the rest of this page stays with the reader
    assert isinstance(first, Batch)
    if ended_by == "a pause":
        assert stream.take(True) is Nothing.YET
    if ended_by == "its time":
        assert stream.take(True) is Nothing.YET
    else:
        stream.pause()
    marks(source, *range(10, 10 + MANY))
    assert stream.losses() is None
    assert sum(stream.unplaced().values()) == 0
    since = source.now()
    stream.want(None)
    batches = turn(stream)[0] + turn(stream)[0]
    found = numbers_in(batches)
    assert found == list(range(found[0], 10 + MANY))
    assert 10 < found[0] < MANY - 100
    assert (lost(batches), stream.losses()) == ({Reason.UNWANTED: found[0] - 10}, None)
    (hole,) = batches[0].gaps
    assert (hole.row, hole.end) == (0, stream.complete_since)
    assert first.rows["begin"][-1] < hole.begin <= hole.end
    assert batches[-1].rows["discarded_total"][-1] == 0
    assert batches[0].rows["begin"][0] == stream.complete_since < since
    counters = stream.counters()
    assert counters["overrun"] == 0
    assert counters["read events"] == 10 + len(found)
    # Some were on the reader's page: read, and passed over.
    passed_over = found[0] - 10 - counters[OVERWRITTEN_IDLE]
    assert 0 < passed_over < 40


def test_a_turn_that_a_pause_cut_short_is_over(source: FtraceSource) -> None:
    stream = cpu_0(source)
    marks(source, *range(10))
    assert isinstance(stream.take(True), Batch)
    marks(source, *range(10, 200))
    assert isinstance(stream.take(True), Batch)
    stream.pause()
    marks(source, *range(200, 200 + MANY))
    assert isinstance(stream.take(True), Batch)


def test_events_that_are_overwritten_after_a_pause_are_lost(source: FtraceSource) -> None:
    stream = cpu_0(source)
    stream.pause()
    marks(source, *range(MANY))
    first = turn(stream)[0]
    marks(source, *range(MANY, 3 * MANY))
    batches = turn(stream)[0] + turn(stream)[0]
    rest = stream.losses()
    counted = lost([*first, *batches, *([rest] if rest else [])])
    found = numbers_in(first + batches)
    assert counted.pop(Reason.UNWANTED) == found[0]
    assert counted == {Reason.OVERWRITTEN: 3 * MANY - found[0] - len(found)}
    assert counted[Reason.OVERWRITTEN] == stream.counters()["overrun"]


def test_events_that_are_overwritten_during_the_first_take_after_a_pause_are_lost(
    source: FtraceSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = cpu_0(source)
    stream.pause()
    marks(source, *range(MANY))
    sample = stream.ring.sample

    def sample_late(*arguments: int | None) -> Mapping[str, int]:
        if stream.wanted_from is None and stream.ring.wrapped:  # the pages are taken
            marks(source, *range(MANY, 3 * MANY))
        return sample(*arguments)

    monkeypatch.setattr(stream.ring, "sample", sample_late)
    batches = turn(stream)[0] + turn(stream)[0]
    rest = stream.losses()
    found = numbers_in(batches)
    counted = lost([*batches, *([rest] if rest else [])])
    assert counted == {
        Reason.UNWANTED: found[0],
        Reason.OVERWRITTEN: 3 * MANY - found[0] - len(found),
    }
    assert stream.counters()["overrun"] == counted[Reason.OVERWRITTEN] > 0


def test_a_pause_of_an_empty_ring_ends_although_nothing_can_be_taken(source: FtraceSource) -> None:
    stream = cpu_0(source)
    stream.pause()
    assert turn(stream) == ([], Nothing.YET)
    marks(source, *range(MANY))
    batches = turn(stream)[0] + turn(stream)[0]
    rest = stream.losses()
    counted = lost([*batches, *([rest] if rest else [])])
    assert counted == {Reason.OVERWRITTEN: MANY - len(numbers_in(batches))}


def test_a_second_pause_before_anything_was_taken_continues_the_first(
    source: FtraceSource,
) -> None:
    stream = cpu_0(source)
    marks(source, 0)
    turn(stream)
    stream.pause()
    marks(source, *range(1, MANY))
    assert stream.losses() is None
    stream.want(None)
    stream.pause()
    batches = turn(stream)[0] + turn(stream)[0]
    found = numbers_in(batches)
    assert found == list(range(found[0], MANY))
    assert found[0] > 1
    assert lost(batches) == {Reason.UNWANTED: found[0] - 1}
    assert stream.complete_since == batches[0].rows["begin"][0]


def test_an_end_in_a_pause_abandons_nothing(source: FtraceSource) -> None:
    stream = cpu_0(source)
    stream.pause()
    mark(instance_of(source), "unwanted", times=5)
    source.stop()
    assert stream.losses() is None

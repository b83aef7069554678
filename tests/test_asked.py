"""A question reads the cells that may hold its answer, and prints what reading all prints."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lttd
from lttd import occurrence_maker
from lttd.files import Disk
from lttd.index import ENTRY_BYTES, ENTRY_DTYPE, GAP_BYTES, HEADER
from lttd.occurrence_maker import note_occurrences
from lttd.occurrences import CHUNK_ENTRIES, Occurrences, encode_content, parse_content
from lttd.tracedir import SegmentPaths
from lttd.view import window
from lttd.view.cells import Cells
from lttd.view.commands import text
from lttd.view.library import ClockGroup
from tests.ftraced import SWITCH, Traced, common, opened, pages_of, switch, tick
from tests.segment_builder import segment_at
from tests.viewer import run

PAGES = 6 * CHUNK_ENTRIES
EARLY, LATE = 1000, 4000
"""In chunks 1 and 4 of 6."""


def silent_switch(pid: int) -> bytes:
    """Return a switch between two others, which does not name the task that it is of."""
    return common(SWITCH, pid) + switch(("six", 6), ("eight", 8))[8:]


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentPaths:
    """Make two streams of ticks; in the second, switches and an opened file early and late."""
    monkeypatch.setattr(text, "PIECE_BYTES", 12_000)
    monkeypatch.setattr(window, "STREAM_BYTES", 5000)
    monkeypatch.setattr(occurrence_maker, "LEAST_RATIO", 0)
    made = Traced(tmp_path / "t", cpus=2)
    rare = {
        EARLY: [switch(("six", 6), ("early", 5)), opened("/early", 1, pid=5)],
        LATE: [silent_switch(5), opened("/late", 2, pid=5)],
    }
    for cpu in (0, 1):
        for first in range(0, PAGES, 500):
            numbers = range(first, min(first + 500, PAGES))
            few = [
                pages_of(1000 * n, [tick(n, pid=9), *(rare.get(n, []) if cpu else [])])
                for n in numbers
            ]
            made.append(few, cpu=cpu, trailing_loss=first % 7)
    made.finish()
    paths = segment_at(made.paths.directory)
    note_occurrences(paths, Disk())
    return paths


def asked(
    segment: SegmentPaths, capfd: pytest.CaptureFixture[bytes], *words: object
) -> tuple[int, bytes, str]:
    return run(capfd, "text", segment.directory.parent, "--jobs", 1, *words)


def group_of(segment: SegmentPaths, *events: str, begin: int | None = None) -> ClockGroup:
    trace = lttd.open(segment.directory.parent)
    (group,) = trace.window(begin, events=events or None, piece_bytes=12_000).clocks()
    return group


def ends(segment: SegmentPaths, begin: int | None = None) -> Iterator[int]:
    return (piece.end for piece in group_of(segment, begin=begin).pieces())


def test_pieces_end_at_the_same_times_whatever_the_window_is(long: SegmentPaths) -> None:
    every = list(ends(long))
    assert len(every) > 20
    for begin in (999_999, 2_345_678):
        since = list(ends(long, begin))
        assert set(since[1:]) <= set(every)
        assert len(since) >= len([end for end in every if end > begin])


def test_a_name_from_an_event_holds_for_its_own_piece_alone_where_pieces_are_joined(
    long: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert len(list(group_of(long, "sched_switch").pieces())) == 1
    with_table = asked(long, capfdbinary, "--event", "sched_switch")
    long.occurrences.unlink()
    assert asked(long, capfdbinary, "--event", "sched_switch") == with_table
    early, late = (line for line in with_table[1].splitlines() if b"sched_switch" in line)
    assert b" six-6 " in early
    assert b" <...>-5 " in late


def test_pieces_with_few_answers_are_joined(long: SegmentPaths) -> None:
    pieces = list(group_of(long, "opened").pieces())
    assert len(pieces) == 1
    spans = pieces[0].spans
    assert spans is not None
    assert any(begin <= 1000 * EARLY <= last for begin, last in zip(*spans, strict=True))


def change_entries(segment: SegmentPaths, first: int, behind: int, at: int) -> None:
    """Flip a bit at byte *at* of some entries of the second stream."""
    index = segment.stream("fake_1").index
    raw = bytearray(index.read_bytes())
    for number in range(first, behind):
        raw[HEADER.size + number * ENTRY_BYTES + at] ^= 1
    index.write_bytes(raw)


def test_the_index_between_two_answers_is_not_read(
    long: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = asked(long, capfdbinary, "--event", "opened")
    assert before[1].count(b"opened: ") == 2
    # The size of the packet, far between both: who reads it finds no sub-buffer there.
    change_entries(long, 2 * CHUNK_ENTRIES, 3 * CHUNK_ENTRIES, at=15)
    assert asked(long, capfdbinary, "--event", "opened") == before
    assert asked(long, capfdbinary, "--event", "tick")[2] != ""


def test_a_chunk_with_an_answer_that_changed_is_noted_and_all_after_it_is_read(
    long: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = asked(long, capfdbinary, "--event", "opened")
    change_entries(long, EARLY, EARLY + 1, at=ENTRY_BYTES - 1)
    status, out, err = asked(long, capfdbinary, "--event", "opened")
    assert (status, out) == before[:2]
    assert f"fake_1 has another index, from entry {CHUNK_ENTRIES} on; not used" in err
    (batch,) = list(lttd.open(long.directory.parent).window(events=["opened"]))
    assert len(batch) == 2


def test_a_question_counts_only_the_sub_buffers_that_it_needs(long: SegmentPaths) -> None:
    def shares(*events: str) -> list[float]:
        group = group_of(long, *events)
        return [group.needed_share(source) for source in group.touching]

    assert shares("opened") == [0, 2 / PAGES]
    assert shares("tick") == shares() == [1, 1]


def another(first: SegmentPaths, number: int, begin: int, *, closed: bool = True) -> SegmentPaths:
    """Add a segment to the trace, in which ``opened`` has the id of ``tick``, and the reverse."""
    made = Traced(first.directory.parent, number=number, cpus=1)
    for path, ours, other in (("clock/tick", 1, 2), ("files/opened", 2, 1)):
        file = made.tracefs / "events" / path / "format"
        file.write_bytes(file.read_bytes().replace(b"ID: %d" % ours, b"ID: %d" % other))
    for at in range(500):
        event = tick(at, pid=9) if at != 250 else opened(f"/{number}", number, pid=5)
        swapped = bytes([3 - event[0]]) + event[1:]
        made.append([pages_of(begin + 1000 * at, [swapped])])
    if closed:
        made.finish()
    return segment_at(made.paths.directory)


def test_segments_with_other_ids_and_without_a_table_answer_too(
    long: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    second = another(long, 2, 1000 * PAGES)
    another(long, 3, 1000 * PAGES + 600_000)
    another(long, 4, 1000 * PAGES + 1_200_000, closed=False)
    note_occurrences(second, Disk())
    with_tables = asked(long, capfdbinary, "--event", "opened")
    for one in (long, second):
        one.occurrences.unlink()
    assert asked(long, capfdbinary, "--event", "opened") == with_tables
    found = [line for line in with_tables[1].splitlines() if b" opened: " in line]
    assert [line.split(b"path=")[1].split()[0] for line in found] == [
        b"/early", b"/late", b"/2", b"/3", b"/4",
    ]  # fmt: skip


def test_a_picture_of_a_question_is_the_same_with_the_table(
    long: SegmentPaths, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = long.directory.parent
    for name in ("with.svg", "without.svg"):
        words = ("--event", "opened", "--event", "sched_*", "-o", tmp_path / name)
        assert run(capfdbinary, "plot", trace, *words)[0] == 0
        long.occurrences.unlink(missing_ok=True)
    assert (tmp_path / "with.svg").read_bytes() == (tmp_path / "without.svg").read_bytes()


def test_the_library_tells_which_sub_buffers_may_hold_an_event(long: SegmentPaths) -> None:
    def told(begin: int | None = None, **question: list[str] | str) -> list[tuple[list[int], bool]]:
        found = lttd.open(long.directory.parent).window(begin, **question).subbuffers()  # type: ignore[arg-type]
        return [(part.numbers.tolist(), part.by_table) for part in found]

    assert told(events=["opened"]) == [([], True), ([EARLY, LATE], True)]
    assert told(1000 * LATE, events=["opened"]) == [([], True), ([LATE], True)]
    assert told(where="next_pid == 5") == told(events=["opened"])
    assert told() == [(list(range(PAGES)), False)] * 2
    long.occurrences.unlink()
    assert told(events=["opened"]) == told()


def test_groups_larger_than_any_index_cost_no_memory() -> None:
    row = np.array([[0xFF]], np.uint8)
    made = Occurrences(1000, 5, (1 << 32) - 1, (7,), np.zeros(2, np.uint32), row)
    table = parse_content(encode_content(made), 1000, 5)
    assert table.numbers(table.of({7})).tolist() == list(range(1000))


def test_gaps_in_another_order_than_their_rows_end_no_question(
    long: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    gaps = long.stream("fake_1").gaps
    raw = gaps.read_bytes()
    records = [raw[at : at + GAP_BYTES] for at in range(HEADER.size, len(raw), GAP_BYTES)]
    assert len(records) > 3
    gaps.write_bytes(raw[: HEADER.size] + b"".join(reversed(records)))
    status, out, _ = asked(long, capfdbinary, "--event", "opened")
    assert status == 0
    assert out.count(b" opened: ") == 2


@given(data=st.data())
def test_any_time_of_a_window_is_in_the_cell_that_its_ends_say(data: st.DataObject) -> None:
    times = st.lists(st.integers(0, 60), min_size=1, max_size=30)
    segments = []
    for begins in data.draw(st.lists(times, min_size=1, max_size=3)):
        entries = np.zeros(len(begins), ENTRY_DTYPE)
        entries["begin"] = sorted(begins)
        segments.append((window.KnownIndex(entries), 10 * len(begins)))
    begin = data.draw(st.integers(0, 60))
    end = data.draw(st.integers(begin, 70))
    cells = Cells(segments, begin, end, data.draw(st.integers(1, 100)))
    ends = [begin, *cells.ends()]
    for time in range(begin, end + 1):
        before = max(one for one in ends if one <= time)
        assert cells.at(time) == (before, min(one for one in ends if one > time))


@given(begins=st.lists(st.integers(0, 60), min_size=1, max_size=30), step=st.integers(1, 300))
def test_an_index_that_steps_back_makes_no_cell_without_its_time(
    begins: list[int], step: int
) -> None:
    entries = np.zeros(len(begins), ENTRY_DTYPE)
    entries["begin"] = begins
    cells = Cells([(window.KnownIndex(entries), 10 * len(begins))], 0, 70, step)
    for time in range(70):
        begin, end = cells.at(time)
        assert begin <= time < end

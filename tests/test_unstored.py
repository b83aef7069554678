"""What the next start counts of the segments, gaps and counters that a killed lttd left."""

from pathlib import Path

import pytest

from lttd.sources.base import Owner, Stored
from lttd.sources.ftrace.killed import Unstored, unstored
from lttd.sources.ftrace.loss import LossCounts, Mark
from lttd.sources.ftrace.record import Progress
from lttd.subbuffer import Reason
from lttd.unstored import stored_from
from tests.segment_builder import Made, subbuffer

NAME = "ftrace_0"
NOTHING = LossCounts(0, 0, 0)
# After 10 sub-buffers 100 events were read, and 7 overwritten events are in gaps.
MARKS = [Mark(0, 0, NOTHING), Mark(10, 100, LossCounts(7, 0, 0))]


def counted(now: Mark, stored: Stored, *marks: Mark) -> Unstored | None:
    owner = Owner(1, 1, "t", stored=lambda _segment, _stream, _first: stored)
    return unstored(NAME, now, Progress("s", {NAME: list(marks or MARKS)}, 0.0), owner)


def test_what_neither_marks_nor_gaps_account_for_is_lost() -> None:
    now = Mark(0, 160, LossCounts(20, 5, 1))
    stored = Stored(50, 99, {Reason.OVERWRITTEN: 3, Reason.DROPPED: 1, Reason.STORAGE: 8})
    assert counted(now, stored) == Unstored(10, 99, LossCounts(10, 4, 1))


def test_a_run_that_took_nothing_may_have_losses_of_its_ring() -> None:
    found = counted(Mark(0, 0, LossCounts(0, 9, 0)), Stored(0, 0, {}), MARKS[0])
    assert found == Unstored(0, 0, LossCounts(0, 9, 0))
    assert found.is_loss


@pytest.mark.parametrize("now", [Mark(0, 120, NOTHING), Mark(0, 160, LossCounts(8, 0, 0))])
def test_a_counter_below_the_stored_number_makes_the_loss_unknown(now: Mark) -> None:
    stored = Stored(50, 99, {Reason.OVERWRITTEN: 3})
    assert counted(now, stored) == Unstored(None, 99, None)


@pytest.mark.parametrize("lost", [None, {Reason.DISCARDED: 3}], ids=["hole", "recovered"])
def test_gaps_that_say_too_little_leave_the_counting_to_the_pages(
    lost: dict[Reason, int] | None,
) -> None:
    now = Mark(0, 160, LossCounts(20, 0, 0))
    assert counted(now, Stored(50, 99, lost)) == Unstored(10, 99, None)


def test_a_mark_without_losses_leaves_the_counting_to_the_pages() -> None:
    now, mark = Mark(0, 160, LossCounts(20, 0, 0)), Mark(10, 100, None)
    assert counted(now, Stored(60, 99, {}), mark) == Unstored(0, 99, None)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A killed lttd's segment: gaps of 5 before its sub-buffer 1, 9 before 3, 2 after the last."""
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1, missed=5), subbuffer(2)])
    made.append([subbuffer(3, missed=9)], trailing_loss=2)
    return made.leave().paths.directory


@pytest.mark.parametrize(
    ("first", "overwritten", "events"), [(0, 14, 12), (1, 14, 9), (2, 9, 6), (3, 9, 3), (4, 0, 0)]
)
def test_gaps_count_from_the_sub_buffer_of_a_mark_on(
    segment: Path, first: int, overwritten: int, events: int
) -> None:
    stored = stored_from(segment.parent, segment.name, "fake_0", first)
    assert stored is not None
    assert stored.events == events
    assert stored.lost is not None
    assert stored.lost.get(Reason.OVERWRITTEN, 0) == overwritten
    assert stored.lost[Reason.DROPPED] == 2


def test_after_a_hole_it_is_unknown_which_gaps_a_mark_in_the_hole_has(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1)])
    made.rings[0].batch([subbuffer(2), subbuffer(3)])  # there was no room for these
    made.append([subbuffer(4, missed=5)])
    segment = made.leave().paths.directory
    lost = {}
    for first in (2, 3, 4, 5):
        stored = stored_from(segment.parent, segment.name, "fake_0", first)
        assert stored is not None
        lost[first] = stored.lost
    assert lost == {2: {Reason.OVERWRITTEN: 5}, 3: None, 4: None, 5: {}}


def test_a_mark_beyond_the_stored_sub_buffers_is_not_used(segment: Path) -> None:
    assert stored_from(segment.parent, segment.name, "fake_0", 5) is None

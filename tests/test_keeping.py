"""A window keeps the segments that it touches, at most as many bytes as may be kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from lttd.errors import LttdError
from lttd.keeping import StoreKeeper
from lttd.kept import read_kept
from lttd.retention import Limits
from lttd.tracedir import segments_below
from lttd.trigger import Trigger
from lttd.triggers import Now
from tests.test_store import PADDING_BYTES, SECOND, WALL_NS, Bench

ASKED = Trigger("slow", {}, "command", WALL_NS + 48 * SECOND, number=1)


class Kept:
    """A trace with five segments of ten seconds, from 10 s to 60 s after boot."""

    def __init__(self, trace: Path, kept_bytes: int | None = None) -> None:
        self.bench = Bench(trace)
        for number in range(1, 6):
            self.bench.segment(number)
        self.bench.clock.boot_s = 60
        store = self.bench.store(Limits(kept_bytes=kept_bytes))
        self.keeper = StoreKeeper(store, self.now, 15 * SECOND)

    def now(self) -> Now:
        return Now(self.bench.clock(), WALL_NS + self.bench.clock())

    def by_trigger(self) -> dict[int, Trigger]:
        found = ((each.number, read_kept(each)) for each in segments_below(self.bench.trace))
        return {number: kept.triggers[0] for number, kept in found if kept.triggers}


def complete(begin_s: int, end_s: int) -> Trigger:
    begin_ns, end_ns = WALL_NS + begin_s * SECOND, WALL_NS + end_s * SECOND
    return replace(ASKED, begin_ns=begin_ns, end_ns=end_ns, complete=True)


def test_every_segment_that_the_window_touches_is_kept(tmp_path: Path) -> None:
    made = Kept(tmp_path / "t")
    one = complete(38, 53)
    assert made.keeper.keep(38 * SECOND, 53 * SECOND, one) == one
    assert made.by_trigger() == {3: one, 4: one, 5: one}


def test_the_trace_reaches_back_to_the_begin_of_this_recording(tmp_path: Path) -> None:
    assert Kept(tmp_path / "t").keeper.reach_ns() == 15 * SECOND


def test_a_window_that_is_too_large_is_shortened_at_its_begin_and_says_so(tmp_path: Path) -> None:
    made = Kept(tmp_path / "t", 3 * PADDING_BYTES)
    asked = replace(ASKED, complete=False)
    made.keeper.keep(25 * SECOND, 53 * SECOND, asked)
    assert set(made.by_trigger()) == {2, 3, 4, 5}
    kept = made.keeper.keep(25 * SECOND, 53 * SECOND, complete(25, 53))
    assert made.by_trigger() == {4: kept, 5: kept}
    # Segment 3 ends at 40 s, when segment 4 had begun.
    assert kept.begin_ns == WALL_NS + 40 * SECOND
    assert "more than --max-kept-size" in kept.note


def test_a_window_of_which_nothing_fits_is_refused_and_keeps_nothing(tmp_path: Path) -> None:
    made = Kept(tmp_path / "t", PADDING_BYTES // 2)
    made.keeper.keep(38 * SECOND, 53 * SECOND, ASKED)
    with pytest.raises(LttdError, match=r"trigger 1: the window's .* more than --max-kept-size"):
        made.keeper.keep(38 * SECOND, 53 * SECOND, complete(38, 53))
    assert made.by_trigger() == {}

"""Compare the loss ledger of an ftrace ring with a model of the kernel's counters and pages."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, Unit


def rows_at(*begins: int) -> Rows:
    rows = np.zeros(len(begins), ROW_DTYPE)
    rows["begin"] = begins
    return rows


def events_in(gaps: tuple[Gap, ...]) -> int:
    assert all(gap.unit is Unit.EVENTS for gap in gaps)
    return sum(gap.count or 0 for gap in gaps)


NOTHING_LOST = Sample(0, 0, 0, 0)


def test_losses_that_pages_report_are_not_counted_again_from_overrun() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(30, 7, 0, 0))
    rows = rows_at(10, 20)
    gaps = ledger.place(rows, [(1, 7)])
    assert gaps == (Gap(1, Reason.OVERWRITTEN, Unit.EVENTS, 7, 10, 20),)
    ledger.page_turned()
    ledger.sampled(Sample(40, 7, 0, 0))
    assert ledger.rest(final=True) == ()


def test_a_count_without_room_in_its_page_is_reported_at_the_next_row() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(30, 9, 0, 0))
    (some,) = ledger.place(rows_at(10, 20), [(1, None)])
    assert (some.row, some.count) == (1, None)
    ledger.page_turned()
    assert ledger.place(rows_at(40), []) == ()
    rows = rows_at(50)
    (gap,) = ledger.place(rows, [])
    assert (gap.row, gap.reason, gap.count) == (0, Reason.OVERWRITTEN, 9)
    assert gap.begin <= 20 <= gap.end


def test_a_repeated_suspicion_of_loss_is_one_gap() -> None:
    ledger = LossLedger(NOTHING_LOST)
    for now in range(100, 200):
        ledger.sampled(Sample(now, 0, 0, 0))
        ledger.suspect(Reason.SWITCHED_OFF, now)
    ledger.suspect(Reason.EMPTIED, 200)
    ledger.suspect(Reason.SWITCHED_OFF, 210)
    gaps = ledger.place(rows_at(50, 250), [])
    told = [(gap.row, gap.reason, gap.count, gap.begin, gap.end) for gap in gaps]
    assert told == [
        (1, Reason.SWITCHED_OFF, None, 100, 199),
        (1, Reason.EMPTIED, None, 199, 200),
        (1, Reason.SWITCHED_OFF, None, 199, 210),
    ]
    ledger.suspect(Reason.SWITCHED_OFF, 260)
    assert len(ledger.place(rows_at(300), [])) == 1, "what comes after a batch is another gap"


def test_a_loss_before_all_rows_comes_first_and_does_not_hasten_later_ones() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.suspect(Reason.EMPTIED, 100)
    ledger.lost_before_all(Reason.KILLED, 50, 10, 20)
    (gap,) = ledger.rest()
    assert (gap.row, gap.reason, gap.count, gap.begin, gap.end) == (0, Reason.KILLED, 50, 10, 20)
    assert [gap.reason for gap in ledger.place(rows_at(150), [])] == [Reason.EMPTIED]


def test_a_suspicion_older_than_all_later_rows_does_not_grow() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.suspect(Reason.EMPTIED, 100)
    ledger.ran_dry()
    ledger.suspect(Reason.EMPTIED, 200)
    assert [gap.end for gap in ledger.rest()] == [100]
    assert [gap.end for gap in ledger.rest(final=True)] == [200]


def test_overwritten_events_are_counted_once_a_page_could_have_reported_them() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(30, 5, 0, 0))
    assert ledger.rest() == ()
    ledger.sampled(Sample(40, 5, 0, 0))
    ledger.page_turned()
    assert events_in(ledger.place(rows_at(35), [(0, 5)])) == 5
    assert ledger.rest(final=True) == ()


def test_events_lost_before_the_start_are_not_counted() -> None:
    ledger = LossLedger(Sample(100, 1000, 0, 0))
    ledger.sampled(Sample(130, 1003, 0, 0))
    gaps = ledger.place(rows_at(90, 110), [(0, 1003)])
    assert events_in(gaps) == 3
    assert all(gap.begin <= gap.end for gap in gaps)


def test_a_page_that_reports_only_earlier_losses_makes_no_gap() -> None:
    ledger = LossLedger(Sample(100, 1000, 0, 0))
    ledger.sampled(Sample(130, 1000, 0, 0))
    assert ledger.place(rows_at(90), [(0, 1000)]) == ()


def test_a_counter_reset_by_the_kernel_gives_no_negative_loss() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(10, 50, 40, 0))
    ledger.sampled(Sample(20, 3, 2, 0))
    gaps = ledger.rest(final=True)
    lost = {
        reason: events_in(tuple(gap for gap in gaps if gap.reason is reason)) for reason in Reason
    }
    assert lost[Reason.OVERWRITTEN] == 53
    assert lost[Reason.DROPPED] == 42


def test_the_gap_of_refused_events_precedes_the_next_later_sub_buffer() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(100, 0, 0, 0))
    # The ring was full from 120 on; the take at 150 made room; the next sample showed the loss.
    ledger.sampled(Sample(160, 0, 12, 0), place_from=150)
    old = rows_at(20, 60, 110)
    assert ledger.place(old, []) == ()
    assert ledger.rest() == ()
    rows = rows_at(115, 155, 190)
    assert ledger.place(rows, []) == (Gap(1, Reason.DROPPED, Unit.EVENTS, 12, 100, 160),)


def test_refused_events_are_reported_without_a_row_once_older_data_are_delivered() -> None:
    ledger = LossLedger(NOTHING_LOST)
    ledger.sampled(Sample(160, 0, 12, 1))
    assert ledger.rest() == ()
    ledger.ran_dry()
    ledger.sampled(Sample(200, 0, 15, 1))
    told = ledger.rest()
    assert {(gap.reason, gap.count) for gap in told} == {
        (Reason.DROPPED, 12),
        (Reason.COMMIT_OVERRUN, 1),
    }
    assert [gap.count for gap in ledger.rest(final=True)] == [3]


def test_only_pages_count_the_losses_in_the_ring_of_a_killed_run() -> None:
    ledger = LossLedger(Sample(100, 500, 70, 0), pages_only=True)
    ledger.suspect(Reason.DROPPED, 100)
    ledger.sampled(Sample(110, 500, 70, 0))
    assert events_in(ledger.place(rows_at(10, 20), [(1, 480)])) == 480
    assert [(gap.reason, gap.count) for gap in ledger.rest(final=True)] == [(Reason.DROPPED, None)]


def test_a_missing_kernel_counter_counts_no_loss() -> None:
    assert Sample.of({"overrun": 4}, 9) == Sample(9, 4, 0, 0)


class Kernel:
    """The losses of the ring of one CPU; time only moves forward."""

    def __init__(self, overrun: int, dropped: int, *, read_before: bool) -> None:
        self.now = 1000
        self.overrun = overrun
        self.dropped = dropped
        self.untold = 0 if read_before else overrun

    def sample(self) -> Sample:
        self.now += 1
        return Sample(self.now, self.overrun, self.dropped, 0)

    def pages(self, count: int, *, room: bool) -> tuple[Rows, list[tuple[int, int | None]]]:
        rows = rows_at(*range(self.now, self.now + count))
        self.now += count
        missed = [(0, self.untold if room else None)] if self.untold else []
        self.untold = 0
        return rows, missed


ACTION = st.one_of(
    st.tuples(st.just("overwrite"), st.integers(1, 1000)),
    st.tuples(st.just("refuse"), st.integers(1, 1000)),
    st.tuples(st.just("take"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("tick")),
)


@settings(max_examples=300, deadline=None)
@given(
    actions=st.lists(ACTION, max_size=30),
    overrun=st.integers(0, 500),
    dropped=st.integers(0, 500),
    read_before=st.booleans(),
)
def test_any_history_gives_exactly_the_losses_that_the_kernel_counted(
    actions: list[tuple[object, ...]], overrun: int, dropped: int, read_before: bool
) -> None:
    kernel = Kernel(overrun, dropped, read_before=read_before)
    ledger = LossLedger(kernel.sample())
    told: dict[Reason, int] = {Reason.OVERWRITTEN: 0, Reason.DROPPED: 0}

    def tell(gaps: tuple[Gap, ...]) -> None:
        for gap in gaps:
            assert gap.begin <= gap.end
            assert gap.count != 0
            told[gap.reason] += gap.count or 0
        assert told[Reason.OVERWRITTEN] <= kernel.overrun - overrun
        assert told[Reason.DROPPED] <= kernel.dropped - dropped

    for name, *rest in actions:
        match name, rest:
            case "overwrite", [int(count)]:
                kernel.overrun += count
                kernel.untold += count
            case "refuse", [int(count)]:
                kernel.dropped += count
            case "take", [int(count), bool(room)]:
                before = kernel.now
                rows, missed = kernel.pages(count, room=room)
                ledger.page_turned()
                ledger.sampled(kernel.sample(), before)
                tell(ledger.place(rows, missed))
            case _:
                if not kernel.untold:
                    ledger.page_turned()
                ledger.ran_dry()
                tell(ledger.rest())
                ledger.sampled(kernel.sample())
                # The loss is known now, wherever its gap will be.
                unplaced = ledger.unplaced()
                for reason, grown in (
                    (Reason.OVERWRITTEN, kernel.overrun - overrun),
                    (Reason.DROPPED, kernel.dropped - dropped),
                ):
                    assert told[reason] + unplaced[reason] == grown
    ledger.sampled(kernel.sample())
    tell(ledger.rest(final=True))
    assert told[Reason.OVERWRITTEN] == kernel.overrun - overrun
    assert told[Reason.DROPPED] == kernel.dropped - dropped
    assert not ledger.unplaced().total()


def test_a_take_that_broke_off_lies_before_a_page_that_was_begun_before_it() -> None:
    ledger = LossLedger(Sample(100, 0, 0, 0))
    assert ledger.place(rows_at(110, 120), []) == ()
    ledger.lost_before_all(Reason.REFUSED, 1, 100, now := 200, Unit.SUBBUFFERS)
    (gap,) = ledger.place(rows_at(150, 160), [])
    assert gap == Gap(0, Reason.REFUSED, Unit.SUBBUFFERS, 1, 100, now)

"""A ring that overwrote itself while nobody read it: what is wanted of it, and what is lost."""

from hypothesis import given
from hypothesis import strategies as st

from lttd.sources.ftrace.first_take import FirstTake
from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.subbuffer import Reason
from tests.test_ftrace_loss import rows_at


def test_a_ring_that_did_not_wrap_is_wanted_from_its_first_row() -> None:
    assert FirstTake().first_row(3, [], wrapped=False) == 0


def test_the_old_rest_of_the_readers_page_is_not_wanted() -> None:
    assert FirstTake().first_row(3, [(1, 500)], wrapped=True) == 1


def test_an_old_rest_that_comes_alone_is_passed_over_once() -> None:
    first = FirstTake()
    assert first.first_row(1, [], wrapped=True) == 1
    assert first.first_row(4, [(0, 500)], wrapped=True) == 0


def test_rows_before_events_that_were_overwritten_during_the_take_are_not_wanted() -> None:
    assert FirstTake().first_row(9, [(0, 500), (2, 60)], wrapped=True) == 2
    assert FirstTake().first_row(9, [(2, 60)], wrapped=False) == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_at_most_one_row_is_passed_over_without_a_hole_after_it(takes: list[int]) -> None:
    first = FirstTake()
    assert sum(first.first_row(rows, [], wrapped=True) for rows in takes) <= 1


# -- the ledger of losses


def test_what_was_overwritten_while_nobody_read_is_no_loss_and_is_returned() -> None:
    ledger = LossLedger(Sample(0, 7, 0, 0))
    assert ledger.forgive(Sample(10, 107, 0, 0)) == 100
    assert ledger.forgive(Sample(20, 107, 0, 0)) == 0
    assert ledger.unplaced().total() == 0
    # The first page says so, too.
    assert ledger.place(rows_at(15, 18), [(0, 100)]) == ()
    assert ledger.rest(final=True) == ()


def test_what_was_overwritten_since_the_first_page_was_taken_is_a_loss() -> None:
    ledger = LossLedger(Sample(0, 0, 0, 0))
    assert ledger.forgive(Sample(10, 70, 0, 0)) == 70
    assert ledger.forgive(Sample(20, 170, 0, 0), 60) == 60  # the first page counts 130
    assert ledger.unplaced() == {Reason.OVERWRITTEN: 40}
    ledger.begin_at(12)
    assert ledger.place(rows_at(12, 18), []) == ()
    (gap,) = ledger.place(rows_at(22, 25), [(0, 40)])
    assert (gap.row, gap.reason, gap.count) == (0, Reason.OVERWRITTEN, 40)
    assert ledger.forgive(Sample(30, 171, 0, 0), -5) == 0


def test_what_is_overwritten_in_a_window_is_a_loss_at_its_place() -> None:
    ledger = LossLedger(Sample(0, 0, 0, 0))
    ledger.forgive(Sample(10, 100, 0, 0))
    ledger.begin_at(12)
    ledger.place(rows_at(12, 18), [])
    ledger.sampled(Sample(30, 105, 0, 0))
    (gap,) = ledger.place(rows_at(20, 25), [(1, 5)])
    assert (gap.row, gap.reason, gap.count, gap.begin, gap.end) == (
        *(1, Reason.OVERWRITTEN, 5, 20, 25),
    )


def test_losses_that_no_page_has_counted_at_the_end_of_a_window_are_those_of_the_pause() -> None:
    ledger = LossLedger(Sample(0, 0, 0, 0))
    ledger.place(rows_at(5), [])
    ledger.page_turned()
    ledger.sampled(Sample(10, 40, 0, 0))  # overwritten after the last take
    assert ledger.until_now() == ()
    assert ledger.forgive(Sample(20, 50, 0, 0)) == 50


def test_a_suspicion_from_before_the_begin_of_a_window_is_dropped_and_a_later_one_kept() -> None:
    ledger = LossLedger(Sample(0, 0, 0, 0))
    ledger.suspect(Reason.SWITCHED_OFF, 10)
    ledger.forgive(Sample(30, 100, 0, 0))
    ledger.suspect(Reason.FILTERED, 40)
    ledger.begin_at(35)
    (gap,) = ledger.place(rows_at(35, 50), [])
    assert (gap.row, gap.reason) == (1, Reason.FILTERED)

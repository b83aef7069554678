"""The book of a stream's rows: numbers, times that never fall, events lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.sources.rows import RowBook
from lttd.subbuffer import (
    NO_ROWS,
    ROW_DTYPE,
    BufferPool,
    Gap,
    Reason,
    Rows,
    StreamId,
    Unit,
    losses_batch,
    make_batch,
)

MOST = (1 << 64) - 1


def rows_at(*begins: int, ends: tuple[int, ...] = ()) -> Rows:
    rows = np.zeros(len(begins), ROW_DTYPE)
    rows["begin"] = begins
    rows["end"] = ends or begins
    return rows


def lost(row: int, count: int | None, unit: Unit = Unit.EVENTS) -> Gap:
    return Gap(row, Reason.OVERWRITTEN, unit, count, 0, 0)


def test_rows_without_ends_end_where_the_next_one_begins() -> None:
    book, rows = RowBook(), rows_at(10, 20, 30)
    book.number(rows, 35)
    assert rows["end"].tolist() == [20, 30, 35]
    assert (book.begin, book.end, book.sequence) == (30, 35, 3)


def test_an_end_of_a_take_is_never_later_than_what_the_next_take_says() -> None:
    book = RowBook()
    book.number(rows_at(10), 90)
    rows = rows_at(20, 30)
    book.number(rows, 40)
    assert rows["end"].tolist() == [90, 90]


def test_rows_that_begin_earlier_than_the_last_one_begin_with_it() -> None:
    book = RowBook()
    book.number(rows_at(50))
    rows = rows_at(40, 60, 55)
    book.number(rows)
    assert rows["begin"].tolist() == [50, 60, 60]
    assert rows["sequence"].tolist() == [1, 2, 3]


def test_losses_are_counted_in_each_row_from_the_gap_on() -> None:
    book, rows = RowBook(), rows_at(1, 2, 3)
    book.count(rows, [lost(1, 5), lost(1, 9, Unit.BYTES), lost(2, None), lost(3, 7)])
    assert rows["discarded_total"].tolist() == [0, 5, 5]
    book.count(NO_ROWS, [lost(0, 1)])
    rows = rows_at(4)
    book.count(rows, [])
    assert rows["discarded_total"].tolist() == [13]


times = st.integers(0, MOST) | st.integers(MOST - 9, MOST)


@given(st.lists(st.lists(st.tuples(times, times), max_size=6), max_size=6))
def test_times_of_a_stream_never_fall_and_no_row_ends_before_it_begins(
    takes: list[list[tuple[int, int]]],
) -> None:
    book, begins, ends, numbers = RowBook(), [0], [0], []
    for take in takes:
        rows = rows_at(*(begin for begin, _ in take), ends=tuple(end for _, end in take))
        book.number(rows)
        begins += rows["begin"].tolist()
        ends += rows["end"].tolist()
        numbers += rows["sequence"].tolist()
    assert begins == sorted(begins)
    assert ends == sorted(ends)
    assert all(begin <= end for begin, end in zip(begins, ends, strict=True))
    assert numbers == list(range(len(numbers)))


def test_nobody_edits_the_rows_of_a_batch() -> None:
    buffer = memoryview(bytearray(4096))
    batch = make_batch(StreamId("x", 0), rows_at(1), pool=BufferPool(), buffer=buffer)
    with pytest.raises(ValueError, match="read-only"):
        batch.rows["begin"] = 2
    with pytest.raises(AttributeError):
        batch.gaps = ()  # type: ignore[misc]
    assert losses_batch(StreamId("x", 0), [lost(0, 1)]).rows is NO_ROWS

"""Merge the events of several streams into one order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lttd.view.merge import order_by_time

STREAM = st.lists(st.integers(0, 40), max_size=30).map(sorted)


@given(st.lists(STREAM, max_size=5))
def test_a_merge_orders_by_time_and_is_stable_over_streams(streams: list[list[int]]) -> None:
    keys = np.array([time for stream in streams for time in stream], np.uint64)
    order = order_by_time(keys)
    expected = sorted(range(len(keys)), key=lambda at: int(keys[at]))
    assert (list(range(len(keys))) if order is None else order.tolist()) == expected


def test_ordered_input_is_not_sorted_again() -> None:
    assert order_by_time(np.array([1, 1, 2], np.uint64)) is None
    assert order_by_time(np.empty(0, np.uint64)) is None

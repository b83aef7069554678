"""The decision to close a segment and to open the next one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.roll import (
    AHEAD_NS,
    RollLimits,
    RollReason,
    SegmentState,
    is_near,
    left_until_full,
    why_roll,
)

MIB = 1 << 20
HOUR_NS = 3_600_000_000_000
LIMITS = RollLimits(payload_bytes=64 * MIB, age_ns=HOUR_NS)


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (SegmentState(0, 0), None),
        (SegmentState(64 * MIB - 1, HOUR_NS - 1), None),
        (SegmentState(64 * MIB, 0), RollReason.BYTES),
        (SegmentState(64 * MIB, HOUR_NS), RollReason.BYTES),
        (SegmentState(1, HOUR_NS), RollReason.AGE),
        (SegmentState(1, 0, asked=True), RollReason.ASKED),
        (SegmentState(64 * MIB, HOUR_NS, asked=True), RollReason.ASKED),
    ],
)
def test_a_segment_rolls_at_each_limit_and_when_asked(
    segment: SegmentState, expected: RollReason | None
) -> None:
    assert why_roll(segment, LIMITS) is expected


def test_a_segment_without_data_rolls_only_when_asked() -> None:
    assert why_roll(SegmentState(0, 10 * HOUR_NS), LIMITS) is None
    assert why_roll(SegmentState(0, 0), RollLimits(payload_bytes=0, age_ns=0)) is None
    assert why_roll(SegmentState(0, 0, asked=True), LIMITS) is RollReason.ASKED


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (SegmentState(0, HOUR_NS), False),
        (SegmentState(4 * MIB - 1, HOUR_NS - AHEAD_NS - 1), False),
        (SegmentState(4 * MIB, 0), True),
        (SegmentState(1, HOUR_NS - AHEAD_NS), True),
    ],
)
def test_the_next_segment_is_made_at_a_sixteenth_of_the_size_or_shortly_before_the_age(
    segment: SegmentState, expected: bool
) -> None:
    assert is_near(segment, LIMITS) is expected


def test_the_next_segment_is_made_at_half_of_a_short_age() -> None:
    limits = RollLimits(age_ns=AHEAD_NS)
    assert not is_near(SegmentState(1, AHEAD_NS // 2 - 1), limits)
    assert is_near(SegmentState(1, AHEAD_NS // 2), limits)


def test_what_is_left_of_a_segment_ends_with_its_limits() -> None:
    assert left_until_full(SegmentState(0, 0), RollLimits()) == (math.inf, math.inf, math.inf)
    ahead_s = (HOUR_NS - AHEAD_NS) / 1e9
    assert left_until_full(SegmentState(MIB, 0), LIMITS) == (63 * MIB, 3 * MIB, ahead_s)
    ahead = SegmentState(4 * MIB, 0)
    assert left_until_full(ahead, LIMITS) == (60 * MIB, math.inf, ahead_s)
    old = SegmentState(65 * MIB, HOUR_NS - AHEAD_NS)
    assert left_until_full(old, LIMITS) == (0, math.inf, AHEAD_NS / 1e9)


counts = st.integers(0, 1 << 63)
limits = st.builds(RollLimits, st.none() | counts, st.none() | counts)


@given(counts, counts)
def test_a_segment_without_limits_goes_on(payload_bytes: int, age_ns: int) -> None:
    assert why_roll(SegmentState(payload_bytes, age_ns), RollLimits()) is None


@given(counts, counts, counts, counts, limits)
def test_a_segment_that_rolls_also_rolls_when_it_is_larger_and_older(
    payload_bytes: int, more_bytes: int, age_ns: int, more_ns: int, limits: RollLimits
) -> None:
    later = SegmentState(payload_bytes + more_bytes, age_ns + more_ns)
    if why_roll(SegmentState(payload_bytes, age_ns), limits) is not None:
        assert why_roll(later, limits) is not None

"""The decision to close a segment and to open the next one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.roll import RollLimits, RollReason, SegmentState, why_roll

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

"""Decide when an open segment is closed and the next one is opened.

Rule: the decision depends only on its arguments; the caller reads the clock and the counters.
Rule: a limit never rolls a segment without data, so that an idle machine makes no empty segments;
a request always does, so that the user who made it gets a closed segment.
"""

import enum
from typing import NamedTuple


class RollReason(enum.Enum):
    """Why a segment is closed, most urgent first."""

    ASKED = "somebody asked for it"
    BYTES = "it has reached its size"
    AGE = "it has reached its age"


class RollLimits(NamedTuple):
    """How large and how old a segment may become; None: no limit."""

    payload_bytes: int | None = None
    age_ns: int | None = None


class SegmentState(NamedTuple):
    """The state of a segment that the decision depends on."""

    payload_bytes: int
    """Headers and content written so far, in all streams."""
    age_ns: int
    """The time since its first sub-buffer was taken; 0 without one."""
    asked: bool = False
    """Whether somebody has requested a roll since it was opened."""


def why_roll(segment: SegmentState, limits: RollLimits) -> RollReason | None:
    """Return why *segment* is to be rolled now; None: it goes on."""
    if segment.asked:
        return RollReason.ASKED
    if not segment.payload_bytes:
        return None
    if limits.payload_bytes is not None and segment.payload_bytes >= limits.payload_bytes:
        return RollReason.BYTES
    if limits.age_ns is not None and segment.age_ns >= limits.age_ns:
        return RollReason.AGE
    return None

"""Decide when an open segment is closed, and when the next one is made.

Rule: the decision depends only on its arguments; the caller reads the clock and the counters.
Rule: a limit never rolls a segment without data, so that an idle machine makes no empty segments;
a request always does, so that the user who made it gets a closed segment.
"""

import enum
import math
from typing import Final, NamedTuple


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


# The longest time in which the next segment is made before the age of the present one demands it.
AHEAD_NS: Final = 10_000_000_000
# Making it takes two syncs, which are seconds on a slow disk.  An idle machine makes none.
AHEAD_SHARE: Final = 16
MOST_UNCLOSED: Final = 4
"""The segments of a source that may wait to be closed; with so many, the present one grows.

Each has its files open, and cannot be deleted yet.
"""


def is_near(segment: SegmentState, limits: RollLimits) -> bool:
    """Tell whether *segment* is so near to a limit that the next one is to be made ahead.

    After a sixteenth of the size 15 times as much time is left, however fast data comes.
    """
    if not segment.payload_bytes:
        return False
    size, age_ns = limits
    if size is not None and AHEAD_SHARE * segment.payload_bytes >= size:
        return True
    return age_ns is not None and segment.age_ns >= _near_ns(age_ns)


class Left(NamedTuple):
    """The rest until a limit is reached; infinite without a limit."""

    payload_bytes: float
    ahead_bytes: float
    """The rest until the size asks to make the next segment ahead; infinite if it does so now."""
    age_s: float


def left_until_full(segment: SegmentState, limits: RollLimits) -> Left:
    """Return what *segment* lacks until the limits ask for the next one, or for making it."""
    size, age_ns = limits
    left_bytes = ahead_bytes = left_s = math.inf
    if size is not None:
        left_bytes = max(size - segment.payload_bytes, 0)
        if AHEAD_SHARE * segment.payload_bytes < size:
            ahead_bytes = size / AHEAD_SHARE - segment.payload_bytes
    if age_ns is not None:
        left_bytes = left_bytes if segment.payload_bytes else 0
        near_ns = _near_ns(age_ns)
        left_s = ((near_ns if segment.age_ns < near_ns else age_ns) - segment.age_ns) / 1e9
    return Left(left_bytes, ahead_bytes, left_s)


def _near_ns(age_ns: int) -> int:
    return max(age_ns - AHEAD_NS, age_ns // 2)


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

"""Find new, stale and missing records by their u32 sequence numbers.

Rule: pure; the numbers are of one CPU, grow by one and wrap.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


class Judged(NamedTuple):
    """The result of judge()."""

    sound: Mask
    missing: list[tuple[int, int]]
    """Pairs: the number of a record, and how many are missing before it."""
    last: int | None
    repeated: Mask
    """Those that came already, up to the last one before: not the ones that are merely stale."""


def judge(numbers: U64, last: int | None) -> Judged:
    """Tell new records from repeated and stale ones, by runs of consecutive numbers.

    Numbers are u32 and wrap.  A run that steps back is stale, unless it begins anew at 0 or 1.  A
    single number that is ahead of the numbers after it is stale, too.
    """
    sound = np.ones(len(numbers), np.bool_)
    repeated = np.zeros(len(numbers), np.bool_)
    missing: list[tuple[int, int]] = []
    if not len(numbers):
        return Judged(sound, missing, last, repeated)
    steps = (numbers[1:] - numbers[:-1]) & np.uint64(0xFFFFFFFF)
    bounds = [0, *(np.flatnonzero(steps != 1) + 1).tolist(), len(numbers)]
    for run, (first, behind) in enumerate(pairwise(bounds)):
        number = int(numbers[first])
        ahead = 1 if last is None else _signed(number - last)
        if ahead > 1:
            following = int(numbers[behind]) if run + 2 < len(bounds) else None
            assert last is not None
            if (
                behind - first == 1
                and following is not None
                and 1 <= _signed(following - last) < ahead
            ):
                sound[first] = False
                continue
            missing.append((first, ahead - 1))
        elif ahead < 1 and not (number < 2 and behind - first > 1):
            fresh = first + 1 - ahead
            sound[first : min(fresh, behind)] = False
            repeated[first:fresh] = fresh <= behind
            if fresh >= behind:
                continue
        last = int(numbers[behind - 1])
    return Judged(sound, missing, last, repeated)


def _signed(difference: int) -> int:
    return (difference + (1 << 31)) % (1 << 32) - (1 << 31)

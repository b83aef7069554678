"""Turn the time stamps of a ring buffer into the times that its recorder gave them a meaning by.

    time = ((stamp * multiplier) >> shift) + add        modulo 2^64

trace-cmd notes such numbers where a trace was recorded by the TSC (TSC2NSEC), or where times are
those of the day (DATE, OFFSET).  A stream's manifest has them as ``MULTIPLIER SHIFT ADD``.

Source: trace-cmd lib/trace-cmd/trace-input.c, timestamp_calc() and mul_u64_u32_shr().
"""

import re
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_FORM: Final = re.compile(r"(\d{1,10}) (\d{1,2}) (-?\d{1,20})")
_LOW: Final = np.uint64((1 << 32) - 1)
_HALF: Final = 32
_MOST: Final = (1 << 64) - 1


class TimeScale(NamedTuple):
    """How the times of a stream follow from its stamps."""

    multiplier: int = 1
    shift: int = 0
    add: int = 0

    def __str__(self) -> str:
        """Return the form of the manifest."""
        return f"{self.multiplier} {self.shift} {self.add}"

    @classmethod
    def parse(cls, text: str) -> "TimeScale | None":
        """Return what __str__() made; None: the stamps are the times.

        Raises:
            ValueError: *text* has another form, or numbers that no trace can have.
        """
        if not text:
            return None
        found = _FORM.fullmatch(text)
        if found is None or int(found[1]) > int(_LOW) or int(found[2]) >= 2 * _HALF:
            raise ValueError(f"{text[:40]!r} is not a valid time scale")
        return cls(int(found[1]), int(found[2]), int(found[3]))

    def of(self, stamps: U64) -> U64:
        """Return the times of some stamps."""
        times = stamps
        if (self.multiplier, self.shift) != (1, 0):
            by, shift = np.uint64(self.multiplier), np.uint64(self.shift)
            times = ((stamps & _LOW) * by) >> shift
            high = (stamps >> np.uint64(_HALF)) * by
            up = self.shift <= _HALF
            distance = np.uint64(abs(_HALF - self.shift))
            times = times + (high << distance if up else high >> distance)
        return times + np.uint64(self.add & _MOST)

    def of_one(self, stamp: int) -> int:
        """Return the time of one stamp."""
        return int(self.of(np.array([stamp & _MOST], np.uint64))[0])

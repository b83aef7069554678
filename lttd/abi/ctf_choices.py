"""The option of a variant that each value of its tag means, for columns of values.

The ranges of values cut the numbers into intervals of one option each, so that a value costs a
search, however many ranges there are: a metadata may have 65,536.
"""

from heapq import heappop, heappush
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_classes import Variant

I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
Labels = tuple[tuple[str, int, int], ...]
"""Label, first and last value."""

NONE: Final = -1


class Choices:
    """The options of one variant."""

    def __init__(self, of: Variant, labels: Labels) -> None:
        """*labels*: those of the tag, which count if the variant has no ranges of its own."""
        numbers: dict[str, int] = {}
        for number, (name, _) in enumerate(of.options):
            numbers.setdefault(name, number)
        ranges = [
            (low, high, numbers[name]) for name, low, high in of.ranges or labels if name in numbers
        ]
        self._begins, self._options = _intervals(ranges)
        self._tables: dict[str, tuple[Column, I64]] = {}

    def of(self, tag: Column) -> I64:
        """Return the number of the option for each value; NONE: it has none."""
        begins, options = self._table(tag.dtype)
        found: I64 = options[np.searchsorted(begins, tag, "right")]
        return found

    def _table(self, dtype: np.dtype[Any]) -> tuple[Column, I64]:
        """Return the begins of the intervals as *dtype*, and the option after so many begins."""
        if dtype.str not in self._tables:
            limits = np.iinfo(dtype)
            low, high = int(limits.min), int(limits.max)
            known = {
                max(begin, low): option
                for begin, option in zip(self._begins, self._options, strict=True)
                if begin <= high
            }
            begins = np.array(list(known), dtype)
            options = np.array([NONE, *known.values()], np.int64)
            self._tables[dtype.str] = begins, options
        return self._tables[dtype.str]


def _intervals(ranges: list[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """Return the begins of intervals and the first option of each; ranges may overlap."""
    begins = sorted({at for low, high, _ in ranges for at in (low, high + 1)})
    following = sorted(ranges, reverse=True)
    within: list[tuple[int, int]] = []
    options = []
    for begin in begins:
        while following and following[-1][0] <= begin:
            _, high, number = following.pop()
            heappush(within, (number, high))
        while within and within[0][1] < begin:
            heappop(within)
        options.append(within[0][0] if within else NONE)
    return begins, options

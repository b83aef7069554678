"""What a stream of fixed-size sub-buffers adds to rows that ``lttd.abi`` has parsed."""

from collections.abc import Iterable

import numpy as np

from lttd.abi.ftrace import close_rows
from lttd.subbuffer import Gap, Reason, Rows, Unit


class RowBook:
    """Numbers the rows of one stream and makes their times running maxima."""

    def __init__(self) -> None:
        self.begin = 0
        """Of the last row."""
        self.sequence = 0
        """Number of the next row."""
        self._end = 0

    def enter(self, rows: Rows, now: int) -> None:
        """Fill in sequence, begin and end; *now* is no less than the time of any event in them."""
        if not len(rows):
            return
        self.begin = close_rows(rows, not_before=self.begin, now=now)
        # The last row of a take may end "now", which the next take's first ones end before.
        ends = np.maximum(rows["end"], np.uint64(self._end))
        rows["end"] = np.maximum.accumulate(ends)
        self._end = int(rows["end"][-1])
        rows["sequence"] = np.arange(self.sequence, self.sequence + len(rows), dtype=np.uint64)
        self.sequence += len(rows)


def damage(
    rows: Rows, damaged: Iterable[tuple[int, int]], subbuffer_bytes: int, begin: int, now: int
) -> tuple[Gap, ...]:
    """Return a gap for each sub-buffer that did not parse; *begin*: of the row before *rows*."""
    begins = [begin, *rows["begin"].tolist(), max(now, begin)]
    return tuple(
        Gap(
            row,
            Reason.DAMAGED,
            Unit.BYTES,
            subbuffer_bytes,
            begins[row],
            max(begins[row], begins[row + 1]),
        )
        for row, _ in damaged
    )

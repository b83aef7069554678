"""Complete the rows of a stream: numbers, times that never fall, and totals of lost events.

Rule: the parser of an ABI finds rows with their own times; the book completes them, and no other
code numbers rows or adds up losses.  A stream that appears again goes on with the same book.
Invariant: ``discarded_total`` = lost events of all gaps that were counted so far.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Reason, Rows, Unit


class RowBook:
    """Completes the rows of one stream."""

    def __init__(self) -> None:
        self.sequence = 0
        """Number of the next row."""
        self.begin = 0
        """Of the last row, trace clock."""
        self.end = 0
        """Of the last row, trace clock."""
        self.discarded_total = 0
        """Events lost since the stream began."""

    def enter(self, rows: Rows, gaps: Sequence[Gap]) -> None:
        """Number rows that have times of their own, and count *gaps*, which lie between them."""
        self.number(rows)
        self.count(rows, gaps)

    def number(self, rows: Rows, last_end: int | None = None) -> None:
        """Fill in ``sequence``; make ``begin`` and ``end`` running maxima.

        With *last_end*, rows have no end of their own: each ends at the begin of the next one, and
        the last one at *last_end*, which no event in it is later than.
        """
        count = len(rows)
        if not count:
            return
        first = np.uint64(self.begin)
        rows["begin"] = begin = np.maximum.accumulate(np.maximum(rows["begin"], first))
        if last_end is None:
            end = np.maximum.accumulate(np.maximum(rows["end"], begin))
        else:
            end = np.empty_like(begin)  # rises as begin does
            end[:-1] = begin[1:]
            end[-1] = max(last_end, int(begin[-1]))
        # The last row of a take may end "now", and the first rows of the next take earlier.
        rows["end"] = end = np.maximum(end, np.uint64(self.end))
        rows["sequence"] = np.arange(self.sequence, self.sequence + count, dtype=np.uint64)
        self.sequence += count
        self.begin, self.end = int(begin[-1]), int(end[-1])

    def count(self, rows: Rows, gaps: Iterable[Gap]) -> None:
        """Fill in ``discarded_total``, in each row with the events of the gaps before it."""
        if len(rows):
            rows["discarded_total"] = self.discarded_total
        for gap in gaps:
            if gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS and gap.count:
                self.discarded_total += gap.count
                if gap.row < len(rows):
                    rows["discarded_total"][gap.row :] += np.uint64(gap.count)


def damage_gaps(
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

"""Divide the time of a trace into cells, at whose ends pieces end, whatever window they are of.

A cell reaches from one sub-buffer of its segment's longest stream to a later one, a fixed number of
sub-buffers apart, so that on average it holds the content of a piece.

Rule: cells follow from the indexes alone, and their ends are found one by one.  So a question
that skips most of a trace cuts its pieces as one that reads all of it, without all of the indexes.
"""

from collections.abc import Iterator, Sequence
from heapq import merge
from typing import Protocol

from lttd.index import Entries


class Index(Protocol):
    """The entries of one stream."""

    def __len__(self) -> int: ...
    def entries(self, first: int = 0, behind: int | None = None) -> Entries:
        """Return entries ``[first:behind]``."""
        ...

    def first_beginning_after(self, time: int) -> int:
        """Return the number of the first entry whose begin is > *time*, or len()."""
        ...


def cell_ends(
    segments: Sequence[tuple[Index, int]], begin: int, end: int, cell_bytes: int
) -> Iterator[int]:
    """Yield the ends of cells in (*begin*, *end*], in the order of time; some may be equal.

    *segments*: of each the index of its longest stream, and the length of its data.  A cell that
    one segment has for itself holds about *cell_bytes*.
    """
    return merge(*(_ends_of(*segment, begin, end, cell_bytes) for segment in segments))


def _ends_of(
    longest: Index, data_bytes: int, begin: int, end: int, cell_bytes: int
) -> Iterator[int]:
    step = max(len(longest) * cell_bytes // max(data_bytes, 1), 1)
    number = max(-(-longest.first_beginning_after(begin) // step), 1) * step
    while number < len(longest):
        time = int(longest.entries(number, number + 1)["begin"][0])
        if time > end:
            return
        yield time
        number += step

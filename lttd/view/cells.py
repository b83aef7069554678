"""Divide the time of a trace into cells, at whose ends pieces end, whatever window they are of.

A cell reaches from one sub-buffer of its segment's longest stream to a later one, a fixed number of
sub-buffers apart, so that on average it holds the content of a piece.

Rule: cells follow from the indexes alone, and each is found by itself.  So a question that skips
most of a trace cuts its pieces as one that reads all of it, without all of the indexes.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
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


class Cells:
    """The cells of a window, both of whose ends are included."""

    def __init__(
        self, segments: Sequence[tuple[Index, int]], begin: int, end: int, cell_bytes: int
    ) -> None:
        """*segments*: of each the index of its longest stream, and the length of its data.

        A cell that one segment has for itself holds about *cell_bytes*.
        """
        self._marks = [_Marks(index, data_bytes, cell_bytes) for index, data_bytes in segments]
        self._begin = begin
        self._end = end

    def ends(self) -> Iterator[int]:
        """Yield the ends of all cells, in the order of time; some may be equal."""
        yield from merge(*(one.within(self._begin, self._end) for one in self._marks))
        yield self._end + 1

    def begins_backwards(self) -> Iterator[int]:
        """Yield the begins of all cells, the last one first; some may be equal."""
        marks = (one.within_backwards(self._begin, self._end) for one in self._marks)
        yield from merge(*marks, reverse=True)
        yield self._begin

    def at(self, time: int) -> tuple[int, int]:
        """Return begin and end of the cell that has a time of the window."""
        begin, end = self._begin, self._end + 1
        for one in self._marks:
            before, after = one.around(time)
            begin, end = max(begin, before), end if after is None else min(end, after)
        return min(begin, time), max(end, time + 1)  # whatever order a damaged index has


class _Marks:
    """The times at which the cells of one segment end."""

    def __init__(self, index: Index, data_bytes: int, cell_bytes: int) -> None:
        self._index = index
        self._step = max(len(index) * cell_bytes // max(data_bytes, 1), 1)
        self._count = max(len(index) - 1, 0) // self._step

    def within(self, begin: int, end: int) -> Iterator[int]:
        """Yield those in (*begin*, *end*]."""
        number = self._first_after(begin)
        while number < len(self._index):
            time = self._time(number)
            if time > end:
                return
            yield time
            number += self._step

    def within_backwards(self, begin: int, end: int) -> Iterator[int]:
        """Yield those of within(), the last one first."""
        last = (self._index.first_beginning_after(end) - 1) // self._step * self._step
        for number in range(last, self._first_after(begin) - 1, -self._step):
            yield self._time(number)

    def _first_after(self, time: int) -> int:
        """Return the number of the first entry that ends a cell after *time*."""
        return max(-(-self._index.first_beginning_after(time) // self._step), 1) * self._step

    def around(self, time: int) -> tuple[int, int | None]:
        """Return the last one at or before *time*, or -1, and the first one after it, or None."""
        first, last = self._ends
        if first is None or time < first:
            return -1, first
        if time >= last:
            return last, None
        number = (self._index.first_beginning_after(time) - 1) // self._step
        number = min(max(number, 0), self._count - 1) * self._step
        return self._time(number), self._time(number + self._step)

    @cached_property
    def _ends(self) -> tuple[int | None, int]:
        if not self._count:
            return None, -1
        return self._time(self._step), self._time(self._count * self._step)

    def _time(self, number: int) -> int:
        return int(self._index.entries(number, number + 1)["begin"][0])

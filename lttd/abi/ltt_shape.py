"""The layout of an event's payload in LTTng 0.x: the alignment and the length of its fields."""

from typing import Final

from lttd.abi.ltt import Layout
from lttd.abi.ltt_markers import Marker

_NATURAL: Final = (4, 5)


def aligned_to(layout: Layout, size_bytes: int, alignment: int) -> int:
    """Return the alignment of a field of *size_bytes*, by the trace's or a marker's alignment."""
    if not alignment:
        return 1
    return size_bytes if layout.minor in _NATURAL else min(size_bytes, alignment)


class Shape:
    """The layout of a payload, which several markers may share.

    The integers between two strings are a run, whose length depends on its place modulo 8.
    """

    def __init__(self, marker: Marker, layout: Layout) -> None:
        alignments = [
            aligned_to(layout, field.stored.size_bytes, marker.sizes.alignment)
            for field in marker.fields
            if not field.is_string
        ]
        self.alignment = max(alignments, default=1)
        """The alignment of the payload."""
        self._runs: list[tuple[int, ...]] = []
        """The runs before each string, and after the last one."""
        run: list[tuple[int, int]] = []
        self.strings = 0
        for field in marker.fields:
            if field.is_string:
                self.strings += 1
                self._runs.append(_lengths(run))
                run = []
            else:
                size = field.stored.size_bytes
                run.append((size, aligned_to(layout, size, marker.sizes.alignment)))
        self._runs.append(_lengths(run))

    @property
    def fixed_bytes(self) -> int | None:
        """The size of the payload; None if it has strings."""
        return None if self.strings else self._runs[0][0]

    def behind(self, data: bytes, begin: int, end: int) -> int:
        """Return the end of a payload at *begin*; -1 if a string does not end before *end*."""
        at = begin
        for run in self._runs[:-1]:
            at = data.find(0, at + run[(at - begin) & 7], end) + 1
            if not at:
                return -1
        return at + self._runs[-1][(at - begin) & 7]


def _lengths(run: list[tuple[int, int]]) -> tuple[int, ...]:
    """Return the length of a run of integers (size, alignment), for each place modulo 8."""
    lengths = []
    for begin in range(8):
        at = begin
        for size, alignment in run:
            at = rounded_up(at, alignment) + size
        lengths.append(at - begin)
    return tuple(lengths)


def rounded_up(at: int, alignment: int) -> int:
    """Return the first aligned offset from *at* on."""
    return (at + alignment - 1) & -alignment

"""Select the part of a stream in a window: whole sub-buffers, and the losses among them.

Rule: a bisection finds the entries, and no others are read; gaps are few, and all are read.
Rule: a stream that describes the others is kept whole, whatever the window.
Invariant: a loss is kept if it touches the window, or lies directly before the first kept
sub-buffer, whose own header may report it.
"""

from collections.abc import Iterator
from dataclasses import replace

from lttd.blocks import Block, entry_at
from lttd.errors import TraceDamagedError
from lttd.stored import StoredStream
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Unit
from lttd.view.times import ALWAYS_END, Window
from lttd.view.trace import Segment


class Selection:
    """The part of one stream in a window."""

    def __init__(self, stream: StoredStream, begin: int, end: int) -> None:
        """Find entries ``[first:behind)`` and gaps, with rows counted from *first*.

        Raises:
            TraceDamagedError: index or gaps cannot be used; ``lttv check --repair`` helps.
        """
        self.stream = stream
        abi = stream.abi
        self.whole = abi is not None and abi.describes_others(stream.info.id.channel)
        """Whether all of the stream is kept; it then counts as empty, which no window is for."""
        if self.whole:
            begin, end = 0, ALWAYS_END
        index = stream.index
        self.first, self.behind = index.between(begin, end)
        self.entries = index.some(self.first, self.behind)
        self._last = len(index) == self.behind
        self.gaps = [
            replace(gap, row=min(gap.row, self.behind) - self.first)
            for gap in stream.gaps
            if self._keeps(gap, begin, end)
        ]

    @property
    def empty(self) -> bool:
        """Tell whether there is neither a sub-buffer nor a loss in the window."""
        return self.whole or (not len(self.entries) and not self.gaps)

    def _keeps(self, gap: Gap, begin: int, end: int) -> bool:
        if gap.row < self.behind:
            return gap.row >= self.first
        if gap.row > self.behind and not self._last:
            return False
        # The last sub-buffer of the window ends in it or later, and the loss came after that.
        return gap.begin <= end and (len(self.entries) > 0 or gap.end >= begin)

    @property
    def baseline(self) -> int:
        """events_discarded before the first kept gap."""
        if not len(self.entries):
            before = self.stream.index.entries(max(self.first - 1, 0), self.first)
            base = self.stream.record.baseline_discarded
            return int(before["events_discarded"][-1]) if len(before) else base
        told = sum(
            gap.count or 0
            for gap in self.gaps
            if gap.row == 0 and gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS
        )
        return int(self.entries[0]["events_discarded"]) - told

    def blocks(self) -> Iterator[Block]:
        """Read the sub-buffers, some at a time; rows count from *first*."""
        return self.stream.blocks(self.entries, self.first)

    def extent(self) -> tuple[int, int]:
        """Return where the sub-buffers lie in the data file: (first byte, length).

        Raises:
            TraceDamagedError: the data does not have them all.
        """
        try:
            return self.stream.extent(self.entries)
        except ValueError as error:
            at = entry_at(self.behind - 1)
            raise TraceDamagedError(
                self.stream.index_path, at, f"{error}; see lttv check"
            ) from None


def parts_within(segment: Segment, window: Window) -> list[Selection]:
    """Return the part of each of the segment's streams in *window*, which may be empty."""
    begin, end = window.bounds(segment)
    return [Selection(stream, begin, end) for stream in segment.streams]

"""Show the progress of long work on stderr, if that is a terminal.

Rule: the text is erased when the work is done.
"""

import sys
import time
from collections.abc import Iterator
from typing import Final

from lttd.terminal import is_terminal, overwrite_line
from lttd.view.library import ClockGroup
from lttd.view.window import Piece, extent

EVERY_S: Final = 0.5
# The cursor stays at the begin of the line, so that the next output overwrites the text.
_TOLD: Final = "{:4.0%}"
_CLEAR: Final = "    "


class Progress:
    """Shows the finished part of a group's window."""

    def __init__(self, group: ClockGroup, *, wanted: bool = True, backwards: bool = False) -> None:
        self._group = group
        self._backwards = backwards
        self._on = wanted and is_terminal(sys.stderr)
        self._next = time.monotonic() + EVERY_S

    def reached(self, piece: Piece) -> None:
        """Show from time to time that *piece* is done."""
        if not self._on or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        held = extent(self._group.sources) or (piece.begin, piece.end)
        begin, end = max(held[0], self._group.begin), min(held[1], self._group.end)
        done = end - max(piece.begin, begin) if self._backwards else min(piece.end, end) - begin
        part = done / max(end - begin, 1)
        overwrite_line(_TOLD.format(min(part, 1)))

    def done(self) -> None:
        """Erase the text."""
        if self._on:
            overwrite_line(_CLEAR)


def pieces_of(group: ClockGroup) -> Iterator[Piece]:
    """Yield the pieces of a group's window, and show the progress."""
    progress = Progress(group)
    try:
        for piece in group.pieces():
            yield piece
            progress.reached(piece)
    finally:
        progress.done()

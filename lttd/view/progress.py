"""How far long work has come, on stderr where that is a terminal.

Rule: what it wrote is gone when the work is done.
"""

import sys
import time
from collections.abc import Iterator
from typing import Final

from lttd.terminal import is_terminal, overwrite_line
from lttd.view.library import ClockGroup
from lttd.view.window import Piece, extent

EVERY_S: Final = 0.5
# The cursor waits where the line begins: whoever writes next writes over what stands there.
_TOLD: Final = "{:4.0%}"
_CLEAR: Final = "    "


class Progress:
    """Tells which part of a group's window has been done."""

    def __init__(self, group: ClockGroup, *, wanted: bool = True) -> None:
        self._group = group
        self._on = wanted and is_terminal(sys.stderr)
        self._next = time.monotonic() + EVERY_S

    def reached(self, piece: Piece) -> None:
        """Say that *piece* is done, now and then."""
        if not self._on or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        held = extent(self._group.sources) or (piece.begin, piece.end)
        begin, end = max(held[0], self._group.begin), min(held[1], self._group.end)
        part = (min(piece.end, end) - begin) / max(end - begin, 1)
        overwrite_line(_TOLD.format(min(part, 1)))

    def done(self) -> None:
        """Leave nothing behind."""
        if self._on:
            overwrite_line(_CLEAR)


def pieces_of(group: ClockGroup) -> Iterator[Piece]:
    """Yield the pieces of a group's window, and tell how far it has come."""
    progress = Progress(group)
    try:
        for piece in group.pieces():
            yield piece
            progress.reached(piece)
    finally:
        progress.done()

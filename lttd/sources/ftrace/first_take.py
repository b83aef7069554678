"""Find where the events begin in a ring that overwrote itself while nobody read it.  Does no I/O.

The kernel gives a reader a page of its own, which writers do not overwrite.  After the last take of
a window, the rest of that page stays as old as it is, while the ring goes on:

    reader's page   ring
    | old rest |    ... overwritten ... | first page, flagged | second | ...

The first page that the kernel swaps in after it has overwritten events says that events are missing
before it.  Rows before that page are not wanted: between them and it is a hole.
Source: Linux kernel/trace/ring_buffer.c, rb_get_reader_page().
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class FirstTake:
    """The first takes of one ring after a pause, until they have a row that is wanted."""

    read_events: int = 0
    """The kernel's ``read events`` before the take."""
    _passed_the_rest: bool = False

    def first_row(
        self, rows: int, missed: Sequence[tuple[int, int | None]], *, wrapped: bool
    ) -> int:
        """Return the number of the first row that is wanted; *rows*: none of them.

        *missed* has the rows before which events are missing.  *wrapped*: the ring has overwritten
        events since the pause.  Events that are overwritten during the take itself leave a hole,
        too, so the last such row counts.
        """
        if missed:
            return missed[-1][0]
        if not wrapped or self._passed_the_rest or not rows:
            return 0
        self._passed_the_rest = True
        return 1

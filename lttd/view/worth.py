"""Tell how many processes pay off for a window."""

import os
from typing import Final

from lttd.index import FOREVER
from lttd.view.library import ClockGroup
from lttd.view.window import PIECE_BYTES, WindowStream

# Below this size, about 0.2 s of work, a second process costs more than it saves.
WORTH_BYTES: Final = 3 * PIECE_BYTES
MOST_JOBS: Final = 8


def jobs_worth(group: ClockGroup) -> int:
    """Return how many processes pay off to decode a group's window."""
    held = sum(
        round(_held_bytes(source, group.begin, group.end) * group.needed_share(source))
        for source in group.touching
    )
    if held < WORTH_BYTES:
        return 1
    return min(jobs_at_most(), held // PIECE_BYTES)


def jobs_at_most() -> int:
    """Return how many processes can pay off on this machine."""
    return min(len(os.sched_getaffinity(0)), MOST_JOBS)


def _held_bytes(source: WindowStream, begin: int, end: int) -> int:
    """Return the approximate number of a stream's bytes within a window."""
    index = source.index
    first = index.first_at_or_after(begin)
    last = index.first_at_or_after(min(end, FOREVER))
    ends = index.entries(first, first + 1), index.entries(min(last, len(index) - 1), last + 1)
    if not len(ends[0]) or not len(ends[1]):
        return 0
    return int(ends[1]["offset_bytes"][0]) - int(ends[0]["offset_bytes"][0])

"""Find the sub-buffers of LTTng 0.x in a file, by the size that each of them states.

Rule: nothing here raises or reads beyond the end; bytes that are not a sub-buffer are damage.
Invariant: the sub-buffers and the damage of survey() cover the file.
"""

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from lttd.abi.base import Readable, Unreadable
from lttd.abi.ltt import (
    HEADS,
    I64,
    LAST_MINOR,
    LEAST_HEADER_BYTES,
    MAGIC,
    MAJOR,
    MOST_HEADER_BYTES,
    PAGE_BYTES,
    VARYING_SINCE,
    header_bytes_of,
    headers_at,
    is_clock,
    layout_of,
    order_at,
)

MOST_PAGE_BYTES: Final = 65536
"""The largest page of any tracer: from format 2.5 on padding is shorter."""


class Survey(NamedTuple):
    """The sub-buffers and the damage of a whole file."""

    offsets_bytes: I64
    sizes_bytes: I64
    used_bytes: I64
    damage: list[Unreadable]

    @property
    def page_bytes(self) -> int:
        """The tracer's page size, to which (2.5 and later) all sizes are rounded up.

        It is the smallest that fits every sub-buffer; PAGE_BYTES if none does.
        """
        page_bytes = PAGE_BYTES
        while page_bytes <= MOST_PAGE_BYTES:
            if (-(-self.used_bytes // page_bytes) * page_bytes == self.sizes_bytes).all():
                return page_bytes
            page_bytes *= 2
        return PAGE_BYTES


def survey(data: Readable) -> Survey:
    """Follow the headers from the first byte to the last, and skip damage.

    After bytes that do not parse, it tries the begin of every page.
    """
    offsets, sizes, used_sizes = array("q"), array("q"), array("q")
    damage: list[Unreadable] = []
    at, room = 0, len(data)
    order = order_at(data, range(0, room, PAGE_BYTES))
    while at < room:
        used, size = _extent(data, at, order)
        if 0 < size <= room - at:
            offsets.append(at)
            sizes.append(size)
            used_sizes.append(used)
            at += size
            continue
        behind = _next_sound(data, at, order)
        torn = (size > 0 and behind == room) or room - at < LEAST_HEADER_BYTES
        reason = _reason(data, at, size)
        damage.append(Unreadable(len(offsets), at, behind - at, torn, reason))
        at = behind
    where = [np.array(each, np.int64) for each in (offsets, sizes, used_sizes)]
    return Survey(where[0], where[1], where[2], damage)


def adjoining(data: Readable, start_bytes: int) -> Iterator[int]:
    """Yield the offsets of adjoining stripped sub-buffers, until one is not whole."""
    room = len(data)
    order = order_at(data, [start_bytes]) if start_bytes < room else "<"
    at = start_bytes
    while at < room:
        used, size = _extent(data, at, order)
        if not 0 < used <= room - at or size != used:
            return
        yield at
        at += used


def _extent(data: Readable, at: int, order: str) -> tuple[int, int]:
    """Return used and delivered bytes of the sub-buffer at *at*; (0, 0) if there is none."""
    head = data[at : at + LEAST_HEADER_BYTES]
    if len(head) < LEAST_HEADER_BYTES:
        return 0, 0
    _, _, magic, major, minor, pointer, alignment, _, _, frequency, scale, used, size = HEADS[
        order
    ].unpack(head)
    if magic != MAGIC or major != MAJOR or minor > LAST_MINOR:
        return 0, 0
    possible = pointer in (4, 8) and alignment in (0, 4, 8)
    if not possible or not is_clock(minor, frequency, scale):
        return 0, 0
    if minor < VARYING_SINCE:
        used = size - used
    elif size - used >= MOST_PAGE_BYTES:  # padding only fills the last page
        return 0, 0
    if not header_bytes_of(minor, pointer) <= used <= size:
        return 0, 0
    return used, size


def _next_sound(data: Readable, at: int, order: str) -> int:
    """Return the offset of the next whole sub-buffer at a page after *at*; else the end."""
    room, pages = len(data), 16
    start = (at // PAGE_BYTES + 1) * PAGE_BYTES
    while start < room:
        behind = min(start + pages * PAGE_BYTES, room)
        offsets = np.arange(start, behind, PAGE_BYTES)
        part = data[start : min(behind + MOST_HEADER_BYTES, room)]
        found = headers_at(part, offsets - start, room - start)
        for offset in offsets[found.sound].tolist():
            if 0 < _extent(data, offset, order)[1] <= room - offset:
                return int(offset)
        start, pages = behind, min(2 * pages, 1024)
    return room


def _reason(data: Readable, at: int, size: int) -> str:
    """Return why no whole sub-buffer begins at *at*."""
    try:
        layout_of(data, at)
    except ValueError as error:
        return str(error)
    if size:
        return f"a sub-buffer of {size} bytes, of which {len(data) - at} are there"
    return "the sizes in the header are impossible"

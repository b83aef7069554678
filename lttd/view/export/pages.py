"""Turn the sub-buffers of one ftrace stream into the kernel's whole, padded pages for other tools.

A flush delivers the first part of a page.  The next read of that page begins with a header whose
time stamp is that of the last delivered event, and the delta of its first event counts from there.
So if a sub-buffer begins exactly when the one before ends, without a loss between, its content can
be appended: parts of one page become that page, unchanged.

Rule: losses come from the gaps (which lttd made from the kernel's own flag).  The next page carries
the flag, and the number if it is known and there is room for it after the content.
Invariant: every event is written once, in order, at its time; bytes that do not parse are left out
and become a loss of unknown number.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from lttd.abi.base import Abi
from lttd.abi.ftrace import MISSED_EVENTS, MISSED_STORED, PageLayout
from lttd.abi.table import abi_of
from lttd.blocks import Block
from lttd.index import Entries
from lttd.stored import StoredStream
from lttd.subbuffer import KERNEL_EVENT_REASONS, Gap, Reason, Unit
from lttd.view.notes import Notes
from lttd.view.part import Selection

# Pages that are written at a time.
PAGES_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Loss:
    """The losses since the page before."""

    events: int = 0
    some: bool = False
    """Whether more were lost, of unknown number."""

    def __bool__(self) -> bool:
        return self.some or self.events > 0


@dataclass(slots=True)
class Tally:
    """The totals of an export."""

    subbuffers: int = 0
    events: int = 0
    pages: int = 0
    events_lost: int = 0
    losses_unknown: int = 0
    unwanted_events: int = 0
    """Those in holes between the windows of mode flight: readers see these as losses."""
    notes: Notes = field(default_factory=Notes)

    def lost(self, gap: Gap) -> int | None:
        """Count one gap; return its number of events, None if that is unknown."""
        if gap.reason is Reason.UNWANTED:
            self.unwanted_events += gap.count or 0
            return gap.count
        if gap.unit is Unit.EVENTS and gap.reason in KERNEL_EVENT_REASONS and gap.count is not None:
            self.events_lost += gap.count
            return gap.count
        self.losses_unknown += 1
        return None

    def told(self, pages: str) -> list[str]:
        """Return lines for the user; *pages* is the format's word for pages."""
        lost = f"{self.events_lost} events lost"
        if self.losses_unknown:
            lost += f" and {self.losses_unknown} times some"
        if self.unwanted_events:
            lost += f", {self.unwanted_events} not wanted"
        held = f"{self.events} events of {self.subbuffers} sub-buffers"
        return [*self.notes.told(), f"{held} in {self.pages} {pages}, {lost}"]


def _of_stamps(stream: StoredStream) -> Abi | None:
    """Return what reads the stamps of a stream's sub-buffers, where its times are others."""
    return abi_of(replace(stream.info, time_scale=""), stream.byteorder)


def _moved(block: Block) -> Entries:
    """Return the entries of a block with their offsets in its data."""
    entries = block.entries.copy()
    entries["offset_bytes"] = block.headers.offset_bytes
    return entries


@dataclass(slots=True)
class _Page:
    begin: int
    end: int
    loss: Loss
    content: list[memoryview]
    content_bytes: int


class PageMaker:
    """Makes pages of one CPU's sub-buffers, over any number of segments."""

    def __init__(self, layout: PageLayout, tally: Tally) -> None:
        self._layout = layout
        self._room_bytes = layout.subbuffer_bytes - layout.header_bytes
        self._header = struct.Struct(f"{layout.byteorder}Q{'Q' if layout.long_bytes == 8 else 'L'}")
        self._count = struct.Struct(f"{layout.byteorder}{'Q' if layout.long_bytes == 8 else 'L'}")
        self._tally = tally
        self._loss = Loss()
        self._open: _Page | None = None
        self._done = bytearray()
        self._row = 0
        """The row of the part that comes next."""

    def pages(self, part: Selection) -> Iterator[bytearray]:
        """Yield the pages of *part*, some at a time; the last one stays open for what follows."""
        abi = _of_stamps(part.stream)
        assert abi is not None
        losses: dict[int, list[Gap]] = {}
        for gap in part.gaps:
            losses.setdefault(gap.row, []).append(gap)
        self._row = 0
        for block in part.blocks():
            self._tally.notes.add(*(f"{one}; left out" for one in block.left_out))
            self._add(part, abi, block, losses)
            if len(self._done) >= PAGES_BYTES:
                yield self._given()
        self._skip_to(len(part.entries), losses)
        self._tally.subbuffers += len(part.entries)
        yield self._given()

    def rest(self) -> bytearray:
        """Return the page that is still open."""
        self._close()
        return self._given()

    def _given(self) -> bytearray:
        done, self._done = self._done, bytearray()
        return done

    def _lose(self, gaps: list[Gap]) -> None:
        for gap in gaps:
            count = self._tally.lost(gap)
            if count is None:
                self._loss.some = True
            else:
                self._loss.events += count

    def _damaged(self) -> None:
        self._tally.losses_unknown += 1
        self._loss.some = True

    def _skip_to(self, row: int, losses: dict[int, list[Gap]]) -> None:
        """Take in the losses before *row*; sub-buffers that were left out are such, too."""
        for missing in range(self._row, row):
            self._lose(losses.get(missing, []))
            self._damaged()
        self._lose(losses.get(row, []))
        self._row = row + 1

    def _add(self, part: Selection, abi: Abi, block: Block, losses: dict[int, list[Gap]]) -> None:
        """Take in sub-buffers."""
        headers = abi.headers(block.data, _moved(block))
        decoded = abi.decode(block.data, headers)
        starts = headers.offset_bytes + self._layout.header_bytes
        behind = headers.offset_bytes + headers.content_bytes
        damaged = {damage.row for damage in decoded.damage}
        for damage in decoded.damage:
            behind[damage.row] = damage.offset_bytes
            place = f"{part.stream.data_path}: byte {damage.offset_bytes + block.base}"
            self._tally.notes.add(f"{place}: {damage.reason}")
        assert decoded.events is not None
        self._tally.events += int(decoded.events.sum())
        columns = zip(
            block.rows.tolist(),
            headers.begin.tolist(),
            decoded.end.tolist(),
            starts.tolist(),
            behind.tolist(),
            strict=True,
        )
        for number, (row, begin, end, start, stop) in enumerate(columns):
            self._skip_to(row, losses)
            self._put(begin, end, block.data[start:stop])
            if number in damaged:
                self._damaged()

    def _put(self, begin: int, end: int, content: memoryview) -> None:
        """Append *content*, whose base time is *begin*, to the open page, or open a page for it."""
        page = self._open
        if (
            page is not None
            and begin == page.end
            and page.content_bytes + len(content) <= self._room_bytes
            and not self._loss
        ):
            page.content.append(content)
            page.content_bytes += len(content)
            page.end = end
            return
        if not len(content):
            return
        self._close()
        self._open = _Page(begin, end, self._loss, [content], len(content))
        self._loss = Loss()

    def _close(self) -> None:
        page, self._open = self._open, None
        if page is None:
            return
        word, behind = page.content_bytes, b""
        if page.loss:
            word |= MISSED_EVENTS
            room = self._room_bytes - page.content_bytes >= self._layout.long_bytes
            if room and not page.loss.some:
                word |= MISSED_STORED
                behind = self._count.pack(page.loss.events)
        size = self._layout.subbuffer_bytes
        whole = b"".join((self._header.pack(page.begin, word), *page.content, behind))
        self._done += whole.ljust(size, b"\0")
        self._tally.pages += 1

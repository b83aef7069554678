"""Find the sub-buffers of a window of time, and split it into pieces that need little memory.

A piece is a span [begin, end) of the trace clock and, per stream, the sub-buffers that may have
events in it.  A sub-buffer that reaches beyond a piece is also part of the next one; the decoder
keeps the events within the span.

Rule: only the entries of the window are read from an index, after a bisection.
Invariant: spans adjoin, none is empty, and each event of the window is in exactly one of them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.errors import TraceDamagedError
from lttd.index import ENTRY_BYTES, ENTRY_DTYPE, FOREVER, HEADER, Entries, SeekIndex
from lttd.limits import AT_ONE_TIME
from lttd.stored import StoredStream
from lttd.view.cells import Cells
from lttd.view.losses import Loss, Losses
from lttd.view.notes import TakesNotes

# The content of a piece on average: 200 000 events, and arrays of 60 MB when they become text.
PIECE_BYTES: Final = 6 << 20
# The least content per stream: with less, sub-buffers that are decoded twice would cost too much.
STREAM_BYTES: Final = 64 << 10
# Larger sub-buffers need more of it: so many of each stream, but no more in all than this.
_LARGE_SUBBUFFERS: Final = 8
_LARGE_BYTES: Final = 12 << 20
_LOOK_AHEAD: Final = 2048
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class KnownIndex:
    """Entries in memory, for a stream whose index file cannot be used."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, first: int = 0, behind: int | None = None) -> Entries:
        """Return entries ``[first:behind]``."""
        return self._entries[first:behind]

    def first_at_or_after(self, time: int) -> int:
        """Return the number of the first entry whose end is >= *time*."""
        return int(np.searchsorted(self._entries["end"].astype(np.uint64), np.uint64(time)))

    def first_beginning_after(self, time: int) -> int:
        """Return the number of the first entry whose begin is > *time*, or len()."""
        begins = self._entries["begin"].astype(np.uint64)
        return int(np.searchsorted(begins, np.uint64(time), "right"))


class WindowStream:
    """One stream of a window, with its decoder's context."""

    def __init__(self, stream: StoredStream, context: Any, notes: TakesNotes) -> None:  # noqa: ANN401
        self.stream = stream
        self.context = context
        """The context that the decoder of its family needs; see ``lttd.view.family``."""
        self.cpu = stream.info.id.cpu
        self._notes = notes

    @cached_property
    def index(self) -> SeekIndex | KnownIndex:
        """The index; derived from the data if the file cannot be used."""
        try:
            return self.stream.index
        except (TraceDamagedError, OSError) as error:
            if self.stream.abi is None:
                self._notes.add(f"{error}; the stream cannot be shown")
                return KnownIndex(np.empty(0, ENTRY_DTYPE))
            self._notes.add(f"{error}; read from end to end instead")
            return KnownIndex(self.stream.derived_entries())

    def glance(self) -> SeekIndex | KnownIndex:
        """Return the index, which stays open only while it is used.

        A process has few descriptors, and most streams of a trace of many segments are beside a
        window.
        """
        if not self._is_open:
            with suppress(TraceDamagedError, OSError):
                return self.stream.opened_index()
        return self.index

    @property
    def _is_open(self) -> bool:
        return "index" in vars(self) or "index" in vars(self.stream)

    def touches(self, begin: int, end: int) -> bool:
        """Tell whether a sub-buffer may have events in [*begin*, *end*]; keep the index then."""
        index = self.glance()
        at = index.first_at_or_after(begin)
        found = index.entries(at, at + 1)
        if not len(found) or int(found["begin"][0]) > end:
            return False
        if isinstance(index, SeekIndex):
            self.stream.index = index
        return True

    @cached_property
    def losses(self) -> Losses:
        """The known losses of the stream."""
        return self._opened_losses()

    def _opened_losses(self) -> Losses:
        place = self.stream.segment.place(self.stream.paths.gaps)
        return Losses(place, self._notes, self.stream.gap_records())

    def gaps(self) -> Entries:
        """Return all known losses of the stream, as its file of gaps has them."""
        return (self.losses if self._is_open else self._opened_losses()).records()

    def losses_after_rows(self, begin: int, end: int) -> list[Loss]:
        """Return the losses in [*begin*, *end*] that no sub-buffer there follows.

        A loss that may also have happened after *end* has the time *end*.
        """
        losses = self.losses if self._is_open else self._opened_losses()
        if not len(losses):
            return []
        index = self.glance()
        row = index.first_beginning_after(end)
        earlier, later = index.entries(max(row - 1, 0), row), index.entries(row, row + 1)
        earlier_end = max((_known_end(entry) for entry in earlier), default=-1)
        later_begin = int(later["begin"][0]) if len(later) else None
        found = losses.between(row, earlier_end, later_begin, self.stream.info.id)
        return [
            loss._replace(time=min(loss.time, end))
            for since, loss in found
            if since <= end and loss.time >= begin
        ]


def _known_end(entry: np.void) -> int:
    """Return the end of an entry; its begin if nobody knows the end."""
    end = int(entry["end"])
    return end if end < FOREVER else int(entry["begin"])


def extent(sources: Sequence[WindowStream]) -> tuple[int, int] | None:
    """Return begin and end of the data of some streams, also of those without an index."""
    begins, ends = [], []
    for source in sources:
        index = source.glance()
        if count := len(index):
            first, last = index.entries(0, 1)[0], index.entries(count - 1, count)[0]
            begins.append(int(first["begin"]))
            ends.append(_known_end(last))
    return (min(begins), max(*begins, *ends)) if begins else None


class StreamSlice(NamedTuple):
    """Sub-buffers ``[first:behind)`` of one stream."""

    source: WindowStream
    first: int
    entries: Entries
    needed: Mask | None = None
    """Which of them have to be decoded; None: all."""

    @property
    def is_skipped(self) -> bool:
        """Tell whether none of them has to be decoded."""
        return self.needed is not None and not self.needed.any()

    def behind(self, count: int) -> "StreamSlice":
        """Return the slice without its first sub-buffers."""
        needed = None if self.needed is None else self.needed[count:]
        return StreamSlice(self.source, self.first + count, self.entries[count:], needed)


Choose = Callable[[WindowStream, int, Entries], Mask | None]
"""Called with a stream, the number of an entry, and the entries from there on; returns which of
them have to be decoded; None: all."""


class Spans(NamedTuple):
    """Spans of time that do not overlap, in their order."""

    begin: U64
    last: U64
    """The last time in each of them."""

    def of(self, time: U64) -> I64:
        """Return for each time the number of the last span that begins at or before it."""
        return np.searchsorted(self.begin, time, "right").astype(np.int64) - 1


class Piece(NamedTuple):
    """A span of time, and the sub-buffers that may have events in it."""

    begin: int
    end: int
    """The end of the span, not included."""
    parts: list[StreamSlice]
    rest: Sequence[Loss] = ()
    """The losses in the span that no sub-buffer of the window follows, in the order of time."""
    spans: "Spans | None" = None
    """The spans of the pieces that this one consists of; None: it is not made of others."""
    continues: bool = True
    """Whether the one before it is shown, too, so that records before its begin count there."""


def pieces(
    sources: Sequence[WindowStream],
    rest: Sequence[Loss],
    begin: int,
    end: int,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[Piece]:
    """Yield the pieces of [*begin*, *end*], both included, in the order of time.

    *sources* are those that have something there: each ``touches()`` the window.  *rest*: the
    losses of any stream that no sub-buffer there follows, in the order of time.
    """
    streams, cell_bytes = Streams(sources, begin), content_of(sources, piece_bytes)
    since = begin
    for until in cells(sources, begin, end, cell_bytes).ends():
        for piece in streams.pieces(begin, until, cell_bytes):
            ours, rest = before_and_after(rest, piece.end)
            yield piece._replace(rest=ours, continues=begin > since)
            begin = piece.end


def pieces_backwards(
    sources: Sequence[WindowStream],
    rest: Sequence[Loss],
    begin: int,
    end: int,
    piece_bytes: int = PIECE_BYTES,
    choose: Choose | None = None,
) -> Iterator[Piece]:
    """Yield those of pieces(), the last one first.  Memory holds the entries of one cell.

    *choose*: see ``Choose``; nothing of a piece may have to be decoded.
    """
    cell_bytes = content_of(sources, piece_bytes)
    ends = [(int(one["begin"][0]), int(one["end"][-1])) for one in map(_first_and_last, sources)]
    until = end + 1
    for since in cells(sources, begin, end, cell_bytes).begins_backwards():
        if since >= until:
            continue
        near = [
            one
            for one, (first, last) in zip(sources, ends, strict=True)
            if first < until and last >= since
        ]
        found = list(Streams(near, since).pieces(since, until, cell_bytes, choose))
        for piece in reversed(found):
            rest, ours = before_and_after(rest, piece.begin)
            yield piece._replace(rest=ours, continues=piece.begin > begin)
        until = since


def _first_and_last(source: WindowStream) -> Entries:
    index = source.index
    return np.concatenate((index.entries(0, 1), index.entries(len(index) - 1, len(index))))


def content_of(sources: Sequence[WindowStream], piece_bytes: int) -> int:
    """Return the content of a cell on average; see ``cells``."""
    # Segments follow one another, so no more streams than have a name of their own are cut at once.
    sizes = {
        (one.stream.source_name, one.stream.name): one.stream.info.subbuffer_bytes
        for one in sources
    }
    least = STREAM_BYTES * len(sizes)
    if piece_bytes >= PIECE_BYTES:  # not for a few lines
        large = sum(size * _LARGE_SUBBUFFERS for size in sizes.values() if size > STREAM_BYTES)
        least = max(least, min(large, _LARGE_BYTES))
    return max(piece_bytes, least)


def cells(sources: Sequence[WindowStream], begin: int, end: int, cell_bytes: int) -> Cells:
    """Return the cells of a window."""
    members: dict[object, list[WindowStream]] = {}
    for one in sources:
        members.setdefault(one.stream.segment.directory, []).append(one)
    segments = [
        (max((one.index for one in some), key=len), sum(map(_content_bytes, some)))
        for some in members.values()
    ]
    at_once = len({one.stream.source_name for one in sources})
    return Cells(segments, begin, end, cell_bytes * at_once)


def _content_bytes(one: WindowStream) -> int:
    """Return about how many bytes a stream has: a hole behind its sub-buffers is not content."""
    return min(one.stream.length_bytes, len(one.index) * one.stream.info.subbuffer_bytes)


def before_and_after(losses: Sequence[Loss], time: int) -> tuple[Sequence[Loss], Sequence[Loss]]:
    """Divide losses, which are in the order of time, into those before *time* and the others."""
    at = bisect_left(losses, time, key=lambda loss: loss.time)
    return losses[:at], losses[at:]


class Streams:
    """The streams of a window, of which a piece looks at those that its span may touch."""

    def __init__(self, sources: Sequence[WindowStream], begin: int) -> None:
        found = [_Position(number, source, begin) for number, source in enumerate(sources)]
        self._active: list[_Position] = []
        self._waiting = sorted(found, key=lambda one: one.begin, reverse=True)
        """Those that begin later, the first one at the end."""

    def pieces(
        self, begin: int, until: int, cell_bytes: int, choose: Choose | None = None
    ) -> Iterator[Piece]:
        """Yield the pieces of [*begin*, *until*), without the losses that no sub-buffer follows.

        A cell of half as much again as *cell_bytes* is still one piece.
        """
        while begin < until:
            ahead, behind = self._ahead(begin, cell_bytes * 3 // 2, until)
            if ahead is not None:
                behind = ahead.divided(begin, behind, cell_bytes)
            yield Piece(begin, behind, ahead.take(behind, choose) if ahead else [])
            begin = behind

    def _ahead(self, begin: int, most_bytes: int, until: int) -> tuple["_Ahead | None", int]:
        """Return the entries for a piece that begins at *begin*, and its end, *until* at most."""
        self._active = [one for one in self._active if one.at < len(one.source.index)]
        self._join(begin + 1, len(self._waiting))
        behind = until
        ahead = None
        while self._active or self._waiting:
            if self._active:
                ahead = _Ahead(self._active, begin)
                behind = min(behind, ahead.cut(begin, most_bytes))
            # A few at a time: what has joined may fill the piece.
            if not self._join(behind, max(len(self._active), 1)):
                break
        return ahead, behind

    def _join(self, before: int, most: int) -> bool:
        """Look from now on also at streams that begin before a time; tell whether there are any."""
        joined = 0
        while joined < most and self._waiting and self._waiting[-1].begin < before:
            self._active.append(self._waiting.pop())
            joined += 1
        self._active.sort(key=lambda one: one.number)  # of equal times the first stream's is first
        return joined > 0


class _Position:
    """How far the pieces of a window have come in one stream."""

    def __init__(self, number: int, source: WindowStream, begin: int) -> None:
        self.number = number
        self.source = source
        self.at = source.index.first_at_or_after(begin)
        """The number of the next entry."""
        first = source.index.entries(self.at, self.at + 1)
        self.begin = int(first["begin"][0]) if len(first) else FOREVER + 1


class _Ahead:
    """The next entries of some streams, as far as one piece may need them."""

    def __init__(self, positions: Sequence[_Position], begin: int) -> None:
        self._positions = positions
        self._entries: list[Entries] = []
        self._begins: list[U64] = []
        self.horizon = FOREVER + 1
        """Up to this time the entries of all streams are known."""
        for source, at in ((one.source, one.at) for one in positions):
            count = _LOOK_AHEAD
            while True:
                seen = source.index.entries(at, at + count + 1)
                begins = seen["begin"].astype(np.uint64)
                if len(seen) <= count or int(begins[-1]) > begin:
                    break
                if count > AT_ONE_TIME.most:
                    raise TraceDamagedError(
                        source.stream.index_path,
                        HEADER.size + (at + count) * ENTRY_BYTES,
                        f"{count:,} entries do not begin later than {begin}; {AT_ONE_TIME};"
                        " lttv check --repair makes the index again",
                    )
                count *= 2  # all of these sub-buffers begin at *begin* or before
            if len(seen) > count:
                self.horizon = min(self.horizon, int(begins[-1]))
                seen, begins = seen[:-1], begins[:-1]
            self._entries.append(seen)
            self._begins.append(begins)

    def cut(self, begin: int, most_bytes: int) -> int:
        """Return the end of a piece that begins at *begin*."""
        begins = np.concatenate(self._begins)
        size = np.concatenate([e["content_bits"].astype(np.uint64) >> 3 for e in self._entries])
        order = np.argsort(begins, kind="stable")
        filled = np.searchsorted(np.cumsum(size[order]), np.uint64(most_bytes), "right")
        later = order[int(filled) :]
        later = later[begins[later] > np.uint64(begin)]
        return min(int(begins[later[0]]), self.horizon) if len(later) else self.horizon

    def divided(self, begin: int, behind: int, cell_bytes: int) -> int:
        """Return the end of a piece, which is before *behind* if a sub-buffer alone is too large.

        Such a sub-buffer is part of several pieces, so that none has too many events.
        """
        content, last = 0.0, begin
        for position, seen, begins in zip(
            self._positions, self._entries, self._begins, strict=True
        ):
            # A damaged entry may claim any content: a stream has no more than its file.
            most = np.float64(position.source.stream.length_bytes)
            size = np.minimum(seen["content_bits"] / 8, most)
            if not (size > cell_bytes).any():
                continue
            ends = seen["end"].astype(np.uint64)
            touched = (begins < np.uint64(min(behind, FOREVER))) & (
                ends > np.maximum(begins, np.uint64(begin))
            )
            touched &= ends < np.uint64(FOREVER)
            if touched.any():
                last = max(last, int(ends[touched].max()) + 1)
                since, until = begins[touched].astype(np.float64), ends[touched].astype(np.float64)
                share = np.minimum(until, behind) - np.maximum(since, begin)
                content += min(float((size[touched] * share / (until - since)).sum()), most)
        count = int(content) // cell_bytes
        if count < 2:
            return behind
        return min(begin + max((min(behind, last) - begin) // count, 1), behind)

    def take(self, behind: int, choose: Choose | None) -> list[StreamSlice]:
        """Take the sub-buffers that begin before *behind*."""
        parts = []
        until = np.uint64(min(behind, FOREVER))
        side = "left" if behind <= FOREVER else "right"
        for one, seen, begins in zip(self._positions, self._entries, self._begins, strict=True):
            count = int(np.searchsorted(begins, until, side))  # type: ignore[call-overload]
            if count:
                needed = choose(one.source, one.at, seen[:count]) if choose else None
                parts.append(StreamSlice(one.source, one.at, seen[:count], needed))
            ends = seen["end"][:count].astype(np.uint64)
            one.at += int(np.searchsorted(ends, until, side))  # type: ignore[call-overload]
        return parts

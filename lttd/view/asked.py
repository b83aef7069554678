"""The pieces of a window that a question needs: those with a sub-buffer to decode, or a loss.

    entries that may hold an answer  ->  cells that they touch  ->  pieces of these cells
                                                            small ones are joined

Rule: the pieces are those that reading the whole window would make, so the answer is the same.
Where pieces are joined, each event keeps the span of its own one: the name of a task may come from
another event of the same piece, and from no other.
Rule: of an index only the parts are read that lie in cells with something in them.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.index import ENTRY_DTYPE, FOREVER, Entries
from lttd.view.cells import Cells
from lttd.view.losses import Loss
from lttd.view.pieces import losses_of
from lttd.view.skipping import Skipping
from lttd.view.window import (
    Piece,
    Spans,
    Streams,
    StreamSlice,
    WindowStream,
    before_and_after,
    cells,
    content_of,
)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Where more of a stream's sub-buffers are needed, all of its cells are looked at.
_MOST_SHARE: Final = 1 / 16
# Entries that are no farther apart are read together.
_NEAR_ENTRIES: Final = 32
# Joined pieces have at most so many parts: each costs some time of its own.
_MOST_JOINED: Final = 512


class _Extent(NamedTuple):
    """When a stream begins and ends."""

    source: WindowStream
    begin: int
    end: int


def pieces_asked(
    sources: Sequence[WindowStream],
    rest: Sequence[Loss],
    begin: int,
    end: int,
    piece_bytes: int,
    skipping: Skipping,
) -> Iterator[Piece]:
    """Yield the pieces of [*begin*, *end*] with something in them; see ``window.pieces``."""
    cell_bytes = content_of(sources, piece_bytes)
    extents = [_extent_of(source) for source in sources]
    asked = _Asked(extents, rest, skipping)
    found = asked.pieces(cells(sources, begin, end, cell_bytes), begin, end, cell_bytes)
    yield from _joined(found, cell_bytes)


def _extent_of(source: WindowStream) -> _Extent:
    first, last = source.index.entries(0, 1), source.index.entries(len(source.index) - 1)
    return _Extent(source, int(first["begin"][0]), int(last["end"][0]))


class _Asked:
    """The pieces of a window that have something in them, before they are joined."""

    def __init__(
        self, extents: Sequence[_Extent], rest: Sequence[Loss], skipping: Skipping
    ) -> None:
        self._extents = extents
        self._rest = rest
        self._skipping = skipping

    def pieces(self, all_cells: Cells, begin: int, end: int, cell_bytes: int) -> Iterator[Piece]:
        """Yield them in the order of time."""
        needed, distrusted = self._needed(), self._skipping.distrusted
        streams: Streams | None = None
        behind = begin
        while (time := _first_in(needed, behind)) is not None and time <= end:
            first, until = all_cells.at(time)
            first = max(first, behind)
            if streams is None or first > behind:
                # Those that begin later join later.
                streams = Streams([one.source for one in self._extents if one.end >= first], first)
            for piece in streams.pieces(first, until, cell_bytes, self._skipping.needed):
                rest, continues = self._rest_of(piece), piece.begin > begin
                whole = piece._replace(rest=rest, continues=continues)
                if not all(part.is_skipped for part in whole.parts) or losses_of(whole):
                    yield whole
            behind = until
            if self._skipping.distrusted > distrusted:
                needed, distrusted = self._needed(), self._skipping.distrusted

    def _rest_of(self, piece: Piece) -> Sequence[Loss]:
        _, later = before_and_after(self._rest, piece.begin)
        return before_and_after(later, piece.end)[0]

    def _needed(self) -> Spans:
        """Return the spans of all sub-buffers to decode, and the times of all losses."""
        begins, lasts = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for source, begin, end in self._extents:
            wanted = self._skipping.numbers(source)
            lost = source.losses.rows()
            most = int(len(source.index) * _MOST_SHARE)
            if wanted is None or len(wanted) + len(lost) > most:
                begins.append(np.array([begin], np.uint64))
                lasts.append(np.array([max(begin, end)], np.uint64))
                continue
            entries = _entries(source, wanted)
            rows = lost[lost < np.uint64(len(source.index))].astype(np.int64)
            after = _entries(source, np.sort(rows))  # a damaged file has them in any order
            begins += (one["begin"].astype(np.uint64) for one in (entries, after))
            lasts += (
                one[name].astype(np.uint64) for one, name in ((entries, "end"), (after, "begin"))
            )
        at = np.array([min(loss.time, FOREVER) for loss in self._rest], np.uint64)
        return _merged(np.concatenate([*begins, at]), np.concatenate([*lasts, at]))


def _merged(begins: U64, lasts: U64) -> Spans:
    """Merge spans that overlap."""
    lasts = np.maximum(begins, lasts)
    order = np.argsort(begins, kind="stable")
    begins, lasts = begins[order], np.maximum.accumulate(lasts[order])
    apart = np.ones(len(begins), np.bool_)
    apart[1:] = begins[1:] > lasts[:-1]
    return Spans(begins[apart], lasts[np.roll(apart, -1)])


def _first_in(spans: Spans, time: int) -> int | None:
    """Return the first time at or after *time* that is in some spans; None: there is none."""
    if time > FOREVER:
        return None
    number = int(np.searchsorted(spans.last, np.uint64(time)))
    return max(int(spans.begin[number]), time) if number < len(spans.last) else None


def _entries(source: WindowStream, numbers: I64) -> Entries:
    """Return some entries, given by their numbers, which rise."""
    if not len(numbers):
        return np.empty(0, ENTRY_DTYPE)
    apart = np.flatnonzero(np.diff(numbers) > _NEAR_ENTRIES) + 1
    some = []
    for run in np.split(numbers, apart):
        first = int(run[0])
        some.append(source.index.entries(first, int(run[-1]) + 1)[run - first])
    return np.concatenate(some)


# -- joining pieces


def _joined(found: Iterator[Piece], most_bytes: int) -> Iterator[Piece]:
    """Join pieces as long as what they need is small."""
    held: list[Piece] = []
    held_bytes = held_parts = 0
    for piece in found:
        size_bytes = sum(map(_needed_bytes, piece.parts))
        held_parts += len(piece.parts)
        if held and (held_bytes + size_bytes > most_bytes or held_parts > _MOST_JOINED):
            yield _one_of(held)
            held, held_bytes, held_parts = [], 0, len(piece.parts)
        held.append(piece)
        held_bytes += size_bytes
    if held:
        yield _one_of(held)


def _needed_bytes(part: StreamSlice) -> int:
    content = (
        part.entries["content_bits"]
        if part.needed is None
        else (part.entries["content_bits"][part.needed])
    )
    return int((content.astype(np.uint64) >> np.uint64(3)).sum())


def _one_of(held: Sequence[Piece]) -> Piece:
    if len(held) == 1:
        return held[0]
    parts: list[StreamSlice] = []
    behind: dict[int, int] = {}
    for part in (part for piece in held for part in piece.parts):
        key = id(part.source)
        again = max(behind.get(key, 0) - part.first, 0)  # they are in the piece before, too
        if again < len(part.entries):
            parts.append(part.behind(again))
            behind[key] = part.first + len(part.entries)
    rest = [loss for piece in held for loss in piece.rest]
    spans = Spans(
        np.array([piece.begin for piece in held], np.uint64),
        np.array([min(piece.end - 1, FOREVER) for piece in held], np.uint64),
    )
    return Piece(held[0].begin, held[-1].end, parts, rest, spans, held[0].continues)

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
    ends = sorted(set(cells(sources, begin, end, cell_bytes)))
    begins = [begin, *ends[:-1]]
    extents = [_extent_of(source) for source in sources]
    found = _pieces(extents, rest, list(zip(begins, ends, strict=True)), cell_bytes, skipping)
    yield from _joined(found, cell_bytes)


def _extent_of(source: WindowStream) -> _Extent:
    first, last = source.index.entries(0, 1), source.index.entries(len(source.index) - 1)
    return _Extent(source, int(first["begin"][0]), int(last["end"][0]))


def _pieces(
    extents: Sequence[_Extent],
    rest: Sequence[Loss],
    found: Sequence[tuple[int, int]],
    cell_bytes: int,
    skipping: Skipping,
) -> Iterator[Piece]:
    begins = np.array([begin for begin, _ in found], np.uint64)
    needed = _needed(extents, rest, begins, skipping)
    streams: Streams | None = None
    distrusted = skipping.distrusted
    for number, (begin, end) in enumerate(found):
        if not needed[number]:
            streams = None
            continue
        if streams is None:
            # Those that begin later join later.
            streams = Streams([one.source for one in extents if one.end >= begin], begin)
        for piece in streams.pieces(begin, end, cell_bytes, skipping.needed):
            _, rest = before_and_after(rest, piece.begin)
            ours, rest = before_and_after(rest, piece.end)
            whole = piece._replace(rest=ours)
            if not all(part.is_skipped for part in whole.parts) or losses_of(whole):
                yield whole
        if skipping.distrusted > distrusted:
            distrusted = skipping.distrusted
            needed[number:] |= _needed(extents, rest, begins, skipping)[number:]


def _needed(
    extents: Sequence[_Extent], rest: Sequence[Loss], begins: U64, skipping: Skipping
) -> Mask:
    """Return which cells, that begin at *begins*, have a sub-buffer to decode, or a loss."""
    marks = np.zeros(len(begins) + 1, np.int64)

    def mark(first: U64, last: U64) -> None:
        low = np.searchsorted(begins, first, "right").astype(np.int64) - 1
        high = np.searchsorted(begins, last, "right").astype(np.int64) - 1
        there = high >= 0
        np.add.at(marks, np.maximum(low[there], 0), 1)
        np.add.at(marks, high[there] + 1, -1)

    for source, begin, end in extents:
        wanted = skipping.numbers(source)
        lost = source.losses.rows()
        most = int(len(source.index) * _MOST_SHARE)
        if wanted is None or len(wanted) + len(lost) > most:
            mark(np.array([begin], np.uint64), np.array([end], np.uint64))
            continue
        entries = _entries(source, wanted)
        mark(entries["begin"].astype(np.uint64), entries["end"].astype(np.uint64))
        after = _entries(source, lost[lost < np.uint64(len(source.index))].astype(np.int64))
        at = after["begin"].astype(np.uint64)
        mark(at, at)
    at = np.array([min(loss.time, FOREVER) for loss in rest], np.uint64)
    mark(at, at)
    return np.cumsum(marks[:-1]) > 0


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
    return Piece(held[0].begin, held[-1].end, parts, rest, spans)

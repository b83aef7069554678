"""Make blocks of lines from batches: each line has a prefix, and one of several forms of body.

All lines of a block are in one matrix of bytes, from which the NULs are then removed.  The few
bodies that are wider than nearly all others are inserted one by one, so that the matrix is narrow.

Invariant: every event has exactly one body; the line of a loss is before the first event that is
not earlier.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.terminal import printable
from lttd.view.columns import EventBatch
from lttd.view.glyphs import Column, Strip, matrix_of, width_of
from lttd.view.losses import Loss

I64 = npt.NDArray[np.int64]

BLOCK_ROWS: Final = 1 << 14
# This share of the lines may be wider than the matrix.
WIDE_SHARE: Final = 0.02


class Body(NamedTuple):
    """The bodies of some events."""

    rows: I64
    width: int
    column: Column
    """One opaque word of that width for each event."""


class BlockTexter:
    """Makes the lines of a batch, a block at a time; a family defines prefix and bodies."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[bytes]:
        """Yield the lines of *batch*, a block at a time; stop after at least *most* lines.

        The names of tasks come from all events of the batch, also from those without a line.
        """
        if not len(batch):
            yield b"".join(map(self._loss_line, batch.losses))
            return
        prefix = matrix_of(self.prefix(batch), len(batch))
        if most is not None and most < len(batch):
            batch = batch.select(np.arange(most))
        bodies = list(self.bodies(batch))
        places = np.searchsorted(
            batch.time, np.array([loss.time for loss in batch.losses], np.uint64), "left"
        ).tolist()
        cuts = sorted({*range(0, len(batch), BLOCK_ROWS), *places, len(batch)})
        usual = _usual_width(bodies, len(batch))
        told = 0
        for low, high in zip(cuts, [*cuts[1:], None], strict=True):
            while told < len(places) and places[told] == low:
                yield self._loss_line(batch.losses[told])
                told += 1
            if high is not None:
                yield _block(prefix[low:high], bodies, low, high, usual)

    def _loss_line(self, loss: Loss) -> bytes:
        return f"{printable(self.lost(loss))}\n".encode()

    def lost(self, loss: Loss) -> str:
        """Return the line of a loss."""
        return str(loss)

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes of all events of a batch."""
        raise NotImplementedError

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies of a batch; every event is in exactly one of them."""
        raise NotImplementedError


def body_of(rows: I64, strip: Strip) -> Body:
    """Make the body of some events of a batch from a strip."""
    width = width_of(strip)
    return Body(rows, width, matrix_of(strip, len(rows)).view(f"V{width}").reshape(-1))


def _usual_width(bodies: Sequence[Body], count: int) -> int:
    """Return the width of a block's matrix: enough for nearly all lines."""
    wider = 0
    for body in sorted(bodies, key=lambda body: -body.width):
        wider += len(body.rows)
        if wider > WIDE_SHARE * count:
            return body.width
    return max((body.width for body in bodies), default=0)


def _block(
    prefix: npt.NDArray[np.uint8], bodies: Sequence[Body], low: int, high: int, most: int
) -> bytes:
    """Return the lines of events ``[low:high)``."""
    count, before = prefix.shape
    width = before + most
    matrix = np.zeros((count, width), np.uint8)
    matrix[:, :before] = prefix
    apart: list[tuple[int, Any]] = []
    for body in bodies:
        first, behind = np.searchsorted(body.rows, (low, high)).tolist()
        if first == behind:
            continue
        rows = body.rows[first:behind] - low
        if body.width > most:
            apart += zip(rows.tolist(), body.column[first:behind].tolist(), strict=True)
            continue
        place = np.ndarray((count,), f"V{body.width}", matrix, before, (width,))
        place[rows] = body.column[first:behind]
    flat = matrix.reshape(-1)
    lines = flat.tobytes().translate(None, b"\0")
    return _put_in(lines, flat != 0, width, apart) if apart else lines


def _put_in(
    lines: bytes, said: npt.NDArray[np.bool_], width: int, apart: list[tuple[int, Any]]
) -> bytes:
    """Insert the bodies that are wider than the matrix into their lines."""
    parts, at, counted = [], 0, 0
    for row, wide in sorted(apart):
        behind = (row + 1) * width
        end = at + int(np.count_nonzero(said[counted:behind]))
        parts += [lines[at:end], bytes(wide).replace(b"\0", b"")]
        at, counted = end, behind
    return b"".join([*parts, lines[at:]])

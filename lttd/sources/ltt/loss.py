"""What one LTTng 0.x ring lost that no header tells: overwritten, refused, damaged sub-buffers.

A cookie is a position in all that was ever written: one ahead of where the last sub-buffer ended
means that the writer has overwritten what lay between (flight-recorder channels).

Rule: a loss between sub-buffers is told with the one that follows, since only that bounds it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lttd.abi.ltt import Taken
from lttd.sources.ltt.channel import COOKIES, Held
from lttd.sources.ltt.rows import LttBook
from lttd.subbuffer import Gap, Reason, Unit


class _Loss(NamedTuple):
    row: int
    reason: Reason
    unit: Unit
    lost: int | None


class LttLedger:
    """Follows the sub-buffers of one channel, and completes their rows by way of its book."""

    def __init__(self, book: LttBook, subbuffer_bytes: int, *, fresh: bool) -> None:
        """*book*: of the stream, which may have had other channels of this name before.

        *fresh*: the channel is younger than this run, so that all of its losses are ours to tell.
        """
        self._book = book
        self._subbuffer_bytes = subbuffer_bytes
        self._expected = 0 if fresh else None
        self._pending: list[_Loss] = []
        self._is_based = fresh
        self._broke_off = False

    def enter(self, helds: Sequence[Held], taken: Taken) -> tuple[Gap, ...]:
        """Complete the rows of *taken* and return the losses in their order.

        *helds*: all that was reserved, in order; *taken* has the places of those that were kept.
        """
        if not self._is_based and len(taken.rows):
            self._is_based = True
            self._base(helds, taken)
        before = self._book.end
        told = self._book.enter(taken)
        self._follow(helds, taken)
        ends = [before, *taken.rows["end"].tolist()]
        begins = taken.rows["begin"].tolist()
        between = [
            Gap(*loss, begin=ends[loss.row], end=max(ends[loss.row], begins[loss.row]))
            for loss in self._pending
            if loss.row < len(begins)
        ]
        self._pending = [loss._replace(row=0) for loss in self._pending[len(between) :]]
        return tuple(sorted((*between, *told), key=lambda gap: gap.row))

    def broke_off(self, *, holding: bool) -> None:
        """Count the sub-buffer that was reserved when the channel broke, if there was one.

        It is behind all that enter() is still told of: rest() tells it.
        """
        self._broke_off = holding

    def abandon(self) -> None:
        """Count what stays in the ring: how many sub-buffers, the kernel does not tell."""
        self._pending.append(_Loss(0, Reason.ABANDONED, Unit.SUBBUFFERS, None))

    def rest(self) -> tuple[Gap, ...]:
        """Return, behind all rows, the losses that no sub-buffer has followed."""
        if self._broke_off:
            self._broke_off = False
            self._lose(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)
        pending, self._pending = self._pending, []
        return tuple(Gap(*loss, begin=self._book.end, end=self._book.end) for loss in pending)

    def _base(self, helds: Sequence[Held], taken: Taken) -> None:
        """Settle where the counters in the headers are to count from.

        From 0, if the first sub-buffer is the ring's first.  Else somebody has read of it, or it
        was overwritten: what is counted already may be in the trace of who read it.
        """
        if not helds[0].cookie:
            return
        headers = taken.headers
        self._book.count_from(headers)
        for count, reason, unit in (
            (headers.events_lost[0], Reason.DISCARDED, Unit.EVENTS),
            (headers.corrupted[0], Reason.COMMIT_OVERRUN, Unit.SUBBUFFERS),
        ):
            if count:
                self._pending.append(_Loss(0, reason, unit, None))

    def _follow(self, helds: Sequence[Held], taken: Taken) -> None:
        """Note what lies between the rows: *row* is before which one."""
        damaged = {number for _, number in taken.damaged}
        row = kept = 0
        for held in helds:
            if self._expected is not None:
                ahead = (held.cookie - self._expected) % COOKIES // self._subbuffer_bytes
                if ahead:
                    self._lose(row, Reason.OVERWRITTEN, Unit.SUBBUFFERS, ahead)
            self._expected = held.cookie + self._subbuffer_bytes
            if held.refusal:
                self._lose(row, Reason.REFUSED, Unit.SUBBUFFERS, 1)
                continue
            if kept in damaged:
                self._lose(row, Reason.DAMAGED, Unit.BYTES, held.used_bytes)
            else:
                row += 1
            kept += 1

    def _lose(self, row: int, reason: Reason, unit: Unit, count: int) -> None:
        self._pending.append(_Loss(row, reason, unit, count))

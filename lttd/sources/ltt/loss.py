"""Count the losses of an LTTng 0.x ring that no header states: overwritten, refused, damaged.

A cookie is a position in all bytes that were ever written.  If it is beyond the end of the last
sub-buffer, the writer has overwritten the bytes between (flight-recorder channels).

Rule: a loss between two sub-buffers is stored with the second one, which bounds it in time.
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
    """Follows the sub-buffers of one channel, and completes their rows through its book."""

    def __init__(self, book: LttBook, subbuffer_bytes: int, *, fresh: bool) -> None:
        """*book* is that of the stream, which may have had other channels of this name before.

        *fresh*: the channel is younger than this run, so all of its losses belong to this trace.
        """
        self._book = book
        self._subbuffer_bytes = subbuffer_bytes
        self._expected = 0 if fresh else None
        self._pending: list[_Loss] = []
        self._is_based = fresh
        self._broke_off = False

    def enter(self, helds: Sequence[Held], taken: Taken) -> tuple[Gap, ...]:
        """Complete the rows of *taken*, and return the losses in their order.

        *helds*: all reserved sub-buffers, in order; *taken* has the places of the good ones.
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

        It comes after all sub-buffers of enter(), so rest() returns it.
        """
        self._broke_off = holding

    def abandon(self) -> None:
        """Count the content of the ring as lost; its number of sub-buffers is unknown."""
        self._pending.append(_Loss(0, Reason.ABANDONED, Unit.SUBBUFFERS, None))

    def rest(self) -> tuple[Gap, ...]:
        """Return the losses after the last sub-buffer."""
        if self._broke_off:
            self._broke_off = False
            self._lose(0, Reason.REFUSED, Unit.SUBBUFFERS, 1)
        pending, self._pending = self._pending, []
        return tuple(Gap(*loss, begin=self._book.end, end=self._book.end) for loss in pending)

    def _base(self, helds: Sequence[Held], taken: Taken) -> None:
        """Decide from which value the counters in the headers count.

        From 0, if this is the ring's first sub-buffer.  Otherwise earlier ones were read by another
        process or overwritten, and the losses counted so far may be in another trace.
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
        """Note the losses between rows; a loss has the number of the row after it."""
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

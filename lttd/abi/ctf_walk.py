"""Find where the events of CTF packets begin, in lockstep: a step takes an event of every row.

Packets are large (256 KiB is usual) and few, and an event says nowhere how long it is: only its
class does.  So a packet is cut into chunks, and a chunk is a row that begins at any byte:

1. Each row follows the chain of events from the begin of its chunk to its end.  Only the first row
   of a packet begins at an event; the others guess, and go one byte on where nothing parses.  A
   wrong guess soon comes upon an event by chance, and from there on follows the true chain.
2. Each chain goes on into the next chunk until it comes upon a begin that the chain of that chunk
   found, too.  The end of an event depends on where it begins, and on nothing before: from there on
   both are the same.
3. From the begin of the packet on, the chains are joined where they met; what a chain found before
   that is dropped.

A packet in which chains do not meet, or whose true chain has damage, is walked again as one row.

Rule: no bytes make this module raise.  A packet is damaged from the first event on that does not
fit; the events before it count, and other packets are not affected.
Invariant: a row moves by at least a byte in each of its steps.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_sizes import Sizes

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_CHUNK_BYTES: Final = 4096
# A chain that has not met the next one so far from its end does not count.
_BRIDGE_BYTES: Final = 4 * _CHUNK_BYTES
# Events without a table are walked together when so many rows wait for it, or nothing else moves.
_ENOUGH: Final = 512
_SHARE: Final = 16
# A chain that guessed wrong so often gives up: the one before it goes on through its chunk.
_MOST_STUMBLES: Final = 64
_MARKED: Final = np.uint8(1)


class Found(NamedTuple):
    """The begins of the events of some packets."""

    at: I64
    """In bytes from the begin of the buffer; ascending."""
    row: I64
    """The packet of each event."""
    damage: list[Damage]


class _Rows(NamedTuple):
    """What walks together."""

    at: I64
    """Where each row is, in bytes."""
    stop: I64
    """A row is done when it is here or further."""
    packet: I64


def find_events(bits: Bits, packets: Packets, plan: Plan) -> Found:
    """Return the begins of all events of some packets, which are ascending in the buffer."""
    if not len(packets.offset_bytes):
        return Found(np.empty(0, np.int64), np.empty(0, np.int64), [])
    return _Walk(bits, packets, plan).found()


class _Walk:
    """The walk of some packets."""

    def __init__(self, bits: Bits, packets: Packets, plan: Plan) -> None:
        self._bits = bits
        self._packets = packets
        self._plan = plan
        self.step: Final = max(plan.align_bits >> 3, 1)
        """The least distance of two events, in bytes."""
        self.low = int(packets.offset_bytes.min())
        self._behind = int(packets.end_bits.max() + 7) >> 3
        self._mark = np.zeros(self._behind - self.low + 1, np.uint8)
        self._damage: list[Damage] = []
        base = packets.offset_bytes << 3
        first = packets.first_bits + ((base - packets.first_bits) & (plan.align_bits - 1))
        self._first = np.minimum((first + 7) >> 3, (packets.end_bits + 7) >> 3)
        self._end = (packets.end_bits + 7) >> 3
        self.quick = Sizes(bits, packets, plan.quick, self.step) if plan.quick else None

    def found(self) -> Found:
        """Walk."""
        chunks = np.maximum(-(-(self._end - self._first) // _CHUNK_BYTES), 1)
        again, many = np.flatnonzero(chunks == 1), np.flatnonzero(chunks > 1)
        if len(many):
            again = np.sort(np.concatenate((again, self._guess(many, chunks[many]))))
        if len(again):
            self._whole(again)
        at = np.flatnonzero(self._mark.view(np.bool_)) + self.low
        row = np.searchsorted(self._packets.offset_bytes, at, "right") - 1
        last = np.flatnonzero(np.append(row[1:] != row[:-1], len(row) > 0))
        cut = self._cut(at[last], row[last])
        if cut.any():
            kept = np.ones(len(at), np.bool_)
            kept[last[cut]] = False
            at, row = at[kept], row[kept]
        return Found(at, row, sorted(self._damage))

    def _cut(self, at: I64, packet: I64) -> Mask:
        """Return which of the last events of packets run past the content, and note them."""
        _, wrong, reason, _ = self.next_of(at, packet, leave=False)
        rows = np.flatnonzero(wrong)
        self._damage += [
            Damage(row, place, reason)
            for row, place in zip(packet[rows].tolist(), at[rows].tolist(), strict=True)
        ]
        return wrong

    def _whole(self, packets: I64) -> None:
        """Walk whole packets as rows, and note their damage."""
        rows = _Rows(self._first[packets], self._end[packets], packets)
        chains = _Chains(self, rows, guess=False, mark=self._mark)
        chains.run()
        for row, (place, reason) in chains.damage.items():
            self._damage.append(Damage(int(packets[row]), place, reason))

    def _guess(self, packets: I64, chunks: I64) -> I64:
        """Walk packets in chunks; return those that have to be walked as a whole."""
        packet = np.repeat(packets, chunks)
        first_chunk = np.cumsum(chunks) - chunks
        number = np.arange(len(packet)) - np.repeat(first_chunk, chunks)
        begin = self._first[packet] + number * _CHUNK_BYTES
        stop = np.minimum(begin + _CHUNK_BYTES, self._end[packet])
        at = begin
        if self.quick:
            later = np.flatnonzero(number)
            at = begin.copy()
            at[later] = self.quick.likely(begin[later], stop[later], packet[later])
        mine = _Chains(self, _Rows(at, stop, packet), guess=True, mark=self._mark)
        mine.run()
        for one in np.flatnonzero(mine.stumbles > _MOST_STUMBLES).tolist():
            self._mark[begin[one] - self.low : stop[one] - self.low] = 0
        crosses = np.flatnonzero(mine.at < self._end[packet])
        most = np.minimum(mine.at + _BRIDGE_BYTES, self._end[packet])
        rows = _Rows(mine.at[crosses], most[crosses], packet[crosses])
        bridge = _Chains(self, rows, guess=False, meet=self._mark)
        bridge.run()
        # From where on the marks of a chunk count: from its begin, from where a chain met its own,
        # or not at all.
        froms = np.where(number == 0, begin, stop).tolist()
        used = np.zeros(len(crosses), np.bool_)
        links = np.full(len(packet), -1, np.int64)
        links[crosses] = np.arange(len(crosses))
        joined = _Joined(
            links.tolist(), bridge.met.tolist(), bridge.at.tolist(), mine.broken.tolist()
        )
        wrong = [
            one
            for one, (first, end) in enumerate(
                zip(first_chunk.tolist(), self._end[packets].tolist(), strict=True)
            )
            if not joined.join(first, int(begin[first]), end, froms, used)
        ]
        kept_from = np.array(froms, np.int64)
        dropped = np.flatnonzero(kept_from > begin)
        spans = zip(begin[dropped].tolist(), kept_from[dropped].tolist(), strict=True)
        for low, high in spans:
            self._mark[low - self.low : high - self.low] = 0
        for rows_of, places in bridge.visited:
            self._mark[places[used[rows_of]] - self.low] = _MARKED
        for one in packets[wrong].tolist():
            self._mark[self._first[one] - self.low : self._end[one] - self.low] = 0
        return packets[wrong]

    def next_of(self, at: I64, packet: I64, *, leave: bool = True) -> tuple[I64, Mask, str, Mask]:
        """Return where the next event begins, which rows are wrong and why, and which were left.

        *leave*: leave rows of a class of which there are few for later.
        """
        bits, packets, plan = self._bits, self._packets, self._plan
        base, end = packets.offset_bytes[packet] << 3, packets.end_bits[packet]
        heads = heads_of(bits, at << 3, base, end, plan)
        wrong, reason = heads.scan.wrong.copy(), heads.scan.reason
        unknown = ~wrong & (heads.number < 0)
        if unknown.any():
            reason = reason or f"no event has the id {heads.id[unknown][0]}"
            wrong |= unknown
        after = heads.behind.copy()
        number = np.where(wrong, -1, heads.number)
        counts = np.bincount(number + 1, minlength=len(plan.events) + 1)[1:]
        enough = counts >= (max(int(counts.max(initial=0)) // _SHARE, 1) if leave else 1)
        waiting = (number >= 0) & ~np.append(enough, False)[number]
        for one in np.flatnonzero(enough & (counts > 0)).tolist():
            rows = np.flatnonzero(number == one)
            event = plan.events[one]
            if event.unsupported:
                wrong[rows] = True
                reason = reason or f"{event.name}: {event.unsupported}"
                continue
            scan = heads.scan.some(rows)
            place = heads.behind[rows]
            for body, path in plan.bodies(event):
                place = scan.measure(body, place, path)
            after[rows] = place
            if scan.wrong.any():
                wrong[rows[scan.wrong]] = True
                reason = reason or f"{event.name}: {scan.reason}"
        after += (base - after) & (plan.align_bits - 1)
        beyond = ~wrong & ((after & 7) != 0) & (after < end)
        if beyond.any():
            wrong |= beyond
            reason = reason or "an event begins inside a byte"
        following = (after + 7) >> 3
        stuck = ~wrong & ~waiting & (following <= at)
        if stuck.any():
            wrong |= stuck
            reason = reason or "an event has no size"
        return following, wrong, reason, waiting


class _Joined(NamedTuple):
    """The chains of the chunks of all packets, to be joined."""

    links: list[int]
    """For each chunk the number of the chain that goes on from it; -1: it ends with the content."""
    met: list[bool]
    ends: list[int]
    broken: list[int]
    """For each chunk where its own chain went on after it last broke."""

    def join(self, first: int, begin: int, end: int, froms: list[int], used: Mask) -> bool:
        """Follow the true chain of a packet, whose first chunk is *first*; fill *froms* and *used*.

        Return False if it cannot be followed.
        """
        chunk = first
        while True:
            if self.broken[chunk] > froms[chunk]:
                return False
            link = self.links[chunk]
            if link < 0:
                return True
            used[link] = True
            place = self.ends[link]
            if not self.met[link]:
                return place >= end
            chunk = first + (place - begin) // _CHUNK_BYTES
            froms[chunk] = place


class _Going(NamedTuple):
    """The rows that move, as columns."""

    rows: I64
    at: I64
    stop: I64
    packet: I64

    def some(self, which: Mask) -> "_Going":
        """Return some of the rows."""
        return _Going(self.rows[which], self.at[which], self.stop[which], self.packet[which])


class _Chains:
    """Rows that follow their chains in lockstep."""

    def __init__(
        self,
        walk: _Walk,
        rows: _Rows,
        *,
        guess: bool,
        mark: npt.NDArray[np.uint8] | None = None,
        meet: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """*guess*: go on where nothing parses.

        *mark*: gets a mark for each event; *meet*: the marks at which rows end.
        """
        self._walk = walk
        self._guess = guess
        self._marks = mark
        self._meets = meet
        self._stop = rows.stop
        self._packet = rows.packet
        self.at = rows.at.copy()
        self.broken = np.full(len(rows.at), -1, np.int64)
        """For each row the last byte from which on nothing parsed."""
        self.stumbles = np.zeros(len(rows.at), np.int64)
        """How often each row went on where nothing parsed; too often: it gave up."""
        self.met = np.zeros(len(rows.at), np.bool_)
        self.visited: list[tuple[I64, I64]] = []
        """Rows, and the places of their events; only where rows meet marks."""
        self.damage: dict[int, tuple[int, str]] = {}

    def run(self) -> None:
        """Follow all chains to their ends."""
        rows = np.flatnonzero(self.at < self._stop)
        waiting = np.empty(0, np.int64)
        while len(rows) or len(waiting):
            if len(rows):
                rows, others = self._fast(rows, len(waiting))
                waiting = np.concatenate((waiting, others))
            if len(waiting) and (len(waiting) >= _ENOUGH or len(waiting) >= len(rows)):
                moved, waiting = self._slow(waiting)
                rows = np.concatenate((rows, moved))

    def _fast(self, rows: I64, others: int) -> tuple[I64, I64]:
        """Move rows whose events are in the table; return those that go on, and the others.

        *others*: how many wait already.
        """
        quick = self._walk.quick
        if quick is None:
            return rows[:0], rows
        left: list[I64] = []
        going = _Going(rows, self.at[rows], self._stop[rows], self._packet[rows])
        while len(going.rows) and others < max(len(going.rows), _ENOUGH):
            if self._meets is not None:
                going = self._unmet(going)
            size = quick.sizes(going.at, going.packet)
            known = size > 0
            if not known.all():
                if self._guess:
                    self._stumble(going, size)
                going, size, known, other = self._known(going, size, known)
                others += len(other)
                left.append(other)
            if known.all():
                self._visit(going.rows, going.at)
            else:
                self._visit(going.rows[known], going.at[known])
            going = going._replace(at=going.at + size)
            on = going.at < going.stop
            if not on.all():
                self.at[going.rows] = going.at
                going = going.some(on)
        self.at[going.rows] = going.at
        return going.rows, np.concatenate(left) if left else rows[:0]

    def _unmet(self, going: "_Going") -> "_Going":
        """Return the rows that are not at a mark; the others are done."""
        assert self._meets is not None
        met = self._meets.take(going.at - self._walk.low) != 0
        if not met.any():
            return going
        self.at[going.rows] = going.at
        self.met[going.rows[met]] = True
        return going.some(~met)

    def _stumble(self, going: "_Going", size: I64) -> None:
        """Let rows at which no event begins go on at the next place."""
        lost = size < 0
        rows = going.rows[lost]
        self.stumbles[rows] += 1
        tired = self.stumbles[rows] > _MOST_STUMBLES
        size[lost] = np.where(tired, going.stop[lost] - going.at[lost], self._walk.step)
        self.broken[rows] = going.at[lost] + self._walk.step

    def _known(self, going: "_Going", size: I64, known: Mask) -> tuple["_Going", I64, Mask, I64]:
        """Return the rows that move, with their sizes, and the numbers of the others."""
        moves = size > 0
        if moves.all():
            return going, size, known, going.rows[:0]
        self.at[going.rows] = going.at
        return going.some(moves), size[moves], known[moves], going.rows[~moves]

    def _visit(self, rows: I64, at: I64) -> None:
        if self._marks is not None:
            self._marks[at - self._walk.low] = _MARKED
        else:
            self.visited.append((rows, at))

    def _slow(self, rows: I64) -> tuple[I64, I64]:
        """Move rows by their fields; return those that go on, and those that wait."""
        low = self._walk.low
        if self._meets is not None:
            met = self._meets.take(self.at[rows] - low) != 0
            self.met[rows[met]] = True
            rows = rows[~met]
            if not len(rows):
                return rows, rows
        at = self.at[rows]
        following, wrong, reason, waiting = self._walk.next_of(at, self._packet[rows])
        right = ~wrong & ~waiting
        self._visit(rows[right], at[right])
        self.at[rows[right]] = following[right]
        if wrong.any():
            bad = rows[wrong]
            if self._guess:
                self.stumbles[bad] += 1
                tired = self.stumbles[bad] > _MOST_STUMBLES
                self.broken[bad] = self.at[bad] + self._walk.step
                self.at[bad] = np.where(tired, self._stop[bad], self.broken[bad])
            else:
                self.damage |= {row: (int(self.at[row]), reason) for row in bad.tolist()}
                self.met[bad] = False
        moved = rows[right | wrong] if self._guess else rows[right]
        return moved[self.at[moved] < self._stop[moved]], rows[waiting]

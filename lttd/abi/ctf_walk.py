"""Find where the events of CTF packets begin, in lockstep: a step takes an event of every row.

Packets are large (256 KiB is usual) and few, and an event says nowhere how long it is: only its
class does.  So a packet is cut into chunks, and a chunk is a row that begins at any byte:

1. The first row of a packet begins at an event.  The others begin where several events seem to
   follow one another (``Sizes.likely``), which is nearly always right.
2. Each row follows the chain of events from its begin to the first event beyond its end.
3. A row has to begin where the one before it ended.  One that does not is walked again from there.
   After a few rounds of this, a packet whose rows still do not meet is walked again as one row.

So an event is one only if the chain from the begin of its packet leads to it, whatever was guessed.

Most events have a size in a table, and a step is a few operations on arrays.  Those that have none
stay where they are for a few steps, until all of them are looked at together.

Rule: no bytes make this module raise.  A packet is damaged from the first event on that does not
fit; the events before it count, and other packets are not affected.
Invariant: a row moves by at least a byte, or it ends, in each round of steps.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_sizes import FIELDS, NOTHING, Sizes

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CHUNK_BYTES: Final = 4096
_MOST_ROUNDS: Final = 6
"""How often rows that do not meet are walked again, before their packets are as a whole."""
_STEPS, _MOST_STEPS = 4, 8
"""How many steps are made at once: so many that about half of the rows have to wait then."""
_NONE: Final = np.empty(0, np.int64)
_DONE_SHARE: Final = 4
"""Rows that are done leave when they are this share of all."""


class Found(NamedTuple):
    """The begins of the events of some packets."""

    at: I64
    """In bytes from the begin of the buffer; ascending."""
    row_events: I64
    """The number of events of each packet."""
    damage: list[Damage]


def find_events(bits: Bits, packets: Packets, plan: Plan) -> Found:
    """Return the begins of all events of some packets, which are ascending in the buffer."""
    if not len(packets.offset_bytes):
        return Found(np.empty(0, np.int64), np.empty(0, np.int64), [])
    return Walk(bits, packets, plan).found()


class _Rows(NamedTuple):
    """Rows that walk together."""

    at: I64
    """Where each row begins, in bytes."""
    stop: I64
    """A row is done when it is here or further."""
    packet: I64


class _Chains(NamedTuple):
    """The events that rows found."""

    at: I64
    """The begins of their events, by row."""
    events: I64
    """The number of events of each row."""
    end: I64
    """For each row the first event at or after its stop; or where it could not go on."""
    dead: frozenset[int]
    """The rows that could not go on."""

    def replaced(self, rows: I64, by: "_Chains") -> "_Chains":
        """Return these with other chains for some *rows*."""
        events, end = self.events.copy(), self.end.copy()
        kept = np.ones(len(events), np.bool_)
        kept[rows] = False
        at = np.concatenate((self.at[np.repeat(kept, events)], by.at))
        at.sort(kind="stable")  # which merges them: rows are ascending in the buffer
        events[rows], end[rows] = by.events, by.end
        numbers = rows.tolist()
        dead = self.dead.difference(numbers).union(numbers[row] for row in by.dead)
        return _Chains(at, events, end, dead)


class Walk:
    """The walk of some packets."""

    def __init__(self, bits: Bits, packets: Packets, plan: Plan) -> None:
        self._bits = bits
        self._packets = packets
        self._plan = plan
        step = max(plan.align_bits >> 3, 1)
        base = packets.offset_bytes << 3
        first = packets.first_bits + ((base - packets.first_bits) & (plan.align_bits - 1))
        self._end = (packets.end_bits + 7) >> 3
        self._first = np.minimum((first + 7) >> 3, self._end)
        self._sizes = None
        if plan.quick is not None:
            self._sizes = Sizes(bits, packets, plan, plan.quick, step, self.next_of)

    def found(self) -> Found:
        """Walk."""
        chunks = np.maximum(-(-(self._end - self._first) // _CHUNK_BYTES), 1)
        if self._sizes is None:
            chunks[:] = 1
        packet = np.repeat(np.arange(len(chunks)), chunks)
        first_row = np.cumsum(chunks) - chunks
        number = np.arange(len(packet)) - np.repeat(first_row, chunks)
        begin = self._first[packet] + number * _CHUNK_BYTES
        is_last = number == chunks[packet] - 1
        stop = np.where(is_last, self._end[packet], begin + _CHUNK_BYTES)
        at = begin.copy()
        later = np.flatnonzero(number)
        if self._sizes is not None and len(later):
            at[later] = self._sizes.likely(begin[later], stop[later], packet[later])
        guessed = np.flatnonzero(at >= 0)
        chains = _Chains(
            np.empty(0, np.int64), np.zeros(len(at), np.int64), np.full(len(at), -1), frozenset()
        ).replaced(guessed, self._follow(_Rows(at[guessed], stop[guessed], packet[guessed])))
        chains = self._joined(chains, _Rows(at, stop, packet))
        return self._result(chains, _Rows(at, stop, packet), first_row)

    def _joined(self, chains: _Chains, rows: _Rows) -> _Chains:
        """Walk rows again until each begins where the one before it ended.

        Rows after one that could not go on may begin anywhere.
        """
        same = rows.packet[1:] == rows.packet[:-1]
        wrong = np.empty(0, np.int64)
        for _ in range(_MOST_ROUNDS):
            apart = same & (chains.end[:-1] != rows.at[1:]) & (chains.end[:-1] >= 0)
            apart[list(chains.dead - {len(same)})] = False
            wrong = np.flatnonzero(apart) + 1
            if not len(wrong):
                return chains
            rows.at[wrong] = chains.end[wrong - 1]
            again = _Rows(rows.at[wrong], rows.stop[wrong], rows.packet[wrong])
            chains = chains.replaced(wrong, self._follow(again))
        for packet in np.unique(rows.packet[wrong]).tolist():
            which = np.flatnonzero(rows.packet == packet)
            some = np.array([packet])
            whole = _Rows(self._first[some], self._end[some], some)
            one = self._follow(whole)
            end = np.full(len(which), one.end[0])
            count = np.zeros(len(which), np.int64)
            count[0] = one.events[0]
            chains = chains.replaced(which, one._replace(events=count, end=end))
        return chains

    def _result(self, chains: _Chains, rows: _Rows, first_row: I64) -> Found:
        """Leave out what comes after damage, and an event that does not fit into its packet."""
        at, damage = chains.at, []
        count = chains.events.copy()
        behind = np.append(first_row[1:], len(count))
        met: set[int] = set()
        for row in sorted(chains.dead):
            packet, place = int(rows.packet[row]), int(chains.end[row])
            if packet not in met:
                met.add(packet)
                reason = self.next_of(np.array([place]), np.array([packet]))[2]
                damage.append(Damage(packet, place, reason))
                if count[row + 1 : behind[packet]].any():
                    kept = np.ones(len(count), np.bool_)
                    kept[row + 1 : behind[packet]] = False
                    at = at[np.repeat(kept, count)]
                    count[row + 1 : behind[packet]] = 0
        row_events = np.add.reduceat(count, first_row)
        last = np.cumsum(row_events) - 1
        odd = (chains.end[behind - 1] != self._end) | (self._packets.end_bits & 7 != 0)
        tested = np.flatnonzero((odd | (self._plan.align_bits > 8)) & (row_events > 0))
        if len(tested):
            _, wrong, reason = self.next_of(at[last[tested]], tested)
            cut = tested[wrong]
            damage += [Damage(one, int(at[last[one]]), reason) for one in cut.tolist()]
            at = np.delete(at, last[cut])
            row_events[cut] -= 1
        return Found(at, row_events, sorted(damage))

    def _follow(self, rows: _Rows) -> _Chains:
        """Follow the chains of rows to their ends."""
        found = _Following(rows, _STEPS if self._sizes else 0)
        ids = np.flatnonzero(rows.at < rows.stop)
        going = _Rows(*(column[ids] for column in rows))
        while len(ids):
            steps: list[I64] = []
            done = np.zeros(len(ids), np.bool_)
            left = len(ids)
            while left and left >= len(ids) - len(ids) // _DONE_SHARE:
                going = self._round(ids, going, steps, found)
                done = going.at >= going.stop
                left = len(ids) - int(np.count_nonzero(done))
            found.walked(ids, [*steps, going.at], going.stop)
            ids, going = ids[~done], _Rows(*(column[~done] for column in going))
        return found.result()

    def _round(self, ids: I64, rows: _Rows, steps: list[I64], found: "_Following") -> _Rows:
        """Make some steps, and look at the events that have no size in the table.

        Append to *steps* where the rows were.
        """
        at, stop, packet = rows
        size = np.zeros(len(at), np.int64)
        for _ in range(found.steps):
            assert self._sizes is not None  # else there are no such steps
            steps.append(at)
            size = self._sizes.sizes(at, packet)
            at = at + size
        waits = np.flatnonzero((size == 0) & (at < stop))
        found.waited(len(waits), len(at))
        if len(waits):
            steps.append(at)
            at = at.copy()
            at[waits], dead = self._looked_at(at[waits], packet[waits])
            if len(dead):
                stop[waits[dead]] = at[waits[dead]]
                found.ended(ids[waits[dead]])
        return rows._replace(at=at)

    def _looked_at(self, at: I64, packet: I64) -> tuple[I64, I64]:
        """Return where the next events begin, and the numbers of those that are not events."""
        after = np.full(len(at), FIELDS)
        if self._sizes is not None:
            after = self._sizes.ends(at, packet)
        if int(after.min()) >= 0:
            return after, _NONE
        wrong = after == NOTHING
        rows = np.flatnonzero(after == FIELDS)
        if len(rows):
            after[rows], wrong[rows], _ = self.next_of(at[rows], packet[rows])
        after[wrong] = at[wrong]
        return after, np.flatnonzero(wrong)

    def next_of(self, at: I64, packet: I64) -> tuple[I64, Mask, str]:
        """Return where the next events begin, by all of their fields; which are wrong, and why."""
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
        for one in np.unique(number[number >= 0]).tolist():
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
        stuck = ~wrong & (following <= at)
        if stuck.any():
            wrong |= stuck
            reason = reason or "an event has no size"
        return following, wrong, reason


class _Following:
    """The events that rows found so far."""

    def __init__(self, rows: _Rows, steps: int) -> None:
        self.steps = steps
        """How many are made at once; 0: there is no table of sizes."""
        self._count = np.zeros(len(rows.at), np.int64)
        self._end = rows.at.copy()
        self._dead: set[int] = set()
        self._parts: list[I64] = []

    def waited(self, rows: int, of: int) -> None:
        """Adapt the number of steps, so that about half of all rows have to wait."""
        if self.steps > 1 and 4 * rows > 3 * of:
            self.steps >>= 1
        elif 0 < self.steps < _MOST_STEPS and 4 * rows < of:
            self.steps <<= 1

    def ended(self, rows: I64) -> None:
        """Note that rows cannot go on."""
        self._dead.update(rows.tolist())

    def walked(self, rows: I64, steps: list[I64], stop: I64) -> None:
        """Take the places of rows after each step, the first and the last one included.

        A row that waited was at one place in several steps; one that was done went on.
        """
        places = np.array(steps)
        before = places < stop
        self._end[rows] = places[
            np.minimum(np.count_nonzero(before, axis=0), len(steps) - 1), np.arange(len(rows))
        ]
        valid = before[:-1] & (places[1:] != places[:-1])
        self._count[rows] += np.count_nonzero(valid, axis=0)
        self._parts.append(places[:-1].T[valid.T])

    def result(self) -> _Chains:
        """Return what was found."""
        at = np.concatenate([np.empty(0, np.int64), *self._parts])
        if len(self._parts) > 1:
            at.sort(kind="stable")  # which merges them: rows are ascending in the buffer
        return _Chains(at, self._count, self._end, frozenset(self._dead))

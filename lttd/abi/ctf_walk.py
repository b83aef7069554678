"""Find where the events of CTF packets begin, in lockstep: a step takes an event of every row.

Packets are large (1 MiB is usual) and few, and an event says nowhere how long it is: only its class
does.  So a packet is cut into chunks, and a chunk is a row that begins at any byte:

1. The first row of a packet begins at an event.  The others begin where several events seem to
   follow one another (``lttd.abi.ctf_guess``), which is nearly always right.
2. Each row follows the chain of events from its begin to the begin of the next row, or beyond.
3. A row has to begin where the one before it ended.  One that does not is walked again from there,
   until it meets its old chain.  After a few rounds of this, a packet whose rows still do not meet
   is walked again as one row.

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
from lttd.abi.ctf_guess import Guess
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_plan import Plan
from lttd.abi.ctf_sizes import FIELDS, NOTHING, Sizes

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CHUNK_BYTES: Final = 4096
"""The least bytes of a chunk."""
_ROWS: Final = 512
"""So many rows make good use of numpy; more of them only mean more begins to guess."""
_MOST_ROUNDS: Final = 6
"""How often rows that do not meet are walked again, before their packets are as a whole."""
_STEPS, _MOST_STEPS = 4, 16
"""How many steps are made at once: so many that about half of the rows have to wait then."""
_NONE: Final = np.empty(0, np.int64)
_DONE_SHARE: Final = 2
"""Rows that are done leave when they are this share of all."""


class Found(NamedTuple):
    """The begins of the events of some packets."""

    at: I64
    """In bytes from the begin of the buffer; ascending."""
    row_events: I64
    """The number of events of each packet."""
    row_behind: I64
    """The end of the last event of each packet; the content's end, if all of it was walked."""
    damage: list[Damage]


def find_events(bits: Bits, packets: Packets, plan: Plan, until: I64 | None = None) -> Found:
    """Return the begins of all events of some packets, which are ascending in the buffer.

    *until*: the byte before which an event has to begin, for each packet.
    """
    if not len(packets.offset_bytes):
        return Found(_NONE, _NONE, _NONE, [])
    return Walk(bits, packets, plan, until).found()


class _Rows(NamedTuple):
    """Rows that walk together."""

    at: I64
    """Where each row begins, in bytes."""
    stop: I64
    """A row is done when it is here or further."""
    packet: I64

    def some(self, which: I64 | Mask) -> "_Rows":
        """Return copies of some rows."""
        return _Rows(*(column[which] for column in self))


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

    def replaced(self, rows: I64, by: "_Chains", met: Mask) -> "_Chains":
        """Return these with other chains for some *rows*.

        *met*: which of the new ones end at an event of the old one, which goes on from there.
        """
        events, end = self.events.copy(), self.end.copy()
        behind = np.cumsum(events)
        kept = np.ones(len(self.at), np.bool_)
        dead = set(self.dead)
        for number, row in enumerate(rows.tolist()):
            last = int(behind[row])
            first = last - int(events[row])
            until = last
            if met[number]:
                until = first + int(np.searchsorted(self.at[first:last], by.end[number]))
            else:
                end[row] = by.end[number]
                dead = dead - {row} | ({row} if number in by.dead else set())
            kept[first:until] = False
            events[row] = by.events[number] + last - until
        at = np.concatenate((self.at[kept], by.at))
        at.sort(kind="stable")  # which merges them: rows are ascending in the buffer
        return _Chains(at, events, end, frozenset(dead))


class Walk:
    """The walk of some packets."""

    def __init__(self, bits: Bits, packets: Packets, plan: Plan, until: I64 | None = None) -> None:
        """*until*: see ``find_events``."""
        self._bits = bits
        self._packets = packets
        self._plan = plan
        base = packets.offset_bytes << 3
        first = packets.first_bits + ((base - packets.first_bits) & (plan.align_bits - 1))
        self._end = (packets.end_bits + 7) >> 3
        self._first = np.minimum((first + 7) >> 3, self._end)
        self._stop = self._end if until is None else np.minimum(until, self._end)
        self._sizes = None
        if plan.quick is not None:
            self._sizes = Sizes(bits, packets, plan, plan.quick)

    def found(self) -> Found:
        """Walk."""
        rows = self._guessed()
        return self._result(self._joined(self._follow(rows), rows), rows)

    def _guessed(self) -> _Rows:
        """Cut the packets into rows."""
        size = np.maximum(self._stop - self._first, 0)
        chunk_bytes = max(_CHUNK_BYTES, int(size.sum()) // _ROWS)
        chunks = np.maximum(size // chunk_bytes, 1)
        if self._sizes is None:
            chunks[:] = 1
        step = max(self._plan.align_bits >> 3, 1)
        packet = np.repeat(np.arange(len(chunks)), chunks)
        number = np.arange(len(packet)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        at = self._first[packet] + number * (size // chunks // step * step)[packet]
        stop = np.append(at[1:], 0)
        is_last = number == chunks[packet] - 1
        stop[is_last] = self._stop
        later = np.flatnonzero(number)
        if self._sizes is not None and len(later):
            guess = Guess(self._bits, self._sizes, step, self.next_of)
            at[later] = guess.places(at[later], stop[later], packet[later])
            known = at >= 0
            at, packet = at[known], packet[known]
            stop = np.append(at[1:], 0)
            stop[np.append(packet[1:] != packet[:-1], True)] = self._stop
        return _Rows(at, stop, packet)

    def _joined(self, chains: _Chains, rows: _Rows) -> _Chains:
        """Walk rows again until each begins where the one before it ended.

        Rows after one that could not go on may begin anywhere.
        """
        same = rows.packet[1:] == rows.packet[:-1]
        wrong = _NONE
        for _ in range(_MOST_ROUNDS):
            apart = same & (chains.end[:-1] != rows.at[1:])
            apart[list(chains.dead - {len(same)})] = False
            wrong = np.flatnonzero(apart) + 1
            if not len(wrong):
                return chains
            rows.at[wrong] = chains.end[wrong - 1]
            again = self._follow(rows.some(wrong), chains.at)
            met = again.end < rows.stop[wrong]
            met[list(again.dead)] = False
            chains = chains.replaced(wrong, again, met)
        for packet in np.unique(rows.packet[wrong]).tolist():
            which = np.flatnonzero(rows.packet == packet)
            some = np.array([packet])
            whole = _Rows(self._first[some], self._stop[some], some)
            one = self._follow(whole)
            count = np.zeros(len(which), np.int64)
            count[0] = one.events[0]
            end = np.full(len(which), one.end[0])
            whole_chain = one._replace(events=count, end=end)
            chains = chains.replaced(which, whole_chain, np.zeros(len(which), np.bool_))
        return chains

    def _result(self, chains: _Chains, rows: _Rows) -> Found:
        """Leave out what comes after damage, and an event that does not fit into its packet."""
        at, damage = chains.at, []
        count = chains.events.copy()
        first_row = np.searchsorted(rows.packet, np.arange(len(self._end)))
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
        end = chains.end[behind - 1]
        odd = (end > self._end) | (self._packets.end_bits & 7 != 0)
        tested = np.flatnonzero((odd | (self._plan.align_bits > 8)) & (row_events > 0))
        if len(tested):
            _, wrong, reason = self.next_of(at[last[tested]], tested)
            cut = tested[wrong]
            damage += [Damage(one, int(at[last[one]]), reason) for one in cut.tolist()]
            at = np.delete(at, last[cut])
            row_events[cut] -= 1
        row_behind = np.where(self._stop < self._end, np.minimum(end, self._end), self._end)
        row_behind[[one.row for one in damage]] = self._end[[one.row for one in damage]]
        return Found(at, row_events, row_behind, sorted(damage))

    def _follow(self, rows: _Rows, known: I64 = _NONE) -> _Chains:
        """Follow the chains of rows to their ends, or to one of the *known* events."""
        found = _Following(rows, _STEPS if self._sizes else 0)
        ids = np.flatnonzero(rows.at < rows.stop)
        going = rows.some(ids)
        while len(ids):
            steps: list[I64] = []
            done = np.zeros(len(ids), np.bool_)
            left = len(ids)
            while left and left >= len(ids) - len(ids) // _DONE_SHARE:
                going = self._round(ids, going, steps, found)
                if len(known):
                    going = going._replace(stop=_meeting(known, going))
                done = going.at >= going.stop
                left = len(ids) - int(np.count_nonzero(done))
            found.walked(ids, [*steps, going.at], going.stop)
            ids, going = ids[~done], going.some(~done)
        return found.result()

    def _round(self, ids: I64, rows: _Rows, steps: list[I64], found: "_Following") -> _Rows:
        """Make some steps, and look at the events that have no size in the table.

        Append to *steps* where the rows were.
        """
        at, stop, packet = rows
        waits = at < stop
        if self._sizes is not None:
            places = self._sizes.steps(at, packet, found.steps)
            steps += list(places[:-1])
            at = places[-1]
            waits = (at == places[-2]) & (at < stop)
        which = np.flatnonzero(waits)
        found.waited(len(which), len(at))
        if len(which):
            steps.append(at)
            at = at.copy()
            at[which], dead = self._looked_at(at[which], packet[which])
            if len(dead):
                stop[which[dead]] = at[which[dead]]
                found.ended(ids[which[dead]])
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


def _meeting(known: I64, rows: _Rows) -> I64:
    """Return where rows stop: those that are at a known event, here."""
    met = known.take(np.searchsorted(known, rows.at), mode="clip") == rows.at
    return np.where(met & (rows.at < rows.stop), rows.at, rows.stop)


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

"""Guess where events of CTF begin: places from which on several events seem to follow one another.

A place is likely if its bytes have the id of an event, and so do those of the place where the next
event would begin, and so on, and if the times of these events rise by little.

Rule: a guess is only a guess; whoever uses it compares it with the chain of the events before it.
Rule: no place makes this module raise.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits, mask_of
from lttd.abi.ctf_heads import indexes
from lttd.abi.ctf_plan import UNKNOWN
from lttd.abi.ctf_sizes import FIELDS, NOTHING, Sizes
from lttd.abi.gather import everywhere

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
Reads = Callable[[I64, I64], tuple[I64, Mask, str]]
"""Returns for events at some places in some packets where the next ones begin, which are wrong, and
why."""


class _Trial(NamedTuple):
    """A way to look for a chain of events."""

    first: int
    """From this byte of a row on."""
    behind: int
    """To this one."""
    share: int
    """Within which share of the time that the bits of a header state two events follow one
    another."""
    hops: int
    """How many events follow."""
    plain: bool
    """Whether the sizes of all of them have to be in the table of sizes."""


# The last ones cost most, and a chain of events that are far apart is less sure.
_TRIALS: Final = (
    _Trial(0, 64, 16, 4, plain=True),
    _Trial(64, 192, 16, 4, plain=True),
    _Trial(0, 192, 16, 4, plain=False),
    _Trial(0, 192, 2, 6, plain=False),
)


class _Chains(NamedTuple):
    """Events that seem to follow one another."""

    first: I64
    """The number of the place where each chain begins."""
    last: I64
    """Where its last event begins."""
    elapsed: U64
    """The time that passes in it."""

    def some(self, which: Mask) -> "_Chains":
        """Return some of the chains."""
        return _Chains(self.first[which], self.last[which], self.elapsed[which])


class Guess:
    """Guesses where events of some packets begin."""

    def __init__(self, bits: Bits, sizes: Sizes, step: int, read: Reads) -> None:
        """*step*: the least distance of two events, in bytes; *read*: reads their fields."""
        self._bits = bits
        self._sizes = sizes
        self._step = step
        self._read = read
        quick = sizes.quick
        self._tag = quick.tag
        is_event = sizes.number != UNKNOWN
        sized = quick.size.reshape(-1, quick.phases).all(axis=1)
        tags = np.arange(len(quick.number))
        if sizes.raw is not None:
            tags = np.arange(len(is_event)) >> quick.tag.shift & (len(quick.number) - 1)
        self._is_event = {False: is_event, True: is_event & sized.take(tags)}
        """By whether the size has to be in the table."""
        first = quick.forms.all[0].time
        both = None if first is None else quick.tag.within(first)
        self._wide = both or quick.tag
        self._has_time = both is not None
        times = [0 if one.time is None else one.time.size_bits for one in quick.forms.all]
        self._time_bits = min(times)
        """So many bits of the time are in the headers of all events."""

    def places(self, begin: I64, stop: I64, packet: I64) -> I64:
        """Return a place of each row where an event seems to begin; -1: there is none."""
        found = np.full(len(begin), -1, np.int64)
        for trial in _TRIALS:
            rows = np.flatnonzero(found < 0)
            if not len(rows):
                break
            row, at, tags = self._tried(rows, begin[rows], trial)
            chain = self._chains(at, tags, packet[row], trial)
            inside = chain.last < stop[row[chain.first]]
            _enter(found, row, chain.some(inside))
        return found

    def _tried(self, rows: I64, begin: I64, trial: _Trial) -> tuple[I64, I64, Column]:
        """Return rows, places and tags where events may begin, by their tags."""
        wide, raw = self._wide, self._bits.raw
        width = trial.behind - trial.first + wide.at_byte + wide.word_bytes
        inside = begin <= len(raw) - width - trial.first
        rows, place = rows[inside], begin[inside] + trial.first
        if not len(rows):
            return rows, rows, np.empty(0, np.uint8)
        windows = everywhere(raw, f"V{width}")[place]
        count = (trial.behind - trial.first) // self._step
        shape, strides = (len(rows), count), (width, self._step)
        words: Column = np.ndarray(shape, wide.dtype, windows, wide.at_byte, strides)
        words = words.reshape(-1)
        if self._sizes.raw is not None:  # the byte that has the tag
            words_of = words >> words.dtype.type(wide.shift - self._tag.shift)
            tags: Column = words_of.astype(np.uint8)
        else:
            tags = indexes(words, wide, self._sizes.quick)
        is_event = self._is_event[trial.plain].take(tags)
        if self._has_time and trial.share > 2:  # most of what looks like an event is zeros
            is_event &= words != 0
        which = np.flatnonzero(is_event)
        row = which // count
        return rows[row], place[row] + (which - row * count) * self._step, tags[which]

    def _chains(self, at: I64, tags: Column, packet: I64, trial: _Trial) -> _Chains:
        """Return the chains of events that begin at some of the places."""
        first = np.arange(len(at))
        elapsed = np.zeros(len(at), np.uint64)
        before = None
        for _ in range(trial.hops):
            of = packet[first]
            after, known = self._after(tags, at, of, trial)
            behind = self._sizes.end[of]
            # One that is the last of its packet ends there.
            stays = known & (after == behind)
            goes_on = known & (after < behind) & (after > at)
            some = np.flatnonzero(goes_on)
            following = after[some]
            next_tags = self._sizes.tags(following)
            is_event = self._is_event[trial.plain].take(next_tags)
            some, following, next_tags = some[is_event], following[is_event], next_tags[is_event]
            earlier = self._low_times(at[some], tags[some]) if before is None else before[some]
            later = self._low_times(following, next_tags)
            passed = (later - earlier) & mask_of(self._time_bits)
            good = self._in_order(passed, trial.share)
            elapsed[first[some]] += passed
            stay = np.flatnonzero(stays)
            kept = np.concatenate((some[good], stay))
            staying = np.zeros(len(stay), np.uint64) if before is None else before[stay]
            before = np.concatenate((later[good], staying))
            first = first[kept]
            tags = np.concatenate((next_tags[good], tags[stay]))
            at = np.concatenate((following[good], at[stay]))
        return _Chains(first, at, elapsed[first])

    def _after(self, tags: Column, at: I64, packet: I64, trial: _Trial) -> tuple[I64, Mask]:
        """Return where the next events begin, and which of these places are known."""
        size = self._sizes.sizes_of(tags, at, packet)
        after = at + size
        known = np.ones(len(at), np.bool_)
        others = np.empty(0, np.int64) if trial.plain else np.flatnonzero(size == 0)
        if len(others):
            after[others] = self._sizes.ends(at[others], packet[others])
            known[others] = after[others] != NOTHING
            unread = others[after[others] == FIELDS]
            if len(unread):  # else any place with such an id would look like an event
                after[unread], wrong = self._read(at[unread], packet[unread])[:2]
                known[unread] = ~wrong
        return after, known

    def _low_times(self, at: I64, tags: Column) -> U64:
        """Return the bits of the times that all forms of the header state."""
        found = np.zeros(len(at), np.uint64)
        if not self._time_bits:
            return found
        forms = self._sizes.quick.forms.all
        form = self._sizes.form.take(tags)
        others = form.any()
        for number, each in enumerate(forms[: len(forms) if others else 1]):
            rows = np.flatnonzero(form == number) if others else slice(None)
            if each.time is not None:
                found[rows] = each.time.read(self._bits, at[rows])
        return found & mask_of(self._time_bits)

    def _in_order(self, passed: U64, share: int) -> Mask:
        found: Mask = passed <= mask_of(self._time_bits) // np.uint64(share)
        if share > 2:  # fields that look like a time often have one value in all events
            found &= passed > 0
        return found


def _enter(found: I64, row: I64, chains: _Chains) -> None:
    """Enter the end of a chain for each row; *row* is that of each place.

    Of several chains of a row it takes one in which the least time passes.  A chain that begins
    where no event does often meets the events of the row; so its last place is the surest.
    """
    rows = row[chains.first]
    order = np.lexsort((chains.elapsed, rows))
    rows = rows[order]
    best = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])
    found[rows[best]] = chains.last[order[best]]

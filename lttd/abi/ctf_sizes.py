"""The ends of CTF events at any places of a buffer, by table; places that look like events.

Rule: no place makes this module raise; one beyond the buffer has the size of another place.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits, mask_of
from lttd.abi.ctf_fields import MOST_FIXED_ELEMENTS
from lttd.abi.ctf_heads import Packets, indexes, number_others, tags_of
from lttd.abi.ctf_plan import OTHER, UNKNOWN, Plan, Quick, Stage
from lttd.abi.gather import everywhere

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
Reads = Callable[[I64, I64], tuple[I64, Mask, str]]
"""Returns for events at some places in some packets where the next ones begin, which are wrong, and
why."""

# Where a chain of events is looked for: from which byte to which; within which share of the time
# that the bits of a header state two events follow one another; and how many events.  A chain of
# events that are far apart is less sure, so it is looked for last.
_TRIALS: Final = ((0, 64, 16, 4), (64, 192, 16, 4), (0, 192, 2, 6))
_NEAR_BYTES: Final = 4
_BYTE_VALUES: Final = 256
_BEYOND: Final = 1 << 40
FIELDS, NOTHING = -1, -2
_FIXED, _STRING, _SEQUENCE = 0, 1, 2


class Sizes:
    """Sizes of events by table, for any places."""

    def __init__(
        self, bits: Bits, packets: Packets, plan: Plan, quick: Quick, step: int, read: Reads
    ) -> None:
        """*step*: the least distance of two events, in bytes; *read*: reads their fields."""
        self._bits = bits
        self._plan = plan
        self._quick = quick
        self._base = packets.offset_bytes
        self._end = packets.end_bits >> 3
        self._step = step
        self._read = read
        self._at_byte = quick.tag.at_byte
        self._raw = bits.raw if quick.tag.word_bytes == 1 and quick.phases == 1 else None
        is_pair = quick.tag.is_word and quick.tag.word_bytes == 2 and quick.phases == 1
        self._pairs = bits.view(quick.tag.dtype) if is_pair else None
        # The tables are by tag, or by the value of the byte that has it, which saves to mask it.
        every = slice(None)
        by: slice | I64 = every
        if self._raw is not None:
            by = np.arange(_BYTE_VALUES) >> quick.tag.shift & (len(quick.number) - 1)
        self._number, self._form, self._size = quick.number[by], quick.form[by], quick.size[by]
        self._is_event = self._number != UNKNOWN
        forms = quick.forms.all
        self._header = np.array([form.end_bits >> 3 for form in forms]).take(self._form)
        first = forms[0].time
        both = None if first is None else quick.tag.within(first)
        self._wide = both or quick.tag
        self._has_time = both is not None
        times = [0 if one.time is None else one.time.size_bits for one in forms]
        self._time_bits = min(times)
        """So many bits of the time are in the headers of all events."""
        self._stages = _Table(plan) if any(plan.stages) else None

    def sizes(self, at: I64, packet: I64) -> I64:
        """Return the sizes of the events at some bytes; 0: the table has none."""
        return self._sizes_of(self._tags(at), at, packet)

    def _tags(self, at: I64) -> Column:
        """Return the indexes of the tables for the events at some bytes."""
        place = at + self._at_byte if self._at_byte else at
        if self._raw is not None:
            found: Column = self._raw.take(place, mode="clip")
            return found
        if self._pairs is not None:
            try:
                return self._pairs[place]
            except IndexError:  # which is rare
                return self._pairs[np.minimum(place, len(self._pairs) - 1)]
        return tags_of(self._bits, at, self._quick)

    def _sizes_of(self, tags: Column, at: I64, packet: I64) -> I64:
        if self._quick.phases > 1:
            phases = self._quick.phases
            tags = tags * phases + ((at - self._base[packet]) & (phases - 1))
        return self._size.take(tags)

    def ends(self, at: I64, packet: I64) -> I64:
        """Return where the next events begin, for events that have no size in the table.

        FIELDS: their fields have to be read; NOTHING: no event begins there.
        """
        tags = self._tags(at)
        number = self._number.take(tags)
        if int(number.min(initial=0)) <= OTHER:
            form = self._form.take(tags)
            number_others(number, form, self._bits, at, self._plan, self._quick)
        if self._stages is None:
            found = np.full(len(at), FIELDS)
        else:
            place = at + self._header.take(tags)
            found = self._stages.ends(self._bits, number, place, self._end[packet])
        if int(number.min(initial=0)) < 0:
            found[number < 0] = NOTHING
        return found

    def likely(self, begin: I64, stop: I64, packet: I64) -> I64:
        """Return the first place of each row from which on several events seem to follow; -1: none.

        They have ids, and their times do not step back.
        """
        found = np.full(len(begin), -1, np.int64)
        for first, behind, share, hops in _TRIALS:
            rows = np.flatnonzero(found < 0)
            if not len(rows):
                break
            row, at, tags = self._tried(rows, begin[rows], first, behind, share)
            inside = (at >= begin[row]) & (at < stop[row])
            if not inside.all():
                row, at, tags = row[inside], at[inside], tags[inside]
            good, passed = self._good(at, tags, packet[row], share, hops)
            found = _first(row[good], at[good], passed, found)
        return found

    def _tried(
        self, rows: I64, begin: I64, first: int, behind: int, share: int
    ) -> tuple[I64, I64, Column]:
        """Return rows, places and tags where events may begin, by their tags.

        From byte *first* of each row on, up to *behind*.
        """
        wide, raw = self._wide, self._bits.raw
        width = behind - first + wide.at_byte + wide.word_bytes
        if len(raw) < width:
            return rows[:0], rows[:0], np.empty(0, np.uint8)
        place = np.minimum(begin + first, len(raw) - width)
        windows = everywhere(raw, f"V{width}")[place]
        count = (behind - first) // self._step
        shape, strides = (len(rows), count), (width, self._step)
        words: Column = np.ndarray(shape, wide.dtype, windows, wide.at_byte, strides)
        words = words.reshape(-1)
        if self._raw is not None:  # the byte that has the tag
            words_of = words >> words.dtype.type(wide.shift - self._quick.tag.shift)
            tags: Column = words_of.astype(np.uint8)
        else:
            tags = indexes(words, wide, self._quick)
        is_event = self._is_event.take(tags)
        if self._has_time and share > 2:  # most of what looks like an event consists of zeros
            is_event &= words != 0
        which = np.flatnonzero(is_event)
        row = which // count
        return rows[row], place[row] + (which - row * count) * self._step, tags[which]

    def _good(self, at: I64, tags: Column, packet: I64, share: int, hops: int) -> tuple[I64, U64]:
        """Return the numbers of the places from which on events seem to follow.

        And how much time passes in these events.
        """
        left = np.arange(len(at))
        elapsed = np.zeros(len(at), np.uint64)
        before = None
        for _ in range(hops):
            of = packet[left]
            after, known = self._after(tags, at, of)
            behind = self._end[of]
            # One that is the last of its packet ends there.
            stays = known & (after == behind)
            goes_on = known & (after < behind) & (after > at)
            some = np.flatnonzero(goes_on)
            following = after[some]
            next_tags = self._tags(following)
            is_event = self._is_event.take(next_tags)
            some, following, next_tags = some[is_event], following[is_event], next_tags[is_event]
            earlier = self._low_times(at[some], tags[some]) if before is None else before[some]
            later = self._low_times(following, next_tags)
            passed = (later - earlier) & mask_of(self._time_bits)
            good = self._in_order(passed, share)
            elapsed[left[some]] += passed
            stay = np.flatnonzero(stays)
            kept = np.concatenate((some[good], stay))
            staying = np.zeros(len(stay), np.uint64) if before is None else before[stay]
            before = np.concatenate((later[good], staying))
            left = left[kept]
            tags = np.concatenate((next_tags[good], tags[stay]))
            at = np.concatenate((following[good], at[stay]))
        left.sort()
        return left, elapsed[left]

    def _after(self, tags: Column, at: I64, packet: I64) -> tuple[I64, Mask]:
        """Return where the next events begin, and which of these places are known."""
        size = self._sizes_of(tags, at, packet)
        after = at + size
        others = np.flatnonzero(size == 0)
        known = np.ones(len(at), np.bool_)
        if len(others):
            after[others] = self.ends(at[others], packet[others])
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
        forms = self._quick.forms.all
        form = self._form.take(tags)
        for number, each in enumerate(forms):
            rows = np.flatnonzero(form == number) if form.any() or number else slice(None)
            if each.time is not None and (number == 0 or len(at[rows])):
                found[rows] = each.time.read(self._bits, at[rows])
        return found & mask_of(self._time_bits)

    def _in_order(self, passed: U64, share: int) -> Mask:
        found: Mask = passed <= mask_of(self._time_bits) // np.uint64(share)
        if share > 2:  # fields that look like a time often have one value in all events
            found &= passed > 0
        return found


def _first(row: I64, at: I64, passed: U64, found: I64) -> I64:
    """Enter the first place of each row.

    A NUL before a header may look like a header of id 0, with some of the time's bits: so of places
    that are within _NEAR_BYTES, take the one from which on the least time passes.
    """
    first = np.flatnonzero(np.append(True, row[1:] != row[:-1])[: len(row)])
    best = first
    for later in range(1, _NEAR_BYTES):
        other = np.minimum(first + later, len(row) - 1)
        nearer = (row[other] == row[first]) & (at[other] - at[first] < _NEAR_BYTES)
        best = np.where(nearer & (passed[other] < passed[best]), other, best)
    found = found.copy()
    found[row[best]] = at[best]
    return found


class _Table:
    """The stages of all events as arrays, by number of stage and of event."""

    def __init__(self, plan: Plan) -> None:
        every = plan.stages
        count = max((len(one.all) for one in every if one is not None), default=0)
        # Events without stages end beyond any limit; the last one is of no event.
        self._skip = np.zeros((count + 1, len(every) + 1), np.int64)
        self._skip[0] = _BEYOND
        self._kind = np.full((count, len(every) + 1), _FIXED, np.int8)
        self._sequences: dict[tuple[int, Stage], list[int]] = {}
        for number, stages in enumerate(every):
            if stages is None:
                continue
            for at, stage in enumerate(stages.all):
                self._skip[at, number] = stage.skip_bytes
                self._kind[at, number] = _STRING if stage.length is None else _SEQUENCE
                if stage.length is not None:
                    key = at, stage._replace(skip_bytes=0)
                    self._sequences.setdefault(key, []).append(number)
            self._skip[len(stages.all), number] = stages.rest_bytes

    def ends(self, bits: Bits, number: I64, at: I64, limit: I64) -> I64:
        """Return the ends of events whose bodies begin at some bytes, or FIELDS."""
        for stage, kinds in enumerate(self._kind):
            at = at + self._skip[stage].take(number)
            kind = kinds.take(number)
            rows = np.flatnonzero(kind == _STRING)
            if len(rows) == len(at):
                at = bits.nuls(at, limit) + 1
                continue
            if len(rows):
                at[rows] = bits.nuls(at[rows], limit[rows]) + 1
            others = np.count_nonzero(kind) - len(rows)
            if others:
                self._pass_sequences(bits, stage, number, at, limit)
            elif not len(rows):
                break
        else:
            at = at + self._skip[len(self._kind)].take(number)
        beyond = at > limit
        if beyond.any():
            at[beyond] = FIELDS
        return at

    def _pass_sequences(self, bits: Bits, stage: int, number: I64, at: I64, limit: I64) -> None:
        for (of_stage, one), numbers in self._sequences.items():
            if of_stage != stage or one.length is None:
                continue
            rows = np.flatnonzero(np.isin(number, numbers))
            here = at[rows]
            place = np.minimum(here, limit[rows])
            # At most 32 bits, so that the product cannot overflow.
            count = one.length.read(bits, place).astype(np.int64)
            behind = place + count * one.element_bytes
            behind[(here > place) | (count > MOST_FIXED_ELEMENTS)] = _BEYOND
            at[rows] = behind

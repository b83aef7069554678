"""The ends of CTF events at any places of a buffer, by table.

Rule: no place makes this module raise; one beyond the buffer has the size of another place.
"""

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_fields import MOST_FIXED_ELEMENTS
from lttd.abi.ctf_heads import Packets, tags_of
from lttd.abi.ctf_plan import OTHER, Plan, Quick, Stage

I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

BYTE_VALUES: Final = 256
_BEYOND: Final = 1 << 40
FIELDS, NOTHING = -1, -2
_FIXED, _STRING, _SEQUENCE = 0, 1, 2


class Sizes:
    """Sizes of events by table, for any places."""

    def __init__(self, bits: Bits, packets: Packets, plan: Plan, quick: Quick) -> None:
        self._bits = bits
        self._plan = plan
        self.quick: Final = quick
        self._base = packets.offset_bytes
        self.end: Final = packets.end_bits >> 3
        """Of each packet."""
        self._at_byte = quick.tag.at_byte
        self.raw: Final = bits.raw if quick.tag.word_bytes == 1 and quick.phases == 1 else None
        """The buffer, if a byte has the tag and says the size.  Tables are by the value of this
        byte then, which saves to mask it, and else by the tag."""
        is_pair = quick.tag.is_word and quick.tag.word_bytes == 2 and quick.phases == 1
        self._pairs = bits.view(quick.tag.dtype) if is_pair else None
        every = slice(None)
        by: slice | I64 = every
        if self.raw is not None:
            by = np.arange(BYTE_VALUES) >> quick.tag.shift & (len(quick.number) - 1)
        self.number: Final = quick.number[by]
        """The number of the event."""
        self.form: Final = quick.form[by]
        self._size = quick.size[by]
        self._stages = _Table(plan, quick)
        self._row = self._stages.rows(self.number, self.form)

    def steps(self, at: I64, packet: I64, count: int) -> I64:
        """Return the places of events and of the *count* events after each: a row for each step.

        One whose size is not in the table stays where it is.
        """
        places = np.empty((count + 1, len(at)), np.int64)
        places[0] = at
        if self.raw is None:
            for here, after in pairwise(places):
                np.add(here, self.sizes_of(self.tags(here), here, packet), out=after)
            return places
        tags, size = np.empty(len(at), np.uint8), np.empty(len(at), np.int64)
        for here, after in pairwise(places):
            place = here + self._at_byte if self._at_byte else here
            self.raw.take(place, mode="clip", out=tags)
            self._size.take(tags, mode="clip", out=size)
            np.add(here, size, out=after)
        return places

    def tags(self, at: I64) -> Column:
        """Return the indexes of the tables for the events at some bytes."""
        place = at + self._at_byte if self._at_byte else at
        if self.raw is not None:
            found: Column = self.raw.take(place, mode="clip")
            return found
        if self._pairs is not None:
            try:
                return self._pairs[place]
            except IndexError:  # which is rare
                return self._pairs[np.minimum(place, len(self._pairs) - 1)]
        return tags_of(self._bits, at, self.quick)

    def sizes_of(self, tags: Column, at: I64, packet: I64) -> I64:
        """Return the sizes of the events at some bytes; 0: the table has none."""
        if self.quick.phases > 1:
            phases = self.quick.phases
            tags = tags * phases + ((at - self._base[packet]) & (phases - 1))
        return self._size.take(tags)

    def ends(self, at: I64, packet: I64) -> I64:
        """Return where the next events begin, for events that have no size in the table.

        FIELDS: their fields have to be read; NOTHING: no event begins there.
        """
        row = self._row.take(self.tags(at))
        least = int(row.min(initial=0))
        if least <= OTHER:
            self._look_up(row, at)
            least = int(row.min())
        found = self._stages.ends(self._bits, row, at, self.end[packet])
        if least < 0:
            found[row < 0] = NOTHING
        return found

    def _look_up(self, row: I64, at: I64) -> None:
        """Enter the rows of events whose headers state another id than the tag."""
        for form, each in enumerate(self.quick.forms.all):
            if each.id is not None:
                some = np.flatnonzero(row == OTHER - form)
                if len(some):
                    number = self._plan.numbers_of(each.id.read(self._bits, at[some]))
                    row[some] = self._stages.rows(number, np.full(len(some), form))


class _Table:
    """The stages of all events as arrays: a row for each event and form of its header."""

    def __init__(self, plan: Plan, quick: Quick) -> None:
        every, forms = plan.stages, quick.forms.all
        self._forms = len(forms)
        count = max((len(one.all) for one in every if one is not None), default=0)
        shape = count + 1, max(len(every), 1) * self._forms
        # Events without stages end beyond any limit.
        self._skip = np.zeros(shape, np.int64)
        self._skip[0] = _BEYOND
        self._kind = np.full(shape, _FIXED, np.int8)
        self._sequences: dict[tuple[int, Stage], list[int]] = {}
        for number, stages in enumerate(every):
            for row, form in enumerate(forms if stages else (), number * self._forms):
                assert stages is not None
                for at, stage in enumerate(stages.all):
                    self._skip[at, row] = stage.skip_bytes
                    self._kind[at, row] = _STRING if stage.length is None else _SEQUENCE
                    if stage.length is not None:
                        key = at, stage._replace(skip_bytes=0)
                        self._sequences.setdefault(key, []).append(row)
                self._skip[len(stages.all), row] = stages.rest_bytes
                self._skip[0, row] += form.end_bits >> 3

    def rows(self, number: I64, form: npt.NDArray[Any]) -> I64:
        """Return the rows of events; negative: UNKNOWN, or OTHER less the number of the form."""
        form = np.maximum(form, 0).astype(np.int64)
        found: I64 = np.where(number < 0, number, number * self._forms + form)
        found[number == OTHER] -= form[number == OTHER]
        return found

    def ends(self, bits: Bits, row: I64, at: I64, limit: I64) -> I64:
        """Return the ends of the events that begin at some bytes, or FIELDS."""
        last = len(self._kind) - 1
        at = at + self._skip[0].take(row, mode="clip")
        for stage in range(last):
            kind = self._kind[stage].take(row, mode="clip")
            strings = np.flatnonzero(kind == _STRING)
            if len(strings) == len(at):
                at = bits.nuls(at, limit) + 1
            else:
                if not kind.any():
                    break
                if len(strings):
                    at[strings] = bits.nuls(at[strings], limit[strings]) + 1
                self._pass_sequences(bits, stage, row, at, limit)
            at += self._skip[stage + 1].take(row, mode="clip")
        beyond = at > limit
        if beyond.any():
            at[beyond] = FIELDS
        return at

    def _pass_sequences(self, bits: Bits, stage: int, row: I64, at: I64, limit: I64) -> None:
        for (of_stage, one), members in self._sequences.items():
            if of_stage != stage or one.length is None:
                continue
            rows = np.flatnonzero(np.isin(row, members))
            here = at[rows]
            place = np.minimum(here, limit[rows])
            # At most 32 bits, so that the product cannot overflow.
            count = one.length.read(bits, place).astype(np.int64)
            behind = place + count * one.element_bytes
            behind[(here > place) | (count > MOST_FIXED_ELEMENTS)] = _BEYOND
            at[rows] = behind

"""The forms of an event's header: for each value of its tag, where the id and the time are.

    struct { uint16 id; uint32 timestamp; }                           one form; the tag is the id
    struct { enum : uint5 { compact = 0 ... 30, extended = 31 } id;   two forms: in the second one
             variant <id> { struct { uint27 timestamp; } compact;     the id is in another field
                            struct { uint32 id; uint64 timestamp; } extended; } v; }

No names of a tracer are needed.  A header of another kind has no forms, and its events are read
field by field (``lttd.abi.ctf_fields``).

Rule: pure; only ``Spot.read`` reads data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits, mask_of
from lttd.abi.ctf_classes import (
    EVENT_HEADER,
    Enumeration,
    FieldClass,
    Integer,
    Struct,
    Variant,
    aligned,
    alignment,
    fixed_bits,
)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Words = npt.NDArray[np.unsignedinteger]

_BYTE: Final = 8
MOST_TAG_BITS: Final = 16
"""Of a tag that chooses between forms: there is a table with an entry for each value."""
_MOST_FORMS: Final = 8
_MOST_RANGES: Final = 64


def is_id(name: str, of: FieldClass) -> bool:
    """Return whether a member of an event header is the id, by its role or by its name."""
    number = of.container if isinstance(of, Enumeration) else of
    if not isinstance(number, Integer):
        return False
    return name == "id" or "event-record-class-id" in number.roles


def is_time(name: str, of: FieldClass) -> bool:
    """Return whether a member of an event header is some bits of the time."""
    if not isinstance(of, Integer):
        return False
    return of.clock is not None or name == "timestamp" or "default-clock-timestamp" in of.roles


@dataclass(frozen=True, slots=True)
class Spot:
    """An unsigned number at a fixed place of an event."""

    at_byte: int
    """Of a word that holds it, from the begin of the event."""
    dtype: str
    shift: int
    size_bits: int
    word_bytes: int
    is_word: bool
    """True if all bits of the word belong to the number."""

    @classmethod
    def in_word(
        cls, at_byte: int, sign: str, word_bytes: int, shift: int, size_bits: int
    ) -> "Spot":
        """Return the spot of a number in a word of a byte order."""
        is_word = size_bits == word_bytes * _BYTE
        return cls(at_byte, f"{sign}u{word_bytes}", shift, size_bits, word_bytes, is_word)

    @classmethod
    def of(cls, at_bits: int, of: Integer) -> "Spot | None":
        """Return the spot of a number; None: no word holds it."""
        first, behind = at_bits % _BYTE, at_bits % _BYTE + of.size_bits
        size = next((one for one in (1, 2, 4, 8) if one * _BYTE >= behind), 0)
        if not size or of.signed:
            return None
        shift = first if of.byteorder == "little" else size * _BYTE - behind
        sign = "<" if of.byteorder == "little" else ">"
        return cls.in_word(at_bits // _BYTE, sign, size, shift, of.size_bits)

    def words(self, bits: Bits, at: I64) -> Words:
        """Return the words of the events at some bytes; of those beyond the buffer others."""
        view = bits.view(self.dtype)
        place = at + self.at_byte if self.at_byte else at
        found: Words = view[np.minimum(place, len(view) - 1)]
        return found

    def read(self, bits: Bits, at: I64) -> U64:
        """Return the numbers of the events at some bytes."""
        return self.of_words(self.words(bits, at))

    def of_words(self, words: Words) -> U64:
        """Return the numbers in words."""
        found = words.astype(np.uint64)
        if self.shift:
            found >>= np.uint64(self.shift)
        if self.shift + self.size_bits < self.word_bytes * _BYTE:
            found &= mask_of(self.size_bits)
        return found

    def within(self, other: "Spot") -> "Spot | None":
        """Return this spot in the smallest word that has the other one, too; None: there is none.

        It is the same word for both.
        """
        first = min(self.at_byte, other.at_byte)
        behind = max(self.at_byte + self.word_bytes, other.at_byte + other.word_bytes)
        size = next((one for one in (1, 2, 4, 8) if one >= behind - first), 0)
        if not size or self.dtype[0] != other.dtype[0]:
            return None
        before = self.at_byte - first
        if self.dtype[0] == ">":
            before = size - before - self.word_bytes
        shift = self.shift + before * _BYTE
        return Spot.in_word(first, self.dtype[0], size, shift, self.size_bits)


@dataclass(frozen=True, slots=True)
class Form:
    """One layout of the header."""

    id: Spot | None
    """The field with the id; None: the tag is the id."""
    time: Spot | None
    end_bits: int
    """Where the header ends, from the begin of the event."""


class Forms(NamedTuple):
    """The forms of a header."""

    tag: Spot | None
    """None: the header states no id; there is one form."""
    all: Sequence[Form]
    ranges: Sequence[tuple[int, int, int]]
    """First and last value of the tag, and the number of the form that they mean; the first one of
    a value counts.  Empty: all mean the only form."""


class _Reading(NamedTuple):
    """The place that the reading of a header has come to, and the values found so far."""

    at_bits: int
    left: tuple[tuple[str, FieldClass], ...]
    tag: Spot | None = None
    name: str = ""
    """Of the tag."""
    labels: tuple[tuple[str, int, int], ...] = ()
    id: Spot | None = None
    time: Spot | None = None


def forms_of(header: Struct | None) -> Forms | None:
    """Return the forms of a header; None: it is of another kind."""
    if header is None:
        return Forms(None, [Form(None, None, 0)], [])
    begin = _plain(_Reading(0, header.members), header.align_bits)
    if header.align_bits < _BYTE or begin is None:
        return None
    if not begin.left:  # of two ids the last one counts
        return Forms(begin.id or begin.tag, [Form(None, begin.time, begin.at_bits)], [])
    return _chosen(begin, header.align_bits)


def _chosen(begin: _Reading, align_bits: int) -> Forms | None:
    """Return the forms of a header that goes on with a variant; None: it is of another kind."""
    _, variant = begin.left[0]
    tag = begin.tag
    assert isinstance(variant, Variant)
    is_tag = variant.tag == (*EVENT_HEADER, begin.name) and not variant.ranges
    if tag is None or not is_tag or tag.size_bits > MOST_TAG_BITS or begin.id is not None:
        return None
    if len(variant.options) > _MOST_FORMS:
        return None
    found = list(_options(variant, begin, align_bits))
    forms = [form for form, _ in found if form is not None]
    if len(forms) < len(found) or len(found) > _MOST_FORMS:
        return None
    ranges = [(low, high, at) for at, (_, some) in enumerate(found) for low, high in some]
    return Forms(tag, forms, ranges) if len(ranges) <= _MOST_RANGES else None


def _options(
    variant: Variant, before: _Reading, align_bits: int
) -> Iterator[tuple[Form | None, list[tuple[int, int]]]]:
    """Yield the form of each option, and the values of the tag that mean it."""
    for name, option in variant.options:
        values = [(low, high) for label, low, high in before.labels if label == name]
        at = before.at_bits
        inside: tuple[tuple[str, FieldClass], ...] = ((name, option),)
        if isinstance(option, Struct):
            at, inside = aligned(at, option.align_bits), option.members
        end = _plain(before._replace(at_bits=at, left=(*inside, *before.left[1:])), align_bits)
        if end is None or end.left or alignment(option) > align_bits:
            yield None, values
        else:
            yield Form(end.id, end.time, end.at_bits), values


def _plain(so_far: _Reading, align_bits: int) -> _Reading | None:
    """Read numbers up to a variant or the end; None: something else is there.

    Events are aligned to *align_bits*, so that a smaller alignment is the same in all of them.
    """
    at, left, tag, tag_name, labels, other, time = so_far
    while left:
        name, member = left[0]
        if isinstance(member, Variant):
            break
        size = fixed_bits(member)
        if size is None or alignment(member) > align_bits or isinstance(member, Struct):
            return None
        at = aligned(at, alignment(member))
        number = member.container if isinstance(member, Enumeration) else member
        if is_id(name, member):
            assert isinstance(number, Integer)
            spot = Spot.of(at, number)
            if spot is None or other is not None:
                return None
            if tag is None:
                tag, tag_name = spot, name
                labels = member.labels if isinstance(member, Enumeration) else ()
            else:
                other = spot
        if is_time(name, member):
            assert isinstance(number, Integer)
            time = Spot.of(at, number)
            if time is None:
                return None
        at += size
        left = left[1:]
    return _Reading(at, left, tag, tag_name, labels, other, time)

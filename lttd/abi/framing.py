"""Find the records of a relay channel in its bytes.

``blktrace``: see ``lttd.abi.blktrace``.
``fixed:N``: records of N bytes.
``u32le-length``: a u32 with the number of bytes that follow it, never 0; so a record is 4 bytes
longer than its length says.

Rule: pure; no bytes make it raise.  Bytes that are not a record are damage.  After damage it finds
the next record by blktrace's magic or by consecutive numbers; without these, the rest of the input
is damage.
Rule: sequence numbers in records show more than lengths do: records that were delivered twice or
are from an earlier lap (damage), and the number of missing ones.
Invariant: every byte is part of a record, of damage, or of the rest.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lttd.abi import blktrace
from lttd.abi.blktrace import BadBytes
from lttd.abi.gather import gather
from lttd.abi.sequence import judge
from lttd.errors import UsageError
from lttd.limits import RELAY_RECORD

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# A larger length is damage: no record is this long.
MOST_RECORD_BYTES: Final = RELAY_RECORD.most
_LENGTH: Final = struct.Struct("<I")
_SEARCH_BYTES: Final = 1 << 16

NOT_YET: Final = 0
"""Instead of a length: there are too few bytes to tell."""
NONE_HERE: Final = -1
"""Instead of a length: no record begins here."""


class Missing(NamedTuple):
    """Records that are missing, by the sequence numbers."""

    offset_bytes: int
    """The offset of the record before which they are missing."""
    records: int


class Walked(NamedTuple):
    """The records of some bytes, by length."""

    offset_bytes: I64
    size_bytes: I64
    damage: list[BadBytes]
    whole_bytes: int
    """A record that is not whole yet begins here."""


class Scan(NamedTuple):
    """The valid records of some bytes, damage and missing records."""

    offset_bytes: I64
    """The offset of each valid record."""
    size_bytes: I64
    time: U64 | None
    """The time of each valid record, in ns; None if the framing has no times."""
    whole_bytes: int
    """Behind this begins a record that is not whole yet."""
    damage: list[BadBytes]
    missing: list[Missing]
    last_sequence: int | None
    repeated_bytes: int
    """The part of the damage that consists of records which came just before."""


UNKNOWN: Final = "relay"
"""The ABI of records that nothing decodes."""


class Framing(Protocol):
    """The rule by which records follow each other."""

    @property
    def abi(self) -> str:
        """The ABI of the sub-buffers that are made of such records."""
        ...

    @property
    def numbers_lost(self) -> bool:
        """Tell whether a record that the tracer could not store has a number, too."""
        ...

    @property
    def unit_bytes(self) -> int:
        """The common divisor of all record sizes, or 1."""
        ...

    @property
    def head_bytes(self) -> int:
        """The smallest size of a record."""
        ...

    def length_at(self, data: memoryview, at: int) -> int:
        """Return the length of the record at *at*, or NOT_YET or NONE_HERE."""
        ...

    def walk(self, data: memoryview) -> Walked:
        """Find the records in *data*, which begins with a record and may end inside one."""
        ...

    def times(self, data: memoryview, offsets: I64) -> U64 | None:
        """Return the records' own times in ns; None if they have none."""
        ...

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask] | None:
        """Return the records' u32 sequence numbers, and a mask of records that have one."""
        ...


def more_of(framing: Framing, begun: memoryview) -> int:
    """Return how many bytes are missing, at least, of the record that *begun* begins; 0: none.

    If no record begins there, return 1: nothing is known about the next byte.
    """
    length = framing.length_at(begun, 0) if len(begun) else NOT_YET
    if length == NOT_YET:
        return max(framing.head_bytes - len(begun), 1)
    if length == NONE_HERE:
        return 0
    return max(length - len(begun), 0)


def _field(data: memoryview, offsets: I64, at: int, dtype: str) -> U64:
    """Return the field *at* bytes after each offset; the field need not be aligned."""
    values: U64 = gather(data, offsets + at, dtype).astype(np.uint64)
    return values


@dataclass(frozen=True, slots=True)
class _Fields:
    """The offsets of time (u64, ns) and sequence number (u32) in each record; None: absent."""

    abi: ClassVar[str] = UNKNOWN
    numbers_lost: ClassVar[bool] = True

    time_at: int | None = None
    sequence_at: int | None = None

    @property
    def least_bytes(self) -> int:
        """The least size of a record that has both fields."""
        time_end = 0 if self.time_at is None else self.time_at + 8
        return max(time_end, 0 if self.sequence_at is None else self.sequence_at + 4)

    def times(self, data: memoryview, offsets: I64) -> U64 | None:
        """Return the records' own times in ns; None if they have none."""
        return None if self.time_at is None else _field(data, offsets, self.time_at, "<u8")

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask] | None:
        """Return the records' u32 sequence numbers; all records have one."""
        if self.sequence_at is None:
            return None
        numbers = _field(data, offsets, self.sequence_at, "<u4")
        return numbers, np.ones(len(offsets), np.bool_)


@dataclass(frozen=True, slots=True)
class Fixed(_Fields):
    """``fixed:N``: records of one size."""

    size_bytes: int = 0

    @property
    def unit_bytes(self) -> int:
        """The size."""
        return self.size_bytes

    @property
    def head_bytes(self) -> int:
        """The size."""
        return self.size_bytes

    def length_at(self, data: memoryview, at: int) -> int:
        """Return the size."""
        return self.size_bytes

    def walk(self, data: memoryview) -> Walked:
        """Return all records that fit."""
        offsets = np.arange(0, len(data) - self.size_bytes + 1, self.size_bytes, dtype=np.int64)
        sizes = np.full(len(offsets), self.size_bytes, np.int64)
        return Walked(offsets, sizes, [], len(offsets) * self.size_bytes)


@dataclass(frozen=True, slots=True)
class LengthPrefixed(_Fields):
    """``u32le-length``."""

    unit_bytes: ClassVar[int] = 1
    """Records have any size."""
    head_bytes: ClassVar[int] = 4
    """The size of the length itself."""

    def length_at(self, data: memoryview, at: int) -> int:
        """Return 4 plus the number in the first 4 bytes, if it is possible."""
        if at + 4 > len(data):
            return NOT_YET
        (behind,) = _LENGTH.unpack_from(data, at)
        length: int = behind + 4
        return length if max(self.least_bytes, 5) <= length <= MOST_RECORD_BYTES else NONE_HERE

    def walk(self, data: memoryview) -> Walked:
        """Go from length to length; after damage, go on where two numbers are consecutive."""
        starts: list[int] = []
        sizes: list[int] = []
        damage: list[BadBytes] = []
        at, room, length_of = 0, len(data), _LENGTH.unpack_from
        least, most = max(self.least_bytes, 5), MOST_RECORD_BYTES
        while at + 4 <= room:
            size = length_of(data, at)[0] + 4
            sound = least <= size <= most
            if not sound or at + size > room:
                if starts and (again := self._within(data, starts, at)) < at:
                    at = starts.pop()
                    sizes.pop()
                else:
                    again = self._again_at(data, at + 1, room)
                if sound and again == room:
                    break
                damage.append(BadBytes(at, again - at, "no record begins here"))
                at = again
                continue
            starts.append(at)
            sizes.append(size)
            at += size
        return Walked(np.array(starts, np.int64), np.array(sizes, np.int64), damage, at)

    def _within(self, data: memoryview, starts: list[int], end: int) -> int:
        """Return the offset of a record within the last one, which ends at *end*; *end*: none.

        A record that was read in part, and then delivered again from its begin, looks like one
        that begins earlier.  It does not continue the record before it.
        """
        if self.sequence_at is None:
            return end
        before, number = _field(data, np.array([0, *starts][-2:]), self.sequence_at, "<u4").tolist()
        if len(starts) > 1 and number == (before + 1) & 0xFFFFFFFF:
            return end
        return self._again_at(data, starts[-1] + 1, end)

    def _again_at(self, data: memoryview, at: int, end: int) -> int:
        """Return the next offset of a record whose number the following record continues.

        It is below *end*; *end*: there is none.
        """
        if self.sequence_at is None:
            return end
        head = self.sequence_at + 4
        last = min(end, len(data) - head)
        for first in range(at, last, _SEARCH_BYTES):
            places = np.arange(first, min(first + _SEARCH_BYTES, last))
            lengths = _field(data, places, 0, "<u4").astype(np.int64) + 4
            behind = places + lengths
            likely = (lengths >= self.least_bytes) & (behind <= len(data) - head)
            places, behind = places[likely], behind[likely]
            numbers = _field(data, places, self.sequence_at, "<u4") + np.uint64(1)
            following = _field(data, behind, self.sequence_at, "<u4")
            found = np.flatnonzero(numbers & np.uint64(0xFFFFFFFF) == following)
            if len(found):
                return int(places[found[0]])
        return end


@dataclass(frozen=True, slots=True)
class Blktrace:
    """``blktrace``, versions 7 and 8, in the byte order of the machine that recorded."""

    order: str = "<"
    """``<`` or ``>``."""
    abi: ClassVar[str] = blktrace.NAME
    numbers_lost: ClassVar[bool] = False
    """A missing number was stored, and is lost with its bytes."""
    unit_bytes: ClassVar[int] = 1
    """The pdu after a record has any size."""
    head_bytes: ClassVar[int] = 48
    """The size in version 7."""

    def length_at(self, data: memoryview, at: int) -> int:
        """Return the record's size with its ``pdu``, if its magic is right."""
        if at + 4 > len(data):
            return NOT_YET
        layout = blktrace.layout_of(data, at)
        if layout is None:
            return NONE_HERE
        if at + layout.record_bytes > len(data):
            return NOT_YET
        (record,) = blktrace.records_at(data, np.array([at]), layout)
        length: int = layout.record_bytes + int(record["pdu_len"])
        return length

    def walk(self, data: memoryview) -> Walked:
        """Go from magic to magic."""
        layout = self._layout(data)
        found = blktrace.walk(data, 0, len(data), layout)
        damage = [BadBytes(*each) for each in found.damage]
        whole = len(data)
        if damage and sum(damage[-1][:2]) == len(data):
            last = damage.pop()
            whole -= _unfinished_bytes(data[last.offset_bytes :], layout.magic)
            if whole > last.offset_bytes:
                damage.append(last._replace(size_bytes=whole - last.offset_bytes))
        return Walked(found.offset_bytes, found.size_bytes, damage, whole)

    def times(self, data: memoryview, offsets: I64) -> U64:
        """Return ``time``: CLOCK_MONOTONIC."""
        return _field(data, offsets, 8, f"{self.order}u8")

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask] | None:
        """Return ``sequence``; notes have no number."""
        records = blktrace.records_at(data, offsets, self._layout(data, int(offsets[0])))
        return records["sequence"].astype(np.uint64), records["action"] & blktrace.NOTIFY == 0

    def _layout(self, data: memoryview, at: int = 0) -> blktrace.Layout:
        return blktrace.layout_of(data, at) or blktrace.Layout(7, self.order)


def _unfinished_bytes(tail: memoryview, magic: bytes) -> int:
    """Return how many bytes at the end may be the begin of a record."""
    end = bytes(tail[-blktrace.MOST_RECORD_BYTES :])
    at = end.rfind(magic)
    if at >= 0:
        return len(end) - at
    return next((size for size in (3, 2, 1) if end.endswith(magic[:size])), 0)


def parse_framing(
    text: str, *, time_at: int | None = None, sequence_at: int | None = None, order: str = "<"
) -> Framing:
    """Parse the ``framing=`` of a SPEC.

    Raises:
        UsageError: there is no such framing, or it cannot have these fields.
    """
    form, _, size = text.partition(":")
    if form == blktrace.NAME and not size:
        if (time_at, sequence_at) != (None, None):
            raise UsageError("framing blktrace has its own time and sequence")
        return Blktrace(order)
    if form == "u32le-length" and not size:
        return LengthPrefixed(time_at, sequence_at)
    if form != "fixed" or not size.isdigit() or not 0 < int(size) <= MOST_RECORD_BYTES:
        raise UsageError(f"framing {text!r}: write blktrace, fixed:BYTES or u32le-length")
    fixed = Fixed(time_at, sequence_at, int(size))
    if fixed.least_bytes > fixed.size_bytes:
        raise UsageError(f"framing {text}: time and sequence must lie within the {size} bytes")
    return fixed


def scan(
    data: memoryview,
    framing: Framing,
    *,
    complete: bool,
    last_sequence: int | None = None,
    suspect_before_missing: bool = False,
) -> Scan:
    """Find the records in *data*, which begins with a record.

    *complete*: it also ends with a record, so an incomplete record is damage.  *last_sequence* is
    the number of the record before.  *suspect_before_missing*: a record before missing ones may
    have been overwritten while it was read, so it is damage.
    """
    offsets, sizes, damage, whole = framing.walk(data)
    if complete and whole < len(data):
        damage.append(BadBytes(whole, len(data) - whole, "a record is cut short"))
        whole = len(data)
    missing: list[Missing] = []
    repeated_bytes = 0
    numbered = framing.sequences(data, offsets) if len(offsets) else None
    if numbered is not None:
        numbers, have = numbered
        judged = judge(numbers[have], last_sequence)
        last_sequence = judged.last
        sound = np.ones(len(offsets), np.bool_)
        sound[have] = judged.sound
        at = offsets[have]
        if suspect_before_missing:
            sound[np.flatnonzero(have)[[row - 1 for row, _ in judged.missing if row]]] = False
        missing = [Missing(int(at[row]), count) for row, count in judged.missing]
        damage += _spans(offsets, sizes, sound)
        repeated_bytes = int(sizes[have][judged.repeated].sum())
        offsets, sizes = offsets[sound], sizes[sound]
    time = framing.times(data, offsets)
    damage.sort()
    return Scan(offsets, sizes, time, whole, damage, missing, last_sequence, repeated_bytes)


def _spans(offsets: I64, sizes: I64, sound: Mask) -> list[BadBytes]:
    """Return one BadBytes for each run of invalid records."""
    spans: list[BadBytes] = []
    for row in np.flatnonzero(~sound).tolist():
        at, size = int(offsets[row]), int(sizes[row])
        if spans and spans[-1].offset_bytes + spans[-1].size_bytes == at:
            at, size = spans[-1].offset_bytes, spans[-1].size_bytes + size
            spans.pop()
        spans.append(BadBytes(at, size, "out of sequence: stale, repeated or overwritten"))
    return spans

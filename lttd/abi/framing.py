"""Where the records of a relay channel begin and end, and which of them are none.

Rule: pure, and nothing here raises because of what the bytes say: what is no record is damage, and
what follows it is found again where the framing has a mark to look for (blktrace's magic), else
lost to the end of what was given.  Every byte is part of a record, of damage, or of the rest.
Rule: a sequence number within the records tells what a length cannot: what was delivered twice or
from an earlier lap (damage), and how many are missing.

``blktrace``: Linux include/uapi/linux/blktrace_api.h, ``struct blk_io_trace`` (48 bytes, version 7)
and ``blk_io_trace2`` (64 bytes, version 8), each followed by ``pdu_len`` bytes.
``fixed:N``: records of N bytes.  ``u32le-length``: a u32 that counts the bytes which follow it, 0
never; so a record is 4 bytes longer than that says.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lttd.abi.sequence import judge
from lttd.errors import UsageError

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# No record is larger than a sub-buffer; a length beyond this is no length.
MOST_RECORD_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")
_BLKTRACE_MAGIC: Final = 0x65617400
_NOTIFY: Final = 1 << 26
# So many records of one length in a row, and the next ones are looked at as an array.
_ALIKE: Final = 4
_FIRST_RUN: Final = 64
_SEARCH_BYTES: Final = 1 << 16

NOT_YET: Final = 0
"""As a record's length: what is there is too short to tell."""
NONE_HERE: Final = -1
"""As a record's length: no record begins here."""


class Damage(NamedTuple):
    """Bytes that are no sound record."""

    offset_bytes: int
    size_bytes: int
    reason: str


class Missing(NamedTuple):
    """Records that the sequence numbers say are missing."""

    offset_bytes: int
    """Of the record before which they are missing."""
    records: int


class Scan(NamedTuple):
    """What some bytes hold."""

    offset_bytes: I64
    """Of each sound record."""
    size_bytes: I64
    time: U64 | None
    """Of each sound record, in ns; None where the framing has no times."""
    whole_bytes: int
    """Behind this begins a record that is not whole yet."""
    damage: list[Damage]
    missing: list[Missing]
    last_sequence: int | None


class Framing(Protocol):
    """How records follow each other."""

    @property
    def name(self) -> str:
        """As in a SPEC."""
        ...

    @property
    def unit_bytes(self) -> int:
        """What all records are a multiple of, or 1."""
        ...

    @property
    def head_bytes(self) -> int:
        """How much of any record there is, at least."""
        ...

    def length_at(self, data: memoryview, at: int) -> int:
        """Return the length of the record at *at*, or NOT_YET or NONE_HERE."""
        ...

    def alike(self, data: memoryview, at: int, length: int, most: int) -> int:
        """Return how many records of this *length* follow each other at *at*, at most *most*.

        All *most* of them lie within *data*, and the first is one.
        """
        ...

    def again_at(self, data: memoryview, at: int) -> int:
        """Return where, from *at* on, a record may begin; len(data) where that cannot be told."""
        ...

    def times(self, data: memoryview, offsets: I64) -> U64 | None:
        """Return the records' own times in ns, if they have any."""
        ...

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask] | None:
        """Return the records' u32 sequence numbers and which of them have one."""
        ...


def more_of(framing: Framing, begun: memoryview) -> int:
    """Return how many bytes follow, at least, in the record that *begun* begins; 0: it is whole.

    Where no record begins, one byte may be another's: there is no more to tell by.
    """
    length = framing.length_at(begun, 0) if len(begun) else NOT_YET
    if length == NOT_YET:
        return max(framing.head_bytes - len(begun), 1)
    if length == NONE_HERE:
        return 0
    return max(length - len(begun), 0)


def _gather(data: memoryview, offsets: I64, at: int, dtype: str) -> U64:
    """Return a field that lies *at* bytes behind each offset, wherever that is aligned to."""
    size = np.dtype(dtype).itemsize
    everywhere = np.ndarray((max(len(data) - size + 1, 0),), dtype, data, strides=(1,))
    values: U64 = everywhere[offsets + at].astype(np.uint64)
    return values


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where time (u64, ns) and sequence number (u32) stand in each record; None: nowhere."""

    time_at: int | None = None
    sequence_at: int | None = None

    @property
    def least_bytes(self) -> int:
        """How long a record is that has both."""
        time_end = 0 if self.time_at is None else self.time_at + 8
        return max(time_end, 0 if self.sequence_at is None else self.sequence_at + 4)

    def times(self, data: memoryview, offsets: I64) -> U64 | None:
        """Return the records' own times in ns, if they have any."""
        return None if self.time_at is None else _gather(data, offsets, self.time_at, "<u8")

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask] | None:
        """Return the records' u32 sequence numbers; all have one."""
        if self.sequence_at is None:
            return None
        numbers = _gather(data, offsets, self.sequence_at, "<u4")
        return numbers, np.ones(len(offsets), np.bool_)


@dataclass(frozen=True, slots=True)
class Fixed(_Fields):
    """Records of one size."""

    size_bytes: int = 0

    @property
    def name(self) -> str:
        """``fixed:N``."""
        return f"fixed:{self.size_bytes}"

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

    def alike(self, data: memoryview, at: int, length: int, most: int) -> int:
        """Return *most*."""
        return most

    def again_at(self, data: memoryview, at: int) -> int:
        """Return len(data): nothing marks a record."""
        return len(data)


@dataclass(frozen=True, slots=True)
class LengthPrefixed(_Fields):
    """``u32le-length``."""

    @property
    def name(self) -> str:
        """The framing's name."""
        return "u32le-length"

    @property
    def unit_bytes(self) -> int:
        """1: they are of any size."""
        return 1

    @property
    def head_bytes(self) -> int:
        """The length's own."""
        return 4

    def length_at(self, data: memoryview, at: int) -> int:
        """Return 4 and what the first 4 bytes say, if that can be."""
        if at + 4 > len(data):
            return NOT_YET
        (behind,) = _LENGTH.unpack_from(data, at)
        length: int = behind + 4
        least = max(self.least_bytes, 5)
        return length if least <= length <= MOST_RECORD_BYTES else NONE_HERE

    def alike(self, data: memoryview, at: int, length: int, most: int) -> int:
        """Compare the next lengths with this one."""
        lengths = np.ndarray((most,), "<u4", data, at, (length,))
        return _leading(lengths == length - 4)

    def again_at(self, data: memoryview, at: int) -> int:
        """Return len(data): nothing marks a record."""
        return len(data)


@dataclass(frozen=True, slots=True)
class Blktrace:
    """``blktrace``, versions 7 and 8, in the byte order of the machine that recorded."""

    order: str = "<"
    """``<`` or ``>``."""

    @property
    def name(self) -> str:
        """The framing's name."""
        return "blktrace"

    @property
    def unit_bytes(self) -> int:
        """1: what follows a record is of any size."""
        return 1

    @property
    def head_bytes(self) -> int:
        """Version 7's."""
        return 48

    def length_at(self, data: memoryview, at: int) -> int:
        """Return the record's size with its ``pdu``, if its magic is right."""
        if at + 4 > len(data):
            return NOT_YET
        (magic,) = struct.unpack_from(f"{self.order}I", data, at)
        size = _BLKTRACE_BYTES.get(magic)
        if size is None:
            return NONE_HERE
        if at + size > len(data):
            return NOT_YET
        (pdu,) = struct.unpack_from(f"{self.order}H", data, at + size - _PDU_BEFORE_END[magic])
        length: int = size + pdu
        return length

    def alike(self, data: memoryview, at: int, length: int, most: int) -> int:
        """Compare the next magics and ``pdu_len`` with this one's."""
        (magic,) = struct.unpack_from(f"{self.order}I", data, at)
        size = _BLKTRACE_BYTES[magic]
        pdu_at = at + size - _PDU_BEFORE_END[magic]
        magics = np.ndarray((most,), f"{self.order}u4", data, at, (length,))
        pdus = np.ndarray((most,), f"{self.order}u2", data, pdu_at, (length,))
        return _leading((magics == magic) & (pdus == length - size))

    def again_at(self, data: memoryview, at: int) -> int:
        """Return where the next magic stands that another one, or the end, follows."""
        for first in range(at, len(data) - 3, _SEARCH_BYTES):
            count = min(_SEARCH_BYTES, len(data) - 3 - first)
            words = np.ndarray((count,), f"{self.order}u4", data, first, (1,))
            for found in np.flatnonzero(np.isin(words, list(_BLKTRACE_BYTES))).tolist():
                length = self.length_at(data, first + found)
                behind = first + found + length
                if length == NOT_YET or behind >= len(data):
                    return int(first + found)
                if self.length_at(data, behind) != NONE_HERE:
                    return int(first + found)
        return len(data)

    def times(self, data: memoryview, offsets: I64) -> U64:
        """Return ``time``: CLOCK_MONOTONIC."""
        return _gather(data, offsets, 8, f"{self.order}u8")

    def sequences(self, data: memoryview, offsets: I64) -> tuple[U64, Mask]:
        """Return ``sequence``; notes have none, and version 8 is not asked."""
        numbers = _gather(data, offsets, 4, f"{self.order}u4")
        version_7 = _gather(data, offsets, 0, f"{self.order}u4") == _BLKTRACE_MAGIC | 7
        notes = _gather(data, offsets, 28, f"{self.order}u4") & np.uint64(_NOTIFY)
        return numbers, version_7 & (notes == 0)


_BLKTRACE_BYTES: Final = {_BLKTRACE_MAGIC | 7: 48, _BLKTRACE_MAGIC | 8: 64}
_PDU_BEFORE_END: Final = {_BLKTRACE_MAGIC | 7: 2, _BLKTRACE_MAGIC | 8: 14}


def parse_framing(
    text: str, *, time_at: int | None = None, sequence_at: int | None = None, order: str = "<"
) -> Framing:
    """Return what ``framing=`` in a SPEC names.

    Raises:
        UsageError: no such framing, or it cannot have these fields.
    """
    kind, _, size = text.partition(":")
    if kind == "blktrace" and not size:
        if (time_at, sequence_at) != (None, None):
            raise UsageError("framing blktrace has its own time and sequence")
        return Blktrace(order)
    if kind == "u32le-length" and not size:
        return LengthPrefixed(time_at, sequence_at)
    if kind != "fixed" or not size.isdigit() or not 0 < int(size) <= MOST_RECORD_BYTES:
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
    """Find the records in *data*, which begins with one.

    *complete*: it ends behind one, too, so that one which is not whole is damage.
    *last_sequence*: of the record before.  *suspect_before_missing*: what stands before missing
    records may have been overwritten while it was read, and is damage.
    """
    offsets, sizes, damage, whole = _walk(data, framing, complete=complete)
    missing: list[Missing] = []
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
        offsets, sizes = offsets[sound], sizes[sound]
    time = framing.times(data, offsets)
    return Scan(offsets, sizes, time, whole, sorted(damage), missing, last_sequence)


def _walk(
    data: memoryview, framing: Framing, *, complete: bool
) -> tuple[I64, I64, list[Damage], int]:
    """Return offsets and sizes of records, damage, and where an unfinished record begins."""
    runs: list[tuple[int, int, int]] = []
    damage: list[Damage] = []
    at, end, same, size, ahead = 0, len(data), 0, 0, _FIRST_RUN
    while at < end:
        length = framing.length_at(data, at)
        if length == NOT_YET or at + length > end:
            if not complete:
                break
            length = NONE_HERE
        if length == NONE_HERE:
            again = max(framing.again_at(data, at + 1), at + 1)
            damage.append(Damage(at, again - at, "no record begins here"))
            at = again
            continue
        same, size, ahead = (same + 1, size, ahead) if length == size else (1, length, _FIRST_RUN)
        count = 1
        if same >= _ALIKE:
            count = framing.alike(data, at, length, min(ahead, (end - at) // length))
            ahead = ahead * 8 if count == ahead else _FIRST_RUN
        runs.append((at, length, count))
        at += count * length
    return *_records(runs), damage, at


def _records(runs: list[tuple[int, int, int]]) -> tuple[I64, I64]:
    if not runs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts, lengths, counts = np.array(runs, np.int64).T
    sizes = np.repeat(lengths, counts)
    number_in_run = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + number_in_run * sizes, sizes


def _spans(offsets: I64, sizes: I64, sound: Mask) -> list[Damage]:
    """Return one Damage for each unsound record or row of them."""
    spans: list[Damage] = []
    for row in np.flatnonzero(~sound).tolist():
        at, size = int(offsets[row]), int(sizes[row])
        if spans and spans[-1].offset_bytes + spans[-1].size_bytes == at:
            at, size = spans[-1].offset_bytes, spans[-1].size_bytes + size
            spans.pop()
        spans.append(Damage(at, size, "out of sequence: stale, repeated or overwritten"))
    return spans


def _leading(mask: Mask) -> int:
    """Return how many of *mask* are true before the first that is not."""
    return len(mask) if mask.all() else int(np.argmin(mask))

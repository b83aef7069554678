"""What sub-buffers on disk say of themselves, per ABI: enough to check an index, or to make one.

Rule: pure; nothing here raises because of what the bytes say.  A kind without a row in ABIS states
no sizes: its index is the only witness.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lttd.abi import blktrace, ftrace, ftrace_events, ltt, ltt_events, ltt_walk
from lttd.limits import BLKTRACE_PACKET
from lttd.subbuffer import StreamInfo

Buffer = bytes | bytearray | memoryview
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


_CHUNK_SLOTS: Final = 65536
_WALK_BYTES: Final = 16 << 20


class Headers(NamedTuple):
    """Sub-buffers by their own headers."""

    offset_bytes: I64
    payload_bytes: I64
    """Header and content, and what is kept behind it; 0 where the header does not parse."""
    content_bytes: I64
    """Header and content: the index's content bits / 8."""
    begin: U64

    def some(self, which: slice | npt.NDArray[np.intp]) -> "Headers":
        """Return some of the sub-buffers."""
        return Headers(
            self.offset_bytes[which],
            self.payload_bytes[which],
            self.content_bytes[which],
            self.begin[which],
        )


class Decoded(NamedTuple):
    """What the events of some sub-buffers say, per sub-buffer, and where they do not parse."""

    events: I64 | None
    """None: more than the sub-buffers themselves is needed to tell one event from the next."""
    end: U64
    damage: list[ftrace_events.Damage]
    undeclared: Sequence[ftrace_events.Damage] = ()
    """Where events are of a kind that nobody told of: no damage, but no number of events either."""


class Abi(Protocol):
    """A kind whose sub-buffers state their own size."""

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given places."""
        ...

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the sub-buffers from *start_bytes* until one is not whole.

        They adjoin, or with *slot_bytes* each begins at a multiple of it.
        """
        ...

    def ends(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return when each was closed; None where headers do not tell."""
        ...

    def decode(self, data: Buffer, headers: Headers) -> Decoded:
        """Count the events and find the last one's time."""
        ...


def _sound_slots(abi: Abi, data: Buffer, start_bytes: int, slot_bytes: int) -> Headers:
    """Read the header of each slot until one does not parse.

    In chunks: a file that ends with a hole of a terabyte has as many slots as it says, and no
    header in them.
    """
    found: list[Headers] = []
    behind = len(data) - slot_bytes + 1
    step = _CHUNK_SLOTS * slot_bytes
    for first in range(start_bytes, max(behind, start_bytes + 1), step):
        offsets = np.arange(first, min(first + step, behind), slot_bytes, dtype=np.int64)
        slots = abi.headers_at(data, offsets)
        bad = np.flatnonzero(slots.payload_bytes == 0)
        found.append(slots.some(slice(int(bad[0]))) if len(bad) else slots)
        if len(bad):
            break
    return Headers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class FtraceAbi:
    """Ftrace: header + commit + (bit 30 ? long : 0)."""

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        self.layout: Final = ftrace.PageLayout(
            subbuffer_bytes=info.subbuffer_bytes,
            long_bytes=info.header_bytes - 8,
            byteorder="<" if byteorder == "little" else ">",
        )

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given places; such as are all zero were never written."""
        layout = self.layout
        head, room = layout.header_bytes, len(data)
        inside = (offsets_bytes >= 0) & (offsets_bytes <= room - head)
        found = np.zeros(len(offsets_bytes), layout.header_dtype)
        if room >= head and inside.any():
            everywhere = np.ndarray((room - head + 1,), layout.header_dtype, data, strides=(1,))
            found[inside] = everywhere[offsets_bytes[inside]]
        word = found["commit"].astype(np.uint64)
        content = (word & np.uint64(ftrace.COMMIT_MASK)).astype(np.int64) + head
        counted = (word & np.uint64(ftrace.MISSED_STORED)) != 0
        stored = content + np.where(counted, layout.long_bytes, 0)
        begin = found["begin"].astype(np.uint64)
        sound = inside & (stored <= self._most_bytes(room)) & (offsets_bytes + stored <= room)
        sound &= (word != 0) | (begin != 0)
        return Headers(offsets_bytes, np.where(sound, stored, 0), content, begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the headers; where they adjoin, each tells where the next one is."""
        if slot_bytes:
            return _sound_slots(self, data, start_bytes, slot_bytes)
        return self.headers_at(data, np.array(self._chase(data, start_bytes), np.int64))

    def _chase(self, data: Buffer, at: int) -> list[int]:
        layout = self.layout
        head = struct.Struct(f"{layout.byteorder}Q{'Q' if layout.long_bytes == 8 else 'L'}")
        room, most = len(data), self._most_bytes(len(data))
        offsets: list[int] = []
        while at + head.size <= room:
            begin, word = head.unpack_from(data, at)
            stored = head.size + (word & ftrace.COMMIT_MASK)
            stored += layout.long_bytes if word & ftrace.MISSED_STORED else 0
            if stored > most or at + stored > room or not (begin or word):
                break
            offsets.append(at)
            at += stored
        return offsets

    def _most_bytes(self, room: int) -> int:
        return self.layout.subbuffer_bytes or room

    def ends(self, data: Buffer, headers: Headers) -> None:
        """Return None: a page says when it begins."""

    def decode(self, data: Buffer, headers: Headers) -> Decoded:
        """Walk the events without keeping them."""
        ends = headers.offset_bytes + headers.content_bytes
        parts = list(ftrace_events.count(data, headers.offset_bytes, ends, self.layout))
        if not parts:
            return Decoded(np.empty(0, np.int64), np.empty(0, np.uint64), [])
        return Decoded(
            np.concatenate([part.row_events for part in parts]),
            np.concatenate([part.row_end for part in parts]),
            [damage for part in parts for damage in part.damage],
        )


class LttAbi:
    """LTTng 0.x: the header states what is used, and in which byte order.

    How long an event is, the marker's format in another stream tells.
    """

    def __init__(self, info: StreamInfo, _byteorder: str) -> None:
        self._most_bytes: Final = info.subbuffer_bytes
        self.markers: ltt_events.MarkersOf | None = None
        """What the events are, by id; for who knows the segment's metadata to set."""

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given places."""
        found = ltt.headers_at(data, offsets_bytes)
        sound = found.sound & (found.size_bytes <= self._most_bytes)
        stored = np.where(sound, found.used_bytes, 0)
        return Headers(offsets_bytes, stored, found.used_bytes, found.begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the headers; where they adjoin, each tells where the next one is."""
        if slot_bytes:
            return _sound_slots(self, data, start_bytes, slot_bytes)
        slots = np.fromiter(ltt_walk.adjoining(data, start_bytes), np.int64)
        found = self.headers_at(data, slots)
        bad = np.flatnonzero(found.payload_bytes == 0)
        return found.some(slice(int(bad[0]))) if len(bad) else found

    def ends(self, data: Buffer, headers: Headers) -> U64:
        """Return when each was closed."""
        return ltt.headers_at(data, headers.offset_bytes).end

    def decode(self, data: Buffer, headers: Headers) -> Decoded:
        """Walk the events without keeping them.

        Without the markers that only tells when each was closed, and no number of events.
        """
        end = self.ends(data, headers)
        if self.markers is None:
            return Decoded(None, end, [])
        events = np.zeros(len(end), np.int64)
        damage: list[ftrace_events.Damage] = []
        undeclared: list[ftrace_events.Damage] = []
        behind = headers.offset_bytes + headers.content_bytes
        for layout, rows, subbuffers in ltt_events.alike(data, headers.offset_bytes, behind):
            channel = ltt_events.Channel(self.markers(layout), layout)
            for walked in ltt_events.walk(data, subbuffers, channel):
                some = rows[walked.first_row :][: len(walked.row_events)]
                events[some] = walked.row_events
                end[some] = layout.ns_of(walked.row_end)
                damage += [each._replace(row=int(rows[each.row])) for each in walked.damage]
                undeclared += walked.undeclared
        return Decoded(None if undeclared else events, end, damage, undeclared)


def _adjoining_records(data: Buffer, at: int, layout: blktrace.Layout) -> tuple[I64, I64]:
    """Return offsets and sizes of the records from *at* on, until one is not whole.

    In steps: what follows may be a hole of a terabyte.
    """
    found: list[blktrace.Walked] = []
    while at < len(data):
        end = min(at + _WALK_BYTES, len(data))
        walked = blktrace.walk(data, at, end, layout)
        cut = walked.damage[0].offset_bytes if walked.damage else end
        whole = int(np.searchsorted(walked.offset_bytes, cut))
        found.append(blktrace.Walked(walked.offset_bytes[:whole], walked.size_bytes[:whole], []))
        if cut == at or (end - cut) > blktrace.MOST_RECORD_BYTES:
            break  # else the step's end has cut a record
        at = cut
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    offsets = np.concatenate([each.offset_bytes for each in found])
    return offsets, np.concatenate([each.size_bytes for each in found])


class BlktraceAbi:
    """Block traces: records from end to end; a sub-buffer is as many of them as its entry says.

    So the index is the witness of sizes, and one that is lost is made again with others.
    """

    def __init__(self, _info: StreamInfo, _byteorder: str) -> None:
        pass

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Take each to reach to the next, the last to the data's end."""
        sizes = np.diff(offsets_bytes, append=len(data))
        return self.told(data, offsets_bytes, sizes, np.zeros(len(sizes), np.uint64))

    def told(self, data: Buffer, offsets_bytes: I64, sizes_bytes: I64, begin: U64) -> Headers:
        """Take them to be as their entries say, where a record begins there."""
        sizes = np.where(
            (offsets_bytes >= 0)
            & (sizes_bytes > 0)
            & (sizes_bytes <= min(len(data), BLKTRACE_PACKET.most))
            & (offsets_bytes <= len(data) - sizes_bytes),
            sizes_bytes,
            0,
        )
        for row in np.flatnonzero(sizes).tolist():
            if blktrace.layout_of(data, int(offsets_bytes[row])) is None:
                sizes[row] = 0
        return Headers(offsets_bytes, sizes, sizes_bytes, begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the records until one is not whole; *slot_bytes* is 0: they vary in size."""
        layout = blktrace.layout_of(data, start_bytes)
        if layout is None:
            nothing = np.empty(0, np.int64)
            return Headers(nothing, nothing, nothing, nothing.astype(np.uint64))
        offsets, sizes = _adjoining_records(data, start_bytes, layout)
        walked = blktrace.Walked(offsets, sizes, [])
        records = blktrace.records_at(data, walked.offset_bytes, layout)
        time = np.maximum.accumulate(records["time"].astype(np.uint64))
        rows = blktrace.rows_of(walked, time, blktrace.ROW_BYTES)
        size = rows["payload_bytes"].astype(np.int64)
        return Headers(rows["offset_bytes"].astype(np.int64), size, size, rows["begin"])

    def ends(self, data: Buffer, headers: Headers) -> U64:
        """Return the time of the latest record of each."""
        return self.decode(data, headers).end

    def decode(self, data: Buffer, headers: Headers) -> Decoded:
        """Count the records."""
        events = np.zeros(len(headers.begin), np.int64)
        end = np.zeros(len(headers.begin), np.uint64)
        damage: list[ftrace_events.Damage] = []
        spans = zip(headers.offset_bytes.tolist(), headers.payload_bytes.tolist(), strict=True)
        for row, (at, size) in enumerate(spans):
            layout = blktrace.layout_of(data, at)
            if layout is None:
                damage.append(ftrace_events.Damage(row, at, "no block trace record begins here"))
                continue
            walked = blktrace.walk(data, at, at + size, layout)
            damage += [
                ftrace_events.Damage(row, one.offset_bytes, one.reason) for one in walked.damage
            ]
            records = blktrace.records_at(data, walked.offset_bytes, layout)
            events[row] = len(records)
            end[row] = records["time"].max() if len(records) else 0
        return Decoded(events, end, damage)


ABIS: Final[dict[str, Callable[[StreamInfo, str], Abi]]] = {
    "blktrace": BlktraceAbi,
    "ftrace": FtraceAbi,
    "ltt": LttAbi,
}


def abi_of(info: StreamInfo, byteorder: str) -> Abi | None:
    """Return what can read a stream's sub-buffers, or None where its ABI states no sizes.

    None, too, where the manifest states what cannot be.  *byteorder* is ``little`` or ``big``.
    """
    make = ABIS.get(info.abi)
    try:
        return make(info, byteorder) if make else None
    except ValueError:
        return None

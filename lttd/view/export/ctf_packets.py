"""Export CTF segments to CTF: the packets as the tracer wrote them, cut to the window.

    metadata                of the last segment, which begins with those of the segments before
    channel0_0, channel0_1  the packets of a stream, over all segments of one recording

A packet whose events are all in the window is copied.  Of another one the events outside are cut
off: its begin or its end becomes that of an event, and its sizes are those of the rest.

Rule: readers find the events that ``lttv text`` shows of the window, at the same times.
Rule: segments are one recording if their metadata has the same UUID and begins with that of the
segment before, and no stream goes back in time.  Several recordings have a directory each.
Rule: damage ends a packet, with a note; readers would end there with an error.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ctf
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import (
    Array,
    FieldClass,
    MetadataError,
    Sequence,
    Struct,
    Variant,
    alignment,
)
from lttd.abi.ctf_events import Walked, walk
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_plan import Plan
from lttd.blocks import Block
from lttd.errors import NotATraceError, TraceDamagedError, UsageError
from lttd.files import Disk
from lttd.limits import CTF_METADATA
from lttd.readfile import read_limited
from lttd.view.ctf.context import METADATA, CtfContext, CtfContexts, read_known
from lttd.view.export.pages import Tally
from lttd.view.output import nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window, seconds
from lttd.view.trace import Segment, Trace
from lttd.writefile import File

I64 = npt.NDArray[np.int64]

_BYTE: Final = 8


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    if trace.hides_self:
        raise UsageError(
            f"{trace.path}: --to ctf copies packets, and cannot leave out single events of a CTF"
            " trace; --to parquet can"
        )
    found = [(segment, parts_within(segment, window)) for segment in trace.segments]
    recordings = _recordings(
        _Member(segment, parts, *_metadata_of(segment))
        for segment, parts in found
        if any(len(part.entries) for part in parts)
    )
    tally = Tally()
    for recording in recordings:
        recording.write(window, disk, out / recording.name if len(recordings) > 1 else out, tally)
    if not tally.pages:
        raise NotATraceError(nothing_within(trace))
    return tally.told("packets")


def _metadata_of(segment: Segment) -> tuple[bytes, bytes | None]:
    """Return the metadata of a segment, and its UUID."""
    place = segment.paths.place(segment.paths.streams / METADATA)
    try:
        text = read_limited(place, CTF_METADATA)
        return text, read_known(text).uuid
    except (OSError, MetadataError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TraceDamagedError(Path(place.path), 0, reason) from None


class _Member(NamedTuple):
    """A segment's part of a window."""

    segment: Segment
    parts: list[Selection]
    metadata: bytes
    uuid: bytes | None


def _begin(part: Selection) -> int:
    return int(part.entries[0]["begin"]) if len(part.entries) else ctf.UNFINISHED


@dataclass
class _Recording:
    """Segments whose packets can be in the same files."""

    segments: list[tuple[Segment, list[Selection]]] = field(default_factory=list)
    metadata: bytes = b""
    """That of the last segment; memory does not hold those before."""
    uuid: bytes | None = None
    ends: dict[str, int] = field(default_factory=dict)
    """By the name of a stream."""

    @property
    def name(self) -> str:
        return self.segments[0][0].paths.directory.name

    def goes_on_with(self, member: _Member) -> bool:
        """Return whether a segment is of the same recording."""
        return (
            member.uuid is not None
            and member.uuid == self.uuid
            and member.metadata.startswith(self.metadata)
            and all(self.ends.get(part.stream.name, 0) <= _begin(part) for part in member.parts)
        )

    def add(self, member: _Member) -> None:
        self.segments.append((member.segment, member.parts))
        self.metadata, self.uuid = member.metadata, member.uuid
        for part in member.parts:
            if len(part.entries):
                self.ends[part.stream.name] = int(part.entries[len(part.entries) - 1]["end"])

    def write(self, window: Window, disk: Disk, out: Path, tally: Tally) -> None:
        """Write the files; none if the window has no packet."""
        written = tally.pages
        disk.make_directory(out)
        streams: dict[str, _Stream] = {}
        try:
            for segment, parts in self.segments:
                bounds = window.bounds(segment)
                contexts = CtfContexts(segment.paths, segment.manifest, tally.notes)
                for part in parts:
                    name = part.stream.name
                    if name not in streams:
                        streams[name] = _Stream(disk, out / name, tally)
                    streams[name].write(part, contexts.of(part.stream), bounds)
        finally:
            for stream in streams.values():
                stream.close()
        if tally.pages > written:
            described = disk.open(out / METADATA)
            try:
                described.write_at([self.metadata], 0)
            finally:
                described.close()


def _recordings(members: Iterable[_Member]) -> list[_Recording]:
    found: list[_Recording] = []
    for member in members:
        fitting = (one for one in found if one.goes_on_with(member))
        recording = next(fitting, None)
        if recording is None:
            recording = _Recording()
            found.append(recording)
        recording.add(member)
    return found


class _Stream:
    """The writer of one stream's file."""

    def __init__(self, disk: Disk, path: Path, tally: Tally) -> None:
        self._disk = disk
        self._path = path
        self._tally = tally
        self._file: File | None = None
        self._at = 0
        self._last = np.uint64(0)
        """The time that the stream has come to."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, part: Selection, context: CtfContext, bounds: tuple[int, int]) -> None:
        """Write the packets of a segment's stream."""
        for gap in part.gaps:
            self._tally.lost(gap)
        for block in part.blocks():
            for one in block.left_out:
                self._damaged(f"{one}; left out")
            self._tally.subbuffers += len(block.rows) + len(block.left_out)
            if not len(block.rows):
                continue
            plan = context.plan
            if plan is None:
                where = part.stream.segment.streams / METADATA
                raise TraceDamagedError(where, 0, f"it declares no stream {context.stream_id}")
            bits = Bits(block.data)
            packets = context.packets(bits, block.headers.offset_bytes, plan)
            some = _Packets(part, context, plan, block, bits, packets)
            for walked in walk(some.bits, packets, plan):
                for damage in walked.damage:
                    place = f"{part.stream.data_path}: byte {damage.offset_bytes + block.base}"
                    self._damaged(f"{place}: {damage.reason}; the rest of the packet is left out")
                self._put(some, some.cuts(walked, self._keys(some, walked), bounds))

    def _keys(self, some: "_Packets", walked: Walked) -> npt.NDArray[np.uint64]:
        """Return the times of events as running maxima, as the viewer orders them."""
        begin = some.block.entries["begin"].astype(np.uint64)[walked.row]
        key = np.maximum(some.context.layout.ns_of(walked.time), begin)
        if len(key):
            key[0] = max(key[0], self._last)
            np.maximum.accumulate(key, out=key)
            self._last = key[-1]
        return key

    def _damaged(self, note: str) -> None:
        self._tally.losses_unknown += 1
        self._tally.notes.add(note)

    def _put(self, some: "_Packets", cuts: "Iterator[_Cut]") -> None:
        for whole, members in groupby(cuts, lambda cut: cut.whole):
            of_kind = list(members)
            if whole:
                self._append(some.copied([cut.row for cut in of_kind]), some, len(of_kind))
            else:
                for cut in of_kind:
                    self._append([some.trimmed(cut)], some, 1)
            self._tally.events += sum(cut.events for cut in of_kind)

    def _append(self, pieces: "list[bytes | memoryview]", some: "_Packets", count: int) -> None:
        if "packet_size" not in some.context.layout.fields and (self._at or count > 1):
            raise UsageError(
                f"{some.part.stream.paths.data}: packets without sizes: a file has room for one;"
                " export one segment at a time"
            )
        self._at = self._opened().write_at(pieces, self._at)
        self._tally.pages += count

    def _opened(self) -> File:
        if self._file is None:
            self._file = self._disk.open(self._path)
        return self._file


class _Cut(NamedTuple):
    """The part of a packet that is in the window."""

    row: int
    whole: bool
    events: int
    begin_bytes: int
    """Where its first event is in the data."""
    from_bytes: int
    """Where the first event is that is left."""
    begin: int | None
    """The time of that event in cycles, if others were before it."""
    last_bytes: int | None
    """Where the last event is that is left, if anything came after it."""
    end: int | None
    """The time of that event in cycles, if others came after it."""


class _Packets(NamedTuple):
    """The packets of a block."""

    part: Selection
    context: CtfContext
    plan: Plan
    block: Block
    bits: Bits
    packets: Packets

    def cuts(
        self, walked: Walked, key: npt.NDArray[np.uint64], bounds: tuple[int, int]
    ) -> Iterator[_Cut]:
        """Yield what is left of each packet; nothing of those without an event in the window."""
        kept = (key >= np.uint64(bounds[0])) & (key <= np.uint64(bounds[1]))
        broken = {damage.row for damage in walked.damage}
        firsts = np.cumsum(walked.row_events) - walked.row_events
        left = np.add.reduceat(np.append(kept, False).astype(np.int64), firsts)
        left[walked.row_events == 0] = 0  # reduceat() takes the next element for these
        for number, (first, count, events) in enumerate(
            zip(firsts.tolist(), walked.row_events.tolist(), left.tolist(), strict=True)
        ):
            row = walked.first_row + number
            if count == events:
                empty = int(self.packets.first_bits[row]) >> 3
                at = int(walked.at[first]) if count else empty
                last = int(walked.at[first + count - 1]) if count else None
                yield _Cut(row, row not in broken, count, at, at, None, last, None)
            elif events:
                low = first + int(kept[first:].argmax())
                high = low + events - 1
                begin = int(walked.time[low]) if low > first else None
                after = high < first + count - 1
                yield _Cut(
                    row, False, events, int(walked.at[first]), int(walked.at[low]), begin,
                    int(walked.at[high]) if after or row in broken else None,
                    int(walked.time[high]) if after else None,
                )  # fmt: skip

    def copied(self, rows: list[int]) -> "list[bytes | memoryview]":
        """Return the bytes of packets, without padding."""
        headers, data = self.block.headers, self.block.data
        offset, size = headers.offset_bytes[rows], headers.payload_bytes[rows]
        heads = ctf.packed_heads(data, offset, size, self.context.layout)
        pieces: list[bytes | memoryview] = []
        for number, (at, length) in enumerate(zip(offset.tolist(), size.tolist(), strict=True)):
            head = b"" if heads is None else heads[number].tobytes()
            pieces += [head, data[at + len(head) : at + length]]
        return pieces

    def trimmed(self, cut: _Cut) -> bytes:
        """Return the bytes of a packet with fewer events.

        Raises:
            UsageError: its events cannot be moved to its begin, or it has no field for its end.
        """
        base = int(self.packets.offset_bytes[cut.row])
        moved = cut.from_bytes - cut.begin_bytes
        if moved:
            self._refuse_unaligned(cut, moved)
        end_bits = int(self.packets.end_bits[cut.row])
        if cut.last_bytes is not None:
            end_bits = self._end_of(cut.row, cut.last_bytes)
        elif not cut.events:
            end_bits = cut.begin_bytes * _BYTE
        data = self.block.data
        end = -(-end_bits // _BYTE)
        made = bytearray(data[base : cut.begin_bytes]) + data[cut.from_bytes : end]
        stated = {
            "content_size": end_bits - (base + moved) * _BYTE,
            "packet_size": len(made) * _BYTE,
            "timestamp_begin": cut.begin,
            "timestamp_end": cut.end,
        }
        fields = self.context.layout.fields
        for name, value in stated.items():
            at = fields.get(name)
            if value is not None and at is not None:
                low = value % (1 << at.size_bytes * _BYTE)
                made[at.at_bytes : at.behind_bytes] = low.to_bytes(at.size_bytes, at.byteorder)
        return bytes(made)

    def _refuse_unaligned(self, cut: _Cut, moved_bytes: int) -> None:
        plan = self.plan
        classes = [plan.header, *(of for one in plan.events for of, _ in plan.bodies(one))]
        unit = max([_BYTE, *map(_strictest, classes)]) // _BYTE
        if moved_bytes % unit == 0 and "timestamp_begin" in self.context.layout.fields:
            return
        begins = seconds(int(self.block.entries["begin"][cut.row]))
        raise UsageError(
            f"{self.part.stream.paths.data}: a packet cannot begin at any of its events, which are"
            f" aligned to {unit} bytes: begin at {begins}, or use lttv cut"
        )

    def _end_of(self, row: int, at_bytes: int) -> int:
        """Return the end of an event, in bits."""
        some = self.packets.some(slice(row, row + 1))
        at = np.array([at_bytes * _BYTE], np.int64)
        heads = heads_of(self.bits, at, some.offset_bytes << 3, some.end_bits, self.plan)
        place = heads.behind
        for of, path in self.plan.bodies(self.plan.events[int(heads.number[0])]):
            place = heads.scan.measure(of, place, path)
        return int(place[0])


def _strictest(of: FieldClass | None) -> int:
    """Return the largest alignment of a field and of those in it, in bits."""
    match of:
        case None:
            return 1
        case Struct(members=inner) | Variant(options=inner):
            return max([alignment(of), *(_strictest(member) for _, member in inner)])
        case Array(element=element) | Sequence(element=element):
            return _strictest(element)
        case _:
            return alignment(of)

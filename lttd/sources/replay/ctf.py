"""Replay CTF traces: lttng-consumerd's padded files, and those of any other producer.

Rule: lttd finds all packets when it opens a trace, in one walk over the headers: the order of files
and the losses between packets follow from them.
Rule: a packet keeps its bytes, but for the size that it states: without padding, that of its
content.  So every reader of CTF reads the segment's ``streams`` as it read the original.
Invariant: the bytes of the files = kernel_bytes of the rows + bytes of DAMAGED and TORN gaps +
packets that an earlier file has.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi import ctf
from lttd.abi.ctf_classes import Clock, Trace
from lttd.clock import Snapshot
from lttd.errors import SourceError
from lttd.plausible import MOST_SIZE
from lttd.sources.base import Attachment, Attachments, Nothing, SourceInfo, When
from lttd.sources.replay.ctf_files import Channel, Found, Part, find, find_trace
from lttd.sources.replay.files import FileSource, FileStream, Replay, open_directory
from lttd.subbuffer import (
    ROW_DTYPE,
    Batch,
    BufferPool,
    Gap,
    Reason,
    Rows,
    StreamInfo,
    Unit,
    make_batch,
)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_NS: Final = 1_000_000_000
_FOREVER: Final = (1 << 64) - 1
_MOST: Final = (1 << 63) - 1
_MOST_TEXT: Final = 1024
_MOST_VARIABLES: Final = 256


class CtfReplayStream(FileStream):
    """The files of one stream."""

    def __init__(self, channel: Channel, pool: BufferPool) -> None:
        self._channel = channel
        super().__init__(_info_of(channel), channel.parts[0].place, pool)
        self._rows = _rows_of(channel)
        self._gaps = _gaps_of(channel, self._rows)
        self._gap_rows = [gap.row for gap in self._gaps]
        counts = [len(part.survey.offsets_bytes) for part in channel.parts]
        self._behind = np.cumsum(counts).tolist()
        """The number of the row after each file."""
        self._part = 0
        self._row = 0
        """The number of packets taken so far."""
        self._gap = 0

    @property
    def begin(self) -> int:
        """The begin of the first packet, on the trace clock."""
        return int(self._rows["begin"][0])

    @property
    def latest(self) -> int:
        """The trace-clock time at the end of the taken data."""
        return int(self._rows["end"][self._row - 1]) if self._row else 0

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next packets; see Stream.take()."""
        if self.closed or (self._row == len(self._rows) and self._gap == len(self._gaps)):
            self.close()
            return Nothing.EVER
        if self._row == self._behind[self._part] and self._part + 1 < len(self._behind):
            self._part += 1
            self.reopen(self._channel.parts[self._part].place)
        first = self._row
        buffer, behind = self._room()
        rows = self._rows[first:behind].copy()
        if len(rows):
            start = int(rows["offset_bytes"][0])
            end = int(rows["offset_bytes"][-1] + rows["payload_bytes"][-1])
            if self.read_into(buffer[: end - start], start) < end - start:
                raise SourceError(f"{self.path}: became shorter while it was read")
            rows["offset_bytes"] -= np.uint64(start)
        self._row = behind
        last = behind == len(self._rows)
        gap_end = len(self._gaps) if last else bisect_right(self._gap_rows, behind - 1)
        gaps = [replace(gap, row=gap.row - first) for gap in self._gaps[self._gap : gap_end]]
        self._gap = gap_end
        heads = ctf.packed_heads(
            buffer,
            rows["offset_bytes"].astype(np.int64),
            rows["payload_bytes"].astype(np.int64),
            self._channel.layout,
        )
        return make_batch(
            self.info.id, rows, pool=self.pool, buffer=buffer, gaps=tuple(gaps), heads=heads
        )

    def _room(self) -> tuple[memoryview, int]:
        """Return memory for the next packets of the file, and the number after the last of them."""
        first, limit = self._row, self._behind[self._part]
        buffer = self.pool.take()
        if first == limit:
            return buffer, limit
        rows = self._rows[first : min(limit, first + len(buffer) // 16 + 1)]
        # The padding of the last one is not needed, and may be of any size.
        ends = rows["offset_bytes"] + rows["payload_bytes"] - rows["offset_bytes"][0]
        count = int(np.searchsorted(ends, np.uint64(len(buffer)), "right"))
        if not count:
            self.pool.give(buffer)
            return memoryview(bytearray(int(ends[0]))), first + 1
        return buffer, first + count


def _info_of(channel: Channel) -> StreamInfo:
    sizes = np.concatenate([part.survey.headers.packet_bytes for part in channel.parts])
    # The last packet of a file may state more than a manifest can hold: its padding may be cut.
    same = int(sizes[0]) if (sizes == sizes[0]).all() and sizes[0] <= MOST_SIZE else 0
    return StreamInfo(
        channel.stream,
        ctf.NAME,
        same,
        channel.layout.header_bytes,
        ctf_stream_id=channel.class_id,
        packet_layout=str(channel.layout),
    )


def _joined(channel: Channel) -> ctf.PacketHeaders:
    return ctf.PacketHeaders.joined([part.survey.headers for part in channel.parts])


def _rows_of(channel: Channel) -> Rows:
    """Return all packets of a stream; their offsets are those in their files."""
    headers = _joined(channel)
    rows = np.zeros(len(headers.begin), ROW_DTYPE)
    rows["offset_bytes"] = np.concatenate([part.survey.offsets_bytes for part in channel.parts])
    rows["payload_bytes"] = headers.content_bytes
    rows["kernel_bytes"] = np.concatenate([_there(part) for part in channel.parts])
    rows["content_bits"] = headers.content_bits
    rows["begin"] = np.maximum.accumulate(headers.begin)
    rows["end"] = _ends_of(rows["begin"], headers, stated="timestamp_end" in channel.layout.fields)
    rows["sequence"] = _numbers(headers.sequence)
    return rows


def _there(part: Part) -> I64:
    """Return the bytes of each packet that are in the file: the padding of the last may be cut."""
    survey = part.survey
    return np.minimum(survey.headers.packet_bytes, part.size_bytes - survey.offsets_bytes)


def _ends_of(begin: U64, headers: ctf.PacketHeaders, *, stated: bool) -> U64:
    """Return the ends as running maxima; what has none ends where the next one begins."""
    following = np.concatenate((begin[1:], np.array([_FOREVER if not stated else 0], np.uint64)))
    end = np.where(headers.end == 0, following, headers.end)
    return np.maximum.accumulate(np.maximum(end, begin))


def _numbers(sequence: U64) -> U64:
    """Return the packets' own numbers if they rise; else count them."""
    if len(sequence) > 1 and (sequence[1:] > sequence[:-1]).all():
        return sequence
    return np.arange(len(sequence), dtype=np.uint64)


def _gaps_of(channel: Channel, rows: Rows) -> list[Gap]:
    """Return the losses that packets state, and bytes that are no packet, in order.

    Fill in the totals of the rows.
    """
    headers = _joined(channel)
    gaps = [*_overwritten(channel, headers, rows), *_discarded(channel, headers, rows)]
    first = 0
    for part in channel.parts:
        for damage in part.survey.damage:
            row = first + damage.number
            at_ns = int(rows["end"][row - 1]) if row else 0
            reason = Reason.TORN if damage.torn else Reason.DAMAGED
            gaps.append(Gap(row, reason, Unit.BYTES, damage.length_bytes, at_ns, at_ns))
        first += len(part.survey.offsets_bytes)
    return sorted(gaps, key=lambda gap: gap.row)


def _overwritten(channel: Channel, headers: ctf.PacketHeaders, rows: Rows) -> Iterator[Gap]:
    """Yield the packets that are missing between two, by their numbers."""
    if "packet_seq_num" not in channel.layout.fields:
        return
    before, after = headers.sequence[:-1], headers.sequence[1:]
    missed = np.where(after > before, after - before - np.uint64(1), np.uint64(0))
    for row in np.flatnonzero(missed).tolist():
        since, until = int(rows["end"][row]), int(rows["begin"][row + 1])
        yield Gap(
            row + 1,
            Reason.OVERWRITTEN,
            Unit.SUBBUFFERS,
            int(missed[row]),
            min(since, until),
            max(since, until),
        )


def _discarded(channel: Channel, headers: ctf.PacketHeaders, rows: Rows) -> Iterator[Gap]:
    """Yield the events that the tracer discarded, by the growth of its total; fill in the totals.

    What was lost before the first packet of a snapshot is no loss of this trace.
    """
    fields = channel.layout.fields
    field = fields.get("events_discarded")
    if field is None:
        return
    is_snapshot = "packet_seq_num" in fields and int(headers.sequence[0]) > 0
    start = headers.discarded[:1] if is_snapshot else np.zeros(1, np.uint64)
    lost = headers.discarded - np.concatenate((start, headers.discarded[:-1]))
    if field.size_bytes < 8:
        lost &= np.uint64((1 << 8 * field.size_bytes) - 1)
    lost[lost > np.uint64(_MOST)] = 0  # it counts from 0 again
    rows["discarded_total"] = np.cumsum(lost)
    for row in np.flatnonzero(lost).tolist():
        until = int(rows["end"][row])
        since = int(rows["end"][row - 1]) if row else int(rows["begin"][row])
        yield Gap(row, Reason.DISCARDED, Unit.EVENTS, int(lost[row]), min(since, until), until)


class CtfReplaySource(FileSource[CtfReplayStream]):
    """The streams of one trace."""

    def __init__(
        self, directory: Path, found: Found, pool: BufferPool, name: str | None = None
    ) -> None:
        """*name*: that of the trace, if the directory has several."""
        super().__init__((CtfReplayStream(each, pool) for each in found.channels), found.notes)
        for channel in found.channels:
            for part in channel.parts:
                self._notes += _notes_on(part)
        self._metadata = found.metadata
        trace = found.trace
        environment = _environment_of(trace)
        names = {"hostname": "host", "kernel_release": "kernel"}
        # A trace of another host, which states no kernel, was not made by that of this machine.
        stated = [name for name in names if {name, "hostname"} & environment.keys()]
        machine = {names[name]: environment.get(name, "") for name in stated}
        clock = next((trace.clocks[s.clock] for s in trace.streams.values() if s.clock), None)
        self.info = SourceInfo(
            "replay",
            f"replay:{directory}" + (f",trace={name}" if name is not None else ""),
            clock.name[:_MOST_TEXT] if clock else "none",
            {
                "directory": str(directory),
                "abi": ctf.NAME,
                "format": f"{trace.version[0]}.{trace.version[1]}",
                "byteorder": trace.byteorder,
                "frequency": clock.frequency_hz if clock else _NS,
                "environment": environment,
                "files": [
                    str(part.path.relative_to(directory))
                    for channel in found.channels
                    for part in channel.parts
                ],
            },
            live=False,
            machine=machine | {"byteorder": trace.byteorder},
            snapshot=_start(clock, self.streams),
        )

    def attachments(self) -> Attachments:
        """Return the metadata, which every segment has as a whole."""
        written = False

        def attach(when: When) -> Iterator[Attachment]:
            nonlocal written
            if not written:
                written = True
                yield Attachment("streams/metadata", self._metadata)

        return attach


def _environment_of(trace: Trace) -> dict[str, str]:
    """Return what the tracer says of itself; long texts are cut, for the manifest has a limit."""
    some = islice(trace.environment.items(), _MOST_VARIABLES)
    return {name[:_MOST_TEXT]: str(value)[:_MOST_TEXT] for name, value in some}


def _start(clock: Clock | None, streams: Sequence[CtfReplayStream]) -> Snapshot | None:
    """Return the clocks at the first packet, by the clock's origin; the others are unknown."""
    begin = min(stream.begin for stream in streams)
    if clock is None:
        return None
    wall_ns = begin + clock.offset_s * _NS + clock.offset * _NS // clock.frequency_hz
    if not 0 <= begin <= _MOST or not 0 <= wall_ns <= _MOST:
        return None
    return Snapshot(begin, begin, begin, wall_ns, min(clock.precision, _MOST))


def _notes_on(part: Part) -> Iterator[str]:
    reasons = Counter((damage.reason, damage.torn) for damage in part.survey.damage)
    for damage in part.survey.damage:
        count = reasons.pop((damage.reason, damage.torn), 0)
        if count:
            more = f", and {count - 1} more like it" if count > 1 else ""
            yield (
                f"{part.path}: byte {damage.offset_bytes}: {damage.reason};"
                f" {damage.length_bytes} bytes are left out{more}"
            )


def open_ctf_replay(directory: Path, pool: BufferPool, name: str | None = None) -> CtfReplaySource:
    """Open the trace in a directory, or its chunks below; *name*: the one that is called so.

    Raises:
        UsageError: there is no such directory or trace, or there are several and no *name*.
        NothingToRecordError: it holds no packet.
        SourceError: a file cannot be read, or the metadata cannot be used.
    """
    found = find_trace(directory, open_directory(directory), name)
    return CtfReplaySource(directory, found, pool, name)


REPLAY: Final = Replay(
    find,
    lambda directory, pool, _: open_ctf_replay(directory, pool),
    states_sizes=True,
    open_one=open_ctf_replay,
)

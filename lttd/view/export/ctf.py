"""Export to CTF 1.8, for babeltrace2 and Trace Compass: a directory per segment, a file per CPU.

    metadata                see ctf_metadata
    ftrace_0, ftrace_1      packets: header, context, events (see ctf_events)

Rule: a loss ends a packet, and the next packet's ``events_discarded`` counts it, so that readers
place it where it happened.  CTF cannot state a loss of unknown number; the lines at the end count
it.
Invariant: within a stream neither packets nor events step back in time.
"""

import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi import ftrace_events
from lttd.abi.ftrace import PageLayout, layout_of
from lttd.abi.gather import gather
from lttd.blocks import Block
from lttd.errors import NotATraceError, UsageError
from lttd.files import Disk
from lttd.index import PAST_ALL
from lttd.view.export.ctf_events import COMMON_BYTES, I64, U8, Encoder, Events, Types
from lttd.view.export.ctf_metadata import metadata
from lttd.view.export.pages import Tally
from lttd.view.formats import Formats
from lttd.view.output import nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.writefile import File

_MAGIC: Final = 0xC1FC1FC1
# Where the pid is in an event's own bytes: after type, flags and preempt count.
_PID_AT: Final = 4
_NOTHING: Final[U8] = np.empty(0, np.uint8)


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    found = [(segment, parts_within(segment, window)) for segment in trace.segments]
    found = [(s, parts) for s, parts in found if any(len(part.entries) for part in parts)]
    if not found:
        raise NotATraceError(nothing_within(trace))
    tally = Tally()
    for segment, parts in found:
        alone = len(found) == 1
        _export_segment(
            segment,
            parts,
            window,
            disk,
            out if alone else out / segment.paths.directory.name,
            tally,
        )
    return tally.told("packets")


def _export_segment(
    segment: Segment, parts: list[Selection], window: Window, disk: Disk, out: Path, tally: Tally
) -> None:
    layout, *others = {layout_of(one.stream.info, one.stream.byteorder) for one in parts}
    if others:
        name = segment.paths.directory.name
        raise UsageError(f"{name}: its streams differ in sub-buffer size, of which CTF has one")
    formats = Formats(segment.paths.tracefs, layout.byteorder, layout.long_bytes, tally.notes)
    types = Types(formats, layout.byteorder)
    disk.make_directory(out)
    for part in parts:
        stream = _Stream(part, layout, Encoder(types, layout.byteorder), tally)
        file = disk.open(out / part.stream.name)
        try:
            stream.write(file, window.bounds(segment))
        finally:
            file.close()
    manifest = segment.manifest
    snapshots = manifest.clock_snapshots
    environment = {
        "hostname": manifest.machine.get("host", ""),
        "kernel_release": manifest.machine.get("kernel", ""),
        "architecture": manifest.machine.get("architecture", ""),
        "tracer_name": "lttd",
        "tracer_version": manifest.lttd_version,
        "trace_clock": manifest.clock,
    }
    first = snapshots[0] if snapshots else None
    text = metadata(layout.byteorder, manifest.clock, first, environment, types.all)
    described = disk.open(out / "metadata")
    try:
        described.write_at([text.encode()], 0)
    finally:
        described.close()


class _Stream:
    """The writer of one CPU's packets."""

    def __init__(self, part: Selection, layout: PageLayout, encoder: Encoder, tally: Tally) -> None:
        self._part = part
        self._layout = layout
        self._encoder = encoder
        self._tally = tally
        self._head = struct.Struct(f"{layout.byteorder}2I6QI")
        self._gaps = deque(sorted(part.gaps, key=lambda gap: gap.row))
        self._sequence = 0
        self._discarded = 0
        self._told = 0
        # Where the stream has come to: no time is before it.
        self._last = int(part.entries[0]["begin"]) if len(part.entries) else 0
        self._at = 0

    def write(self, file: File, bounds: tuple[int, int]) -> None:
        """Write the events and losses of the stream within *bounds*."""
        if not len(self._part.entries):
            return
        self._last = max(self._last, bounds[0])
        if self._gaps and self._gaps[0].row == 0:
            # Readers count losses from one packet to the next, so a first loss needs one before it.
            self._packet(file, _NOTHING, self._last)
        for block in self._part.blocks():
            for events, rows in self._decoded(block, bounds):
                self._put(file, block.data, events, rows)
        self._lose_before(PAST_ALL)
        if self._discarded > self._told:
            self._packet(file, _NOTHING, self._last)

    def _decoded(self, block: Block, bounds: tuple[int, int]) -> Iterator[tuple[Events, I64]]:
        """Yield the events of a block that are in the window, and the row of each."""
        for one in block.left_out:
            self._damaged(f"{one}; left out")
        hidden = list(self._part.stream.hidden_pids)
        offset = block.headers.offset_bytes
        ends = offset + block.headers.content_bytes
        for some in ftrace_events.walk(block.data, offset, ends, self._layout):
            for damage in some.damage:
                place = f"{self._part.stream.data_path}: byte {damage.offset_bytes + block.base}"
                self._damaged(f"{place}: {damage.reason}; the rest of it is left out")
            kept = some.payload_bytes >= COMMON_BYTES
            kept &= (some.time >= np.uint64(bounds[0])) & (some.time <= np.uint64(bounds[1]))
            if hidden:
                kept[kept] = ~np.isin(self._pids(block.data, some.payload_at[kept]), hidden)
            size = some.payload_bytes[kept].astype(np.int64)
            events = Events(some.time[kept], some.payload_at[kept], size)
            yield events, block.rows[some.row[kept]]
        self._tally.subbuffers += len(block.rows) + len(block.left_out)

    def _pids(self, data: memoryview, at: I64) -> npt.NDArray[np.int32]:
        return gather(data, at + _PID_AT, np.dtype(f"{self._layout.byteorder}i4")).astype(np.int32)

    def _damaged(self, note: str) -> None:
        self._tally.losses_unknown += 1
        self._tally.notes.add(note)

    def _put(self, file: File, data: memoryview, events: Events, rows: I64) -> None:
        """Write packets of *events*; a new one begins after each loss."""
        if not len(rows):
            return
        time = np.maximum.accumulate(np.maximum(events.time, np.uint64(self._last)))
        encoded = self._encoder.encode(data, events._replace(time=time))
        first = 0
        while first < len(rows):
            self._lose_before(int(rows[first]))
            if self._discarded > self._told:
                # Write an empty packet: readers place a loss between the ends of two packets.
                self._packet(file, _NOTHING, int(time[first]))
            behind = len(rows)
            if self._gaps:
                behind = int(np.searchsorted(rows, self._gaps[0].row))
            content = encoded.data[encoded.offset[first] : encoded.offset[behind]]
            self._packet(file, content, int(time[behind - 1]), int(time[first]))
            self._tally.events += behind - first
            first = behind

    def _lose_before(self, row: int) -> None:
        """Count the losses up to and including *row*."""
        while self._gaps and self._gaps[0].row <= row:
            count = self._tally.lost(self._gaps.popleft())
            self._discarded += count or 0

    def _packet(self, file: File, content: U8, end: int, begin: int | None = None) -> None:
        size_bytes = self._head.size + len(content)
        self._last, self._told = end, self._discarded
        head = self._head.pack(
            *(_MAGIC, 0, end if begin is None else begin, end, size_bytes * 8, size_bytes * 8),
            *(self._sequence, self._discarded, self._part.stream.info.id.cpu),
        )
        self._at = file.write_at([head, content.data], self._at)
        self._sequence += 1
        self._tally.pages += 1

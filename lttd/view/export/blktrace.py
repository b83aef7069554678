"""Export to files of ``blktrace``: a directory of ``DEVICE.blktrace.CPU``, for ``blkparse -i``.

    OUT/nullb0.blktrace.0, .1, ...        blkparse -i OUT/nullb0

Each file holds the records of the window as the kernel made them.  Before them it has the earlier
records that name processes and state the time, without which names would be unknown.  An idle CPU
has an empty file, because blkparse stops at the first missing number.

Rule: records are copied whole; bytes that are not a record are left out, with a note.
Invariant: a CPU's records are in the order in which they were recorded.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from lttd.abi.blktrace import Layout, layout_of, records_at, walk
from lttd.errors import NotATraceError, UsageError
from lttd.files import Disk
from lttd.view.blktrace.process_names import NOTES_FILE, noted_records
from lttd.view.notes import Notes
from lttd.view.output import nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.writefile import File

# The number of sub-buffers that are copied at a time: at most 4 MiB.
_ROWS_AT_ONCE: Final = 64
_READABLE_VERSION: Final = 7


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    found = [(segment, parts_within(segment, window)) for segment in trace.segments]
    found = [(s, parts) for s, parts in found if any(not part.empty for part in parts)]
    if not found:
        raise NotATraceError(nothing_within(trace))
    _refuse_several_boots(trace, [segment for segment, _ in found])
    disk.make_directory(out)
    writing = _Writing(disk, out)
    try:
        for segment, parts in found:
            writing.add(segment, parts, window)
    finally:
        writing.close()
    return writing.told()


def _refuse_several_boots(trace: Trace, used: list[Segment]) -> None:
    boots = {segment.manifest.machine.get("boot_id") for segment in used}
    if len(boots) > 1:
        raise UsageError(
            f"{trace.path}: its segments are of different boots, whose times cannot be compared:"
            f" export them one by one, as {used[0].paths.directory} first"
        )


class _Writing:
    """The writer of all files."""

    def __init__(self, disk: Disk, out: Path) -> None:
        self._disk = disk
        self._out = out
        self._files: dict[tuple[str, int], tuple[File, int]] = {}
        self._noted: set[bytes] = set()
        self._records = 0
        self._losses = 0
        self._notes = Notes()

    def add(self, segment: Segment, parts: list[Selection], window: Window) -> None:
        """Write the records of one segment."""
        begin, end = window.bounds(segment)
        names = {part.stream.info.id.channel for part in parts}
        notes = segment.paths.place(segment.paths.directory / NOTES_FILE)
        for time, cpu, record in noted_records(notes):
            # Each device has its own notes, but all give a process the same name.
            if time < begin and record not in self._noted:
                self._noted.add(record)
                for name in names:
                    self._put(name, cpu, record)
        for part in parts:
            stream = part.stream.info.id
            for name in names:
                self._put(name, stream.cpu, b"")
            self._losses += len(part.gaps)
            for data in self._within(part, begin, end):
                self._put(stream.channel, stream.cpu, data)

    def _within(self, part: Selection, begin: int, end: int) -> Iterator[bytes]:
        """Yield the records within [*begin*, *end*], those that adjoin together."""
        path = part.stream.data_path
        for block in part.blocks():
            self._notes.add(*(f"{one}; left out" for one in block.left_out))
            if not len(block.rows):
                continue
            data, start = block.data, int(block.headers.offset_bytes[0])
            behind = int(block.headers.offset_bytes[-1] + block.headers.payload_bytes[-1])
            layout = layout_of(data, start) or Layout(_READABLE_VERSION, "<")
            if layout.version != _READABLE_VERSION:
                self._notes.add(
                    f"{path}: records of version {layout.version}, which blkparse 1 refuses"
                )
            walked = walk(data, start, behind, layout)
            for damage in walked.damage:
                place = f"{path}: byte {damage.offset_bytes + block.base}"
                self._notes.add(f"{place}: {damage.reason}; left out")
            times = records_at(data, walked.offset_bytes, layout)["time"].astype(np.uint64)
            floor = np.uint64(int(block.entries["begin"][0]))
            times = np.maximum.accumulate(np.maximum(times, floor))
            kept = np.flatnonzero((times >= np.uint64(begin)) & (times <= np.uint64(end)))
            self._records += len(kept)
            offset = walked.offset_bytes[kept]
            ends = offset + walked.size_bytes[kept]
            apart = np.flatnonzero(ends[:-1] != offset[1:]) + 1
            bounds = [0, *apart.tolist(), len(kept)] if len(kept) else []
            for low, high in pairwise(bounds):
                yield bytes(data[int(offset[low]) : int(ends[high - 1])])

    def _put(self, name: str, cpu: int, data: bytes) -> None:
        file, at = self._files.get((name, cpu)) or (self._open(name, cpu), 0)
        self._files[name, cpu] = file, file.write_at([data], at) if data else at

    def _open(self, name: str, cpu: int) -> File:
        return self._disk.open(self._out / f"{name.replace('/', '_')}.blktrace.{cpu}")

    def close(self) -> None:
        """Make empty files for CPUs without records, and close all files."""
        for name, last in sorted({(name, cpu) for name, cpu in self._files}):
            for cpu in range(last):
                self._put(name, cpu, b"")
        for file, _ in self._files.values():
            file.close()

    def told(self) -> list[str]:
        """Return lines for the user."""
        lost = f", {self._losses} losses, which they cannot state" if self._losses else ""
        return [*self._notes.told(), f"{self._records} records in {len(self._files)} files{lost}"]

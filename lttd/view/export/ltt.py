"""Export to a directory of ``<channel>_<cpu>`` files, like the legacy lttd's, for LTTV.

Every sub-buffer gets the size that the tracer delivered: from format 2.5 on the used size, rounded
up to the tracer's pages, before that the buffer's fixed size.  Its header states that size again,
and padding is zero (a hole where it is whole blocks).

Rule: bytes are moved, never decoded; the metadata channel is whole, whatever the window.
Invariant: if a recording has no damage, header and events of every sub-buffer are the tracer's own.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from lttd.abi import ltt
from lttd.abi.base import Headers
from lttd.errors import NotATraceError, TraceDamagedError, UsageError
from lttd.files import Disk
from lttd.stored import StoredStream
from lttd.subbuffer import Reason, StreamInfo
from lttd.view.ltt.markers import carried_metadata, headers_of, start_of
from lttd.view.notes import Notes
from lttd.view.output import nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.writefile import File

_TOLD_BY_TRACER: Final = {Reason.DISCARDED, Reason.COMMIT_OVERRUN}


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    found = [(segment, parts_within(segment, window)) for segment in trace.segments]
    found = [(s, parts) for s, parts in found if any(len(p.entries) for p in parts)]
    within = any(not part.empty for _, parts in found for part in parts)
    if not within and not (found and window.everything):
        raise NotATraceError(nothing_within(trace))
    _refuse_several_traces(trace, [segment for segment, _ in found])
    tally = _Tally()
    disk.make_directory(out)
    files: dict[Path, int] = {}
    for segment, parts in found:
        # Only the first segment's: later ones carry what is in the segments before.
        carried = {} if files else dict(carried_metadata(segment.paths))
        for part in parts:
            path = out / _name(part.stream)
            before = carried.get(part.stream.info.id.name.replace("/", "%2F"), b"")
            if len(part.entries) or before:
                files[path] = _write(disk, path, files.get(path, 0), before, part, tally)
            tally.lost(part)
    return tally.told(len(files))


@dataclass(slots=True)
class _Tally:
    """The totals of an export."""

    subbuffers: int = 0
    bytes: int = 0
    untold: int = 0
    """Losses that the tracer's counters do not include, so that the format cannot state them."""
    notes: Notes = field(default_factory=Notes)

    def lost(self, part: Selection) -> None:
        self.untold += sum(gap.reason not in _TOLD_BY_TRACER for gap in part.gaps)

    def told(self, files: int) -> list[str]:
        held = f"{self.subbuffers} sub-buffers, {self.bytes} bytes, in {files} files"
        lost = f"; {self.untold} losses cannot be stated in this format" if self.untold else ""
        return [*self.notes.told(), held + lost]


def _refuse_several_traces(trace: Trace, segments: list[Segment]) -> None:
    starts: dict[int, str] = {}
    for segment in segments:
        name = segment.paths.directory.name
        for stream in segment.streams:
            start = start_of(stream)
            if start is not None:
                starts.setdefault(start, name)
    if len(starts) > 1:
        raise UsageError(
            f"{trace.path}: {' and '.join(list(starts.values())[:2])} are different traces:"
            " export one segment at a time"
        )


def _name(stream: StoredStream) -> PurePosixPath:
    """Return a file's path, which has the channel's directory."""
    name = PurePosixPath(stream.info.id.name)
    if name.is_absolute() or ".." in name.parts:
        reason = f"a channel cannot be called {stream.info.id.channel!r}"
        raise TraceDamagedError(stream.segment.manifest, 0, reason)
    return name


def _write(disk: Disk, path: Path, at: int, before: bytes, part: Selection, tally: _Tally) -> int:
    """Write the sub-buffers *before* and those of a part from *at* on; return their end."""
    disk.make_directory(path.parent)
    file = disk.open(path)
    info = part.stream.info
    try:
        if before:
            at = _write_some(file, at, info, memoryview(before), headers_of(before), tally)
        for block in part.blocks():
            tally.notes.add(*(f"{one}; left out" for one in block.left_out))
            at = _write_some(file, at, info, block.data, block.headers, tally)
        file.truncate(at)
    finally:
        file.close()
    return at


def _write_some(
    file: File, at: int, info: StreamInfo, data: memoryview, headers: Headers, tally: _Tally
) -> int:
    offsets, used = headers.offset_bytes, headers.payload_bytes
    unit = info.page_bytes or info.subbuffer_bytes
    sizes = -(-used // unit) * unit
    heads = ltt.resized_heads(data, offsets, used, sizes)
    for number, (start, length) in enumerate(zip(offsets.tolist(), used.tolist(), strict=True)):
        rest = data[start + ltt.LEAST_HEADER_BYTES : start + length]
        file.write_at([heads[number].data, rest], at)
        at += int(sizes[number])
    tally.subbuffers += len(offsets)
    tally.bytes += int(sizes.sum())
    return at

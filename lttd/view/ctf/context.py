"""Read the metadata of a CTF segment, and count the events of its packets for ``lttv check``.

The file is ``streams/metadata``.  While the segment is recorded it grows: it is replaced by a
longer one before packets need that.

Rule: metadata that cannot be read is a note for a viewer, which shows no event of the segment, and
a finding of ``lttv check --events``.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi import ctf
from lttd.abi.base import Buffer, Damage, Decoded, Headers
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.abi.ctf_events import walk_parts
from lttd.abi.ctf_heads import Packets, firsts_of
from lttd.abi.ctf_metadata import read_metadata
from lttd.abi.ctf_plan import Plan
from lttd.abi.gather import gather
from lttd.errors import TraceDamagedError
from lttd.limits import CTF_METADATA
from lttd.manifest import Manifest
from lttd.readfile import read_limited
from lttd.stored import StoredStream
from lttd.subbuffer import StreamInfo
from lttd.tracedir import SegmentPaths
from lttd.view.finding import Finding
from lttd.view.notes import TakesNotes

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

METADATA: Final = "metadata"
_SECOND_NS: Final = 1_000_000_000
_MOST_NS: Final = (1 << 63) - 1


@lru_cache(8)
def read_known(data: bytes) -> Trace:
    """Read metadata; the segments of a trace have the same, or that of the one before and more.

    Raises:
        MetadataError: it is not valid.
    """
    return read_metadata(data)


class SegmentMetadata:
    """The metadata of one segment."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        self.path: Final = paths.streams / METADATA
        self._place = paths.place(self.path)
        self._manifest = manifest
        self._notes = notes
        self._data: bytes | None = None
        self._version: tuple[int, int, int] | None = None
        """Inode, size and time of what was read; another version is another file."""
        self.trace: Trace | None = None
        """None: it cannot be read."""
        self.defect = ""
        """Why it could not be read last time."""

    def refresh(self) -> None:
        """Read the file, if that was not done, or if the segment is still being recorded."""
        if self._data is not None and self._manifest.state == "closed":
            return
        try:
            status = self._place.stat()
            version = status.st_ino, status.st_size, status.st_mtime_ns
            if version == self._version:
                return
            data = read_limited(self._place, CTF_METADATA)
            self._version = version
        except (OSError, TraceDamagedError) as error:
            self._data = self._data or b""
            self._fail((error.strerror if isinstance(error, OSError) else None) or str(error))
            return
        if data == self._data:
            return
        self._data = data
        try:
            self.trace, self.defect = read_known(data), ""
        except MetadataError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self.defect = reason
        self._notes.add(f"{self._place}: {reason}; no event can be shown without it")


class CtfContext:
    """The declarations of one stream class, as they are known now."""

    def __init__(self, metadata: SegmentMetadata, info: StreamInfo) -> None:
        self._metadata = metadata
        self.stream_id = info.ctf_stream_id
        self.layout = ctf.PacketLayout.parse(info.packet_layout)
        self._plan: Plan | None = None
        self.is_missed = False
        """Whether packets could not be counted, because the class is not declared."""

    @property
    def plan(self) -> Plan | None:
        """The stream class as it is known now; None: it is not declared."""
        self._metadata.refresh()
        trace = self._metadata.trace
        stream = trace.streams.get(self.stream_id) if trace else None
        if trace is None or stream is None:
            return None
        if self._plan is None or self._plan.trace is not trace:
            self._plan = Plan(trace, stream)
        return self._plan

    def prepare(self) -> None:
        """Read the metadata, and make the tables that a walk needs."""
        plan = self.plan
        if plan is not None and plan.quick is not None:
            plan.stages  # noqa: B018  (it is kept)

    @property
    def offset_ns(self) -> int:
        """The time of the clock's zero since 1970, in ns; 0 if 64 bits cannot hold it."""
        plan = self.plan
        clock = plan.trace.clocks.get(plan.stream.clock or "") if plan else None
        if clock is None:
            return 0
        offset = clock.offset_s * _SECOND_NS + clock.offset * _SECOND_NS // clock.frequency_hz
        return offset if -_MOST_NS <= offset <= _MOST_NS else 0

    def packets(self, bits: Bits, offset_bytes: I64, plan: Plan) -> Packets:
        """Return the packets at some offsets, whose headers are sound."""
        data = bits.buffer
        found = ctf.headers_at(data, offset_bytes, self.layout, self.stream_id)
        field = self.layout.fields.get("timestamp_begin")
        begin = np.zeros(len(offset_bytes), np.uint64)
        if field is not None:
            begin = gather(data, offset_bytes + field.at_bytes, field.dtype).astype(np.uint64)
        base = offset_bytes << 3
        first = base + (self.layout.header_bytes << 3)
        end = np.maximum(base + found.content_bits.astype(np.int64), first)
        if plan.packet_varies:
            first = firsts_of(bits, base, end, plan)
        return Packets(offset_bytes, first, end, begin)

    def count(self, data: Buffer, headers: Headers, ends: U64) -> Decoded:
        """Count the events of some packets, whose headers state *ends*."""
        plan = self.plan
        if plan is None:
            self.is_missed = True
            return Decoded(None, ends, [])
        counts = np.zeros(len(ends), np.int64)
        last = headers.begin.copy()
        damage: list[Damage] = []
        bits = Bits(data)
        for walked in walk_parts(bits, self.packets(bits, headers.offset_bytes, plan), plan):
            behind = walked.first_row + len(walked.row_events)
            counts[walked.first_row : behind] += walked.row_events
            last[walked.first_row : behind] = self.layout.ns_of(walked.row_end)
            damage += walked.damage
        return Decoded(counts, last, damage)


class CtfContexts:
    """See ``lttd.view.family.Contexts``."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        self._metadata = SegmentMetadata(paths, manifest, notes)
        self._contexts: dict[str, CtfContext] = {}

    def of(self, stream: StoredStream) -> CtfContext:
        """Return the context of a stream; CPUs of one class share it."""
        key = f"{stream.info.ctf_stream_id} {stream.info.packet_layout}"
        if key not in self._contexts:
            self._contexts[key] = CtfContext(self._metadata, stream.info)
        return self._contexts[key]

    def defects(self) -> Sequence[Finding]:
        """Return why events could not be counted; one finding if the metadata cannot be read."""
        missed = sorted({one.stream_id or 0 for one in self._contexts.values() if one.is_missed})
        if missed and self._metadata.trace is None:
            return [Finding(self._metadata.path, 0, self._metadata.defect)]
        reasons = (f"it declares no stream {one}" for one in missed)
        return [Finding(self._metadata.path, 0, reason) for reason in reasons]

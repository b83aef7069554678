"""Ftrace's sub-buffers on disk: a header, content and, if the header says so, a count of losses."""

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.base import I64, Buffer, Decoded, EventIds, Headers, sound_slots
from lttd.abi.ftrace import COMMIT_MASK, MISSED_STORED, layout_of
from lttd.abi.ftrace_events import count, walk
from lttd.abi.gather import gather
from lttd.subbuffer import StreamInfo


class FtraceAbi:
    """See ``lttd.abi.base.Abi``."""

    states_ends = False
    needs_context = False

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        self.layout: Final = layout_of(info, byteorder)

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Read the headers where *entries* say that sub-buffers begin."""
        return self.headers_at(data, entries["offset_bytes"].astype(np.int64))

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given offsets; headers of zeros were never written."""
        layout = self.layout
        head, room = layout.header_bytes, len(data)
        inside = (offsets_bytes >= 0) & (offsets_bytes <= room - head)
        found = np.zeros(len(offsets_bytes), layout.header_dtype)
        if room >= head and inside.any():
            everywhere = np.ndarray((room - head + 1,), layout.header_dtype, data, strides=(1,))
            found[inside] = everywhere[offsets_bytes[inside]]
        word = found["commit"].astype(np.uint64)
        content = (word & np.uint64(COMMIT_MASK)).astype(np.int64) + head
        counted = (word & np.uint64(MISSED_STORED)) != 0
        stored = content + np.where(counted, layout.long_bytes, 0)
        begin = found["begin"].astype(np.uint64)
        sound = inside & (stored <= self._most_bytes(room)) & (offsets_bytes + stored <= room)
        sound &= (word != 0) | (begin != 0)
        if layout.scale is not None:
            begin = layout.scale.of(begin)
        return Headers(offsets_bytes, np.where(sound, stored, 0), content, begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the headers; if sub-buffers adjoin, each header gives the next offset."""
        if slot_bytes:
            return sound_slots(self, data, start_bytes, slot_bytes)
        return self.headers_at(data, np.array(self._chase(data, start_bytes), np.int64))

    def _chase(self, data: Buffer, at: int) -> list[int]:
        layout = self.layout
        head = struct.Struct(f"{layout.byteorder}Q{'Q' if layout.long_bytes == 8 else 'L'}")
        room, most = len(data), self._most_bytes(len(data))
        offsets: list[int] = []
        while at + head.size <= room:
            begin, word = head.unpack_from(data, at)
            stored = head.size + (word & COMMIT_MASK)
            stored += layout.long_bytes if word & MISSED_STORED else 0
            if stored > most or at + stored > room or not (begin or word):
                break
            offsets.append(at)
            at += stored
        return offsets

    def _most_bytes(self, room: int) -> int:
        return self.layout.subbuffer_bytes or room

    def ends(self, data: Buffer, headers: Headers) -> None:
        """Return None: a header states the begin only."""

    def numbers(self, data: Buffer, headers: Headers) -> None:
        """Return None: a header states no number."""

    def decode(self, data: Buffer, headers: Headers, context: Any = None) -> Decoded:  # noqa: ANN401
        """Walk the events without keeping them."""
        ends = headers.offset_bytes + headers.content_bytes
        parts = list(count(data, headers.offset_bytes, ends, self.layout))
        if not parts:
            return Decoded(np.empty(0, np.int64), np.empty(0, np.uint64), [])
        return Decoded(
            np.concatenate([part.row_events for part in parts]),
            np.concatenate([part.row_end for part in parts]),
            [damage for part in parts for damage in part.damage],
        )

    def event_ids(self, data: Buffer, headers: Headers) -> EventIds:
        """Read ``common_type``, the first field of each event."""
        ends = headers.offset_bytes + headers.content_bytes
        dtype = np.dtype(f"{self.layout.byteorder}u2")
        rows, ids = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        damaged: list[int] = []
        for walked in walk(data, headers.offset_bytes, ends, self.layout):
            named = walked.payload_bytes >= dtype.itemsize
            rows.append(walked.row[named])
            ids.append(gather(data, walked.payload_at[named], dtype).astype(np.uint16))
            damaged += [one.row for one in walked.damage]
        return EventIds(np.concatenate(rows), np.concatenate(ids), damaged)

    def describes_others(self, channel: str) -> bool:
        """Return False: the formats are in files beside the streams."""
        return False


ABI: Final = FtraceAbi

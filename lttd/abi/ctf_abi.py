"""CTF's packets on disk: the manifest states where their headers have what.

The length of an event follows from its declaration in the segment's ``streams/metadata``.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from lttd.abi import ctf
from lttd.abi.base import I64, U64, Buffer, Decoded, Headers, sound_slots
from lttd.subbuffer import StreamInfo


class Context(Protocol):
    """The declarations of one stream's events in the metadata of a segment."""

    def count(self, data: Buffer, headers: Headers, ends: U64) -> Decoded:
        """Count the events of some packets, whose headers state *ends*."""
        ...


class CtfAbi:
    """See ``lttd.abi.base.Abi``."""

    needs_context = True

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        self.layout: Final = ctf.PacketLayout.parse(info.packet_layout)
        self._stream_id: Final = info.ctf_stream_id
        self.states_ends: Final = "timestamp_end" in self.layout.fields

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Read the headers where *entries* say that packets begin.

        Where packets do not state their size, that of the entry is taken.
        """
        found = self._packets_at(data, entries["offset_bytes"].astype(np.int64))
        if "content_size" in self.layout.fields:
            return found
        size = (entries["content_bits"] >> np.uint64(3)).astype(np.int64)
        sound = (found.payload_bytes > 0) & (size <= found.payload_bytes)
        size = np.where(sound, size, 0)
        return found._replace(payload_bytes=size, content_bytes=size)

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given offsets."""
        return self._packets_at(data, offsets_bytes)

    def _packets_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        found = ctf.headers_at(data, offsets_bytes, self.layout, self._stream_id)
        stored = np.where(found.sound, found.content_bytes, 0)
        content = (found.content_bits >> np.uint64(3)).astype(np.int64)
        return Headers(offsets_bytes, stored, content, found.begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the headers; if packets adjoin, each states its size without padding."""
        if slot_bytes:
            return sound_slots(self, data, start_bytes, slot_bytes)
        slots = np.fromiter(ctf.adjoining(data, start_bytes, self.layout), np.int64)
        found = ctf.headers_at(data, slots, self.layout, self._stream_id)
        packed = found.sound & (found.content_bytes == found.packet_bytes)
        bad = np.flatnonzero(~packed)
        return self._packets_at(data, slots[: int(bad[0])] if len(bad) else slots)

    def ends(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return the end of each packet; None if headers do not state it."""
        if not self.states_ends:
            return None
        found = ctf.headers_at(data, headers.offset_bytes, self.layout, self._stream_id)
        return np.maximum(found.begin, found.end)

    def numbers(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return the number of each packet; None if headers do not state it."""
        if "packet_seq_num" not in self.layout.fields:
            return None
        return ctf.headers_at(data, headers.offset_bytes, self.layout, self._stream_id).sequence

    def decode(self, data: Buffer, headers: Headers, context: Context | None = None) -> Decoded:
        """Count the events by their declarations; without them return only the ends."""
        end = self.ends(data, headers)
        if end is None:
            end = headers.begin.copy()
        return Decoded(None, end, []) if context is None else context.count(data, headers, end)

    def event_ids(self, data: Buffer, headers: Headers) -> None:
        """Return None: an id means what the metadata declares."""

    def describes_others(self, channel: str) -> bool:
        """Return False: the metadata is not a stream."""
        return False


ABI: Final = CtfAbi

"""LTTng 0.x's sub-buffers on disk: the header states the used size and shows the byte order.

The length of an event follows from its marker's format, which another stream declares.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from lttd.abi import ltt, ltt_events, ltt_walk
from lttd.abi.base import I64, U64, Buffer, Damage, Decoded, Headers, sound_slots
from lttd.subbuffer import StreamInfo


class Context(Protocol):
    """The markers of one channel of a segment."""

    def refresh(self) -> None:
        """Read the metadata that was recorded since."""
        ...

    def walking(self, layout: ltt.Layout) -> ltt_events.Channel:
        """Return the markers for sub-buffers of *layout*."""
        ...


class LttAbi:
    """See ``lttd.abi.base.Abi``."""

    states_ends = True
    needs_context = True

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        self._most_bytes: Final = info.subbuffer_bytes

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Read the headers where *entries* say that sub-buffers begin."""
        return self.headers_at(data, entries["offset_bytes"].astype(np.int64))

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given offsets."""
        found = ltt.headers_at(data, offsets_bytes)
        sound = found.sound & (found.size_bytes <= self._most_bytes)
        stored = np.where(sound, found.used_bytes, 0)
        return Headers(offsets_bytes, stored, found.used_bytes, found.begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the headers; if sub-buffers adjoin, each header gives the next offset."""
        if slot_bytes:
            return sound_slots(self, data, start_bytes, slot_bytes)
        slots = np.fromiter(ltt_walk.adjoining(data, start_bytes), np.int64)
        found = self.headers_at(data, slots)
        bad = np.flatnonzero(found.payload_bytes == 0)
        return found.some(slice(int(bad[0]))) if len(bad) else found

    def ends(self, data: Buffer, headers: Headers) -> U64:
        """Return the end of each sub-buffer, from its header."""
        return ltt.headers_at(data, headers.offset_bytes).end

    def numbers(self, data: Buffer, headers: Headers) -> None:
        """Return None: a header states no number."""

    def decode(self, data: Buffer, headers: Headers, context: Context | None = None) -> Decoded:
        """Walk the events without keeping them; without markers return only the ends."""
        end = self.ends(data, headers)
        if context is None:
            return Decoded(None, end, [])
        context.refresh()
        events = np.zeros(len(end), np.int64)
        damage: list[Damage] = []
        undeclared: list[Damage] = []
        behind = headers.offset_bytes + headers.content_bytes
        for layout, rows, subbuffers in ltt_events.alike(data, headers.offset_bytes, behind):
            for walked in ltt_events.walk(data, subbuffers, context.walking(layout)):
                some = rows[walked.first_row :][: len(walked.row_events)]
                events[some] = walked.row_events
                end[some] = layout.ns_of(walked.row_end)
                damage += [each._replace(row=int(rows[each.row])) for each in walked.damage]
                undeclared += walked.undeclared
        return Decoded(None if undeclared else events, end, damage, undeclared)

    def event_ids(self, data: Buffer, headers: Headers) -> None:
        """Return None: an id means what the metadata before it declares."""

    def describes_others(self, channel: str) -> bool:
        """Return whether *channel* is metadata, which declares the markers of the others."""
        return ltt.is_metadata(channel)


ABI: Final = LttAbi

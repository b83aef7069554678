"""The interface of an ABI: it reads headers of sub-buffers, walks them, and counts their events.

Rule: pure; no bytes make an ABI raise.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lttd.subbuffer import StreamInfo

Buffer = bytes | bytearray | memoryview
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_CHUNK_SLOTS: Final = 65536


class Readable(Protocol):
    """The bytes of a file, in memory or read when they are needed."""

    def __len__(self) -> int:
        """Return the size of the file."""
        ...

    def __getitem__(self, part: slice, /) -> Buffer:
        """Return a part; less where the file ends, or was cut meanwhile."""
        ...


class Unreadable(NamedTuple):
    """Bytes of a file that hold no sub-buffer."""

    number: int
    """The number of sub-buffers before them."""
    offset_bytes: int
    length_bytes: int
    torn: bool
    """Whether a sub-buffer begins there whose end is not in the file."""
    reason: str


class Headers(NamedTuple):
    """Some sub-buffers, as their own headers describe them."""

    offset_bytes: I64
    payload_bytes: I64
    """Bytes of header, content, and a count of lost events; 0 if the header does not parse."""
    content_bytes: I64
    """Bytes of header and content: the index's content bits / 8."""
    begin: U64

    def some(self, which: slice | npt.NDArray[np.intp]) -> "Headers":
        """Return some of the sub-buffers."""
        return Headers(
            self.offset_bytes[which],
            self.payload_bytes[which],
            self.content_bytes[which],
            self.begin[which],
        )


class Damage(NamedTuple):
    """The place from which on a sub-buffer does not parse."""

    row: int
    offset_bytes: int
    """The offset in the buffer of the record that does not parse."""
    reason: str


class Decoded(NamedTuple):
    """The number and end of the events of some sub-buffers, and the places of damage."""

    events: I64 | None
    """The number of events of each; None: they cannot be separated without the context."""
    end: U64
    damage: list[Damage]
    undeclared: Sequence[Damage] = ()
    """Places of events without a declaration, which are not damage but cannot be counted."""


class EventIds(NamedTuple):
    """The events of some sub-buffers, by the ids that saved formats explain."""

    row: I64
    """The number of its sub-buffer, for each event."""
    id: npt.NDArray[np.uint16]
    damaged: list[int]
    """The sub-buffers that do not parse to their end."""


class Abi(Protocol):
    """Reads the sub-buffers of one stream."""

    states_ends: bool
    """Whether headers state when a sub-buffer was closed; if not, entries hold a bound."""
    needs_context: bool
    """Whether decode() counts events only with the family's context."""

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        """Take a stream of a machine whose byte order is ``little`` or ``big``.

        Raises:
            ValueError: *info* has impossible values.
        """
        ...

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Read the headers of the sub-buffers of index entries (``lttd.index.ENTRY_DTYPE``)."""
        ...

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the sub-buffers from *start_bytes* until one is not whole.

        They adjoin; with *slot_bytes*, each begins at a multiple of it.
        """
        ...

    def ends(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return the end of each sub-buffer; None if headers do not state it."""
        ...

    def numbers(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return the tracer's number of each sub-buffer; None if headers do not state it."""
        ...

    def decode(self, data: Buffer, headers: Headers, context: Any = None) -> Decoded:  # noqa: ANN401
        """Count the events and find the time of the last one.

        *context* is that of ``lttd.view.family.Contexts`` for this stream, or None.
        """
        ...

    def event_ids(self, data: Buffer, headers: Headers) -> EventIds | None:
        """Return the id of each event; None: the ids of this ABI mean nothing by themselves."""
        ...

    def describes_others(self, channel: str) -> bool:
        """Return whether decoding other streams needs the streams of *channel*."""
        ...


class ReadsHeaders(Protocol):
    """Reads headers at given offsets."""

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given offsets."""
        ...


def sound_slots(abi: ReadsHeaders, data: Buffer, start_bytes: int, slot_bytes: int) -> Headers:
    """Read the header of each slot until one does not parse.

    Read slots in chunks: by its size, a file that ends with a hole of a terabyte has a huge number
    of slots without a header.
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

"""The seam to the sub-buffers of one ABI: what a class in ``lttd.abi.table`` does with their bytes.

Rule: pure; nothing here raises because of what the bytes say.
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


class Headers(NamedTuple):
    """The sub-buffers that some index entries name, as their own headers describe them."""

    offset_bytes: I64
    payload_bytes: I64
    """Header, content, and a count of lost events after it; 0 where the header does not parse."""
    content_bytes: I64
    """Header and content: the index's content bits / 8."""
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
    """Where a sub-buffer stops making sense."""

    row: int
    offset_bytes: int
    """In the buffer: the record that does not parse."""
    reason: str


class Decoded(NamedTuple):
    """What the events of some sub-buffers say, per sub-buffer, and where they do not parse."""

    events: I64 | None
    """None: without the family's context one event cannot be told from the next."""
    end: U64
    damage: list[Damage]
    undeclared: Sequence[Damage] = ()
    """Events of a type that nothing declares: not damage, but they cannot be counted."""


class Abi(Protocol):
    """Reads the sub-buffers of one stream."""

    states_ends: bool
    """Whether headers state when a sub-buffer was closed; if not, entries hold a bound."""
    needs_context: bool
    """Whether decode() counts events only with the family's context."""

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        """Take a stream of a machine whose byte order is ``little`` or ``big``.

        Raises:
            ValueError: no sub-buffers can be as *info* says.
        """
        ...

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Read the sub-buffers that index entries name (``lttd.index.ENTRY_DTYPE``)."""
        ...

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the sub-buffers from *start_bytes* until one is not whole.

        They adjoin, or with *slot_bytes* each begins at a multiple of it.
        """
        ...

    def ends(self, data: Buffer, headers: Headers) -> U64 | None:
        """Return when each sub-buffer was closed; None where headers do not state it."""
        ...

    def decode(self, data: Buffer, headers: Headers, context: Any = None) -> Decoded:  # noqa: ANN401
        """Count the events and find the time of the last one.

        *context*: what ``lttd.view.family.Contexts`` has of this stream, or None.
        """
        ...

    def describes_others(self, channel: str) -> bool:
        """Return whether streams of *channel* hold what decoding the other streams needs."""
        ...


class ReadsHeaders(Protocol):
    """Reads headers at given places."""

    def headers_at(self, data: Buffer, offsets_bytes: I64) -> Headers:
        """Read the headers at given places."""
        ...


def sound_slots(abi: ReadsHeaders, data: Buffer, start_bytes: int, slot_bytes: int) -> Headers:
    """Read the header of each slot until one does not parse.

    Slots are read in chunks: a file that ends with a hole of a terabyte has as many slots as its
    size says, and no header in them.
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

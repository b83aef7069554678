"""Keep the metadata of a trace for the later segments of a run: the tracer writes it once.

Rule: later metadata is in the segment's own metadata streams; CARRIED has what came before it.
"""

from collections.abc import Iterator
from typing import Final

from lttd.abi.ltt import CARRIED, is_metadata
from lttd.sources.base import Attachment, Attachments, When
from lttd.subbuffer import Batch

# The metadata of a kernel with all its markers takes some 100 KB.
MOST_BYTES: Final = 16 << 20


class Metadata:
    """The sub-buffers of the metadata streams of one source, as they are stored."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, bytes]] = []
        """Stream and sub-buffers of each take."""
        self._kept_bytes = 0
        self._prepared = _Carried(self._kept)

    def add(self, batch: Batch) -> Batch:
        """Keep the sub-buffers of a batch that is metadata; return the batch."""
        if is_metadata(batch.stream.channel) and len(batch.rows):
            data = b"".join(batch.pieces())
            self._kept_bytes += len(data)
            if self._kept_bytes <= MOST_BYTES:
                self._kept.append((batch.stream.name, data))
        return batch

    def roll(self) -> None:
        """Note that a new segment begins, which has the later sub-buffers itself."""
        self._prepared.begin()

    def attachments(self) -> Attachments:
        """Return the function that yields one segment's attachments."""
        self._prepared = _Carried(self._kept)
        return self._prepared.due


class _Carried:
    """The part of the metadata that one segment gets from before it."""

    def __init__(self, kept: list[tuple[str, bytes]]) -> None:
        self._kept = kept
        self._given = 0
        """The number of takes that were yielded."""
        self._before = 0
        """The number of takes before the segment."""

    def begin(self) -> None:
        """Note that the segment begins: it has the later sub-buffers itself."""
        self._before = len(self._kept)

    def due(self, when: When) -> Iterator[Attachment]:
        """Yield what the segment lacks."""
        before = {When.OPEN: len(self._kept), When.ROLLED: self._before}.get(when, 0)
        for name, data in self._kept[self._given : before]:
            yield Attachment(f"{CARRIED}/{name.replace('/', '%2F')}", data, append=True)
        self._given = max(self._given, before)

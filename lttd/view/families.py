"""The kinds of sub-buffers that can be decoded, by their ABI's name.

Rule: what one kind needs beside the bytes is its context; nobody else looks into that.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from lttd.stored import StoredStream
from lttd.view.blktrace import BlktraceContexts, BlktraceDecoder
from lttd.view.columns import Batch
from lttd.view.decode import FtraceContexts, FtraceDecoder
from lttd.view.ltt import LttDecoder
from lttd.view.ltt_metadata import LttContexts
from lttd.view.trace import Segment
from lttd.view.window import Piece, Source


class Contexts(Protocol):
    """What decoding needs to know of one segment's streams."""

    def of(self, stream: StoredStream) -> Any:  # noqa: ANN401  (the family's own)
        """Return what the decoder finds as ``source.context``."""
        ...


class Decoder(Protocol):
    """Makes batches of pieces; one serves all pieces of a window."""

    def batch(self, piece: Piece, sources: Sequence[Source], notes: list[str]) -> Batch:
        """Decode one piece; *notes* move into the batch."""
        ...


class Family(NamedTuple):
    """How one kind is decoded."""

    contexts: Callable[[Segment], Contexts]
    decoder: Callable[[], Decoder]


FAMILIES: Final[dict[str, Family]] = {
    "ftrace": Family(FtraceContexts, FtraceDecoder),
    "blktrace": Family(BlktraceContexts, BlktraceDecoder),
    "ltt": Family(LttContexts, LttDecoder),
}

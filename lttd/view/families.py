"""The kinds of sub-buffers that can be decoded, by their ABI's name.

Rule: what one kind needs beside the bytes is its context; nobody else looks into that.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from lttd.stored import StoredStream
from lttd.tracedir import Manifest, SegmentPaths
from lttd.view.columns import EventBatch
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.window import Piece, WindowStream


class Contexts(Protocol):
    """What decoding needs to know of one segment's streams."""

    def of(self, stream: StoredStream) -> Any:  # noqa: ANN401  (the family's own)
        """Return what the decoder finds as ``source.context``."""
        ...


class Decoder(Protocol):
    """Makes batches of pieces; one serves all pieces of a window."""

    def batch(self, piece: Piece, sources: Sequence[WindowStream]) -> EventBatch:
        """Decode one piece; the batch takes the window's new notes."""
        ...


class Family(NamedTuple):
    """How one kind is decoded."""

    contexts: Callable[[SegmentPaths, Manifest, TakesNotes], Contexts]
    decoder: Callable[[WindowNotes], Decoder]


# What decodes one kind is loaded when there is something of it.


def _ftrace() -> Family:
    from lttd.view.ftrace.decode import FtraceContexts, FtraceDecoder  # noqa: PLC0415

    return Family(FtraceContexts, FtraceDecoder)


def _blktrace() -> Family:
    from lttd.view.blktrace.decode import BlktraceContexts, BlktraceDecoder  # noqa: PLC0415

    return Family(BlktraceContexts, BlktraceDecoder)


def _ltt() -> Family:
    from lttd.view.ltt.decode import LttContexts, LttDecoder  # noqa: PLC0415

    return Family(LttContexts, LttDecoder)


FAMILIES: Final[dict[str, Callable[[], Family]]] = {
    "ftrace": _ftrace,
    "blktrace": _blktrace,
    "ltt": _ltt,
}

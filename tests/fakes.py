"""Fakes of streams, for behaviour that no kernel shows on demand."""

import struct
from collections import deque
from collections.abc import Iterable, Mapping

from lttd.abi.ftrace import PageLayout, rows_of_pages
from lttd.sources.base import Nothing
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, StreamId, StreamInfo, make_batch

LAYOUT = PageLayout()


def page(begin: int, content: bytes) -> bytes:
    """Return a whole padded ftrace sub-buffer of 4 KiB."""
    return (struct.pack("<QQ", begin, len(content)) + content).ljust(LAYOUT.subbuffer_bytes, b"\0")


def event(payload: bytes) -> bytes:
    """Return one data record; the payload's length is a multiple of four, at most 112."""
    return struct.pack("<I", len(payload) // 4) + payload


def info(name: str = "fake", cpu: int = 0) -> StreamInfo:
    """Return the description of a stream of 4 KiB ftrace pages."""
    return StreamInfo(StreamId(name, cpu), "ftrace", LAYOUT.subbuffer_bytes, LAYOUT.header_bytes)


def batch_of(
    stream: StreamInfo,
    pages: Iterable[bytes],
    *,
    first: int = 0,
    gaps: tuple[Gap, ...] = (),
    last_end: int | None = 1 << 40,
    discarded_before: int = 0,
) -> Batch:
    """Return a batch of *pages*; the first page is sub-buffer number *first*."""
    data = b"".join(pages)
    rows = rows_of_pages(data, len(data), LAYOUT).rows
    book = RowBook()
    book.sequence, book.discarded_total = first, discarded_before
    book.number(rows, last_end)
    book.count(rows, gaps)
    buffer = memoryview(bytearray(data))
    return make_batch(stream.id, rows, pool=BufferPool(), buffer=buffer, gaps=gaps)


class FakeStream:
    """A stream that returns the items of a script, then ``when_over`` for ever."""

    def __init__(self, stream: StreamInfo, script: Iterable[Batch | Nothing | Exception]) -> None:
        self.info = stream
        self.script = deque(script)
        self.when_over = Nothing.YET
        self.takes: list[bool] = []
        self.is_urgent = False
        self.lost: Batch | None = None
        self.is_closed = False

    def fileno(self) -> int:
        return -1

    def take(self, flush: bool) -> Batch | Nothing:
        assert not self.is_closed, "taken from after its close"
        self.takes.append(flush)
        taken = self.script.popleft() if self.script else self.when_over
        if isinstance(taken, Exception):
            raise taken
        return taken

    def urgent(self) -> bool:
        return self.is_urgent

    def losses(self) -> Batch | None:
        lost, self.lost = self.lost, None
        return lost

    def unplaced(self) -> Mapping[Reason, int]:
        return {}

    def counters(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self.is_closed = True

"""The source ``ltt:DIR``, opened on an emulated kernel."""

import select

import numpy as np

from lttd.sources.base import Nothing
from lttd.sources.ltt.source import LttSource, open_ltt
from lttd.sources.ltt.stream import LttStream
from lttd.subbuffer import Batch, BufferPool, Reason, Unit
from tests.ltt_kernel import Kernel


class Opened:
    """A source on an emulated kernel, and the batches taken from it."""

    def __init__(self, kernel: Kernel, pool: BufferPool | None = None, **how: object) -> None:
        self.kernel = kernel
        # Rescan at every call: the files of the emulated kernel make no inotify events.
        how = {"rescan_s": 0.0, **how}
        self.source: LttSource = open_ltt(kernel.root, pool or BufferPool(), **how)

    @property
    def names(self) -> list[str]:
        return sorted(stream.info.id.name for stream in self.source.streams)

    def stream(self, name: str) -> LttStream:
        (found,) = [one for one in self.source.streams if one.info.id.name == name]
        return found

    def drain(self, name: str) -> tuple[list[Batch], Nothing]:
        """Take until nothing is left; return the last answer."""
        batches = []
        while isinstance(taken := self.stream(name).take(flush=False), Batch):
            batches.append(taken)
        return batches, taken


def packed(batches: list[Batch]) -> list[bytes]:
    """Return the sub-buffers as a packed file stores them."""
    found = []
    for batch in batches:
        whole = b"".join(batch.pieces())
        ends = np.cumsum(batch.rows["payload_bytes"]).tolist()
        found += [whole[end - int(size) : end]
                  for end, size in zip(ends, batch.rows["payload_bytes"], strict=True)]  # fmt: skip
    return found


def losses(batches: list[Batch]) -> list[tuple[int, Reason, Unit, int | None]]:
    return [(g.row, g.reason, g.unit, g.count) for batch in batches for g in batch.gaps]


def is_readable(stream: LttStream) -> bool:
    waiting = select.epoll()
    waiting.register(stream.fileno(), select.EPOLLIN)
    found = waiting.poll(0.2)
    waiting.close()
    return bool(found)

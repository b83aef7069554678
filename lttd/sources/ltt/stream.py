"""One LTTng 0.x channel as a stream: whole sub-buffers, several a take, urgent channels first.

Rule: a take of a stream that is not urgent looks after each sub-buffer whether another has become
so; if one has, the take ends.
Invariant: what stop() finds in the ring is all that a drain takes: a tracer that runs on, which is
not ours to stop, does not keep it going.
"""

import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from lttd.abi.ltt import LEAST_HEADER_BYTES, Taken, is_metadata, layout_of, rows_of
from lttd.clock import Snapshot
from lttd.errors import SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.ltt.channel import READABLE, URGENT, Channel, Held
from lttd.sources.ltt.loss import LttLedger
from lttd.sources.ltt.rows import LttBook, start_snapshot
from lttd.sources.pipe import Pipe
from lttd.subbuffer import ROW_DTYPE, Batch, BufferPool, Reason, StreamId, StreamInfo, make_batch

# As many as fit into the memory of a take if each is a page; those that were refused count, too.
MOST_HELD: Final = 1024
_NO_ROWS: Final = np.zeros(0, ROW_DTYPE)


class Urgency:
    """Which channels the kernel calls urgent, asked with one call for all of them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def watch(self, fd: int) -> None:
        """Ask for this descriptor, too, until it is closed."""
        with suppress(FileExistsError):
            self._epoll.register(fd, URGENT)

    def leave(self, fd: int) -> None:
        """Do not ask for this one: nobody gains if others make way for what cannot be read."""
        with suppress(OSError, ValueError):  # it is closed, or left already
            self._epoll.unregister(fd)

    def urgent(self) -> set[int]:
        """Return the descriptors that are urgent now."""
        return {fd for fd, found in self._epoll.poll(0) if found & URGENT}

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


@dataclass(slots=True)
class Shared:
    """What the streams of one source have in common."""

    pool: BufferPool
    pipe: Pipe
    urgency: Urgency
    stopped: bool = False
    """From stop() on, no more than what the rings hold is asked for."""
    start: Snapshot | None = None
    """How the tracer's clock stood to the wall clock when the trace was made; once it is known."""
    notes: list[str] = field(default_factory=list)


class LttStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(
        self,
        stream: StreamId,
        channel: Channel,
        book: LttBook,
        shared: Shared,
        *,
        fresh: bool = False,
    ) -> None:
        """Take over *channel*, which is open; *fresh*: see LttLedger."""
        # 2.0 and 2.1 have shorter headers; what a sub-buffer says of itself counts.
        header_bytes = LEAST_HEADER_BYTES + 8
        page_bytes = os.sysconf("SC_PAGE_SIZE") if channel.varying else 0
        self.info = StreamInfo(
            stream, "ltt", channel.subbuffer_bytes, header_bytes, page_bytes=page_bytes
        )
        self._channel = channel
        self._book = book
        self._ledger = LttLedger(book, channel.subbuffer_bytes, fresh=fresh)
        self._shared = shared
        self._broken: SourceError | None = None
        self._left_urgency = False
        self._left = channel.subbuffer_count + 1
        """How many a drain still takes: what the ring holds, and the one being written."""
        self._drained = False
        """After stop(), the ring was seen empty."""
        self._refusals: set[str] = set()
        self.over = False
        """Nothing more will ever come."""
        # Kernels say URGENT instead of READABLE; a descriptor that is readable for both is wanted.
        self._epoll = select.epoll()
        self._epoll.register(channel.fd, READABLE | URGENT)
        shared.urgency.watch(channel.fd)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers; see Stream.take().

        The one being written is the tracer's: only it, or the end of the trace, can close it.
        """
        self._raise_broken()
        if self.over:
            return Nothing.EVER
        buffer = self._memory()
        helds, why = self._fill(buffer)
        if not helds:
            self._shared.pool.give(buffer)
            self._raise_broken()
            return why or Nothing.YET
        return self._taken(buffer, helds)

    def _raise_broken(self) -> None:
        """Raise what went wrong: for ever if the channel is lost, else once."""
        broken = self._broken
        if not isinstance(broken, StreamLostError):
            self._broken = None
        if broken is not None:
            raise broken
        if self._left_urgency and not self.over:
            self._left_urgency = False
            self._shared.urgency.watch(self._channel.fd)

    def urgent(self) -> bool:
        """Tell whether every sub-buffer of the ring is full."""
        return not self.over and self._channel.fd in self._shared.urgency.urgent()

    def losses(self) -> Batch | None:
        """Return what was lost behind the last sub-buffer, once it is known to be the last."""
        if not (self.over or self._shared.stopped):
            return None
        if not (self.over or self._drained) and self._channel.poll():
            self._ledger.abandon()  # the drain was broken off, or a writer is held up
        self._drained = True
        gaps = self._ledger.rest()
        if not gaps:
            return None
        return Batch(self.info.id, memoryview(b""), _NO_ROWS, time.monotonic_ns(), gaps)

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: what is known to be lost is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return the tracer's totals, modulo 2**32, as the last sub-buffer has them."""
        return dict(self._book.counters)

    def close(self) -> None:
        """Give the descriptors back."""
        self.over = True
        self._channel.close()
        self._epoll.close()

    @property
    def latest(self) -> int:
        """Time at the end of the last sub-buffer, ns."""
        return self._book.end

    def _memory(self) -> memoryview:
        """Return memory for at least one sub-buffer, however large the tracer's are."""
        buffer = self._shared.pool.take()
        if len(buffer) >= self.info.subbuffer_bytes:
            return buffer
        self._shared.pool.give(buffer)
        return memoryview(bytearray(self.info.subbuffer_bytes))

    def _fill(self, buffer: memoryview) -> tuple[list[Held], Nothing | None]:
        """Take sub-buffers one behind the other; also return why no more were there, if so."""
        helds: list[Held] = []
        used = 0
        while used + self.info.subbuffer_bytes <= len(buffer) and not self._gives_way(len(helds)):
            if self._shared.stopped and not self._left:
                self._end()
                return helds, Nothing.EVER
            try:
                held = self._channel.take(self._shared.pipe, buffer[used:])
            except SourceError as error:
                # Raised by the next take, if there is something to give: that is whole.
                self._broken = error
                self._left_urgency = True
                self._shared.urgency.leave(self._channel.fd)
                if not isinstance(error, StreamLostError):
                    break
                self._ledger.broke_off(holding=self._channel.holds)
                self._end()
                break
            if held is Nothing.EVER:
                self._end()
                return helds, held
            if isinstance(held, Nothing):
                self._drained = self._shared.stopped and not self._channel.poll()
                return helds, held
            self._left -= self._shared.stopped
            helds.append(held)
            used += held.used_bytes
        return helds, None

    def _gives_way(self, held: int) -> bool:
        """Tell whether a take of so many is enough, also since another channel comes first."""
        if not held:
            return False
        urgent = self._shared.urgency.urgent()
        return held >= MOST_HELD or (bool(urgent) and self._channel.fd not in urgent)

    def _end(self) -> None:
        """Close the channel now: whoever destroys the trace waits until it is."""
        self.over = True
        self._channel.close()

    def _taken(self, buffer: memoryview, helds: Sequence[Held]) -> Batch:
        """Make a batch of sub-buffers that were released."""
        taken_ns, shared = time.monotonic_ns(), self._shared
        sizes = np.array([held.used_bytes for held in helds if not held.refusal], np.int64)
        taken = rows_of(buffer[: int(sizes.sum())], np.cumsum(sizes) - sizes, sizes)
        if shared.start is None and len(taken.rows) and is_metadata(self.info.id.channel):
            self._find_start(helds, taken, buffer)
        gaps = self._ledger.enter(helds, taken)
        for held in helds:
            if held.refusal and held.refusal not in self._refusals:
                self._refusals.add(held.refusal)
                shared.notes.append(f"{self._channel.path}: refused, counted: {held.refusal}")
        batch = make_batch(
            self.info.id, taken.rows, taken_ns, pool=shared.pool, buffer=buffer, gaps=gaps
        )
        batch.heads = taken.heads
        return batch

    def _find_start(self, helds: Sequence[Held], taken: Taken, buffer: memoryview) -> None:
        """Note when the trace was made, if its first sub-buffer is among these."""
        if not helds[0].cookie and not helds[0].refusal and not taken.rows["offset_bytes"][0]:
            layout = layout_of(buffer)
            self._shared.start = start_snapshot(int(taken.rows["begin"][0]), layout.start_ns)

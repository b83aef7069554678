"""One LTTng 0.x channel as a stream: whole sub-buffers, several a take, urgent channels first.

Rule: a take from a stream that is not urgent ends when another stream becomes urgent; it asks after
each sub-buffer.
Invariant: a drain takes the sub-buffers that stop() found in the ring, and no more.  So it ends,
although the tracer, which lttd does not control, may go on.
"""

import os
import select
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from lttd.abi.ltt import MOST_HEADER_BYTES, NAME, Taken, is_metadata, layout_of, rows_of
from lttd.clock import Snapshot
from lttd.errors import SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.late_error import LateError
from lttd.sources.ltt.channel import READABLE, URGENT, Channel, Held
from lttd.sources.ltt.loss import LttLedger
from lttd.sources.ltt.metadata import Metadata
from lttd.sources.ltt.rows import LttBook, start_snapshot
from lttd.sources.pipe import Pipe
from lttd.subbuffer import (
    Batch,
    BufferPool,
    Reason,
    StreamId,
    StreamInfo,
    losses_batch,
    make_batch,
)

# As many pages as fit into the memory of a take; refused sub-buffers count, too.
MOST_HELD: Final = 1024


class Urgency:
    """Asks with one system call which channels are urgent."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def watch(self, fd: int) -> None:
        """Watch this descriptor, too, until it is closed."""
        with suppress(FileExistsError):
            self._epoll.register(fd, URGENT)

    def leave(self, fd: int) -> None:
        """Stop watching this one: other streams must not wait for one that cannot be read."""
        with suppress(OSError, ValueError):  # it is closed, or not watched any more
            self._epoll.unregister(fd)

    def urgent(self) -> set[int]:
        """Return the descriptors that are urgent now."""
        return {fd for fd, found in self._epoll.poll(0) if found & URGENT}

    def close(self) -> None:
        """Close the descriptor."""
        self._epoll.close()


@dataclass(slots=True)
class Shared:
    """What the streams of one source have in common."""

    pool: BufferPool
    pipe: Pipe
    urgency: Urgency
    stopped: bool = False
    """Set by stop(): from then on take only the present content of the rings."""
    start: Snapshot | None = None
    """Trace clock and wall clock at the moment when the trace was made, once known."""
    notes: list[str] = field(default_factory=list)
    metadata: Metadata = field(default_factory=Metadata)


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
        # 2.0 and 2.1 have shorter headers; each sub-buffer states its own header's size.
        header_bytes = MOST_HEADER_BYTES
        page_bytes = os.sysconf("SC_PAGE_SIZE") if channel.varying else 0
        self.info = StreamInfo(
            stream, NAME, channel.subbuffer_bytes, header_bytes, page_bytes=page_bytes
        )
        self._channel = channel
        self._book = book
        self._ledger = LttLedger(book, channel.subbuffer_bytes, fresh=fresh)
        self._shared = shared
        self._broken = LateError()
        self._left_urgency = False
        self._left = channel.subbuffer_count + 1
        """The number of sub-buffers that a drain still takes, the open one included."""
        self._drained = False
        """Whether the ring was empty once after stop()."""
        self._refusals: set[str] = set()
        self.over = False
        """Whether the stream has ended for good."""
        # Kernels report URGENT instead of READABLE; this descriptor is readable for both.
        self._epoll = select.epoll()
        self._epoll.register(channel.fd, READABLE | URGENT)
        shared.urgency.watch(channel.fd)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers; see Stream.take().

        Only the tracer, or the end of the trace, can close the sub-buffer that is being written.
        """
        self._broken.raise_kept()
        self._watch_again()
        if self.over:
            return Nothing.EVER
        buffer = self._shared.pool.take_at_least(self.info.subbuffer_bytes)
        helds, why = self._fill(buffer)
        if not helds:
            self._shared.pool.give(buffer)
            self._broken.raise_kept()
            return why or Nothing.YET
        return self._taken(buffer, helds)

    def _watch_again(self) -> None:
        """Ask again whether the channel is urgent, after the take that follows an error."""
        if self._left_urgency and not self.over:
            self._left_urgency = False
            self._shared.urgency.watch(self._channel.fd)

    def urgent(self) -> bool:
        """Tell whether every sub-buffer of the ring is full."""
        return not self.over and self._channel.fd in self._shared.urgency.urgent()

    def losses(self) -> Batch | None:
        """Return the losses after the last sub-buffer, once it is known to be the last."""
        if not (self.over or self._shared.stopped):
            return None
        if not (self.over or self._drained) and self._channel.poll():
            self._ledger.abandon()  # the drain was interrupted, or a writer is stuck
        self._drained = True
        gaps = self._ledger.rest()
        if not gaps:
            return None
        return losses_batch(self.info.id, gaps)

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: each known loss is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return the tracer's totals, modulo 2**32, as the last sub-buffer has them."""
        return dict(self._book.counters)

    def close(self) -> None:
        """Close the descriptors."""
        self.over = True
        self._channel.close()
        self._epoll.close()

    @property
    def latest(self) -> int:
        """The end of the last sub-buffer, in ns."""
        return self._book.end

    def _fill(self, buffer: memoryview) -> tuple[list[Held], Nothing | None]:
        """Take sub-buffers one after the other; also return why there were no more, if so."""
        helds: list[Held] = []
        used = 0
        while used + self.info.subbuffer_bytes <= len(buffer) and not self._gives_way(len(helds)):
            if self._shared.stopped and not self._left:
                self._end()
                return helds, Nothing.EVER
            try:
                held = self._channel.take(self._shared.pipe, buffer[used:])
            except SourceError as error:
                # If there are sub-buffers to return, the next take raises it: these are whole.
                self._broken.keep(error)
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
        """Tell whether the take should end after *held* sub-buffers: it is full, or others wait."""
        if not held:
            return False
        urgent = self._shared.urgency.urgent()
        return held >= MOST_HELD or (bool(urgent) and self._channel.fd not in urgent)

    def _end(self) -> None:
        """Close the channel now: the process that destroys the trace waits for that."""
        self.over = True
        self._channel.close()

    def _taken(self, buffer: memoryview, helds: Sequence[Held]) -> Batch:
        """Make a batch of released sub-buffers."""
        shared = self._shared
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
            self.info.id,
            taken.rows,
            pool=shared.pool,
            buffer=buffer,
            gaps=gaps,
            heads=taken.heads,
        )
        return shared.metadata.add(batch)

    def _find_start(self, helds: Sequence[Held], taken: Taken, buffer: memoryview) -> None:
        """Note the time at which the trace was made, if its first sub-buffer is among these."""
        if not helds[0].cookie and not helds[0].refusal and not taken.rows["offset_bytes"][0]:
            layout = layout_of(buffer)
            self._shared.start = start_snapshot(int(taken.rows["begin"][0]), layout.start_ns)

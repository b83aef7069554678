"""One CPU of a channel as a stream: closed sub-buffers, many a take.

Rule: a turn flushes once: under load the sub-buffer that is being written always has events, and
further flushes would cut the data into small packets.
Rule: in a pause (lttd.flight) nothing is taken, so that an overwriting ring keeps its newest
packets.  The numbers of the packets say afterwards how many it overwrote.
Rule: after stop() the last flush also closes an empty sub-buffer: its header has the losses since
the last one.  It is stored only if it says something new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from lttd.abi.ctf import NAME, PacketLayout
from lttd.errors import SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.late_error import LateError
from lttd.sources.lttng.packets import PacketBook
from lttd.sources.lttng.ring import Taken
from lttd.subbuffer import (
    Batch,
    BufferPool,
    Gap,
    Reason,
    StreamId,
    StreamInfo,
    Unit,
    losses_batch,
    make_batch,
)


class RingLike(Protocol):
    """See ``lttd.sources.lttng.ring.Ring``; tests put a model of the kernel in its place."""

    fd: int

    def take(self, buffer: memoryview) -> Taken | Nothing:
        """Copy the oldest closed sub-buffer, and release it."""
        ...

    def flush(self, *, also_empty: bool = False) -> None:
        """Let the kernel close the sub-buffer that it writes."""
        ...

    def is_readable(self) -> bool:
        """Tell whether a sub-buffer is closed."""
        ...

    def now(self) -> int:
        """Read the trace clock."""
        ...

    def close(self) -> None:
        """Close the descriptor."""
        ...


@dataclass(slots=True)
class Shared:
    """State that the streams of one source share."""

    pool: BufferPool
    stopped: bool = False
    """Set by stop(): nothing more is recorded."""


class LttngStream:
    """See ``lttd.sources.base.PausableStream``."""

    wanted_from: Final = None
    """The kernel counts no events that were read."""

    def __init__(self, info: StreamInfo, ring: RingLike, shared: Shared) -> None:
        """Take *ring* over, whose CPU is that of *info*.

        Raises:
            SourceError: the trace clock cannot be read.
        """
        self.info = info
        self._ring = ring
        self._shared = shared
        self._book = PacketBook(PacketLayout.parse(info.packet_layout), info.ctf_stream_id or 0)
        self.complete_since = ring.now()
        """Since when, on the trace clock, no packet was overwritten in a pause."""
        self._idle = False
        """Whether the ring overwrites itself, and nobody wants its packets."""
        self._until: int | None = None
        self._has_all = False
        """Whether everything until then was taken."""
        self._broken = LateError()
        self._flushed = False
        """Whether the present turn has flushed."""
        self._drained = False
        """Whether the ring was empty after the last flush."""
        self._over = False

    def fileno(self) -> int:
        """Return the descriptor to wait on: the channel's read timer wakes it."""
        return self._ring.fd

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers; see Stream.take()."""
        self._broken.raise_kept()
        if self._over:
            return Nothing.EVER
        if self._has_all:
            return Nothing.YET
        buffer = self._shared.pool.take_at_least(self.info.subbuffer_bytes)
        takens, nothing = self._fill(buffer, flush)
        if takens:
            return self._batch(buffer, takens)
        self._shared.pool.give(buffer)
        self._broken.raise_kept()
        if self._flushed and not self._ring.is_readable():
            self._idle = False  # it is empty: later events are the first
        self._flushed = False
        return nothing or Nothing.YET

    def want(self, until: int | None) -> None:
        """Take until the trace clock shows *until*; see PausableStream.want()."""
        self._until, self._has_all = until, False

    def pause(self) -> None:
        """Let the ring overwrite itself until it is wanted; the next packet has the losses."""
        self._idle, self._flushed = True, False

    def urgent(self) -> bool:
        """Return False: the kernel does not report that a ring is nearly full."""
        return False

    def losses(self) -> Batch | None:
        """Return a gap if sub-buffers are left in the ring when recording has ended."""
        if not self._shared.stopped or self._drained or self._over or self._idle:
            return None
        self._drained = True
        if not self._ring.is_readable():
            return None
        end = self._book.end
        gap = Gap(0, Reason.ABANDONED, Unit.SUBBUFFERS, None, end, end)
        return losses_batch(self.info.id, (gap,))

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: losses are in the next packet."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return the losses by the last packet, by the names of its fields."""
        found = {
            "events_discarded": self._book.discarded,
            "packets overwritten": self._book.overwritten,
        }
        if self._book.unwanted:
            found["packets overwritten while idle"] = self._book.unwanted
        return found

    def close(self) -> None:
        """Close the descriptor."""
        self._over = True
        self._ring.close()

    def _fill(self, buffer: memoryview, flush: bool) -> tuple[list[Taken], Nothing | None]:
        """Take sub-buffers one after the other; also return why there were no more, if so."""
        takens: list[Taken] = []
        used_bytes = 0
        while used_bytes + self.info.subbuffer_bytes <= len(buffer):
            try:
                # The last flush is a take of its own: is_news() compares with the packets before.
                may_flush = flush and not (self._shared.stopped and takens)
                taken = self._next(buffer[used_bytes:], may_flush)
            except SourceError as error:
                # If there are sub-buffers to return, the next take raises it: these are whole.
                self._broken.keep(error)
                break
            if isinstance(taken, Nothing):
                self._over = taken is Nothing.EVER
                return takens, taken
            if self._refuse_other_layout(buffer[used_bytes:], taken):
                break
            takens.append(taken)
            used_bytes += taken.used_bytes
        return takens, None

    def _next(self, buffer: memoryview, flush: bool) -> Taken | Nothing:
        """Take one sub-buffer, if need be after a flush."""
        stopped = self._shared.stopped
        taken = self._ring.take(buffer)
        flushed = self._drained if stopped else self._flushed
        if taken is not Nothing.YET or not flush or flushed:
            return taken
        self._flushed, self._drained = True, stopped
        self._ring.flush(also_empty=stopped)
        taken = self._ring.take(buffer)
        if stopped and isinstance(taken, Taken):
            return taken if self._book.is_news(buffer[: taken.used_bytes]) else Nothing.YET
        return taken

    def _refuse_other_layout(self, packet: memoryview, taken: Taken) -> bool:
        """Break the stream if the sizes in its first packet are not where lttd reads them."""
        if taken.stated_bits is None or taken.stated_bits == self._book.sizes_in(packet):
            return False
        where = f"lttng: stream {self.info.id.name}"
        words = "its packets are not laid out as the metadata says"
        remedy = "record with lttng-sessiond, and replay:DIR"
        self._broken.keep(StreamLostError(f"{where}: {words}; {remedy}"))
        return True

    def _batch(self, buffer: memoryview, takens: Sequence[Taken]) -> Batch:
        was_idle, self._idle = self._idle, False
        rows, gaps = self._book.enter(buffer, takens, after_pause=was_idle)
        if any(gap.reason is Reason.UNWANTED for gap in gaps):
            self.complete_since = int(rows["begin"][0])
        if self._until is not None and self._book.begin > self._until:
            self._has_all = True
            self.pause()
        heads = self._book.resized(buffer, rows, self.info.subbuffer_bytes)
        return make_batch(
            self.info.id, rows, pool=self._shared.pool, buffer=buffer, gaps=gaps, heads=heads
        )


def stream_info(
    stream: StreamId, number: int, subbuffer_bytes: int, page_bytes: int, layout: PacketLayout
) -> StreamInfo:
    """Return the constants of a stream of channel *number*, whose packets have this *layout*."""
    return StreamInfo(
        stream,
        NAME,
        subbuffer_bytes,
        layout.header_bytes,
        ctf_stream_id=number,
        page_bytes=page_bytes,
        packet_layout=str(layout),
    )

"""A model of a buffer of lttng-modules: sub-buffers, discarded events, overwritten packets."""

from collections import deque

from lttd.sources.base import Nothing
from lttd.sources.lttng.ring import Taken
from lttd.sources.lttng.stream import LttngStream, Shared, stream_info
from lttd.subbuffer import Batch, BufferPool, StreamId
from tests.segment_builder_lttng import LAYOUT, PAGE_BYTES, SUBBUFFER_BYTES, packet, padded_bytes


class LttngModel:
    """See ``lttd.sources.lttng.ring.Ring``; an event has 8 bytes."""

    def __init__(
        self,
        *,
        subbuffers: int = 4,
        subbuffer_bytes: int = SUBBUFFER_BYTES,
        overwrite: bool = False,
    ) -> None:
        self.fd = 99
        self.subbuffers = subbuffers
        self.subbuffer_bytes = subbuffer_bytes
        self.overwrite = overwrite
        self.closed: deque[bytes] = deque()
        self.events = 0
        """In the open sub-buffer."""
        self.discarded = 0
        self.sequence = 0
        self.time = 1000
        self.begin = self.time
        self.flushes = 0
        self.forgets_total = False
        """Whether it leaves 0 for the events that were discarded."""
        self.stated_bits: tuple[int, int] | None = None
        """Where the kernel would say other sizes than the header has."""
        self.is_over = False
        self.is_closed = False

    def write(self, events: int) -> None:
        for _ in range(events):
            self.time += 1
            if len(self.closed) == self.subbuffers:
                if not self.overwrite:
                    self.discarded += 1
                    continue
                self.closed.popleft()
            self.events += 1
            if 84 + 8 * (self.events + 1) > self.subbuffer_bytes:
                self.finish()

    def finish(self) -> None:
        """Close the open sub-buffer."""
        content = b"".join(n.to_bytes(8, "little") for n in range(self.events))
        total = 0 if self.forgets_total else self.discarded
        self.closed.append(packet(content, self.sequence, self.begin, self.time, discarded=total))
        self.begin, self.events, self.sequence = self.time, 0, self.sequence + 1

    def take(self, buffer: memoryview) -> Taken | Nothing:
        if not self.closed:
            return Nothing.EVER if self.is_over else Nothing.YET
        taken = self.closed.popleft()
        buffer[: len(taken)] = taken
        size_bytes = padded_bytes(len(taken))
        stated = self.stated_bits or (len(taken) * 8, size_bytes * 8)
        return Taken(len(taken), size_bytes, stated)

    def flush(self, *, also_empty: bool = False) -> None:
        self.flushes += 1
        if self.events or also_empty:
            self.finish()

    def is_readable(self) -> bool:
        return bool(self.closed)

    def now(self) -> int:
        return self.time

    def close(self) -> None:
        self.is_closed = True


class ModelStream:
    """A stream of a model."""

    def __init__(self, model: LttngModel | None = None, *, take_bytes: int = 1 << 20) -> None:
        self.model = model or LttngModel()
        self.shared = Shared(BufferPool(take_bytes=take_bytes))
        info = stream_info(StreamId("cpu", 1), 3, self.model.subbuffer_bytes, PAGE_BYTES, LAYOUT)
        self.stream = LttngStream(info, self.model, self.shared)

    def take(self, *, flush: bool = False) -> Batch:
        found = self.stream.take(flush)
        assert isinstance(found, Batch), found
        return found

    def drain(self) -> list[Batch]:
        """Stop, and take what is left."""
        self.shared.stopped = True
        found = []
        while isinstance(batch := self.stream.take(flush=True), Batch):
            found.append(batch)
        return found

"""One CPU of a relay channel whose ring is mapped: it knows sub-buffers, and counts lost ones."""

from collections.abc import Mapping

import numpy as np

from lttd.sources.base import Nothing
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.mapped import MappedRing
from lttd.sources.relay.stream import RelayStream, Shared, rows_at
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, Gap, Reason, Rows, StreamId, Unit


class MappedStream(RelayStream):
    """See ``lttd.sources.base.Stream``."""

    def __init__(
        self,
        stream: StreamId,
        path: str,
        ring: MappedRing,
        shared: Shared,
        book: RowBook,
        born: int,
    ) -> None:
        """Take *ring* over.  *born* as for RelayStream."""
        super().__init__(stream, RelayFile(path, ring, base_bytes=0), shared, book, born)
        self._ring = ring
        self._waited = False

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers; see Stream.take()."""
        if not self.over:
            # The recorder has the batch before; only now may the kernel reuse its sub-buffers.
            self._ring.acknowledge()
            if self._shared.stopped and not self._waited:
                self._waited = True
                self._ring.wait_for_newest()
        taken = super().take(flush)
        self._ring.given()
        return taken

    def counters(self) -> Mapping[str, int]:
        """Return what RelayStream does, and the sub-buffers that were copied."""
        return {**super().counters(), "read subbuffers": self._ring.copied_subbuffers}

    def _undelivered(self, rows: Rows, now: int) -> list[Gap]:
        gaps = super()._undelivered(rows, now)
        for why, count in self._ring.take_lost().items():
            unit, lost = Unit.SUBBUFFERS, count
            if why is Reason.DAMAGED:
                unit, lost = Unit.BYTES, count * self._ring.subbuffer_bytes
            gaps.append(Gap(0, why, unit, lost, self._floor, max(now, self._floor)))
        return gaps

    def _rows(self, data: memoryview, *, complete: bool) -> tuple[Rows, list[Gap]]:
        """Return a row for each sub-buffer, unless the records are known."""
        sizes = np.array(self._ring.take_sizes(), np.int64)
        if self._shared.framing is not None or not len(data) or sizes.sum() != len(data):
            return super()._rows(data, complete=complete)
        rows = rows_at(np.cumsum(sizes) - sizes, sizes)
        rows["begin"], rows["end"] = self._floor, self._shared.now()
        return rows, []

"""One CPU of a block trace, and the kernel's one counter for the losses of all CPUs.

Rule: ``dropped`` counts for all CPUs together, and a dropped record leaves no mark: no hole in the
CPU's sequence numbers and no padding.  So lttd stores the loss in the stream of the lowest CPU,
whichever CPU lost, between two readings of the counter.  Its bounds in time are true; its CPU is a
convention.
"""

import os
from collections import deque
from collections.abc import Mapping

import numpy as np

from lttd.abi.blktrace import NAME
from lttd.errors import SourceError
from lttd.namespaces import kernel_monotonic_ns
from lttd.sources.base import Nothing
from lttd.sources.blktrace.rows import ProcessNotes
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.stream import RelayStream, Shared
from lttd.sources.rows import RowBook
from lttd.subbuffer import NO_ROWS, Batch, Gap, Reason, Rows, StreamId, StreamInfo, Unit


class Dropped:
    """The file ``dropped``: the records that the kernel could not store, and when these grew."""

    def __init__(self, path: str) -> None:
        """Open the file.

        Raises:
            SourceError: it cannot be opened.
        """
        self.path = path
        self.total = 0
        self.told = 0
        self._looked_ns = kernel_monotonic_ns()
        self._untold: deque[tuple[int, int, int]] = deque()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from None

    def look(self) -> None:
        """Read the counter, and note its growth since the last call as a loss."""
        if self._fd < 0:
            return
        before, now = self._looked_ns, kernel_monotonic_ns()
        try:
            total = int(os.pread(self._fd, 32, 0) or b"0")
        except (OSError, ValueError):
            return  # another process tore the trace down: the last value stays
        if total > self.total:
            self._untold.append((before, now, total - self.total))
            self.total = total
        self._looked_ns = now

    def place(self, rows: Rows, *, all_of_it: bool) -> list[Gap]:
        """Return gaps for losses before rows that begin after the loss was noticed.

        With *all_of_it*, also return the remaining losses, after all rows.
        """
        gaps = []
        while self._untold:
            begin, end, count = self._untold[0]
            row = int(np.searchsorted(rows["begin"], np.uint64(end), "right"))
            if row == len(rows) and not all_of_it:
                break
            self._untold.popleft()
            self.told += count
            gaps.append(Gap(row, Reason.DROPPED, Unit.EVENTS, count, begin, end))
        return gaps

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class BlktraceStream(RelayStream):
    """See ``lttd.sources.base.Stream``."""

    def __init__(
        self,
        stream: StreamId,
        file: RelayFile,
        shared: Shared,
        noted: ProcessNotes,
        dropped: Dropped | None,
        ring_bytes: int,
    ) -> None:
        """*dropped* is given to the one stream that stores its losses."""
        super().__init__(stream, file, shared, RowBook(), shared.now())
        self.records = 0
        self._ring_bytes = ring_bytes
        self._noted = noted
        self._dropped = dropped

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers; see Stream.take()."""
        if self._dropped is not None:
            self._dropped.look()
        taken = super().take(flush)
        if isinstance(taken, Batch):
            self.records += self._noted.add(taken)
        return taken

    def urgent(self) -> bool:
        """Tell whether the ring is more than half full of closed sub-buffers."""
        return not self.over and 2 * self.file.promised_bytes() > self._ring_bytes

    def _gaps_before(self, rows: Rows) -> list[Gap]:
        return self._dropped.place(rows, all_of_it=False) if self._dropped is not None else []

    def _late_gaps(self) -> list[Gap]:
        """Return drops that no batch contains yet; at the end, also bytes that stay unread."""
        gaps = super()._late_gaps()
        if self._dropped is None:
            return gaps
        self._dropped.look()
        return self._dropped.place(NO_ROWS, all_of_it=True) + gaps

    def counters(self) -> Mapping[str, int]:
        """Return the bytes read, and the kernel's number of records dropped on all CPUs."""
        counted = {**super().counters(), "records": self.records}
        return counted | ({"dropped": self._dropped.total} if self._dropped else {})


class AbsentStream:
    """A CPU without a file; blkparse needs an empty file for it to find those of higher CPUs."""

    def __init__(self, stream: StreamId) -> None:
        self.info = StreamInfo(stream, NAME, subbuffer_bytes=0, header_bytes=0)

    def fileno(self) -> int:
        """Return -1."""
        return -1

    def take(self, flush: bool) -> Nothing:
        """Return that the stream has ended; if the CPU comes online, it gets another stream."""
        return Nothing.EVER

    def urgent(self) -> bool:
        """Return False."""
        return False

    def losses(self) -> None:
        """Return nothing."""

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""

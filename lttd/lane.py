"""One stream on its way to the disk: its files, its counters, and what was refused.

Rule: a lane is written by the one thread whose queue it names; other threads only read from it.
Invariant: what was taken and is not in the files is counted in the stats, and stands in a gap as
soon as one can be written.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Final

import numpy as np

from lttd.stats import StreamStats
from lttd.subbuffer import ROW_DTYPE, Batch, Gap, Reason, Unit
from lttd.tracedir import Position, StreamRecord
from lttd.writer import StreamFile

_NO_ROWS: Final = np.empty(0, ROW_DTYPE)


@dataclass(slots=True)
class Lane:
    """One stream on its way to the disk."""

    file: StreamFile
    record: StreamRecord
    stats: StreamStats
    queue: "Jobs"
    synced: Position | None = None
    refused: Counter[Reason] = field(default_factory=Counter)
    """Sub-buffers that were taken and not written, and that no gap tells yet."""
    refused_gaps: list[Gap] = field(default_factory=list)
    """The gaps that came with them: counted, but not in the file yet."""

    def refuse(self, batch: Batch, reason: Reason) -> None:
        """Count a batch that is not written."""
        self.stats.unwritten(batch)
        self.refused[reason] += len(batch.rows)
        self.refused_gaps += batch.gaps

    def tell_refused(self, at: int) -> None:
        """Write, behind what is in the file, gaps for what was refused since the last one.

        Raises:
            StorageError: not even that can be written; it stays untold.
        """
        if not self.refused and not self.refused_gaps:
            return
        gaps = [
            Gap(0, reason, Unit.SUBBUFFERS, count, at, at)
            for reason, count in self.refused.items()
            if count
        ]
        told = (*gaps, *(replace(gap, row=0) for gap in self.refused_gaps))
        self.file.append(Batch(self.record.info.id, memoryview(b""), _NO_ROWS, 0, told))
        self.count_refused(gaps)

    def count_refused(self, gaps: Iterable[Gap]) -> None:
        """Count *gaps*, which tell all that was refused so far."""
        for gap in gaps:
            self.stats.lost(gap)
        self.refused.clear()
        self.refused_gaps.clear()


# A batch for a lane; an event to set when all before it is done; None to end.
Job = tuple[Lane, Batch] | threading.Event | None
Jobs = SimpleQueue[Job]

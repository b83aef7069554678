"""What collectors share in one clock group: the task of each event, and the names of tasks.

Events of lttng-modules state their task only if the user added a context; else the switches before
them tell it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventBatch
from lttd.view.ctf.running import UNKNOWN, Running, RunningNames
from lttd.view.library import ClockGroup
from lttd.view.notes import Notes
from lttd.view.task_names import COMM_BYTES, Names

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]


class Setting:
    """One clock group, while its batches are read."""

    def __init__(self, group: ClockGroup) -> None:
        self.group = group
        self._running: Running | None = None
        self._names: Names | None = None

    def told(self, batch: EventBatch) -> EventBatch:
        """Return the next batch with the tasks of its events, as far as anything tells them."""
        if self._running is None and not (batch.pid == UNKNOWN).any():
            return batch
        if self._running is None:
            self._running, self._names = Running(), RunningNames()
        assert isinstance(self._names, RunningNames)
        batch = replace(batch, pid=self._running.of(batch))
        self._names.learn(batch)
        return batch

    def comms(self, batch: EventBatch, rows: I64) -> Column:
        """Return the names (dtype S) of the tasks of some events of the batch."""
        if self._names is None and self.group.family is not None:
            self._names = self.group.family.names(self.group.near(), Notes())
        if self._names is None or not len(rows):
            return np.zeros(len(rows), f"S{COMM_BYTES}")
        if self._running is None:
            pairs, which = self._names.of(batch.select(rows))
        else:  # other events of the batch name tasks, too
            pairs, which = self._names.of(batch)
            which = which[rows]
        comms: Column = pairs["comm"][which]
        return comms

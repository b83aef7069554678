"""Name the tasks of CTF events, as far as contexts of the events do.

``pid`` of an event is its context ``tid`` or ``vtid`` (else ``pid`` or ``vpid``); its command is
the context ``procname``.
"""

from typing import Final

import numpy as np

from lttd.abi.ftrace_format import Encoding
from lttd.view.columns import EventBatch
from lttd.view.strips import Column
from lttd.view.task_names import COMM_BYTES, Names

_COMMAND: Final = "procname"
_UNKNOWN: Final = b"-"


class CtfNames(Names):
    """The tasks of events, which state them themselves."""

    def __init__(self) -> None:
        super().__init__([])

    def of(self, batch: EventBatch) -> tuple[Column, Column]:
        """See ``Names``: pairs of pid and command, and the number of each event's pair."""
        pairs = np.empty(len(batch), [("pid", np.int32), ("comm", f"S{COMM_BYTES}")])
        pairs["pid"], pairs["comm"] = np.maximum(batch.pid, 0), _UNKNOWN
        for rows in batch.by_type():
            if _COMMAND in rows.names and rows.field(_COMMAND).encoding is Encoding.SPAN:
                pairs["comm"][rows.rows] = rows.column(_COMMAND)
        table, number = np.unique(pairs, return_inverse=True)
        return table, number.reshape(-1)

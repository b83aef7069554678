"""Find the task that ran on a CPU at the time of each event, and the names and processes of tasks.

Events of lttng-modules state their task only if the user added a context.  ``sched_switch`` tells
it of the others: its ``prev_tid`` ran before it, its ``next_tid`` after it.

Rule: a context wins.  Between a loss and the next switch only that switch is believed.
Rule: batches are given in the order of time, each once.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventBatch, EventRows
from lttd.view.ctf.fields import CtfRecords
from lttd.view.task_names import Names, Seen, Telling

Column = npt.NDArray[Any]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

UNKNOWN: Final = -1
_WOKEN: Final = (("tid", "comm"),)
_NAMED: Final[Telling] = {
    "sched_switch": (("prev_tid", "prev_comm"), ("next_tid", "next_comm")),
    "sched_waking": _WOKEN,
    "sched_wakeup": _WOKEN,
    "sched_wakeup_new": _WOKEN,
    "sched_migrate_task": _WOKEN,
    "sched_process_fork": (("parent_tid", "parent_comm"), ("child_tid", "child_comm")),
    "sched_process_exit": _WOKEN,
    "sched_process_free": _WOKEN,
    "sched_process_exec": (("tid", "filename"),),
    "lttng_statedump_process_state": (("tid", "name"),),
}
# Event: pairs of (field of the task, field of its process).
_PROCESSES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "sched_process_fork": (("parent_tid", "parent_pid"), ("child_tid", "child_pid")),
    "lttng_statedump_process_state": (("tid", "pid"),),
}


class RunningNames(Names):
    """The names and processes of tasks, by the events so far."""

    telling = _NAMED

    def __init__(self) -> None:
        super().__init__([])

    def told_by(self, batch: EventBatch, piece: I64 | None) -> dict[tuple[int, int], Seen]:
        """See ``Names``; the last name of a task is that of later batches, too."""
        told = super().told_by(batch, piece)
        for (_, pid), seen in told.items():
            self.noted[pid] = seen[-1:]
        return told

    def learn(self, batch: EventBatch) -> None:
        """Note the processes of tasks, and the names in contexts."""
        for rows in batch.by_type():
            for task, process in _PROCESSES.get(rows.event_type.name, ()):
                self._belong(_numbers(rows, task), _numbers(rows, process))
            records = rows.event_type.records_of
            if not isinstance(records, CtfRecords):
                continue
            owner = records.context("pid") or records.context("vpid")
            if owner:
                self._belong(rows.pid.astype(np.int64), _numbers(rows, owner))
            command = records.context("procname")
            if command and rows[command].dtype.kind in "OS":
                self._call(rows, rows[command])

    def _belong(self, tasks: I64 | None, processes: I64 | None) -> None:
        if tasks is not None and processes is not None:
            pairs = np.unique(np.stack((tasks, processes), axis=1), axis=0)
            self._tgids.update(pairs[(pairs[:, 0] > 0) & (pairs[:, 1] >= 0)].tolist())

    def _call(self, rows: EventRows, commands: Column) -> None:
        last = dict(zip(rows.pid.tolist(), commands.tolist(), strict=True))
        when = int(rows.time[-1])
        self.noted.update({pid: [(when, command)] for pid, command in last.items() if pid >= 0})


def _numbers(rows: EventRows, name: str) -> I64 | None:
    """Return a field that is one whole number; None: it is not, or there is none of the name.

    Tracers but lttng may have events of these names with other fields.
    """
    if name not in rows.names:
        return None
    found = rows[name]
    is_number = found.ndim == 1 and found.dtype.kind in "iu"
    return found.astype(np.int64) if is_number else None


class _Marks(NamedTuple):
    """Places in the events of one CPU from which on another task is known to run."""

    at: I64
    """Before the event of this number."""
    task: I64


class Running:
    """The running task of each CPU."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        """By CPU."""

    def of(self, batch: EventBatch) -> I32:
        """Return the task of each event; UNKNOWN where nothing tells it."""
        found = batch.pid.astype(np.int32)
        is_switch, before, after = _switches(batch)
        losses = [(loss.cpu, loss.time) for loss in batch.losses]
        for cpu in np.unique(batch.cpu).tolist():
            rows = np.flatnonzero(batch.cpu == cpu)
            times = np.array([time for at, time in losses if at == cpu], np.uint64)
            lost = np.searchsorted(batch.time[rows], times)
            switched = np.flatnonzero(is_switch[rows])
            switches = rows[switched]
            marks = _Marks(
                np.concatenate(([0], switched + 1, lost)),
                np.concatenate(
                    ([self._last.get(cpu, UNKNOWN)], after[switches], np.full(len(lost), UNKNOWN))
                ),
            )
            task, self._last[cpu] = _tasks(len(rows), marks)
            unknown = np.flatnonzero(task == UNKNOWN)
            task[unknown] = _next_known(unknown, switched, before[switches], np.sort(lost))
            task[switched] = before[switches]  # also if a loss has another place than it seems
            own = found[rows] == UNKNOWN
            found[rows[own]] = task[own]
        for cpu in {cpu for cpu, _ in losses} - set(np.unique(batch.cpu).tolist()):
            self._last[cpu] = UNKNOWN
        return found


def _switches(batch: EventBatch) -> tuple[npt.NDArray[np.bool_], I64, I64]:
    """Return which events are switches, and for these the tasks before and after."""
    is_switch = np.zeros(len(batch), np.bool_)
    before, after = (np.full(len(batch), UNKNOWN, np.int64) for _ in range(2))
    for rows in batch.by_type():
        if rows.event_type.name != "sched_switch":
            continue
        one, other = _numbers(rows, "prev_tid"), _numbers(rows, "next_tid")
        if one is not None and other is not None:
            is_switch[rows.rows] = True
            before[rows.rows], after[rows.rows] = one, other
    return is_switch, before, after


def _tasks(count: int, marks: _Marks) -> tuple[I64, int]:
    """Return the task at each event of a CPU, and at the end; a later mark at a place wins."""
    order = np.argsort(marks.at, kind="stable")
    at, task = marks.at[order], marks.task[order].astype(np.int64)
    return task[np.searchsorted(at, np.arange(count), "right") - 1], int(task[-1])


def _next_known(unknown: I64, switched: I64, before: I64, lost: I64) -> I64:
    """Return the task that the next switch names, unless events were lost before that switch."""
    following = np.searchsorted(switched, unknown)
    place = np.append(switched, np.iinfo(np.int64).max)[following]
    task = np.append(before, UNKNOWN)[following]
    next_loss = np.append(lost, np.iinfo(np.int64).max)[np.searchsorted(lost, unknown, "right")]
    return np.where(next_loss <= place, UNKNOWN, task)

"""The states of tasks, from sched_switch and wake-ups: on a CPU, waiting for one, asleep.

    switched in   -> RUNNING        until it is switched out, on the same CPU
    switched out  -> PREEMPTED      it could go on (R, R+)
                     SLEEPING       S, and I of idle kernel threads
                     BLOCKED        D
                     STOPPED        T, t, P;  GONE: X, Z
    woken         -> WOKEN          from any of the last three rows, or of an unknown state

A wake-up of a task that runs or waits changes nothing: after sched_waking comes sched_wakeup, and
a task can be woken before it sleeps.  Without wake-ups in the trace a sleep lasts until the task
runs.  Where sched_waking is recorded, it begins a wait; a wait that sched_wakeup begins is unknown,
because its sched_waking is lost.  But sched_waking may come while the task still runs on its way to
sleep, on another CPU, and sched_wakeup after the switch: it did not sleep, and waits from the
switch on.  The first wake-up of a task in the window may be one that changes nothing: if the task
does not run next, there was no wait.

Rule: an interval is complete if the event after it is one that ends its state, and if no event of
its task can be lost within it: for RUNNING on its CPU, else on any.
Source: Linux include/trace/events/sched.h; TASK_REPORT since v4.14.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventBatch, EventRows
from lttd.view.intervals.gathering import Part, gathered, numbers, of_names, strings
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table, duration_ns
from lttd.view.intervals.order import firsts_of, lasts_of, latest, stable_order
from lttd.view.intervals.setting import Setting

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RUNNING, PREEMPTED, WOKEN, SLEEPING, BLOCKED, STOPPED, GONE = range(7)
STATES: Final = ("running", "preempted", "woken", "sleeping", "blocked", "stopped", "gone")
WAITING: Final = (PREEMPTED, WOKEN)
SWITCH, WAKING, WAKEUP, BORN = range(4)
"""What changes a state; BORN: the first wake-up of a task."""
WAKES: Final = {"sched_waking": WAKING, "sched_wakeup": WAKEUP, "sched_wakeup_new": BORN}
_SWITCH: Final = "sched_switch"
_SMALL_STATES: Final = 0xFF
# Linux fs/proc/array.c, task_state_array, by the lowest bit.  1 S, 2 D, 4 T, 8 t, 0x10 X, 0x20 Z,
# 0x40 P, 0x80 I.
_OF_BITS: Final = {
    1: SLEEPING, 2: BLOCKED, 4: STOPPED, 8: STOPPED, 0x10: GONE, 0x20: GONE, 0x40: STOPPED,
    0x80: SLEEPING,
}  # fmt: skip
# lttng-modules before 2.11 states TASK_UNINTERRUPTIBLE | TASK_NOLOAD for I.
_OWN_IDLE: Final = 0x402
_COLUMNS: Final = ("pid", "state", "wake", "comm", "prio")


def _state_table() -> npt.NDArray[np.int8]:
    table = np.full(_SMALL_STATES + 1, PREEMPTED, np.int8)
    for value in range(1, _SMALL_STATES + 1):
        table[value] = _OF_BITS[value & -value]
    return table


_TABLE: Final = _state_table()


def states_of(prev_state: I64) -> npt.NDArray[np.int8]:
    """Return the state after a switch, by the event's ``prev_state``."""
    found: npt.NDArray[np.int8] = _TABLE[prev_state & _SMALL_STATES]
    found[prev_state == _OWN_IDLE] = SLEEPING
    return found


class TaskStates:
    """Finds the states of tasks; ``state`` of an interval is an index into STATES."""

    def __init__(self, _setting: Setting) -> None:
        self.counts = Counts()
        self._has_waking = False
        self._open: Table = {}
        """The last event of each task that changed its state."""

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        events = gathered(batch, _parts(batch), _COLUMNS)
        if events is None:
            return None
        self._has_waking |= bool((events["wake"] == WAKING).any())
        self.counts.events += int(np.count_nonzero(events["wake"] == SWITCH))
        count = len(events["pid"])
        events["met"] = np.zeros(count, np.bool_)
        events["pending"] = np.zeros(count, np.bool_)
        events["last_cpu"] = np.full(count, -1, np.int32)
        events["row"] = np.arange(count)
        if self._open:
            self._open["row"] = np.full(len(self._open["pid"]), -1, np.int64)
            events = {n: np.concatenate((self._open[n], one)) for n, one in events.items()}
        return self._between(events, holes)

    def finish(self) -> None:
        """Count the states that have not ended."""
        self.counts.cut += len(self._open.get("pid", ()))
        self._open = {}

    def _between(self, events: Table, holes: Holes) -> Table:
        """Return the intervals between the events of each task that change its state."""
        order = stable_order(events["pid"])
        if self._has_waking:
            _wait_from_switch(events, order)
        order = order[_changing(events, order)]
        first, last = firsts_of(events["pid"][order]), lasts_of(events["pid"][order])
        _note_last_cpus(events, order, first)
        # A task that is first seen now was in some state before, except if it is new.
        met = order[first & (events["row"][order] >= 0)]
        events["met"][met] = events["wake"][met] != BORN
        self.counts.cut += int(np.count_nonzero(events["met"][met]))
        at = np.flatnonzero(~last & (events["state"][order] != GONE))
        at = at[~self._was_no_wait(events, order[at], order[at + 1])]
        at = at[np.argsort(events["row"][order[at + 1]], kind="stable")]
        found = _table(events, order[at], order[at + 1], holes)
        if self._has_waking:
            found["complete"] &= events["wake"][order[at]] != WAKEUP
        self.counts.unknown += int(np.count_nonzero(~found["complete"]))
        left = order[last & (events["state"][order] != GONE)]
        self._open = {name: column[left] for name, column in events.items()}
        return found

    def _was_no_wait(self, events: Table, begin: I64, end: I64) -> Mask:
        """Return which waits began with the first event of their task, and may be none."""
        wake = events["wake"][begin]
        doubtful = (events["state"][end] != RUNNING) | ((wake == WAKEUP) & self._has_waking)
        return _mask(events["met"][begin] & (wake != SWITCH) & doubtful)


def _mask(found: Column) -> Mask:
    return found


def _table(events: Table, begin: I64, end: I64, holes: Holes) -> Table:
    """Return the intervals between some pairs of events of one task each."""
    time, cpu, state = events["time"], events["cpu"], events["state"]
    ran_on = events["last_cpu"][begin]
    found = {
        "begin_ns": time[begin],
        "end_ns": time[end],
        "duration_ns": duration_ns(time[begin], time[end]),
        "cpu": cpu[end],
        "pid": events["pid"][end].astype(np.int32),
        "comm": events["comm"][end],
        "prio": events["prio"][end].astype(np.int32),
        "state": state[begin],
        "next": state[end],
        "migrated": (state[end] == RUNNING) & (ran_on >= 0) & (ran_on != cpu[end]),
    }
    same_cpu = cpu[begin] == cpu[end]
    right = _ended_rightly(state[begin], state[end], events["wake"][end], same_cpu)
    found["complete"] = right & ~_lost(found, holes)
    return found


def _note_last_cpus(events: Table, order: I64, first: Mask) -> None:
    """Note for each event the CPU on which its task ran last."""
    at = latest(events["wake"][order] == SWITCH, first)
    cpu = events["cpu"][order[np.maximum(at, 0)]].astype(np.int32)
    # The open event of a task is its first here; it knows the CPU of those before.
    begin = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    before = events["last_cpu"][order][begin]
    events["last_cpu"][order] = np.where(at >= 0, cpu, before)


def _parts(batch: EventBatch) -> Iterator[Part]:
    for rows in of_names(batch, (_SWITCH, *WAKES)):
        if rows.event_type.name == _SWITCH:
            yield from _switches(rows)
            continue
        pid = numbers(rows, "pid", "tid")
        if pid is not None:
            yield from _of_tasks(
                rows, pid, {
                    "state": np.full(len(rows), WOKEN, np.int8),
                    "wake": np.full(len(rows), WAKES[rows.event_type.name], np.int8),
                    "comm": strings(rows, "comm"), "prio": numbers(rows, "prio"),
                },
            )  # fmt: skip


def _switches(rows: EventRows) -> Iterator[Part]:
    out, into = numbers(rows, "prev_pid", "prev_tid"), numbers(rows, "next_pid", "next_tid")
    if out is None or into is None:
        return
    told = numbers(rows, "prev_state")
    state = np.full(len(rows), STOPPED, np.int8) if told is None else states_of(told)
    switch = np.full(len(rows), SWITCH, np.int8)
    yield from _of_tasks(
        rows, out,
        {"state": state, "wake": switch, "comm": strings(rows, "prev_comm"),
         "prio": numbers(rows, "prev_prio")},
    )  # fmt: skip
    yield from _of_tasks(
        rows, into,
        {"state": np.full(len(rows), RUNNING, np.int8), "wake": switch,
         "comm": strings(rows, "next_comm"), "prio": numbers(rows, "next_prio")},
    )  # fmt: skip


def _of_tasks(rows: EventRows, pid: I64, columns: dict[str, Column | None]) -> Iterator[Part]:
    """Yield the part of all tasks but the idle ones, which all have the pid 0."""
    there = {name: column for name, column in columns.items() if column is not None}
    kept = np.flatnonzero(pid != 0)
    yield Part(rows.rows[kept], {"pid": pid[kept], **{n: c[kept] for n, c in there.items()}})


def _wait_from_switch(events: Table, order: I64) -> None:
    """Let tasks wait from the switch on that were woken just before it; see the head."""
    pid, state, wake, pending = (events[n][order] for n in ("pid", "state", "wake", "pending"))
    same = pid[1:] == pid[:-1]
    waking = (wake[:-1] == WAKING) | (pending[:-1] & (state[:-1] == RUNNING))
    pending[1:] |= same & waking & (state[1:] > WOKEN)
    # An open event is kept without what changed nothing after it.
    pending[:-1] |= same & (state[:-1] == RUNNING) & (wake[1:] == WAKING)
    goes_on = (wake[1:] == WAKEUP) | (state[1:] == RUNNING)
    woken = np.flatnonzero(same & goes_on & pending[:-1] & (state[:-1] > WOKEN))
    events["pending"][order] = pending
    events["state"][order[woken]] = WOKEN


def _changing(events: Table, order: I64) -> Mask:
    """Return which events, in *order*, change the state of their task."""
    pid, state = events["pid"][order], events["state"][order]
    wake = events["wake"][order] != SWITCH
    first = firsts_of(pid)
    changes = ~wake | first
    later = np.flatnonzero(wake & ~first)
    # The state before a wake-up is that of the event before, which has to be a switch.
    changes[later] = ~wake[later - 1] & (state[later - 1] > WOKEN)
    return _mask(changes)


def _ended_rightly(state: Column, following: Column, by: Column, same_cpu: Mask) -> Mask:
    """Return which states were followed by one that can follow them."""
    goes_on = following == RUNNING
    switched_out = (by == SWITCH) & ~goes_on
    right = np.where(state > WOKEN, ~switched_out, goes_on)
    running = state == RUNNING
    right[running] = (switched_out & same_cpu)[running]
    return _mask(right)


def _lost(found: Table, holes: Holes) -> Mask:
    begin, end, cpu = found["begin_ns"], found["end_ns"], found["cpu"]
    running = found["state"] == RUNNING
    lost = holes.of_any(begin, end)
    lost[running] = holes.of_cpu(cpu[running], begin[running], end[running])
    return lost


class SchedLatency:
    """Finds how long tasks waited for a CPU."""

    def __init__(self, setting: Setting) -> None:
        self._states = TaskStates(setting)
        self.counts = self._states.counts

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        found = self._states.take(batch, holes)
        if found is None:
            return None
        waits = np.flatnonzero(is_wait(found["state"]))
        found["preempted"] = found["state"] == PREEMPTED
        return {n: c[waits] for n, c in found.items() if n not in ("state", "next")}

    def finish(self) -> None:
        """See ``Collector``."""
        self._states.finish()


def is_wait(state: Column) -> Mask:
    """Return which states are waits for a CPU."""
    return _mask((state == PREEMPTED) | (state == WOKEN))

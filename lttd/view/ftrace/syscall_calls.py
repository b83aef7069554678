"""Join the begin of each system call with its end, per task.

Events are those of ``raw_syscalls`` (sys_enter, sys_exit) or of ``syscalls`` (sys_enter_read, ...).
Of a call that both have, those of ``syscalls`` count, which have the names of arguments.

    state       the event is       its line
    JOINED      a begin            the whole call
    UNFINISHED  a begin            without result: the end is in a later piece, or never came
    RESUMED     an end             the result: the begin is in an earlier piece, or was before all
    UNKNOWN     a begin            without result: events were lost before the end
    NO_LINE     an end             none: the line of its begin has it

Rule: where events were lost between begin and end, on any CPU, they are not joined: the end may be
that of a later call.
Rule: memory holds one begin per task from piece to piece.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding
from lttd.view.columns import EventBatch, EventRows
from lttd.view.formats import EventType

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

RAW, EACH = "raw_syscalls", "syscalls"
ENTER, EXIT = "sys_enter", "sys_exit"
NO_CALL, JOINED, UNFINISHED, RESUMED, UNKNOWN, NO_LINE = range(6)
UNTIMED: Final = -1
"""The duration of a call whose begin is not known."""
_NUMBERS: Final = ("__syscall_nr", "nr", "id")
# rt_sigreturn restores all registers, so that its end has no number.
_NO_NUMBER: Final = -1


class Part(NamedTuple):
    """The kind of event that an event type is."""

    is_end: bool
    is_raw: bool
    number: str
    """The field with the number of the system call."""


def part_of(event_type: EventType) -> Part | None:
    """Return how events of a type take part in system calls; None: they do not."""
    format_ = event_type.format
    if format_ is None or event_type.system not in (RAW, EACH):
        return None
    is_raw, fields = event_type.system == RAW, format_.by_name
    number = next((name for name in _NUMBERS if name in fields), None)
    head = ENTER if is_raw else f"{ENTER}_", EXIT if is_raw else f"{EXIT}_"
    is_end = event_type.name.startswith(head[1])
    if number is None or not (is_end or event_type.name.startswith(head[0])):
        return None
    needed: dict[str, Encoding] = {number: Encoding.INT}
    if is_end:
        needed["ret"] = Encoding.INT
    elif is_raw:
        needed["args"] = Encoding.ARRAY
    if any(name not in fields or fields[name].encoding is not e for name, e in needed.items()):
        return None
    return Part(is_end, is_raw, number)


def number_of(rows: EventRows, part: Part) -> I32:
    """Return the numbers of system calls."""
    return rows.records[part.number].astype(np.int32)


@dataclass(frozen=True, slots=True)
class Calls:
    """The columns of a batch that tell what is known of the calls that its events belong to."""

    state: I8
    number: I32
    returned: I64
    duration: I64
    """In units of the trace clock; UNTIMED."""

    def some(self, rows: I64 | Mask | slice) -> "Calls":
        """Return those of some events."""
        return Calls(self.state[rows], self.number[rows], self.returned[rows], self.duration[rows])


class Open(NamedTuple):
    """A begin whose end has not come yet."""

    number: int
    time: int
    is_sure: bool
    """Whether no event was lost since."""


class Joiner:
    """Joins the calls of a window, piece by piece in the order of time."""

    def __init__(self) -> None:
        self._open: dict[int, Open] = {}
        """By pid."""

    def join(self, batch: EventBatch) -> Calls:
        """Return the calls of a batch."""
        count = len(batch)
        calls = Calls(
            np.zeros(count, np.int8),
            np.zeros(count, np.int32),
            np.zeros(count, np.int64),
            np.full(count, UNTIMED, np.int64),
        )
        is_end, is_raw = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        for rows in batch.by_type():
            part = part_of(rows.event_type)
            if part is None:
                continue
            at = rows.rows
            calls.state[at] = RESUMED if part.is_end else UNFINISHED
            calls.number[at] = number_of(rows, part)
            is_end[at], is_raw[at] = part.is_end, part.is_raw
            if part.is_end:
                calls.returned[at] = rows.records["ret"].astype(np.int64)
        self._join(batch, calls, is_end, is_raw)
        return calls

    def _join(self, batch: EventBatch, calls: Calls, is_end: Mask, is_raw: Mask) -> None:
        rows = np.flatnonzero(calls.state)
        rows = rows[np.argsort(batch.pid[rows], kind="stable")]
        rows = _each_once(rows, batch.pid, calls, is_end, is_raw)
        losses = np.array([loss.time for loss in batch.losses if loss.was_wanted], np.uint64)
        losses.sort()
        pid, end, number = batch.pid[rows], is_end[rows], calls.number[rows]
        time = batch.time[rows]
        lost = np.searchsorted(losses, time, "right")
        same = ~end[:-1] & end[1:] & (pid[:-1] == pid[1:]) & _fits(number[:-1], number[1:])
        sure = lost[:-1] == lost[1:]
        begin, behind = rows[:-1][same & sure], rows[1:][same & sure]
        calls.state[begin], calls.state[behind] = JOINED, NO_LINE
        calls.returned[begin] = calls.returned[behind]
        calls.duration[begin] = (batch.time[behind] - batch.time[begin]).astype(np.int64)
        calls.state[rows[:-1][~sure & ~end[:-1] & (pid[:-1] == pid[1:])]] = UNKNOWN
        self._carry(calls, rows, pid, time, losses)

    def _carry(self, calls: Calls, rows: I64, pid: I32, time: U64, losses: U64) -> None:
        """Join the first end of each task with a begin of an earlier piece; keep the last begin."""
        first = np.flatnonzero(np.append(True, pid[1:] != pid[:-1])[: len(pid)])
        last = np.append(first[1:], len(pid))[: len(first)] - 1
        known = self._open
        for at, behind, task in zip(
            first.tolist(), last.tolist(), pid[first].tolist(), strict=True
        ):
            begun = known.pop(task, None)
            row, until = rows[at], int(time[at])
            if begun and calls.state[row] == RESUMED and begun.is_sure:
                was_lost = np.searchsorted(losses, np.uint64(until), "right") > 0
                if not was_lost and _fits(begun.number, calls.number[row]):
                    calls.duration[row] = until - begun.time
            row = rows[behind]
            if calls.state[row] == UNFINISHED:
                since = int(time[behind])
                is_sure = not len(losses) or since >= int(losses[-1])
                known[task] = Open(int(calls.number[row]), since, is_sure)
        if len(losses):
            self._open = {
                task: one._replace(is_sure=one.is_sure and one.time >= int(losses[-1]))
                for task, one in known.items()
            }


def _each_once(rows: I64, pid: I32, calls: Calls, is_end: Mask, is_raw: Mask) -> I64:
    """Leave out the raw event of a call that ``syscalls`` has as well, next to it."""
    one, other = rows[:-1], rows[1:]
    twice = (pid[one] == pid[other]) & (is_end[one] == is_end[other])
    twice &= (calls.number[one] == calls.number[other]) & (is_raw[one] != is_raw[other])
    out = np.concatenate([one[twice & is_raw[one]], other[twice & is_raw[other]]])
    if not len(out):
        return rows
    calls.state[out] = NO_LINE
    kept: I64 = rows[calls.state[rows] != NO_LINE]
    return kept


def _fits(begin: I32 | int, end: I32 | int) -> Mask:
    """Tell whether an end is that of a begin, by their numbers."""
    fits: Mask = (np.asarray(begin) == end) | (np.asarray(end) == _NO_NUMBER)
    return fits

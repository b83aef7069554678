"""System calls, from entry to exit, by task.

    ftrace  raw_syscalls:sys_enter and sys_exit, which state a number; syscalls:sys_enter_NAME
    lttng   syscall_entry_NAME and syscall_exit_NAME, also with compat_ before them

Rule: if the trace has both raw events and those of single calls, the raw ones count.
Rule: a call whose exit states another number is unknown.  rt_sigreturn's exit states -1, because
the number is part of the registers that it restores.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import SYSCALL_NUMBER
from lttd.view.columns import EventBatch, EventRows
from lttd.view.ftrace.syscall_table import by_number, named_by_function
from lttd.view.intervals.gathering import Part, gathered, numbers
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table, duration_ns
from lttd.view.intervals.pairing import Events, Matcher
from lttd.view.intervals.setting import Setting

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# Linux include/linux/err.h
_MOST_ERRNO: Final = 4095
_RAW: Final = {"sys_enter": True, "sys_exit": False}
_PREFIXES: Final = {
    "sys_enter_": True, "sys_exit_": False, "syscall_entry_": True, "syscall_exit_": False,
    "compat_syscall_entry_": True, "compat_syscall_exit_": False,
}  # fmt: skip
_RESTORED: Final = -1


class Syscalls:
    """Finds system calls."""

    def __init__(self, setting: Setting) -> None:
        self.counts = Counts()
        self._setting = setting
        self._matcher = Matcher(self.counts, on_one_cpu=False)
        machine = setting.group.segments[-1].manifest.machine
        calls = by_number(machine.get("architecture", ""))
        self._known = {number: call.name for number, call in calls.items()}
        self._unnumbered: dict[str, int] = {}
        """Numbers below -1 for calls whose events state none."""
        self._raw = False

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        found = [one for rows in batch.by_type() if (one := self._part(rows))]
        self._raw = self._raw or any(is_raw for is_raw, _ in found)
        parts = [part for is_raw, part in found if is_raw == self._raw]
        names = ("pid", "number", "ret", "begins")
        events = gathered(batch, parts, names)
        if events is None:
            return None
        self.counts.events += len(events["time"])
        known = np.flatnonzero(events["pid"] >= 0)
        if len(known) < len(events["pid"]):
            self.counts.unknown += len(events["pid"]) - len(known)
            events = {name: column[known] for name, column in events.items()}
        more = {name: events[name] for name in ("number", "ret", "row")}
        pairs = self._matcher.take(
            Events(events["time"], events["cpu"], events["pid"], events["begins"], more), holes
        )
        return self._table(batch, pairs.begin, pairs.end, pairs.complete)

    def finish(self) -> None:
        """See ``Collector``."""
        self._matcher.finish()

    def _part(self, rows: EventRows) -> tuple[bool, Part] | None:
        """Return whether events are raw ones, and their part; None: they are no system calls."""
        name = rows.event_type.name
        begins = _RAW.get(name)
        call = ""
        for prefix, begin in _PREFIXES.items() if begins is None else ():
            if name.startswith(prefix):
                begins, call = begin, name.removeprefix(prefix)
        if begins is None:
            return None
        number = numbers(rows, "id") if not call else numbers(rows, SYSCALL_NUMBER)
        if number is None:
            if not call:
                return None
            call = named_by_function(call)
            given = self._unnumbered.setdefault(call, -2 - len(self._unnumbered))
            number = np.full(len(rows), given, np.int64)
        ret = None if begins else numbers(rows, "ret")
        columns: dict[str, Column] = {
            "pid": rows.pid.astype(np.int64), "number": number,
            "begins": np.full(len(rows), begins),
            "ret": np.zeros(len(rows), np.int64) if ret is None else ret,
        }  # fmt: skip
        return not call, Part(rows.rows, columns)

    def _table(self, batch: EventBatch, begin: Table, end: Table, complete: Mask) -> Table:
        same = (begin["number"] == end["number"]) | (end["number"] == _RESTORED)
        self.counts.unknown += int(np.count_nonzero(complete & ~same))
        ret = end["ret"]
        return {
            "begin_ns": begin["time"],
            "end_ns": end["time"],
            "duration_ns": duration_ns(begin["time"], end["time"]),
            "cpu": end["cpu"],
            "pid": end["key"].astype(np.int32),
            "comm": self._setting.comms(batch, end["row"]),
            "number": np.maximum(begin["number"], -1).astype(np.int32),
            "name": self._named(begin["number"]),
            "ret": ret,
            "failed": (ret < 0) & (ret >= -_MOST_ERRNO),
            "complete": complete & same,
        }

    def _named(self, number: I64) -> Column:
        values, which = np.unique(number, return_inverse=True)
        unnumbered = {given: call for call, given in self._unnumbered.items()}
        texts = [
            (unnumbered.get(one) or self._known.get(one) or f"#{one}").encode()
            for one in values.tolist()
        ]
        return np.array(texts or [b""], np.bytes_)[which.reshape(-1)]

"""Export CTF for Perfetto's UI; see ``systrace`` for the form.

The importer knows the kernel's names and fields; ROWS maps those of lttng-modules to them.  It
reads neither system calls nor interrupts, so these become markers, which it shows as slices: calls
on the track of their thread, interrupts on a track of each CPU.

Rule: a slice is written where its begin is followed by its end, on the same thread or CPU; a begin
or an end that is alone, because the other was lost or is outside, is an ordinary line.
Rule: other events have a line as in ``lttv text``, which the importer skips.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding, Format
from lttd.errors import UsageError
from lttd.files import Disk
from lttd.terminal import printable
from lttd.view.columns import EventBatch, EventRows
from lttd.view.ctf.fields import CtfRecords
from lttd.view.ctf.running import UNKNOWN, Running, RunningNames
from lttd.view.export.systrace import MARKER, SystraceForm, write_text
from lttd.view.family import Block
from lttd.view.formats import EventType
from lttd.view.glyphs import decimal, per_distinct
from lttd.view.library import ClockGroup
from lttd.view.lines import FieldPrinter, value_of
from lttd.view.notes import Notes
from lttd.view.strips import Strip, joined, settled, words_of
from lttd.view.task_names import UNKNOWN as UNNAMED
from lttd.view.times import Window
from lttd.view.trace import Trace

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Row(NamedTuple):
    """The line of an event of lttng-modules."""

    text: str
    """With fields as in str.format(): {name} or {name:kind}, see _VALUES."""
    lane: str = ""
    """Of a slice: "task" or "cpu", on which begin and end follow each other."""
    slice: str = ""
    """Of a slice: a name that begin and end share."""
    begins: bool = False


_TASK: Final = "comm={comm} pid={tid} prio={prio:prio}"
_WOKEN: Final = f"{_TASK} target_cpu={{target_cpu:cpu}}"
_MARK: Final = MARKER.decode()


def _interrupt(kind: str, name: str) -> tuple[Row, Row]:
    """Return the rows of begin and end of a kind of interrupt."""
    track = f"{kind} cpu {{:this_cpu}}"
    begin = f"{_MARK}: G|0|{track}|{name}|{{:this_cpu}}"
    end = f"{_MARK}: H|0|{track}|{{:this_cpu}}"
    return Row(begin, "cpu", kind, begins=True), Row(end, "cpu", kind)


_IRQ: Final = _interrupt("irq", "{name} ({irq})")
_SOFTIRQ: Final = _interrupt("softirq", "{vec:softirq}")
ROWS: Final[Mapping[str, Row]] = {
    "sched_switch": Row(
        "sched_switch: prev_comm={prev_comm} prev_pid={prev_tid} prev_prio={prev_prio:prio}"
        " prev_state={prev_state:state} ==> next_comm={next_comm} next_pid={next_tid}"
        " next_prio={next_prio:prio}"
    ),
    "sched_waking": Row(f"sched_waking: {_WOKEN}"),
    "sched_wakeup": Row(f"sched_wakeup: {_WOKEN}"),
    "sched_wakeup_new": Row(f"sched_wakeup_new: {_WOKEN}"),
    "sched_process_exit": Row(f"sched_process_exit: {_TASK}"),
    "sched_process_free": Row(f"sched_process_free: {_TASK}"),
    "sched_process_fork": Row(
        "sched_process_fork: comm={parent_comm} pid={parent_tid} child_comm={child_comm}"
        " child_pid={child_tid}"
    ),
    "power_cpu_idle": Row("cpu_idle: state={state} cpu_id={cpu_id}"),
    "power_cpu_frequency": Row("cpu_frequency: state={state} cpu_id={cpu_id}"),
    "workqueue_execute_start": Row(
        "workqueue_execute_start: work struct {work}: function {function}"
    ),
    "workqueue_execute_end": Row("workqueue_execute_end: work struct {work}"),
    "irq_handler_entry": _IRQ[0],
    "irq_handler_exit": _IRQ[1],
    "irq_softirq_entry": _SOFTIRQ[0],
    "irq_softirq_exit": _SOFTIRQ[1],
}
"""By the names of lttng-modules; system calls have rows of their own, see row_of()."""
_CALLS: Final = {
    f"{prefix}syscall_{when}_": when == "entry"
    for prefix in ("", "compat_")
    for when in ("entry", "exit")
}
_READ: Final = re.compile(
    "0|binder_.*|cdev_update|clock_.*|cpu_frequency|cpu_idle|print|rss_stat|sched_blocked_reason"
    "|sched_switch|sched_waking|thermal_temperature|tracing_mark_write|workqueue_execute_.*"
)
"""The events whose fields the importer reads: systrace_line_parser.cc."""


def row_of(name: str) -> Row | None:
    """Return the row of an event; None if it has none."""
    for prefix, begins in _CALLS.items():
        call = name.removeprefix(prefix)
        if call != name:
            named = f"sys_{printable(call).replace('{', '').replace('}', '')}"
            text = f"{_MARK}: B|{{:process}}|{named}" if begins else f"{_MARK}: E|{{:process}}"
            return Row(text, "task", named, begins)
    return ROWS.get(name)


# Linux include/linux/sched.h: TASK_REPORT and what follows, as the kernel prints it since v4.14.
_STATES: Final = {1: "S", 2: "D", 4: "T", 8: "t", 16: "X", 32: "Z", 64: "P", 128: "I"}
# Linux v4.14 has 0x100 for a task that was preempted; before that it was TASK_STATE_MAX.
_PREEMPTED: Final = (0x100, 0x200, 0x400, 0x800, 0x1000)
# lttng-modules before 2.11 states the task's own flags: TASK_UNINTERRUPTIBLE | TASK_NOLOAD.
_OWN_IDLE: Final = 0x402
_SOFTIRQS: Final = (
    *("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK"),
    *("IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"),
)
# lttng-modules states priorities from that of the first ordinary task on: MAX_RT_PRIO.
_FIRST_ORDINARY: Final = 100
# LTTng takes the time of a clock's origin once for the kernel and once for each process.
_SAME_ORIGIN_NS: Final = 1_000_000_000


def _state(value: int) -> bytes:
    if value in _PREEMPTED:
        return b"R+"
    if value == _OWN_IDLE:
        return b"I"
    return "|".join(letter for bit, letter in _STATES.items() if value & bit).encode() or b"R"


def _softirq(number: int) -> bytes:
    known = 0 <= number < len(_SOFTIRQS)
    return (_SOFTIRQS[number] if known else str(number)).encode()


class RowPrinter(FieldPrinter):
    """Prints events by a row."""

    def __init__(self, format_: Format, row: Row, names: RunningNames) -> None:
        super().__init__(format_)
        self.row = row
        self._names = names
        self._parts = list(Formatter().parse(row.text))
        self._values: Mapping[str, Callable[[EventRows, str], Strip]] = {
            "": lambda rows, name: value_of(rows.field(name), rows),
            "prio": lambda rows, name: decimal(rows[name].astype(np.int64) + _FIRST_ORDINARY),
            "state": lambda rows, name: [words_of(per_distinct(rows[name], _state))],
            "softirq": lambda rows, name: [words_of(per_distinct(rows[name], _softirq))],
            "cpu": lambda rows, name: decimal(rows[name].astype(np.uint32), 3),
            "this_cpu": lambda rows, _: decimal(rows.cpu),
            "process": lambda rows, _: decimal(self._processes(rows)),
        }

    @property
    def fits(self) -> bool:
        """Whether the event has the fields of the row, and numbers where it needs them."""
        fields = self._format.by_name if self._format else {}
        return all(
            name in fields and (not kind or fields[name].encoding is Encoding.INT)
            for _, name, kind, _ in self._parts
            if name
        )

    def _processes(self, rows: EventRows) -> I64:
        """Return the process of each event's task; the task, where no event told the process."""
        tasks, which = np.unique(rows.pid, return_inverse=True)
        told = [self._names.tgid(task) for task in tasks.tolist()]
        pairs = zip(tasks.tolist(), told, strict=True)
        table = np.array([task if process is None else process for task, process in pairs])
        return table[which.reshape(-1)]

    def strip(self, rows: EventRows) -> Strip:
        """Return the text of all rows as one strip."""
        strip: Strip = []
        for text, name, kind, _ in self._parts:
            strip.append(text.encode())
            if name is not None:
                strip += settled(self._values[kind or ""](rows, name), len(rows))
        return joined(strip)


class NamedPrinter(FieldPrinter):
    """Prints events as in ``lttv text``, with their names."""

    def __init__(self, format_: Format | None, name: str) -> None:
        super().__init__(format_)
        self._name = printable(name)

    def strip(self, rows: EventRows) -> Strip:
        """Return the text of all rows as one strip."""
        return joined([f"{self._name}: ".encode(), *super().strip(rows)])


class Slices:
    """Finds the begins that are followed by their ends, and these ends."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        """By lane: the slice that a batch left open."""

    def of(self, batch: EventBatch) -> Mask:
        """Return which events of a batch begin or end a slice."""
        every: list[tuple[I64, I64, I64, Mask]] = []
        names: list[str] = []
        for rows in batch.by_type():
            row = row_of(_name_of(rows.event_type))
            if row is None or not row.lane:
                continue
            if row.slice not in names:
                names.append(row.slice)
            lane = rows.pid.astype(np.int64)
            if row.lane == "cpu":
                lane = -2 - 2 * rows.cpu.astype(np.int64) - (row in _SOFTIRQ)
            number = np.full(len(rows), names.index(row.slice), np.int64)
            every.append((rows.rows, lane, number, np.full(len(rows), row.begins)))
        found = np.zeros(len(batch), np.bool_)
        if not every:
            return found
        at, lane, number, begins = (np.concatenate(column) for column in zip(*every, strict=True))
        order = np.lexsort((at, lane))
        at, lane, number, begins = at[order], lane[order], number[order], begins[order]
        follows = (lane[1:] == lane[:-1]) & (number[1:] == number[:-1]) & begins[:-1] & ~begins[1:]
        first = np.append(True, lane[1:] != lane[:-1])
        last = np.append(lane[1:] != lane[:-1], True)
        paired = np.append(follows, False) | np.append(False, follows) | (last & begins)
        for one in np.flatnonzero(first & ~begins).tolist():
            paired[one] = self._open.get(int(lane[one])) == names[int(number[one])]
        for one in np.flatnonzero(last).tolist():
            self._open.pop(int(lane[one]), None)
            if begins[one]:
                self._open[int(lane[one])] = names[int(number[one])]
        paired &= lane != UNKNOWN
        found[at] = paired
        return found


def _name_of(event_type: EventType) -> str:
    """Return the name in the metadata, with a provider if it has one."""
    records = event_type.records_of
    return records.event.name if isinstance(records, CtfRecords) else event_type.name


class CtfTexter(SystraceForm):
    """Makes the lines of one clock group's batches, which come in the order of time."""

    def __init__(self) -> None:
        self._tasks = RunningNames()
        super().__init__(self._tasks, nanoseconds=True)
        self._running = Running()
        self._slices = Slices()
        self._is_slice: Mask = np.empty(0, np.bool_)
        self._of_type: dict[int, tuple[RowPrinter | None, NamedPrinter]] = {}

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """See ``BlockTexter``."""
        batch = replace(batch, pid=self._running.of(batch))
        self._tasks.learn(batch)
        self._is_slice = self._slices.of(batch)
        return super().lines(batch, most)

    def _who(self, pid: int, comm: bytes) -> bytes:
        return super()._who(max(pid, 0), comm if pid >= 0 else UNNAMED)

    def _name_of(self, _event_type: EventType) -> bytes:
        return b""  # the printers write it

    def _alike(
        self, batch: EventBatch
    ) -> Iterator[tuple[list[EventType], EventRows, FieldPrinter]]:
        for rows in batch.by_type():
            types = [rows.event_type]
            by_row, plain = self._printers_of(rows.event_type)
            if by_row is None:
                yield types, rows, plain
            elif not by_row.row.lane:
                yield types, rows, by_row
            else:
                slices = self._is_slice[rows.rows]
                for which, printer in ((slices, by_row), (~slices, plain)):
                    if which.any():
                        yield types, rows.some(which), printer

    def _printers_of(self, event_type: EventType) -> tuple[RowPrinter | None, NamedPrinter]:
        if event_type.number not in self._of_type:
            name, format_ = _name_of(event_type), event_type.format
            row = row_of(name)
            by_row = RowPrinter(format_, row, self._tasks) if row and format_ else None
            if by_row is not None and not by_row.fits:
                by_row = None
            # The importer would look for fields that this event does not have.
            plain = f"{event_type.system}:{name}" if _READ.fullmatch(name) else name
            self._of_type[event_type.number] = by_row, NamedPrinter(format_, plain)
        return self._of_type[event_type.number]


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    return write_text(trace, window, out, disk, _texter)


def _texter(group: ClockGroup, _notes: Notes) -> CtfTexter:
    origins = [source.context.offset_ns for source in group.sources]
    if origins and max(origins) - min(origins) > _SAME_ORIGIN_NS:
        names = sorted({segment.paths.directory.name for segment in group.segments})
        raise UsageError(
            f"{' and '.join(names[:2])} are of different boots, and Perfetto's text has one clock:"
            " export one segment"
        )
    return CtfTexter()

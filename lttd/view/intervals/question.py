"""What ``lttv stats`` can be asked for: a row of WHATS describes one answer.

An answer has one or more **measures**, such as the time on a CPU and the wait for one.  Each is a
duration that some intervals of a kind have.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.view.intervals import tasks
from lttd.view.intervals.blocks import NEVER
from lttd.view.intervals.kind import Kind, Table
from lttd.view.intervals.names import NAMES
from lttd.view.intervals.table import KINDS, TASK_STATES
from lttd.view.intervals.tasks import STATES

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
TASK: Final = "task"
"""To group by a task is to group by its pid."""


class Measure(NamedTuple):
    """One duration of an answer."""

    name: str
    help: str
    durations: Callable[[Table], I64]
    """Returns it for each interval; less than 0: that one has none."""


class What(NamedTuple):
    """One thing to ask for."""

    name: str
    kind: Kind
    by: tuple[str, ...]
    """The columns by which its intervals are grouped if the user names none."""
    measures: tuple[Measure, ...]
    counters: Mapping[str, Callable[[Table], Mask]] = MappingProxyType({})
    """Names of further numbers, and which intervals they count."""
    overall: tuple[str, ...] = ()
    """The columns by which they are grouped where the whole trace is summed up."""
    shown: str = ""
    """The measure of the worst ones and of the histogram; empty: the first."""
    record: str = ""
    """The option of lttd that records what it needs."""

    def measure(self, name: str | None) -> Measure:
        """Return the measure called *name*; None: the one that is shown."""
        wanted = name or self.shown or self.measures[0].name
        return next(one for one in self.measures if one.name == wanted)


def _in(*states: int) -> Callable[[Table], I64]:
    def durations(table: Table) -> I64:
        wanted = np.isin(table["state"], states)
        return np.where(wanted, table["duration_ns"], NEVER)

    return durations


def _whole(table: Table) -> I64:
    return table["duration_ns"]


def _column(name: str) -> Callable[[Table], I64]:
    return lambda table: table[name]


def _before(name: str, less: str) -> Callable[[Table], I64]:
    """Return the time between two stages before the issue."""

    def durations(table: Table) -> I64:
        first, second = table[name], table[less]
        return np.where((first < 0) | (second < 0) | (first < second), NEVER, first - second)

    return durations


def _from_queueing(table: Table) -> I64:
    queued = table["queued_ns"]
    return np.where(queued < 0, NEVER, queued + table["duration_ns"])


def _was_preempted(table: Table) -> Mask:
    preempted: Mask = (table["state"] == tasks.RUNNING) & (table["next"] == tasks.PREEMPTED)
    return preempted


_ROWS: Final = (
    What(
        "sched", TASK_STATES, (TASK,),
        (
            Measure("running", "on a CPU", _in(tasks.RUNNING)),
            Measure("waiting", "could run, and waited for a CPU", _in(*tasks.WAITING)),
            Measure("latency", "from the wake-up until it ran", _in(tasks.WOKEN)),
            Measure("sleeping", "asleep (S, I)", _in(tasks.SLEEPING)),
            Measure("blocked", "in an uninterruptible sleep (D)", _in(tasks.BLOCKED)),
        ),
        {"preempted": _was_preempted, "migrated": lambda table: table["migrated"]},
        shown="latency", record="--preset latency",
    ),
    What(
        "syscalls", KINDS["syscalls"], ("name",), (Measure("duration", "in the kernel", _whole),),
        {"failed": lambda table: table["failed"]}, record="--events 'raw_syscalls:*'",
    ),
    What(
        "irqs", KINDS["irqs"], ("kind", "name"),
        (Measure("duration", "of the handler, or of the wait for it", _whole),),
        overall=("kind",), record="--preset irq",
    ),
    What(
        "block", KINDS["block_requests"], ("device", "rwbs"),
        (
            Measure("D2C", "from issue to completion: the device", _whole),
            Measure("I2D", "from the scheduler's queue to the issue", _column("inserted_ns")),
            Measure("G2I", "from the request to the scheduler", _before("got_ns", "inserted_ns")),
            Measure("Q2G", "from the bio to its request", _before("queued_ns", "got_ns")),
            Measure("Q2C", "from the bio to completion", _from_queueing),
        ),
        {"failed": lambda table: table["error"] != 0}, record="--preset block",
    ),
)  # fmt: skip
WHATS: Final[Mapping[str, What]] = MappingProxyType({one.name: one for one in _ROWS})
assert WHATS.keys() == NAMES.keys()


def of_kind(kind: Kind) -> What:
    """Return the question for the pairs that the user named."""
    return What(kind.name, kind, (), (Measure("duration", "from begin to end", _whole),))


def readable(table: Table) -> Table:
    """Return a table whose states are texts, for expressions and groups."""
    if "state" not in table:
        return table
    names = np.array(STATES, np.bytes_)
    return table | {name: names[table[name]] for name in ("state", "next")}

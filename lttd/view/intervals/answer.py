"""Collect an answer: durations by group and measure, counters, and the worst intervals.

Rule: memory holds one piece of the window, the open intervals, and the distributions; of more
groups than MOST_GROUPS the later ones are one group.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.errors import UsageError
from lttd.view.columns import EventBatch, EventRows
from lttd.view.filters import Where
from lttd.view.formats import EventName, EventType
from lttd.view.intervals.distribution import Distributions, Durations
from lttd.view.intervals.kind import Counts, Table, some_of
from lttd.view.intervals.question import TASK, Measure, What, readable

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MOST_GROUPS: Final = 1 << 17
OTHERS: Final = "(others)"
Label = tuple[str, ...]


class Selection(NamedTuple):
    """Which intervals count, and how they are grouped."""

    by: tuple[str, ...]
    cpus: frozenset[int] = frozenset()
    """Empty: all."""
    task: str = ""
    """A pid, or a glob of commands; empty: all."""
    where: Where | None = None
    not_pids: frozenset[int] = frozenset()
    """Tasks that are left out."""
    measure: str | None = None
    worst: int = 0
    """How many of the longest intervals are kept."""

    def check(self, what: What) -> None:
        """Refuse names that the intervals do not have.

        Raises:
            UsageError: there is such a name.
        """
        there = [name for name, _ in what.kind.columns]
        for name in self.by:
            if name != TASK and name not in there:
                raise UsageError(f"--by {name}: {what.name} can be grouped by {_listed(there)}")
        if (self.task or TASK in self.by) and "pid" not in there:
            raise UsageError(f"{what.name} has no tasks: leave --task out, and task out of --by")
        for name in self.where.names if self.where else ():
            if name not in there:
                raise UsageError(f"--where: {what.name} has no column {name}, but {_listed(there)}")
        names = [measure.name for measure in what.measures]
        if self.measure and self.measure not in names:
            raise UsageError(f"--measure {self.measure}: {what.name} has {', '.join(names)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


class _Rows(EventRows):
    """Intervals, as expressions see them."""

    def __init__(self, table: Table, name: str) -> None:
        super().__init__(_NOTHING, EventType(0, EventName("", name), 0, ""), np.empty(0, np.int64))
        self._columns = table
        self.rows = np.arange(len(table["end_ns"]))

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)


_NOTHING: Final = EventBatch(
    memoryview(b""), [], np.empty(0, np.uint64), np.empty(0, np.uint16), np.empty(0, np.int32),
    np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.int64),
    np.empty(0, np.uint32),
)  # fmt: skip


class Group(NamedTuple):
    """The numbers of one group."""

    label: Label
    measures: dict[str, Durations]
    counters: dict[str, int]
    unknown: int


class Answer:
    """The numbers of one question."""

    def __init__(self, what: What, selection: Selection) -> None:
        """Check that the intervals have what is asked for.

        Raises:
            UsageError: they do not.
        """
        selection.check(what)
        self.what = what
        self.selection = selection
        self.counts = Counts()
        self._by = tuple("pid" if name == TASK else name for name in selection.by)
        where = selection.where.names if selection.where else ()
        self._reads_names = bool(selection.worst or {"state", "next"} & {*self._by, *where})
        self._ids: dict[tuple[Any, ...], int] = {}
        self._comms: dict[int, bytes] = {}
        self._of = {measure.name: Distributions() for measure in what.measures}
        self._counters = {name: Counter() for name in (*what.counters, _UNKNOWN)}
        self.worst: Table = {}
        """The longest intervals of the measure that is shown, the longest first."""

    def add(self, table: Table) -> None:
        """Add intervals."""
        shown = readable(table) if self._reads_names else table
        kept = self._kept(shown)
        if kept is not None:
            table, shown = some_of(table, kept), some_of(shown, kept)
        if not len(table["end_ns"]):
            return
        ids = self._ids_of(shown)
        whole = table["complete"]
        self._counters[_UNKNOWN].add(ids[~whole])
        for name, which in self.what.counters.items():
            self._counters[name].add(ids[which(table) & whole])
        for measure in self.what.measures:
            durations = measure.durations(table)
            there = np.flatnonzero(whole & (durations >= 0))
            self._of[measure.name].add(ids[there], durations[there])
        if self.selection.worst:
            self._keep_worst(table, shown)

    def _kept(self, table: Table) -> Mask | None:
        """Return which intervals are selected; None: all."""
        chosen = self.selection
        masks: list[Mask] = []
        if chosen.cpus:
            masks.append(np.isin(table["cpu"], list(chosen.cpus)))
        if chosen.not_pids and "pid" in table:
            masks.append(~np.isin(table["pid"], list(chosen.not_pids)))
        if chosen.task:
            masks.append(_of_task(table, chosen.task))
        if chosen.where:
            masks.append(chosen.where.mask(_Rows(table, self.what.name)))
        return np.logical_and.reduce(masks) if masks else None

    def _ids_of(self, table: Table) -> I64:
        """Return the number of each interval's group."""
        if "pid" in table and "comm" in table:
            pids, last = np.unique(table["pid"][::-1], return_index=True)
            self._comms.update(zip(pids.tolist(), table["comm"][::-1][last].tolist(), strict=True))
        count = len(table["end_ns"])
        if not self._by:
            return np.zeros(count, np.int64)
        code = np.zeros(count, np.int64)
        for name in self._by:
            values, which = np.unique(table[name], return_inverse=True)
            code = np.unique(code * len(values) + which.reshape(-1), return_inverse=True)[
                1
            ].reshape(-1)
        _, first = np.unique(code, return_index=True)
        keys = zip(*(table[name][first].tolist() for name in self._by), strict=True)
        numbers = np.array([self._id_of(key) for key in keys], np.int64)
        return numbers[code]

    def _id_of(self, key: tuple[Any, ...]) -> int:
        if key not in self._ids and len(self._ids) >= MOST_GROUPS:
            key = (OTHERS.encode(),) * len(self._by)
        return self._ids.setdefault(key, len(self._ids))

    def _keep_worst(self, table: Table, shown: Table) -> None:
        durations = self.shown.durations(table)
        most = self.selection.worst
        there = np.flatnonzero(table["complete"] & (durations >= 0))
        if len(there) > most:
            there = there[np.argpartition(durations[there], -most)[-most:]]
        new = some_of(shown | {"measured_ns": durations}, there)
        if self.worst:
            new = {name: np.concatenate((self.worst[name], one)) for name, one in new.items()}
        order = np.lexsort((new["begin_ns"], -new["measured_ns"]))[:most]
        self.worst = some_of(new, order)

    @property
    def shown(self) -> Measure:
        """The measure of the worst intervals and of the histogram."""
        return self.what.measure(self.selection.measure)

    def whole(self, measure: str | None = None) -> Durations:
        """Return a measure of all groups together; None: the one that is shown."""
        return self._of[self.what.measure(measure or self.shown.name).name].of_all()

    def groups(self) -> Iterator[Group]:
        """Yield the groups, those with the longest total first."""
        made = [
            self._group(key, number) for key, number in (self._ids if self._by else {(): 0}).items()
        ]
        first = self.what.measures[0].name
        yield from sorted(made, key=lambda one: (-one.measures[first].total_ns, one.label))

    def _group(self, key: tuple[Any, ...], number: int) -> Group:
        label = tuple(
            self._told(name, one) for name, one in zip(self.selection.by, key, strict=True)
        )
        return Group(
            label,
            {name: of.of(number) for name, of in self._of.items()},
            {name: self._counters[name].of(number) for name in self.what.counters},
            self._counters[_UNKNOWN].of(number),
        )

    def _told(self, name: str, value: object) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if name == TASK and isinstance(value, int):
            return f"{self.comm(value)}-{value}"
        return str(value)

    def comm(self, pid: int) -> str:
        """Return the last known command of a task."""
        return self._comms.get(pid, b"").decode("utf-8", "replace") or "<...>"


_UNKNOWN: Final = "unknown"


class Counter:
    """Counts by the number of a group."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)

    def add(self, groups: I64) -> None:
        """Count one for each."""
        if len(groups):
            found = np.bincount(groups, minlength=len(self._counts))
            found[: len(self._counts)] += self._counts
            self._counts = found

    def of(self, group: int) -> int:
        """Return the count of a group."""
        return int(self._counts[group]) if group < len(self._counts) else 0


def _of_task(table: Table, task: str) -> Mask:
    if task.isascii() and task.isdecimal():
        found: Mask = table["pid"] == int(task)
        return found
    comms = table.get("comm")
    if comms is None:
        raise UsageError(f"--task {task}: these intervals have no commands; name a pid")
    names, which = np.unique(comms, return_inverse=True)
    texts = [name.decode("utf-8", "replace") for name in names.tolist()]
    wanted = np.array([fnmatchcase(text, task) for text in texts] or [False], np.bool_)
    return wanted[which.reshape(-1)]

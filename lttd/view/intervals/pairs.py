"""Intervals between two events that the user names: ``--pair 'BEGIN,END,KEY,...'``.

    irq_handler_entry,irq_handler_exit,cpu,irq
    sched_waking,sched_switch,pid=next_pid
    sched_switch if next_pid == 42,sched_switch if prev_pid == 42,cpu

BEGIN and END are names of events, or ``system:name``; an expression after ``if`` selects some of
them.  Each KEY is an expression, of the begin and, after ``=``, of the end; a begin is followed by
the next end with the same values.  Expressions are those of ``--where``.

Rule: if a key is ``cpu`` on both sides, only a loss on that CPU makes a pair unknown; else any.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.errors import UsageError
from lttd.view.columns import EventBatch, EventRows
from lttd.view.filters import MISSING, Where, matches
from lttd.view.intervals.gathering import Part, gathered
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import TEXT, Counts, Kind, Table, duration_ns
from lttd.view.intervals.order import hashed
from lttd.view.intervals.pairing import Events, Matcher
from lttd.view.intervals.setting import Setting

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

NAME: Final = "pair"
_OPTION: Final = "--pair"
_SPLIT: Final = re.compile(r"""((?:[^,()\[\]"']|"[^"]*"|'[^']*'|\([^()]*\)|\[[^\]]*\])+)(?:,|$)""")
_SIDES: Final = re.compile(r"(?<![=!<>~])=(?![=~])")
_FORM: Final = "write 'BEGIN,END,KEY', such as 'irq_handler_entry,irq_handler_exit,cpu,irq'"


class Bound(NamedTuple):
    """The event at one end of a pair."""

    event: str
    condition: Where | None
    keys: tuple[Where, ...]

    def part(self, rows: EventRows, *, begins: bool) -> Part | None:
        """Return the events that bound a pair, with their keys; None: none can."""
        if not matches(rows.event_type.system, rows.event_type.name, self.event):
            return None
        if self.condition is not None:
            rows = rows.some(self.condition.mask(rows))
        columns: dict[str, Column] = {}
        for number, key in enumerate(self.keys):
            found = key.value(rows)
            if found is MISSING:
                return None
            if not isinstance(found, np.ndarray):
                found = np.full(len(rows), found)
            if found.ndim > 1:
                raise UsageError(f"{_OPTION}: {key.text} is an array: name an element of it")
            text = found.dtype.kind in "SO"
            columns[f"key{number}"] = found.astype(np.bytes_ if text else np.int64)
        columns["pid"] = rows.pid
        columns["begins"] = np.full(len(rows), begins)
        return Part(rows.rows, columns)


class Pair(NamedTuple):
    """A parsed ``--pair``."""

    begin: Bound
    end: Bound

    @property
    def on_one_cpu(self) -> bool:
        """Tell whether both events are on one CPU."""
        sides = zip(self.begin.keys, self.end.keys, strict=True)
        return any(a.text == b.text == "cpu" for a, b in sides)

    @property
    def key_names(self) -> list[str]:
        """The names of the columns with the keys."""
        return [key.text for key in self.begin.keys]


def parse_pair(text: str) -> Pair:
    """Parse the value of ``--pair``.

    Raises:
        UsageError: it is not valid.
    """
    found = _SPLIT.findall(text)
    parts = [one.strip() for one in found]
    if len(parts) < 3 or not all(parts) or ",".join(found) != text:
        raise UsageError(f"{_OPTION} {text!r}: {_FORM}")
    sides = [[side.strip() for side in _SIDES.split(key)] for key in parts[2:]]
    if any(len(one) > 2 or not all(one) for one in sides):
        raise UsageError(f"{_OPTION} {text!r}: a key is A, or A=B: {_FORM}")
    bounds = []
    for number, bound in enumerate(parts[:2]):
        event, _, condition = bound.partition(" if ")
        keys = tuple(Where(one[-1 if number else 0], _OPTION) for one in sides)
        where = Where(condition, _OPTION) if condition.strip() else None
        bounds.append(Bound(event.strip(), where, keys))
    return Pair(*bounds)


def kind_of(pair: Pair) -> Kind:
    """Return the kind of interval that a pair is."""
    keys = tuple((name, TEXT) for name in pair.key_names)
    columns = (
        ("begin_ns", "u8"), ("end_ns", "u8"), ("duration_ns", "i8"), ("cpu", "u2"), ("pid", "i4"),
        *keys, ("complete", "?"),
    )  # fmt: skip
    events = (pair.begin.event, pair.end.event)
    return Kind(
        NAME, "pairs of two events", events, events, columns, lambda setting: Pairs(setting, pair)
    )


class Pairs:
    """Finds the pairs of two events."""

    def __init__(self, _setting: Setting, pair: Pair) -> None:
        self.counts = Counts()
        self._pair = pair
        self._seen = [0, 0]
        """How many ends and begins there were."""
        self._matcher = Matcher(self.counts, on_one_cpu=pair.on_one_cpu)

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        keys = [f"key{number}" for number in range(len(self._pair.begin.keys))]
        events = gathered(batch, self._parts(batch), (*keys, "pid", "begins"))
        if events is None:
            return None
        begins = events["begins"]
        self._seen[0] += int(np.count_nonzero(~begins))
        self._seen[1] += int(np.count_nonzero(begins))
        more = {name: events[name] for name in (*keys, "pid")}
        key = hashed([events[name] for name in keys])
        pairs = self._matcher.take(
            Events(events["time"], events["cpu"], key, events["begins"], more), holes
        )
        begin, end = pairs.begin["time"], pairs.end["time"]
        named = zip(self._pair.key_names, keys, strict=True)
        return (
            {
                "begin_ns": begin,
                "end_ns": end,
                "duration_ns": duration_ns(begin, end),
                "cpu": pairs.end["cpu"],
                "pid": pairs.begin["pid"],
            }
            | {name: pairs.begin[key] for name, key in named}
            | {"complete": pairs.complete}
        )

    def finish(self) -> None:
        """See ``Collector``; without one of the two events there is nothing to pair."""
        self._matcher.finish()
        self.counts.events = sum(self._seen) if all(self._seen) else 0

    def _parts(self, batch: EventBatch) -> Iterator[Part]:
        """Yield the events; of one that ends a pair and begins the next, the end comes first."""
        for rows in batch.by_type():
            for bound, begins in ((self._pair.end, False), (self._pair.begin, True)):
                part = bound.part(rows, begins=begins)
                if part is not None:
                    yield part
